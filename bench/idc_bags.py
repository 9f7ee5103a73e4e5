"""Bags of the breast tiles of ../shared/data/idc with the encoder that ships, for `coverslip import bags`.

    .tools/bench/bin/python bench/idc_bags.py ../shared/data/idc OUT
    bin/coverslip import bags OUT --format npz --cohort idc --encoder efficientnet-lite0 --mpp 0.893 --size 224 --mpp-of-slide 4
    bin/coverslip import csv OUT/labels.csv --cohort idc

Tiles are 50 x 50 pixels of about 4 µm; each is enlarged to the 224 that the encoder takes. One patient is one
slide. The label is whether more than a quarter of the tiles show invasive carcinoma.
"""

import csv
import pathlib
import re
import sys

import numpy as np
import onnxruntime
from PIL import Image

source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession("encoder/weights/efficientnet-lite0.onnx", options)
patients = list(csv.DictReader(open(source / "patients.csv")))
with open(out / "labels.csv", "w", newline="") as f:
    table = csv.writer(f)
    table.writerow(["slide", "patient", "idc"])
    for n, row in enumerate(patients):
        tiles = sorted((source / "tiles" / row["patient"]).glob("*.png"))
        coords = [[int(v) for v in re.match(r"x(\d+)_y(\d+)_", t.name).groups()] for t in tiles]
        pixels = np.stack([np.asarray(Image.open(t).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)) for t in tiles])
        features = np.concatenate([session.run(["features"], {"pixels": pixels[i : i + 8]})[0] for i in range(0, len(pixels), 8)])
        np.savez(out / f"idc-{row['patient']}.npz", features=features, coords=np.array(coords, np.int64))
        table.writerow([f"idc-{row['patient']}", row["patient"], "yes" if row["label"] == "1" else "no"])
        print(f"{n + 1} of {len(patients)}: {row['patient']}, {len(tiles)} tiles", file=sys.stderr)
