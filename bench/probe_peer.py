"""scikit-learn on the same features, to measure Coverslip's probes against.

    python probe_peer.py path      X.f32 Y.u8 ROWS DIM   LogisticRegressionCV: 45 values of C, 5 folds
    python probe_peer.py fit       X.f32 Y.u8 ROWS DIM   LogisticRegression solved to the end, for its coefficients
    python probe_peer.py bootstrap X.f32 Y.u8 ROWS DIM   roc_auc_score of 100 draws of rows, scored by the first feature

Prints one JSON object a run, with the CPU seconds it took. One thread. Reads one word from standard input before
every run, so that whoever measures can take turns.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import json  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
import warnings  # noqa: E402

import numpy as np  # noqa: E402
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

warnings.simplefilter("ignore")
FOLDS = 5


def cpu_seconds():
    u = resource.getrusage(resource.RUSAGE_SELF)
    return u.ru_utime + u.ru_stime


def path(x, y):
    place = np.arange(len(y)) % FOLDS
    folds = [(np.flatnonzero(place != f), np.flatnonzero(place == f)) for f in range(FOLDS)]
    # refit=False: nothing is fitted but the path. The tolerance is the default of both.
    m = LogisticRegressionCV(Cs=np.logspace(-5, 6, 45), cv=folds, scoring="neg_log_loss", refit=False, tol=1e-4, max_iter=1000, l1_ratios=(0,), use_legacy_attributes=False)
    m.fit(x, y)
    loss = -m.scores_.mean(0).ravel()
    return {"values": [float(np.logspace(-5, 6, 45)[loss.argmin()]), float(loss.min())]}


def fit(x, y):
    m = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(x, y)
    return {"values": m.coef_.ravel().tolist() + m.intercept_.tolist()}


def bootstrap(x, y):
    rng = np.random.default_rng(0)
    score = x[:, 0]
    for _ in range(100):
        roc_auc_score(y, score, sample_weight=np.bincount(rng.integers(0, len(y), len(y)), minlength=len(y)))
    return {}


def main():
    what, xs, ys, rows, dim = sys.argv[1:]
    x = np.fromfile(xs, np.float32).reshape(int(rows), int(dim)).astype(np.float64)
    y = np.fromfile(ys, np.uint8).astype(int)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        before = cpu_seconds()
        said = {"path": path, "fit": fit, "bootstrap": bootstrap}[what](x, y)
        print(json.dumps({"cpu_seconds": cpu_seconds() - before, **said}), flush=True)


if __name__ == "__main__":
    main()
