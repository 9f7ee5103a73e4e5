"""Writes golden.json: what openslide-python shows of regions, laid on white.

pip install openslide-python openslide-bin==4.0.1.2 numpy; run in tiler/openslide.
"""
import ctypes, hashlib, json
import numpy as np
from openslide import OpenSlide, lowlevel

def region(slide, level, x, y, w, h):
    down = slide.level_downsamples[level]
    raw = (ctypes.c_uint32 * (w * h))()
    lowlevel._read_region(slide._osr, raw, round(x * down), round(y * down), level, w, h)
    argb = np.frombuffer(raw, np.uint8).reshape(h, w, 4).astype(np.uint16)
    rgb = argb[..., 2::-1] + (255 - argb[..., 3:])  # premultiplied, on white
    return np.minimum(rgb, 255).astype(np.uint8)

out = []
for name, regions in {
    "../../testdata/CMU-1-Small-Region.svs": [(0, 0, 0, 256, 256), (0, 1000, 1200, 900, 700), (0, 2100, 2900, 120, 67)],
    "../../../shared/data/wsi/ndpi/test3-DAPI.ndpi": [(0, 0, 0, 3968, 300), (0, 1777, 2345, 512, 512), (1, 1000, 2000, 984, 432), (6, 0, 0, 62, 76)],
}.items():
    with OpenSlide(name) as slide:
        for level, x, y, w, h in regions:
            sum = hashlib.sha256(region(slide, level, x, y, w, h).tobytes()).hexdigest()
            out.append({"file": name, "level": level, "x": x, "y": y, "w": w, "h": h, "sha256": sum})
with open("testdata/golden.json", "w") as f:
    f.write("[\n" + ",\n".join("  " + json.dumps(o) for o in out) + "\n]\n")
