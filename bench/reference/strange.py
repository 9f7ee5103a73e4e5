"""Writes the golden values of slidessl/measure's scores of strange embeddings: scikit-learn's.

    python -m venv venv && venv/bin/pip install -r metrics_requirements.txt
    venv/bin/python strange.py > ../../slidessl/measure/testdata/strange.json
"""

import json

import numpy as np
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics import roc_curve
from sklearn.neighbors import NearestNeighbors

rng = np.random.default_rng(20261129)


def case(n, d, classes, share, k):
    mix = rng.normal(0, 1, (d, d)) * 0.3 + np.eye(d)
    cls = np.arange(n) % classes
    x = np.round(rng.normal(0, 1, (n, d)) @ mix + rng.normal(0, 3, (classes, d))[cls], 3).astype(np.float32)
    y = np.round(np.concatenate([x[:10] + rng.normal(0, 0.5, (10, d)), rng.normal(0, 4, (15, d))]), 3).astype(np.float32)
    X, Y = x.astype(float), y.astype(float)
    means = np.stack([X[cls == c].mean(0) for c in range(classes)])
    shrunk = LedoitWolf(assume_centered=True).fit(X - means[cls])
    mahalanobis = np.min([((Y - m) @ shrunk.precision_ * (Y - m)).sum(1) for m in means], 0)
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    near = NearestNeighbors(n_neighbors=k).fit(unit(X)).kneighbors(unit(Y))[0][:, -1]
    pca = PCA(svd_solver="full").fit(X)
    kept = int(np.argmax(np.cumsum(pca.explained_variance_ratio_) >= share)) + 1
    pca = PCA(n_components=kept, svd_solver="full").fit(X)
    residual = ((Y - pca.inverse_transform(pca.transform(Y))) ** 2).sum(1)
    usual, odd = mahalanobis[:10], mahalanobis[10:]
    fpr, tpr, _ = roc_curve(np.r_[np.ones(10), np.zeros(15)], -mahalanobis, drop_intermediate=False)
    return {"d": d, "class": cls.tolist(), "x": x.ravel().tolist(), "y": y.ravel().tolist(), "share": share, "k": k, "shrinkage": float(shrunk.shrinkage_),
            "mahalanobis": mahalanobis.tolist(), "near": near.tolist(), "kept": kept, "residual": residual.tolist(),
            "passed": float(fpr[np.argmax(tpr >= 0.8)]), "energy": (-logsumexp(Y, axis=1)).tolist()}


print(json.dumps([case(60, 5, 3, 0.9, 5), case(12, 20, 2, 0.8, 3)]))
