"""Writes what OpenSlide's DeepZoomGenerator says of the slide the repository brings along.

    python -m venv v && v/bin/pip install openslide-python==1.4.7 openslide-bin==4.0.1.2
    v/bin/python make.py
"""
import json
import pathlib

import openslide
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

here = pathlib.Path(__file__).parent
slide = openslide.OpenSlide(here / "../../../testdata/CMU-1-Small-Region.svs")
cases = []
for size, overlap in [(254, 1), (256, 0), (100, 8)]:
    z = DeepZoomGenerator(slide, tile_size=size, overlap=overlap)
    levels = []
    for level, (width, height) in enumerate(z.level_dimensions):
        columns, rows = z.level_tiles[level]
        levels.append({
            "size": [width, height],
            "widths": [z.get_tile_dimensions(level, (c, 0))[0] for c in range(columns)],
            "heights": [z.get_tile_dimensions(level, (0, r))[1] for r in range(rows)],
        })
    cases.append({"tile_size": size, "overlap": overlap, "descriptor": z.get_dzi("jpeg"), "levels": levels})
(here / "geometry.json").write_text(json.dumps(cases) + "\n")

# The generator shrinks with Lanczos' filter. Pictures to compare with are averaged, as Coverslip does: the
# filters alone make 32 to 36 dB on tissue, as much as being half a pixel aside.
shrink = Image.Image.thumbnail
Image.Image.thumbnail = lambda im, size, _: shrink(im, size, Image.Resampling.BOX, reducing_gap=None)
z = DeepZoomGenerator(slide, tile_size=254, overlap=1)
for level, column, row in [(12, 4, 11), (11, 1, 5), (10, 0, 2), (9, 0, 1), (8, 0, 0), (5, 0, 0)]:
    z.get_tile(level, (column, row)).save(here / f"{level}_{column}_{row}.png")
