"""Writes the golden values of slidessl/measure's graph of non-negative kernel regression: SciPy's nnls and subspace angles.

    python -m venv venv && venv/bin/pip install -r metrics_requirements.txt
    venv/bin/python nnk.py > ../../slidessl/measure/testdata/graph.json
"""

import json

import numpy as np
from scipy.linalg import orth, subspace_angles
from scipy.optimize import nnls

rng = np.random.default_rng(20261127)
unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)


def case(n, d, k, rank):
    x = rng.normal(0, 1, (n, rank)) @ rng.normal(0, 1, (rank, d)) + 0.3 * rng.normal(0, 1, (n, d)) + 0.5
    x = np.round(x, 3).astype(np.float32)
    y = np.round(x + rng.normal(0, 0.2, (n, d)) + rng.normal(0, 0.3, d), 3).astype(np.float32)
    u, w = unit(x.astype(float)), unit(y.astype(float))
    c = np.minimum(u @ u.T, 1)
    neighbours, strongest = [], []
    for i in range(n):
        near = sorted((j for j in range(n) if j != i), key=lambda j: -c[i, j])[:k]
        phi = np.c_[np.ones(n), u] / np.sqrt(2)  # whose products are the kernel (1+cos)/2
        theta, _ = nnls(phi[near].T, phi[i])
        neighbours.append([near[a] for a in range(k) if theta[a] > 1e-6])
        strongest.append(near[int(np.argmax(theta))])
    dist = lambda p, q: np.linalg.norm(u[p] - u[q])
    spans = [orth((u[of] - u[i]).T, rcond=1e-5) for i, of in enumerate(neighbours)]
    move = w - u
    cos = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return {"d": d, "k": k, "x": x.ravel().tolist(), "y": y.ravel().tolist(),
            "neighbours": float(np.mean([len(v) for v in neighbours])),
            "diameter": float(np.mean([max((dist(p, q) for p in v for q in v), default=0) for v in neighbours])),
            "affinity": float(np.mean([np.cos(subspace_angles(spans[i], spans[j])).mean() for i, j in enumerate(strongest)])),
            "equivariance": float(np.mean([cos(move[i], move[j]) for i, j in enumerate(strongest)]))}


print(json.dumps([case(40, 12, 10, 3), case(25, 12, 8, 5)]))
