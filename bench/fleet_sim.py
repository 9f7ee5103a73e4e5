#!/usr/bin/env python3
"""Simulates the queue and its workers, to size a fleet before there is one.

    python3 bench/fleet_sim.py --slides 11700 --workers 40
    python3 bench/fleet_sim.py --check          # against a run that was measured: bench fleet

A discrete-event simulation: workers take slides in turn, read each whole once (size, MD5, SHA-256), find
tissue and plan, read the tiles again in ranges and encode them, and publish. Workers die, at random or one
after the other; their slides go on elsewhere after the lease, from the last checkpoint. What a slide costs is
measured (docs/SCALE.md says where); sizes and numbers of tiles are drawn from log-normal distributions.
One JSON object a line. Standard library only; equal seeds give equal runs.
"""
import argparse
import heapq
import json
import math
import random

CHECKPOINT = 512      # tiles
LEASE = 20 * 1.25     # seconds until a dead worker's slide is available, on average: --lease, and half a sweep more
PIECE = 4 << 20       # bytes of a request while a slide is read whole
RANGE = 1 << 20       # bytes of a request while tiles are read, about


def lognormal(rng, mean, spread):
    """A draw with this mean, whose logarithm has this standard deviation; 0 is the mean itself."""
    return mean * math.exp(rng.gauss(0, spread) - spread * spread / 2) if spread else mean


