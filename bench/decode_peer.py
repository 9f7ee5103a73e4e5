"""Tiles of a slide by another reader, on one thread, to measure Coverslip against.

    python decode_peer.py READER SLIDE PLAN.csv EDGE [DUMP]

READER is openslide-c (read_region through ctypes: what OpenSlide itself takes, pixels left as they
come), openslide-python (read_region as people use it: an RGB numpy array), tiffslide, pyvips or cucim
(its reader on the CPU). Tiles
are EDGE level-0 pixels, at the places of the plan. With DUMP the first run writes them there, RGB row
by row. Prints one JSON object a run; reads one line from standard input before each.
"""

import csv
import ctypes
import json
import resource
import sys

import numpy as np


def openslide_c(path, edge):
    from openslide_bin import libopenslide1 as library

    library.openslide_open.restype = ctypes.c_void_p
    library.openslide_read_region.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64,
    ]
    library.openslide_read_region.restype = None
    read = library.openslide_read_region
    handle = library.openslide_open(path.encode())
    buffer = ctypes.create_string_buffer(edge * edge * 4)

    def tile(x, y):
        read(handle, buffer, x, y, 0, edge, edge)
        return buffer

    def close():
        library.openslide_close.argtypes = [ctypes.c_void_p]
        library.openslide_close(handle)

    return tile, close


def openslide_python(path, edge):
    import openslide

    slide = openslide.OpenSlide(path)
    return lambda x, y: np.asarray(slide.read_region((x, y), 0, (edge, edge)).convert("RGB")), slide.close


def tiffslide(path, edge):
    import tiffslide

    slide = tiffslide.TiffSlide(path)
    return lambda x, y: slide.read_region((x, y), 0, (edge, edge), as_array=True), slide.close


def pyvips(path, edge):
    import pyvips

    region = pyvips.Region.new(pyvips.Image.tiffload(path))

    def tile(x, y):
        return np.frombuffer(region.fetch(x, y, edge, edge), np.uint8)

    return tile, lambda: None


def cucim(path, edge):
    from cucim import CuImage

    slide = CuImage(path)
    return lambda x, y: np.asarray(slide.read_region((x, y), (edge, edge), 0)), slide.close


def main():
    reader, path, plan, edge = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    places = [(int(row["x"]), int(row["y"])) for row in csv.DictReader(open(plan))]
    make = {"openslide-c": openslide_c, "openslide-python": openslide_python, "tiffslide": tiffslide, "pyvips": pyvips, "cucim": cucim}[reader]
    if len(sys.argv) > 5:
        tile, close = make(path, edge)
        with open(sys.argv[5], "wb") as out:
            for x, y in places:
                out.write(np.ascontiguousarray(tile(x, y)).tobytes())
        close()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF)
        tile, close = make(path, edge)
        for x, y in places:
            tile(x, y)
        close()
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"images": len(places), "cpu_seconds": cpu}), flush=True)


if __name__ == "__main__":
    main()
