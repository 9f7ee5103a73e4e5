"""What torchvision, scikit-image, Pillow and plain numpy make of small pictures: the golden files that hold
encoder/augment to them, and the statistics of crc5 that are its defaults.

    python -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python augment.py                      writes encoder/augment/testdata
    venv/bin/python augment.py --fit ../../../shared/data/crc5/training
                                                    prints the default statistics of RandStain

The pictures are made here: a field of nuclei, cytoplasm and glass mixed from two known stains, with a
corner of extreme colours. Same requirements, same files.
"""

import argparse
import io
import json
import pathlib

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from scipy import ndimage, optimize
from skimage import color

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE.parent.parent / "encoder" / "augment" / "testdata"
SIZE = 48
REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
REFERENCE_MAX = np.array([1.9705, 1.0308])
PLANTED = np.array([[0.65, 0.70, 0.29], [0.10, 0.95, 0.25]])
PLANTED /= np.linalg.norm(PLANTED, axis=1, keepdims=True)
LEAST_DENSITY, SPARSITY = 0.15, 0.1


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--fit", type=pathlib.Path)
    args = args.parse_args()
    if args.fit:
        return fit(args.fit)
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    rng = np.random.default_rng(20)
    field = tissue(rng, 64)
    save("stain", field)
    picture = field[:SIZE, :SIZE].copy()
    picture[:8, :8] = rng.integers(0, 256, (8, 8, 3))
    picture[8:12, :8] = rng.choice([0, 1, 254, 255], (4, 8, 3))
    save("input", picture)
    save_json("cases", list(cases(picture)))
    save_json("colours", colours(rng))
    save_json("stains", stains(field))


def tissue(rng, size):
    """Mostly one stain in each pixel, as in H&E: nuclei take haematoxylin, the rest eosin."""
    smooth = lambda sigma: ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma, mode="wrap") * sigma * 3.5
    nuclei, fibre, glass = smooth(2.0), smooth(1.5), smooth(6.0)
    h = np.where(nuclei > 0.4, 1.0 + 0.6 * np.clip(nuclei, 0, 1.5), 0.05 * np.abs(fibre))
    e = np.where(nuclei > 0.4, 0.05, 0.5 + 0.3 * np.abs(fibre))
    here = glass < 0.9
    od = (h[..., None] * PLANTED[0] + e[..., None] * PLANTED[1]) * here[..., None]
    od += rng.normal(scale=0.01, size=od.shape)
    return np.clip(np.round(255 * np.exp(-od)), 1, 255).astype(np.uint8)