def simulate(a):
    rng = random.Random(a.seed)
    slides = []
    for _ in range(a.slides):
        factor = lognormal(rng, 1, a.spread)
        slides.append((a.gigabytes * 1e9 * factor, max(1, round(a.tiles * factor))))
    waiting = list(range(a.slides))[::-1]   # taken from the end
    kept = [0] * a.slides                   # tiles in checkpoints
    read = [False] * a.slides               # whole, once
    events = []                             # time, number, what, worker, slide
    number = 0
    run = {"deaths": 0, "redone": 0, "gets": 0, "puts": 0, "bytes": 0.0, "cpu": 0.0, "transactions": 0.0, "busy": 0.0}

    def at(time, what, worker=0, slide=0):
        nonlocal number
        number += 1
        heapq.heappush(events, (time, number, what, worker, slide))

    # Cores are shared where workers are more than the machines they run on have.
    share = min(1.0, a.cores_in_all / (a.workers * a.cores)) if a.cores_in_all else 1.0
    cores = a.cores * share
    took = {}                               # worker: (slide, when it began, stages)
    dead = set()

    def begin(now, worker):
        if not waiting:
            return
        slide = waiting.pop()
        size, tiles = slides[slide]
        cpu = a.fixed_cpu
        reading = 0.0
        if not read[slide]:
            reading = max(size / (a.megabytes * 1e6), size / 1e9 * a.hash_cpu / min(cores, 1))
            cpu += size / 1e9 * a.hash_cpu
            run["gets"] += math.ceil(size / PIECE) + 1
            run["bytes"] += size
        left = tiles - kept[slide]
        encoding = left * a.tile_cpu / (cores * a.efficiency) + a.fixed_cpu / min(cores, 1)
        fetched = size * a.touched * left / tiles
        encoding = max(encoding, fetched / (a.megabytes * 1e6))
        run["gets"] += math.ceil(fetched / RANGE) + 2
        run["bytes"] += fetched
        cpu += left * a.tile_cpu
        took[worker] = (slide, now, reading, encoding, cpu, left)
        at(now + reading + encoding, "done", worker, slide)

    for worker in range(a.workers):
        begin(0.0, worker)
    if a.kill_every:
        at(a.kill_every, "kill", rng.randrange(a.workers))
    for worker in range(a.workers):
        if a.deaths_per_day:
            at(rng.expovariate(a.deaths_per_day / 86400), "kill", worker)
    done, now = 0, 0.0
    while events and done < a.slides:
        now, _, what, worker, slide = heapq.heappop(events)
        if what == "done":
            mine = took.get(worker)
            if mine is None or mine[0] != slide or now < mine[1] + mine[2] + mine[3] - 1e-9:
                continue                    # it died in between
            del took[worker]
            done += 1
            run["cpu"] += mine[4]
            run["busy"] += now - mine[1]
            run["puts"] += 1 + mine[5] // CHECKPOINT
            run["transactions"] += a.transactions
            begin(now, worker)
        elif what == "kill":
            run["deaths"] += 1
            mine = took.pop(worker, None)
            if mine is not None:
                slide, since, reading, encoding, cpu, left = mine
                gone = now - since
                run["busy"] += gone
                run["cpu"] += cpu * min(1.0, gone / (reading + encoding))
                if gone >= reading:
                    read[slide] = True
                    encoded = int(left * (gone - reading) / encoding) if encoding else left
                    kept[slide] += encoded // CHECKPOINT * CHECKPOINT
                    run["redone"] += encoded % CHECKPOINT
                at(now + LEASE, "back", 0, slide)
            dead.add(worker)
            at(now + a.restart, "start", worker)
            if a.kill_every:
                at(now + a.kill_every, "kill", rng.randrange(a.workers))
            else:
                at(now + rng.expovariate(a.deaths_per_day / 86400), "kill", worker)
        elif what == "start":
            dead.discard(worker)
            begin(now, worker)
        elif what == "back":
            waiting.append(slide)
            for idle in range(a.workers):
                if idle not in took and idle not in dead:
                    begin(now, idle)
                    break
    hours = now / 3600
    # Every process keeps River's listener and a few connections of its pool (pool_max_conns).
    return {
        "slides": a.slides, "workers": a.workers, "hours": round(hours, 2), "slides_per_hour": round(a.slides / hours, 1),
        "core_hours": round(run["cpu"] / 3600, 1), "busy": round(run["busy"] / (now * a.workers), 3),
        "deaths": run["deaths"], "tiles_redone": run["redone"], "terabytes_read": round(run["bytes"] / 1e12, 2),
        "s3_gets": run["gets"], "s3_puts": run["puts"],
        "s3_dollars": round(run["gets"] / 1000 * 0.0004 + run["puts"] / 1000 * 0.005, 2),
        "postgres_connections": a.workers * a.connections + 20,
        "postgres_transactions_per_second": round(run["transactions"] / now + a.workers * (2 / 5 + 2), 1),
        "postgres_cpu_cores": round(a.slides * a.job_cpu / now, 3),
    }


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slides", type=int, default=11700)
    p.add_argument("--workers", type=int, default=40)
    p.add_argument("--cores", type=float, default=8, help="of a worker")
    p.add_argument("--cores-in-all", type=float, default=0, help="that workers share; 0: each has its own")
    p.add_argument("--gigabytes", type=float, default=1.37, help="of a slide, on average (16 TB / 11,700)")
    p.add_argument("--tiles", type=float, default=12000, help="of a slide, on average")
    p.add_argument("--spread", type=float, default=0.7, help="standard deviation of the logarithm of both")
    p.add_argument("--touched", type=float, default=0.5, help="share of a slide's bytes that its tiles need")
    p.add_argument("--megabytes", type=float, default=60, help="a second from the store to a worker")
    p.add_argument("--tile-cpu", type=float, default=1 / 100, help="seconds to read and encode a tile on one core")
    p.add_argument("--efficiency", type=float, default=0.9, help="of more cores than one")
    p.add_argument("--hash-cpu", type=float, default=0.9, help="seconds to hash a gigabyte")
    p.add_argument("--fixed-cpu", type=float, default=0.3, help="seconds of a slide besides: opening, mask, publishing")
    p.add_argument("--job-cpu", type=float, default=0.005, help="seconds of Postgres and queue for a job")
    p.add_argument("--transactions", type=float, default=12, help="of Postgres for a job")
    p.add_argument("--connections", type=float, default=6, help="of a worker")
    p.add_argument("--deaths-per-day", type=float, default=0.2, help="of a worker")
    p.add_argument("--kill-every", type=float, default=0, help="seconds; instead of deaths at random")
    p.add_argument("--restart", type=float, default=30, help="seconds until a dead worker is replaced")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--check", nargs="?", const="", metavar="MS", help="simulate bench fleet, given its CPU ms a slide, and print the rate to compare")
    a = p.parse_args()
    if a.check is not None:
        ms = float(a.check or 150)
        a.slides, a.workers, a.cores, a.cores_in_all, a.gigabytes, a.tiles, a.spread = 12000, 4, 2, 2, 1e-5, 1, 0
        a.tile_cpu, a.fixed_cpu, a.efficiency, a.kill_every, a.restart = ms / 1000 * 0.1, ms / 1000 * 0.9, 1, 20, 2
    print(json.dumps(simulate(a)))


if __name__ == "__main__":
    main()
