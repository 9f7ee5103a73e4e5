"""Writes the ONNX file of a slide-level aggregator whose specification ships, from weights that are yours to fetch.

    python -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python export.py NAME OUT.onnx [--code FOLDER] [--tiles N]
    coverslip models add aggregator OUT.onnx --spec NAME

NAME is one of the recipes below. Gated weights need `hf auth login` by somebody who was granted access. `abmil`
needs none: gated attention with random weights, to try the way. The file is run once on other tiles than it was
traced with and held to PyTorch before it is written. docs/PRETRAIN.md says which recipes were run, and where.
"""

import argparse
import os
import sys

import torch

RECIPES = {}


def recipe(f):
    RECIPES[f.__name__.replace("_", "-")] = f
    return f


class Call(torch.nn.Module):
    """A network and how it is called: `how(network, features, coords, pitch)` gives [1, D]."""

    def __init__(self, network, how, dim, coords=None, pitch=False, batch=True):
        super().__init__()
        self.network, self.how, self.dim, self.coords, self.pitch, self.batch = network, how, dim, coords, pitch, batch

    def forward(self, *inputs):
        return self.how(self.network, *inputs)

    def example(self, n):
        """Features of n tiles, laid on a square map."""
        generator = torch.Generator().manual_seed(n)
        features = torch.randn(n, self.dim, generator=generator)
        inputs = [features[None] if self.batch else features]
        if self.coords:
            side = int(n**0.5) + 1
            at = torch.stack([torch.arange(n) % side, torch.arange(n) // side], 1)[None]
            inputs.append((at * 512).long() if self.coords == torch.int64 else (at * 256).float())
        if self.pitch:
            inputs.append(torch.tensor([512]))
        return tuple(inputs)


class GatedAttention(torch.nn.Module):
    """Ilse et al. 2018, arXiv 1802.04712, equation 9, behind a linear layer."""

    def __init__(self, d, hidden, attend):
        super().__init__()
        self.stem = torch.nn.Linear(d, hidden)
        self.v, self.u, self.w = torch.nn.Linear(hidden, attend), torch.nn.Linear(hidden, attend), torch.nn.Linear(attend, 1)

    def forward(self, x):
        h = torch.relu(self.stem(x))
        a = torch.softmax(self.w(torch.tanh(self.v(h)) * torch.sigmoid(self.u(h))), dim=1)
        return (a * h).sum(1)


@recipe
def abmil(args):
    torch.manual_seed(0)
    return Call(GatedAttention(args.dim, 16, 8), lambda m, x: m(x), args.dim)


def hub(name):
    from transformers import AutoModel

    return AutoModel.from_pretrained(name, trust_remote_code=True).float()


@recipe
def feather(args):
    return Call(hub("MahmoodLab/abmil.base.conch_v15.pc108-24k"), lambda m, x: m.forward_features(x)[0], 768)


@recipe
def feather_uni2(args):
    return Call(hub("MahmoodLab/abmil.base.uni_v2.pc108-24k"), lambda m, x: m.forward_features(x)[0], 1536)


@recipe
def prism(args):
    network = hub("paige-ai/Prism")
    network.text_decoder = None
    return Call(network, lambda m, x: m.slide_representations(x)["image_embedding"], 2560)


@recipe
def titan(args):
    return Call(hub("MahmoodLab/TITAN"), lambda m, x, at, pitch: m.encode_slide_from_patch_features(x, at, pitch), 768, coords=torch.int64, pitch=True)


@recipe
def chief(args):
    """Of a clone of hms-dbmi/CHIEF, --code, with its weights in model_weight/."""
    sys.path.append(args.code)
    os.chdir(args.code)
    from models.CHIEF import CHIEF

    network = CHIEF(size_arg="small", dropout=True, n_classes=2)
    network.load_state_dict(torch.load("model_weight/CHIEF_pretraining.pth", map_location="cpu", weights_only=True))
    return Call(network, lambda m, x: m(x, torch.tensor([0]))["WSI_feature"], 768, batch=False)


@recipe
def gigapath_slide(args):
    """Of the package gigapath; its LongNet must be told to do without flash attention (PyTorch's stands in)."""
    from gigapath.slide_encoder import create_model
    from huggingface_hub import hf_hub_download

    weights = hf_hub_download(repo_id="prov-gigapath/prov-gigapath", filename="slide_encoder.pth")
    network = create_model(weights, "gigapath_slide_enc12l768d", 1536, global_pool=True).float()
    return Call(network, lambda m, x, at: m(x, at, all_layer_embed=True)[11], 1536, coords=torch.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("out")
    parser.add_argument("--code", help="of chief: a clone of its repository")
    parser.add_argument("--dim", type=int, default=768, help="of abmil: length of the features")
    parser.add_argument("--tiles", type=int, default=100, help="how many tiles it is traced with")
    args = parser.parse_args()
    args.out = os.path.abspath(args.out)
    call = RECIPES[args.name](args).eval()
    names = ["features"] + (["coords"] if call.coords else []) + (["pitch"] if call.pitch else [])
    n = torch.export.Dim("tiles", min=2, max=1 << 20)
    shapes = [{1 if call.batch else 0: n}] + ([{1: n}] if call.coords else []) + ([{}] if call.pitch else [])
    with torch.no_grad():
        torch.onnx.export(call, call.example(args.tiles), args.out, input_names=names, output_names=["embedding"], dynamic_shapes=(tuple(shapes),), dynamo=True)
        check(call, args.out, names, 2 * args.tiles + 1)


def check(call, path, names, n):
    """Another number of tiles, in ONNX Runtime and in PyTorch."""
    import numpy
    import onnxruntime

    inputs = call.example(n)
    want = call(*inputs).numpy().ravel()
    got = onnxruntime.InferenceSession(path).run(["embedding"], dict(zip(names, (i.numpy() for i in inputs))))[0].ravel()
    worst = numpy.abs(got - want).max() / numpy.abs(want).max()
    if not worst < 1e-3:
        os.remove(path)
        sys.exit(f"on {n} tiles ONNX Runtime is {worst:.2g} off PyTorch: the graph holds something of the {names[0]} it was traced with")
    print(f"{path}: {want.size} numbers; on {n} tiles within {worst:.2g} of PyTorch")


if __name__ == "__main__":
    main()