def cases(picture):
    """One golden picture for each: what is done, with which numbers, and by how much a value may differ."""
    t = torch.from_numpy(picture).permute(2, 0, 1)
    pil = Image.fromarray(picture)

    def case(name, values, want, tolerance, mean=None):
        file = "-".join([name] + [f"{v:g}" for v in values])
        save(file, want if isinstance(want, np.ndarray) else want.permute(1, 2, 0).numpy())
        return {"file": file, "do": name, "values": values, "tolerance": tolerance, "mean": mean or tolerance}

    for f in 0.6, 1.4:
        yield case("brightness", [f], F.adjust_brightness(t, f), 0)
        yield case("contrast", [f], F.adjust_contrast(t, f), 1, 0.01)
        yield case("saturation", [f], F.adjust_saturation(t, f), 1, 0.01)
    for f in -0.2, 0.07, 0.5:
        yield case("hue", [f], F.adjust_hue(t, f), 1, 0.01)
    yield case("grayscale", [], F.rgb_to_grayscale(t, 3), 1, 0.01)
    for order in [0, 1, 2, 3], [3, 1, 0, 2]:
        out = t
        for change in order:
            out = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue][change](out, [1.3, 0.7, 1.2, -0.1][change])
        yield case("jitter", [1.3, 0.7, 1.2, -0.1, *order], out, 1, 0.01)
    for kernel, sigma in (5, 0.1), (5, 0.6), (5, 1.0), (9, 2.5):
        yield case("blur", [kernel, sigma], F.gaussian_blur(t, [kernel, kernel], [sigma, sigma]), 1, 0.05)
    for x, y, w, h, size in (3, 7, 35, 30, 48), (0, 0, 48, 48, 20), (5, 1, 41, 47, 40), (10, 2, 20, 33, 31):
        want = F.resized_crop(t.float(), y, x, h, w, [size, size], F.InterpolationMode.BILINEAR, antialias=True)
        yield case("crop", [x, y, w, h, size], byte(want.permute(1, 2, 0).numpy() / 255), 1, 0.05)
    # Pillow, and torchvision of bytes, round to whole values between the passes too.
    want = F.resized_crop(pil, 3, 4, 37, 36, [30, 30], F.InterpolationMode.BILINEAR)
    yield case("crop", [4, 3, 36, 37, 30], np.asarray(want), 1, 0.25)
    yield case("flip", [0], F.hflip(t), 0)
    yield case("flip", [1], F.vflip(t), 0)
    for q in 1, 2, 3:
        yield case("turn", [q], np.ascontiguousarray(np.rot90(picture, q)), 0)
    small = pil.resize((30, 30), Image.Resampling.BILINEAR)
    yield case("resolution", [30 / 48], np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BILINEAR)), 2, 0.3)

    # Pixels with a negative amount of a stain are left out: scikit-image takes it as none, which turns
    # them into others even where nothing is augmented.
    grade = -np.log(1e-6)
    lifted = np.maximum(picture, 1)
    exact = lambda alpha, beta: np.clip(
        np.exp(-((-np.log(lifted / 255.0) @ color.hed_from_rgb) * alpha + beta) @ color.rgb_from_hed), 0, 1)
    for alpha, beta in ((1, 1, 1), (0, 0, 0)), ((1.05, 0.96, 1.02), (0.05, -0.03, 0.02)), ((0.8, 1.2, 1.1), (-0.1, 0.2, 0.1)):
        alpha, beta = np.array(alpha), np.array(beta)
        hed = color.rgb2hed(lifted)
        theirs = color.hed2rgb(hed * alpha + beta / grade)
        ours = exact(alpha, beta)
        free = (hed > 0).all(-1)
        assert free.sum() > 200 and np.abs(theirs - ours)[free].max() < 1e-9
        yield case("hed", [*alpha, *beta], byte(ours), 1, 0.04)

    for space, into, back in ("lab", color.rgb2lab, color.lab2rgb), ("hsv", color.rgb2hsv, color.hsv2rgb):
        v = into(picture)
        dense = density(picture).max(-1) >= LEAST_DENSITY
        mean, std = v[dense].mean(0), v[dense].std(0)
        to_mean = np.array([65, 20, -12]) if space == "lab" else np.array([0.85, 0.35, 0.8])
        to_std = np.array([14, 8, 7]) if space == "lab" else np.array([0.03, 0.15, 0.12])
        out = (v - mean) / std * to_std + to_mean
        if space == "hsv":
            out = np.stack([out[..., 0] % 1, np.clip(out[..., 1], 0, 1), np.clip(out[..., 2], 0, 1)], -1)
        yield case(f"randstain {space}".replace(" ", "-"), [*map(float, to_mean), *map(float, to_std)], byte(np.clip(back(out), 0, 1)), 1, 0.05)

    # Of a gray picture all of JPEG is compared but the colour planes, which libjpeg smooths when it brings
    # them to full size and the standard library of Go repeats; of the picture in colour, the mean alone.
    for quality in 40, 90:
        for name, of, tolerance, mean in ("jpeg-gray", F.rgb_to_grayscale(t, 3), 2, 0.06), ("jpeg", t, 100, 5):
            b = io.BytesIO()
            Image.fromarray(of.permute(1, 2, 0).numpy()).save(b, "jpeg", quality=quality, subsampling="4:2:0")
            yield case(name, [quality], np.asarray(Image.open(b)), tolerance, mean)


