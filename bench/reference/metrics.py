"""Writes the golden values of mil/metric: the figures of scikit-learn and lifelines on small random sets.

    python -m venv venv && venv/bin/pip install -r metrics_requirements.txt
    venv/bin/python metrics.py > ../../mil/metric/testdata/golden.json

DeLong's variance and Antolini's concordance are in neither: they are written here as their papers define
them, pair by pair.
"""

import json
import warnings

import numpy as np
from lifelines.utils import concordance_index
from sklearn import metrics as m
from sklearn.calibration import calibration_curve

warnings.simplefilter("ignore")
rng = np.random.default_rng(20260101)


def calibration_error(y, p, bins):
    observed, predicted = calibration_curve(y, p, n_bins=bins, strategy="uniform")
    rows = np.histogram(p, bins=np.linspace(0, 1, bins + 1))[0]
    return float(np.sum(rows[rows > 0] * abs(observed - predicted)) / len(y))


def delong(y, *scores):
    """AUCs and their covariance by the structural components of DeLong et al. 1988, O(n²)."""
    v10, v01 = [], []
    for s in scores:
        pos, neg = s[y == 1][:, None], s[y == 0][None, :]
        psi = (pos > neg) + 0.5 * (pos == neg)
        v10.append(psi.mean(axis=1))
        v01.append(psi.mean(axis=0))
    n1, n0 = (y == 1).sum(), (y == 0).sum()
    cov = np.atleast_2d(np.cov(v10)) / n1 + np.atleast_2d(np.cov(v01)) / n0
    return [float(np.mean(v)) for v in v10], cov.ravel().tolist()


def antolini(time, event, grid, survival):
    """Time-dependent concordance of Antolini et al. 2005, ties a half, O(n²)."""
    pairs = good = 0.0
    for i in range(len(time)):
        before = np.flatnonzero(grid <= time[i])
        s = survival[:, before[-1]] if len(before) else np.ones(len(time))
        for j in range(len(time)):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                pairs += 1
                good += 1.0 if s[i] < s[j] else 0.5 if s[i] == s[j] else 0.0
    return good / pairs


def binary(name, n, digits, share):
    y = (rng.random(n) < share).astype(int)
    a = np.round(np.clip(0.3 * y + rng.normal(0.35, 0.25, n), 0.01, 0.99), digits)
    b = np.round(np.clip(0.2 * y + rng.normal(0.4, 0.25, n), 0.01, 0.99), digits)
    predicted = (a >= 0.5).astype(int)
    two = np.stack([1 - a, a], 1)
    auc, cov = delong(y, a, b)
    assert abs(auc[0] - m.roc_auc_score(y, a)) < 1e-12
    fpr, tpr, _ = m.roc_curve(y, a, drop_intermediate=False)
    want = {
        "auc": m.roc_auc_score(y, a),
        "average_precision": m.average_precision_score(y, a),
        "accuracy": m.accuracy_score(y, predicted),
        "balanced_accuracy": m.balanced_accuracy_score(y, predicted),
        "f1": m.f1_score(y, predicted, average=None).tolist(),
        "f1_mean": m.f1_score(y, predicted, average="macro"),
        "kappa": m.cohen_kappa_score(y, predicted, weights="quadratic"),
        "log_loss": m.log_loss(y, two),
        "brier": m.brier_score_loss(y, a),
        "calibration_error_7": calibration_error(y, a, 7),
        "roc": np.stack([fpr, tpr], 1).ravel().tolist() if n < 100 else None,
        "delong_auc": auc,
        "delong_cov": cov,
    }
    return {"name": name, "y": y.tolist(), "a": a.tolist(), "b": b.tolist(), "predicted": predicted.tolist(), "want": want}


def several(name, n, classes):
    y = rng.choice(classes, n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    p = np.exp(np.eye(classes)[y] + rng.normal(0, 1, (n, classes)))
    p = np.round(p / p.sum(1, keepdims=True), 4)
    p[:, -1] = np.round(1 - p[:, :-1].sum(1), 4)
    predicted = p.argmax(1)
    right, top = (predicted == y).astype(int), p.max(1)
    want = {
        "auc_ovr": m.roc_auc_score(y, p, multi_class="ovr"),
        "auc_ovr_each": [m.roc_auc_score(y == c, p[:, c]) for c in range(classes)],
        "auc_ovo": m.roc_auc_score(y, p, multi_class="ovo"),
        "accuracy": m.accuracy_score(y, predicted),
        "balanced_accuracy": m.balanced_accuracy_score(y, predicted),
        "f1": m.f1_score(y, predicted, average=None).tolist(),
        "f1_mean": m.f1_score(y, predicted, average="macro"),
        "kappa": m.cohen_kappa_score(y, predicted, weights="quadratic"),
        "log_loss": m.log_loss(y, p),
        "brier": m.brier_score_loss(y, p),
        "calibration_error_7": calibration_error(right, top, 7),
    }
    return {"name": name, "classes": classes, "y": y.tolist(), "p": p.ravel().tolist(), "predicted": predicted.tolist(), "want": want}


def survival(name, n, digits):
    risk = np.round(rng.normal(0, 1, n), digits)
    time = np.round(rng.exponential(np.exp(-risk)) * 3, digits)
    seen = np.round(rng.exponential(4, n), digits)
    event, time = time <= seen, np.minimum(time, seen)
    grid = np.round(np.linspace(0.2, 5, 8), 2)
    rate = np.exp(0.5 * risk[:, None] + rng.normal(0, 0.4, (n, 1)) * grid[None])  # curves that cross
    s = np.round(np.exp(-0.2 * grid[None] * rate), 2)
    want = {"harrell": concordance_index(time, -risk, event), "antolini": antolini(time, event, grid, s)}
    return {"name": name, "time": time.tolist(), "event": event.tolist(), "risk": risk.tolist(), "grid": grid.tolist(), "survival": s.ravel().tolist(), "want": want}


out = {
    "binary": [binary("plain", 150, 6, 0.4), binary("ties", 80, 1, 0.5), binary("rare", 120, 6, 0.05)],
    "several": [several("three", 120, 3), several("five", 150, 5)],
    "survival": [survival("plain", 80, 6), survival("ties", 80, 0)],
}
print(json.dumps(out))
