"""Writes the int8 variant of the default encoder, efficientnet-lite0-int8.onnx: static quantisation,
calibrated on real tiles.

    python quantize.py TILES SLIDE

TILES is a folder of 224-px tiles in one folder a class (24 of each are read), SLIDE a pyramid of JPEG tiles at
0.5 µm per pixel whose level 0 is cut into a grid. docs/ENCODERS.md says what came of it; bench/crc5.py
measures it. Same requirements and tiles, same bytes.

Scales are fixed here, in the file: dynamic quantisation would let a tile's features depend on its
batch-mates. Weights get a scale a channel, wide enough that no two neighbours sum to more than 128:
processors without VNNI add pairs of products, 255 * (a + b), in sixteen bits
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#when-and-why-do-i-need-to-try-u8u8),
and would clip them. Giving each weight seven bits, the usual remedy, costs far more accuracy. The first
convolution stays in float32: its products are paired across its window, and it is a small one.
"""

import pathlib
import sys
import tempfile

import numpy as np
import onnx
import tifffile
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

from export import publish

HERE = pathlib.Path(__file__).resolve().parent
SIZE, BATCH = 224, 8
A_CLASS, OF_SLIDE = 24, 120  # tiles


class Reader(CalibrationDataReader):
    def __init__(self, tiles):
        self.batches = iter([{"pixels": tiles[i : i + BATCH]} for i in range(0, len(tiles), BATCH)])

    def get_next(self):
        return next(self.batches, None)


def main(tiles, slide):
    tiles = np.concatenate([labelled(pathlib.Path(tiles)), cut(slide)])
    with tempfile.TemporaryDirectory() as folder:
        prepared = pathlib.Path(folder) / "prepared.onnx"
        quant_pre_process(HERE / "efficientnet-lite0.onnx", prepared, skip_symbolic_shape=True)
        out = pathlib.Path(folder) / "int8.onnx"
        quantize_static(
            prepared,
            out,
            Reader(tiles),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", "Clip"],
            nodes_to_exclude=[convolutions(prepared)[0].name],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"TensorQuantOverrides": scales(prepared)},
        )
        model = onnx.load(out)
    del model.metadata_props[:]
    model.producer_name = model.producer_version = ""
    check(model)
    publish("efficientnet-lite0-int8", model.SerializeToString(deterministic=True))


def convolutions(path):
    return [n for n in onnx.load(path).graph.node if n.op_type == "Conv"]


def scales(path):
    """The range of each channel's weights, for all convolutions of one pixel."""
    weights = {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    out = {}
    for node in convolutions(path):
        w = weights[node.input[1]]
        if w.shape[2:] != (1, 1):  # depthwise ones are multiplied one by one
            continue
        scale = np.maximum(np.abs(w).max((1, 2, 3)) / 127, np.abs(pairs(w)).max(1) / 127.9)
        out[node.input[1]] = [
            {"quant_type": QuantType.QInt8, "axis": 0, "symmetric": True, "rmin": np.float32(-127 * s), "rmax": np.float32(127 * s)}
            for s in scale
        ]
    return out


def pairs(w):
    """Sums of neighbours along the channels that come in, of weights [out,in,1,1]."""
    w = w.reshape(len(w), -1)
    return w[:, 0::2] + w[:, 1::2]


def check(model):
    for i in model.graph.initializer:
        w = numpy_helper.to_array(i)
        if w.dtype == np.int8 and w.ndim == 4 and w.shape[2:] == (1, 1):
            most = np.abs(pairs(w.astype(int))).max()
            assert most <= 128, f"{i.name}: two neighbours sum to {most}"


def labelled(folder):
    """A_CLASS tiles of each class, spread evenly over the names."""
    out = []
    for kind in sorted(p for p in folder.iterdir() if p.is_dir()):
        names = sorted(kind.iterdir())
        out += [read(names[i * len(names) // A_CLASS]) for i in range(A_CLASS)]
    return np.stack(out)


def read(path):
    image = Image.open(path).convert("RGB")
    assert image.size == (SIZE, SIZE), f"{path}: {image.size}"
    return np.asarray(image)


def cut(slide):
    """OF_SLIDE tiles spread evenly over those of the slide's grid that are a quarter tissue."""
    pixels = tifffile.imread(slide, key=0)
    rows, columns = pixels.shape[0] // SIZE, pixels.shape[1] // SIZE
    grid = pixels[: rows * SIZE, : columns * SIZE].reshape(rows, SIZE, columns, SIZE, 3)
    grid = grid.transpose(0, 2, 1, 3, 4).reshape(-1, SIZE, SIZE, 3)
    few = grid[:, ::8, ::8].astype(np.int16)
    tissue = ((few.max(-1) - few.min(-1)) > 25).mean((1, 2)) >= 0.25
    kept = np.flatnonzero(tissue)
    return grid[kept[np.arange(OF_SLIDE) * len(kept) // OF_SLIDE]]


if __name__ == "__main__":
    main(*sys.argv[1:])