def colours(rng):
    rgb = np.concatenate([rng.integers(0, 256, (40, 3)), [[0, 0, 0], [255, 255, 255], [1, 1, 1], [255, 0, 0], [0, 255, 0], [0, 0, 255], [7, 7, 9]]]).astype(np.uint8)
    return {"rgb": rgb.tolist(), "lab": color.rgb2lab(rgb).round(5).tolist(), "hsv": color.rgb2hsv(rgb).round(6).tolist()}


def stains(field):
    od = density(field).reshape(-1, 3)
    dense = od[od.max(-1) >= LEAST_DENSITY]
    found = {"planted": PLANTED.tolist()}
    for method, estimate in ("macenko", macenko), ("vahadane", vahadane):
        w = estimate(dense)
        h = np.array([optimize.nnls(w.T, p)[0] for p in dense])
        top = np.percentile(h, 99, axis=0)
        found[method] = {"colours": w.tolist(), "max": top.tolist()}
        every = np.array([optimize.nnls(w.T, p)[0] for p in od])
        save(f"normalised-{method}", byte(np.exp(-(every * REFERENCE_MAX / top) @ REFERENCE)).reshape(field.shape))
    return found


def density(rgb):
    return -np.log(np.maximum(rgb, 1) / 255.0)


def macenko(od):
    """Macenko et al. 2009, with 1 and 99 percent."""
    _, vectors = np.linalg.eigh(np.cov(od.T))
    v = vectors[:, [2, 1]]
    v = v * np.where(v[0] < 0, -1, 1)
    p = od @ v
    angles = np.percentile(np.arctan2(p[:, 1], p[:, 0]), [1, 99])
    w = np.array([v @ [np.cos(a), np.sin(a)] for a in angles])
    return w if w[0, 0] > w[1, 0] else w[::-1]


def vahadane(od):
    """Vahadane et al. 2016, as plainly as it goes: projected gradients over both, from a random start."""
    w = np.abs(np.random.default_rng(3).normal(size=(2, 3))) + np.array([[2, 0, 0], [0, 2, 0]])
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    h = np.full((len(od), 2), 0.5)
    for _ in range(3000):
        for _ in range(20):
            step = 1 / np.linalg.norm(w @ w.T, 2)
            h = np.maximum(h - step * ((h @ w - od) @ w.T + SPARSITY), 0)
        step = 0.5 / np.linalg.norm(h.T @ h, 2)
        w = np.maximum(w - step * h.T @ (h @ w - od), 0)
        w /= np.linalg.norm(w, axis=1, keepdims=True)
    return w if w[0, 0] > w[1, 0] else w[::-1]


def fit(folder):
    """Mean and deviation of each tile's tissue, and of those over the tiles."""
    files = sorted(folder.rglob("*.jp*g"))
    found = {"lab": [], "hsv": []}
    for file in files:
        rgb = np.asarray(Image.open(file).convert("RGB"))
        dense = density(rgb).max(-1) >= LEAST_DENSITY
        if dense.sum() < 100:
            continue
        for space, into in ("lab", color.rgb2lab), ("hsv", color.rgb2hsv):
            v = into(rgb)[dense]
            found[space].append((v.mean(0), v.std(0)))
    for space, all in found.items():
        all = np.array(all)
        print(space, len(all), "tiles")
        for name, v in ("mean", all[:, 0].mean(0)), ("mean_deviation", all[:, 0].std(0)), ("std", all[:, 1].mean(0)), ("std_deviation", all[:, 1].std(0)):
            print(" ", name, [float(f"{x:.4g}") for x in v])


def byte(v):
    return np.round(v * 255).clip(0, 255).astype(np.uint8)


def save(name, pixels):
    Image.fromarray(np.ascontiguousarray(pixels)).save(OUT / f"{name}.png", optimize=True)


def save_json(name, value):
    (OUT / f"{name}.json").write_text(json.dumps(value, indent=1, default=float) + "\n")


main()
