"""How well do an encoder's features tell five kinds of colorectal tissue apart, in a stain they were not
trained on? k nearest neighbours and a linear probe on crc5: trained on training/, tested on test/. One probe, its
strength chosen by cross-validation, moves by two points with the draw of the training tiles; so there is
the mean of many as well, over draws with replacement and strengths.

    python -m venv venv && venv/bin/pip install -r crc5-requirements.txt
    venv/bin/python crc5.py [--data DIR] [NAME=MODEL.onnx[:OUTPUT] ...]

Models take pixels uint8 [N,224,224,3]; the default is the encoder that ships with the product. The peer
of the first is colour alone (mean and deviation of red, green and blue) and ratio is over its accuracy;
the others are held to half a point less than the first's accuracy, and, where they are as long, to a
cosine of 0.99 to its features. One JSON object a line, as all of bench/.
"""

import argparse
import json
import os
import pathlib
import platform
import time

import numpy as np
import onnxruntime
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

HERE = pathlib.Path(__file__).resolve().parent
BATCH, NEIGHBOURS, POINT = 8, 20, 0.01
STRENGTHS, DRAWS = [1e-4, 1e-3, 1e-2, 1e-1, 1], 10


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--data", type=pathlib.Path, default=HERE.parent.parent / "shared" / "data" / "crc5")
    args.add_argument("--normalise", choices=["macenko", "macenko-set"], help="bring every tile to one stain first: each by itself, or all of training/ and all of test/ as one")
    args.add_argument("models", nargs="*", default=[f"efficientnet-lite0={HERE.parent}/encoder/weights/efficientnet-lite0.onnx"])
    args = args.parse_args()
    if not args.data.is_dir():
        raise SystemExit(f"{args.data} is not there: name the folder of crc5 with --data")
    (train, train_labels), (test, test_labels) = load(args.data / "training"), load(args.data / "test")

    if args.normalise:
        train, test = [macenko(tiles, args.normalise == "macenko-set") for tiles in (train, test)]
    peer, first = judge(colour(train), train_labels, colour(test), test_labels), None
    for name, how in [model.split("=", 1) for model in args.models]:
        session, output = open_model(how)
        a, _ = encode(session, output, train)
        b, speed = encode(session, output, test)
        scores = judge(a, train_labels, b, test_labels)
        for case, value in scores.items():
            if first is None:
                emit(f"{case}, {name}" + (f", {args.normalise}" if args.normalise else ""), value, "accuracy", "colour alone", peer[case], value / peer[case])
            else:
                least = first[0][case] - POINT / 2
                emit(f"{case}, {name}", value, "accuracy", "the first", first[0][case], value / least)
        if first is None:
            first = scores, b, session, output
            continue
        if b.shape != first[1].shape:
            continue  # another tap, not a variant
        cosine = (unit(b) * unit(first[1])).sum(1)
        emit(f"cosine to the first, {name}", cosine.mean(), "mean cosine", None, None, cosine.mean() / 0.99)
        centre = first[1].mean(0)
        cosine = (unit(b - centre) * unit(first[1] - centre)).sum(1)
        emit(f"cosine to the first, centred, {name}", cosine.mean(), "mean cosine", None, None, cosine.mean() / 0.99)
        ratios = []
        for _ in range(5):  # in turns: the machine's speed drifts
            ratios.append(encode(session, output, test[:160])[1] / encode(first[2], first[3], test[:160])[1])
        emit(f"speed beside the first, {name}", speed, "images per CPU-second", "the first", speed / np.median(ratios), np.median(ratios))


def judge(a, la, b, lb):
    """Accuracies on b of what is trained on a."""
    knn = KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights="distance").fit(a, la).score(b, lb)
    scaler = StandardScaler().fit(a)
    a, b = scaler.transform(a), scaler.transform(b)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    probe = GridSearchCV(LogisticRegression(max_iter=5000), {"C": STRENGTHS}, cv=folds, n_jobs=1).fit(a, la).score(b, lb)
    many, random = [], np.random.default_rng(0)
    for _ in range(DRAWS):
        i = random.integers(0, len(a), len(a))
        many += [LogisticRegression(C=c, max_iter=2000, tol=1e-3).fit(a[i], la[i]).score(b, lb) for c in STRENGTHS]
    return {f"{NEIGHBOURS} nearest neighbours": knn, "linear probe": probe, f"linear probe, mean of {len(many)}": np.mean(many)}


def load(folder):
    """Tiles [n,224,224,3] and their classes."""
    paths = sorted(folder.glob("*/*"))
    return np.stack([np.asarray(Image.open(p).convert("RGB")) for p in paths]), np.array([p.parent.name for p in paths])


REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])  # haematoxylin, eosin: as encoder/augment
REFERENCE_MAX = np.array([1.9705, 1.0308])


def macenko(tiles, together):
    """Tiles in the reference stain, after Macenko et al. 2009; as they are where they show no two stains."""
    if together:
        some = density(tiles[:, ::8, ::8])
        found = stain(some)
        return np.stack([restain(t, found) for t in tiles])
    return np.stack([restain(t, stain(density(t))) for t in tiles])


def density(pixels):
    return -np.log(np.maximum(pixels, 1) / 255.0).reshape(-1, 3)


def stain(od):
    """The two stains [2,3] and how much there is of each; None where there are no two."""
    dense = od[od.min(1) > 0.15]
    if len(dense) < 500:
        return None
    _, vectors = np.linalg.eigh(np.cov(dense.T))
    v = vectors[:, [2, 1]]
    v = v * np.where(v[0] < 0, -1, 1)
    p = dense @ v
    angles = np.percentile(np.arctan2(p[:, 1], p[:, 0]), [1, 99])
    w = np.array([v @ [np.cos(a), np.sin(a)] for a in angles])
    w = w if w[0, 0] > w[1, 0] else w[::-1]
    top = np.percentile(np.maximum(dense @ np.linalg.pinv(w), 0), 99, axis=0)
    return (w, top) if np.all(top > 1e-3) else None


def restain(tile, found):
    if found is None:
        return tile
    w, top = found
    h = np.maximum(density(tile) @ np.linalg.pinv(w), 0)
    return np.clip(255 * np.exp(-(h * REFERENCE_MAX / top) @ REFERENCE) + 0.5, 0, 255).astype(np.uint8).reshape(tile.shape)


def colour(tiles):
    return np.concatenate([tiles.mean((1, 2)), tiles.std((1, 2))], 1)


def open_model(how):
    path, _, output = how.partition(".onnx:")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = path if path.endswith(".onnx") else path + ".onnx"
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), output or "features"


def encode(session, output, tiles):
    """Features [n,D], and tiles per CPU-second."""
    began = time.process_time()
    parts = [session.run([output], {"pixels": tiles[i : i + BATCH]})[0] for i in range(0, len(tiles), BATCH)]
    return np.concatenate(parts), len(tiles) / (time.process_time() - began)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def emit(case, value, unit, peer, peer_value, ratio):
    line = {"bench": "crc5", "case": case, "value": round(float(value), 4), "unit": unit}
    if peer:
        line |= {"peer": peer, "peer_value": round(float(peer_value), 4)}
    line |= {"ratio": round(float(ratio), 4), "target": 1, "runs": 1, "machine": machine()}
    print(json.dumps(line), flush=True)


def machine():
    names = [l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")] if os.path.exists("/proc/cpuinfo") else []
    return f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
