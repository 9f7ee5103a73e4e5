"""Writes the golden values of mil/probe: what scikit-learn and scikit-survival fit to small random sets.

    python -m venv venv && venv/bin/pip install -r metrics_requirements.txt
    venv/bin/python probe.py > ../../mil/probe/testdata/golden.json

Everything is solved far below the tolerances that the tests ask for.
"""

import json

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sksurv.linear_model import CoxPHSurvivalAnalysis

rng = np.random.default_rng(20260102)


def features(n, d, classes, signal):
    y = rng.integers(0, classes, n)
    y[:classes] = range(classes)
    centres = rng.normal(0, signal, (classes, d))
    mix = rng.normal(0, 1, (d, d)) * 0.3 + np.eye(d)
    x = (centres[y] + rng.normal(0, 1, (n, d))) @ mix * rng.uniform(0.2, 3, d) + rng.normal(0, 2, d)
    return np.round(x, 3).astype(np.float32), y


def logistic(name, n, d, classes, signal):
    x, y = features(n, d, classes, signal)
    x64 = x.astype(np.float64)
    cases = []
    for c in (0.01, 1.0, 10.0, 1000.0):
        for balanced in (False, True):
            for scaled in (False, True):
                z = StandardScaler().fit_transform(x64) if scaled else x64
                # newton-cholesky fits several classes exactly, too
                m = LogisticRegression(C=c, class_weight="balanced" if balanced else None, solver="newton-cholesky", tol=1e-13, max_iter=10000).fit(z, y)
                w, b = m.coef_, m.intercept_
                if scaled:
                    s = StandardScaler().fit(x64)
                    w = w / s.scale_
                    b = b - w @ s.mean_
                cases.append({"c": c, "balanced": balanced, "scaled": scaled, "weight": w.ravel().tolist(), "intercept": b.tolist(),
                              "p": m.predict_proba(z).ravel().tolist()})
    return {"name": name, "dim": d, "classes": classes, "x": np.round(x.astype(float), 3).ravel().tolist(), "y": y.tolist(), "cases": cases}


def choice(n, d, folds):
    x, y = features(n, d, 2, 0.35)
    grid = np.logspace(-5, 6, 45)
    fold = np.arange(n) % folds
    losses = []
    for c in grid:
        total = 0.0
        for f in range(folds):
            m = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12, max_iter=10000).fit(x[fold != f].astype(float), y[fold != f])
            # log_loss cuts a mistake at 36; this does not
            total += np.logaddexp(0, m.decision_function(x[fold == f].astype(float)) * (1 - 2 * y[fold == f])).sum()
        losses.append(total / n)
    return {"dim": d, "folds": folds, "x": np.round(x.astype(float), 3).ravel().tolist(), "y": y.tolist(), "grid": grid.tolist(), "loss": losses, "c": float(grid[int(np.argmin(losses))])}


def regression(n, d):
    x, y = features(n, d, 3, 0.5)
    x64, target = x.astype(float), np.round(x @ rng.normal(0, 1, d) + rng.normal(0, 1, n), 3)
    out = []
    for c in (0.01, 1.0, 100.0):
        r = Ridge(alpha=1 / c, solver="cholesky", tol=1e-12).fit(x64, target)
        k = RidgeClassifier(alpha=1 / c, solver="cholesky", tol=1e-12).fit(x64, y)
        two = RidgeClassifier(alpha=1 / c, class_weight="balanced", solver="cholesky", tol=1e-12).fit(x64, y == 1)
        out.append({"c": c, "weight": r.coef_.tolist(), "intercept": [float(r.intercept_)],
                    "class_weight": k.coef_.ravel().tolist(), "class_intercept": k.intercept_.tolist(),
                    "two_weight": two.coef_.ravel().tolist(), "two_intercept": two.intercept_.tolist()})
    return {"dim": d, "x": np.round(x.astype(float), 3).ravel().tolist(), "y": y.tolist(), "target": target.tolist(), "cases": out}


def cox(name, n, d, digits):
    x = np.round(rng.normal(0, 1, (n, d)), 3).astype(np.float32)
    risk = x @ rng.normal(0, 0.7, d)
    time = np.round(rng.exponential(np.exp(-risk)) * 3 + 0.5, digits)
    seen = np.round(rng.exponential(4, n) + 0.5, digits)
    event, time = time <= seen, np.minimum(time, seen)
    truth = np.array(list(zip(event, time)), dtype=[("e", bool), ("t", float)])
    out = []
    for c in (0.01, 1.0, 100.0):
        m = CoxPHSurvivalAnalysis(alpha=1 / c, ties="efron", tol=1e-13, n_iter=1000).fit(x.astype(float), truth)
        out.append({"c": c, "weight": m.coef_.tolist()})
    return {"name": name, "dim": d, "x": np.round(x.astype(float), 3).ravel().tolist(), "time": time.tolist(), "event": event.tolist(), "cases": out}


def near(n, d, k):
    x, y = features(n, d, 3, 0.5)
    half = n // 2
    m = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x[:half].astype(float), y[:half])
    u = x.astype(float) - x[:half].astype(float).mean(0)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    means = np.stack([u[:half][y[:half] == c].mean(0) for c in range(3)])
    s = np.exp(-np.linalg.norm(u[half:, None] - means[None], axis=2))
    return {"dim": d, "k": k, "x": np.round(x.astype(float), 3).ravel().tolist(), "y": y.tolist(), "train": half,
            "p": m.predict_proba(x[half:].astype(float)).ravel().tolist(), "means": (s / s.sum(1, keepdims=True)).ravel().tolist()}


out = {
    "logistic": [logistic("tall", 90, 7, 2, 0.4), logistic("wide", 24, 40, 2, 0.3), logistic("three", 90, 6, 3, 0.5), logistic("wide three", 24, 30, 3, 0.3)],
    "choice": [choice(120, 8, 5), choice(40, 44, 4)],
    "regression": [regression(60, 6), regression(20, 30)],
    "cox": [cox("plain", 60, 4, 6), cox("ties", 60, 4, 0), cox("wide", 20, 30, 6)],
    "near": near(60, 8, 5),
}


def short(v):
    """Ten digits are more than the tests ask for; of features they are all there are."""
    if isinstance(v, dict):
        return {k: short(x) for k, x in v.items()}
    if isinstance(v, list):
        return [short(x) for x in v]
    return float(f"{v:.10g}") if isinstance(v, float) else v


print(json.dumps(short(out)))
