"""Writes the golden values of slidessl/measure: numpy's, in float64, of small random embeddings.

    python -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python measures.py > ../../slidessl/measure/testdata/golden.json
"""

import json

import numpy as np

rng = np.random.default_rng(20261128)
CLASSES, D, N = 4, 9, 30

cls = np.arange(N) % CLASSES
cls[24:] = [0, 0, 0, 1, 1, 0]
x = np.round(rng.normal(0, 1, (N, D)) @ rng.normal(0, 1, (D, D)) + rng.normal(0, 2, (CLASSES, D))[cls], 3).astype(np.float32)
y = np.round(x + rng.normal(0, 0.5, x.shape), 3).astype(np.float32)
a, b = np.round(rng.normal(0, 1, (CLASSES, D)), 3), np.round(rng.normal(0, 1, CLASSES), 3)

X, Y = x.astype(float), y.astype(float)
u, v = X / np.linalg.norm(X, axis=1, keepdims=True), Y / np.linalg.norm(Y, axis=1, keepdims=True)
distances = np.array([((u[i] - u[j]) ** 2).sum() for i in range(N) for j in range(i)])
s = np.linalg.svd(X, compute_uv=False)
p = s / s.sum()

means = np.stack([X[cls == c].mean(0) for c in range(CLASSES)])
m = means - means.mean(0)
within = sum(np.cov(X[cls == c].T, bias=True) for c in range(CLASSES)) / CLASSES
between = m.T @ m / CLASSES
length = np.linalg.norm(m, axis=1)
cos = (m @ m.T) / np.outer(length, length)
pairs = np.triu_indices(CLASSES, 1)
nearest = np.argmin(((X[:, None] - means[None]) ** 2).sum(2), 1)

print(json.dumps({
    "d": D, "x": x.ravel().tolist(), "y": y.ravel().tolist(), "class": cls.tolist(), "weight": a.ravel().tolist(), "bias": b.tolist(),
    "alignment": ((u - v) ** 2).sum(1).mean(), "uniformity": np.log(np.exp(-2 * distances).mean()), "rank": np.exp(-(p * np.log(p)).sum()),
    "collapse": {
        "within": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / CLASSES,
        "norms": length.std() / length.mean(),
        "angles": np.abs(cos[pairs] + 1 / (CLASSES - 1)).mean(),
        "duality": ((a / np.linalg.norm(a) - m / np.linalg.norm(m)) ** 2).sum(),
        "disagreement": (np.argmax(X @ a.T + b, 1) != nearest).mean(),
    },
}))
