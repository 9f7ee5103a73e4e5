"""Prints how long 1,000 patient bootstraps of an AUC on 12,000 rows take with scikit-learn's roc_auc_score.
Beside it: go test -run '^$' -bench AUCBootstrap ./mil/metric
"""

import time

import numpy as np
from sklearn.metrics import roc_auc_score

DRAWS, ROWS = 100, 12_000
rng = np.random.default_rng(0)
patient = np.repeat(np.arange(ROWS), rng.integers(1, 4, ROWS))[:ROWS]
patients = patient.max() + 1
y = rng.integers(0, 2, patients)[patient]
score = y + rng.normal(size=patients)[patient] + 0.1 * rng.normal(size=ROWS)

start = time.perf_counter()
for _ in range(DRAWS):
    times = np.bincount(rng.integers(0, patients, patients), minlength=patients)[patient]
    roc_auc_score(y, score, sample_weight=times)
print(f"{(time.perf_counter() - start) * 1000 / DRAWS:.2f} s for 1,000 draws, measured on {DRAWS}")
