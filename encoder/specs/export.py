"""Writes the ONNX file of an encoder whose specification ships, from weights that are yours to fetch.

    python -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python export.py NAME OUT.onnx [--weights FILE] [--untrained]
    coverslip models add encoder OUT.onnx --spec NAME

NAME is one of the recipes below. Gated weights need `hf auth login` by somebody who was granted access.
--untrained builds the network with random weights and a single block, to try a recipe without them.
docs/ENCODERS.md says where each figure comes from.
"""

import argparse
import sys

import torch

RECIPES = {}


def recipe(f):
    RECIPES[f.__name__.replace("_", "-")] = f
    return f


def vit(hub, base, untrained, **how):
    """A vision transformer of timm, from the hub or, untrained, from its base architecture."""
    import timm

    if untrained:
        return timm.create_model(base, pretrained=False, depth=1, **how)
    return timm.create_model("hf-hub:" + hub, pretrained=True, **how)


@recipe
def uni(untrained, weights):
    return Tokens(vit("MahmoodLab/UNI", "vit_large_patch16_224", untrained, img_size=224, patch_size=16, init_values=1e-5, num_classes=0))


@recipe
def uni2_h(untrained, weights):
    from timm.layers import SwiGLUPacked

    how = dict(img_size=224, patch_size=14, num_heads=24, init_values=1e-5, embed_dim=1536, mlp_ratio=2.66667 * 2, num_classes=0)
    how |= dict(no_embed_class=True, mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, reg_tokens=8)
    if not untrained:
        how["depth"] = 24
    return Tokens(vit("MahmoodLab/UNI2-h", "vit_giant_patch14_224", untrained, **how))


@recipe
def virchow2(untrained, weights):
    from timm.layers import SwiGLUPacked

    how = dict(img_size=224, init_values=1e-5, num_classes=0, reg_tokens=4, mlp_ratio=5.3375, global_pool="")
    how |= dict(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU)
    return Tokens(vit("paige-ai/Virchow2", "vit_huge_patch14_224", untrained, **how))


@recipe
def h_optimus_0(untrained, weights):
    how = dict(img_size=224, init_values=1e-5, num_classes=0, global_pool="token")
    return Tokens(vit("bioptimus/H-optimus-0", "vit_giant_patch14_reg4_dinov2", untrained, **how))


@recipe
def gigapath(untrained, weights):
    how = dict(img_size=224, patch_size=16, embed_dim=1536, num_heads=24, mlp_ratio=5.33334, num_classes=0) if untrained else {}
    return Tokens(vit("prov-gigapath/prov-gigapath", "vit_giant_patch14_dinov2", untrained, **how))


@recipe
def phikon_v2(untrained, weights):
    from transformers import AutoModel, Dinov2Config, Dinov2Model

    if untrained:
        config = Dinov2Config(hidden_size=1024, num_hidden_layers=1, num_attention_heads=16, patch_size=16, image_size=224)
        return LastHiddenState(Dinov2Model(config))
    return LastHiddenState(AutoModel.from_pretrained("owkin/phikon-v2"))


@recipe
def conch(untrained, weights):
    # pip install git+https://github.com/Mahmoodlab/CONCH.git
    from conch.open_clip_custom import create_model, create_model_from_pretrained

    if untrained:
        return ConchImage(create_model("conch_ViT-B-16"))
    return ConchImage(create_model_from_pretrained("conch_ViT-B-16", weights or "hf_hub:MahmoodLab/conch")[0])


@recipe
def ctranspath(untrained, weights):
    # ctran.py and the changed timm 0.5.4 of https://github.com/Xiyue-Wang/TransPath beside this file
    from ctran import ctranspath

    model = ctranspath()
    model.head = torch.nn.Identity()
    if not untrained:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["model"], strict=True)
    return Named(model, ["features"])


@recipe
def resnet50(untrained, weights):
    import torchvision

    return stages(torchvision.models.resnet50(weights=None if untrained else "IMAGENET1K_V1"), ["layer3", "layer4"])


@recipe
def resnet18_layer3(untrained, weights):
    import torchvision

    return stages(torchvision.models.resnet18(weights=None if untrained else "IMAGENET1K_V1"), ["layer3"])


def stages(model, names):
    from torchvision.models.feature_extraction import create_feature_extractor

    return Named(create_feature_extractor(model, names), names)


class Tokens(torch.nn.Module):
    """All tokens of a transformer of timm after its last norm: CLS, registers, image."""

    outputs = ["tokens"]

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model.forward_features(pixels)

    def check(self, pixels):
        """What the model itself returns is the first token, or all of them."""
        tokens, returned = self(pixels), self.model(pixels)
        torch.testing.assert_close(returned, tokens if returned.ndim == 3 else tokens[:, 0])


class LastHiddenState(torch.nn.Module):
    outputs = ["tokens"]

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixels).last_hidden_state


class ConchImage(torch.nn.Module):
    outputs, size = ["features"], 448

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model.encode_image(pixels, proj_contrast=False, normalize=False)


class Named(torch.nn.Module):
    def __init__(self, model, outputs):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, pixels):
        out = self.model(pixels)
        return tuple(out[name] for name in self.outputs) if isinstance(out, dict) else out


def main():
    args = argparse.ArgumentParser()
    args.add_argument("name", choices=sorted(RECIPES))
    args.add_argument("out")
    args.add_argument("--weights")
    args.add_argument("--untrained", action="store_true")
    args = args.parse_args()
    torch.manual_seed(0)
    model = RECIPES[args.name](args.untrained, args.weights).eval()
    size = getattr(model, "size", 224)
    pixels = torch.rand((2, 3, size, size))
    with torch.no_grad():
        if hasattr(model, "check"):
            model.check(pixels)
        torch.onnx.export(
            model,
            (pixels,),
            args.out,
            dynamo=True,
            input_names=["pixels"],
            output_names=model.outputs,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            opset_version=18,
            # A file holds 2 GiB at most; larger weights lie beside it.
            external_data=sum(p.numel() * p.element_size() for p in model.parameters()) > 1.9e9,
        )
    print(args.out, file=sys.stderr)


if __name__ == "__main__":
    main()
