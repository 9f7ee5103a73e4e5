"""Writes the small aggregators that slidessl/foreign is tested with, and what PyTorch makes of some tiles.

    python -m venv venv && venv/bin/pip install -r ../../slidessl/foreign/specs/requirements.txt
    venv/bin/python foreign.py ../../slidessl/foreign/testdata
"""

import json
import os
import sys

import torch

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../slidessl/foreign/specs"))
import export  # noqa: E402


class Placed(torch.nn.Module):
    """Mean of features, each weighed by where its tile lies: by column plus twice the row."""

    def forward(self, features, coords, pitch):
        at = (coords // pitch).to(features.dtype)
        return (features * (1 + at[..., :1] + 2 * at[..., 1:])).mean(1)


def main(out):
    calls = {
        "abmil": export.RECIPES["abmil"](type("Args", (), {"dim": 6})()),
        "placed": export.Call(Placed(), lambda m, *inputs: m(*inputs), 6, coords=torch.int64, pitch=True),
    }
    golden = {}
    for name, call in calls.items():
        call = call.eval()
        n = torch.export.Dim("tiles", min=2, max=1 << 20)
        names = ["features"] + (["coords", "pitch"] if call.coords else [])
        shapes = [{1: n}] + ([{1: n}, {}] if call.coords else [])
        path = os.path.join(out, name + ".onnx")
        torch.onnx.export(call, call.example(100), path, input_names=names, output_names=["embedding"], dynamic_shapes=(tuple(shapes),), dynamo=True)
        inputs = call.example(7)
        embedding = call(*inputs)[0]
        golden[name] = {"features": inputs[0][0].tolist(), "embedding": (embedding / embedding.norm()).tolist()}
        if call.coords:
            golden[name] |= {"coords": inputs[1][0].tolist(), "pitch": int(inputs[2])}
    with open(os.path.join(out, "golden.json"), "w") as f:
        json.dump(golden, f)
        f.write("\n")


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1])
