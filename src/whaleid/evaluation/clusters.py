"""The form of answer `clusters`: a cluster for each image, scored by the adjusted Rand index (AnimalCLEF 2026).

References
----------
Hubert & Arabie, "Comparing partitions", 1985.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from whaleid.evaluation.form_score import DRAWS, FormScore, with_interval
from whaleid.evaluation.frames import DATASET, read_pair, require_one_label


def adjusted_rand_index(truth: np.ndarray, cluster: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Adjusted Rand index of two partitions.

    Parameters
    ----------
    truth, cluster : arrays, shape (n,)
        Labels of any type.
    weights : float array, shape (n,), optional
        How often each image counts. An image makes no pair with its own copies: resampled images would else be pairs
        that every partition has right.

    Returns
    -------
    float
        1 for equal partitions, about 0 for independent ones; 1 where neither partition can be wrong.
    """
    codes = _codes(truth, cluster)
    return _index(codes, np.ones(len(truth)) if weights is None else weights)


def _codes(truth: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of the identity, of the cluster, and of both together, int (n,) each."""
    rows, columns = (np.unique(labels, return_inverse=True)[1].reshape(-1) for labels in (truth, cluster))
    cells = np.unique(rows * (columns.max() + 1) + columns, return_inverse=True)[1].reshape(-1)
    return rows, columns, cells


def _index(codes: tuple[np.ndarray, np.ndarray, np.ndarray], weights: np.ndarray) -> float:
    """The index from `_codes`."""
    rows, columns, both = (_pairs(each, weights) for each in codes)
    total = (weights.sum() ** 2 - (weights**2).sum()) / 2
    if both == rows == columns:
        return 1.0
    expected = rows * columns / total
    return float((both - expected) / ((rows + columns) / 2 - expected))


def _pairs(codes: np.ndarray, weights: np.ndarray) -> float:
    """Weighted number of pairs of different images that share a code."""
    return float(((np.bincount(codes, weights) ** 2) - np.bincount(codes, weights**2)).sum() / 2)


def score_submission(submission: Path, solution: Path, seed: int = 0) -> FormScore:
    """Mean over data sets of the adjusted Rand index; the interval resamples images within each data set.

    Parameters
    ----------
    submission : Path
        Image and cluster. Where the solution has data sets, a cluster is named `cluster_<dataset>_...`.
    solution : Path
        Image and identity; optionally `dataset`.
    seed : int
        Of the interval's random draws.
    """
    answers, truths = read_pair(submission, solution)
    cluster, truth, datasets = require_one_label(answers), require_one_label(truths).to_numpy(), truths.datasets()
    if DATASET in truths.frame.columns:
        named = [cell.startswith(f"cluster_{name}_") for cell, name in zip(cluster, datasets, strict=True)]
        answers.require(np.array(named), cluster, "must start with cluster_<data set of the image>_")
    rng, values, draws = np.random.default_rng(seed), {}, []
    for name in sorted(set(datasets)):
        rows = datasets == name
        values[name] = adjusted_rand_index(truth[rows], cluster.to_numpy()[rows])
        draws.append(_resampled(truth[rows], cluster.to_numpy()[rows], rng))
    parts = {} if list(values) == [""] else values
    return with_interval("ARI", float(np.mean(list(values.values()))), np.mean(draws, axis=0), len(truth), parts)


def _resampled(truth: np.ndarray, cluster: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Index of resampled images, float (DRAWS,)."""
    codes, n = _codes(truth, cluster), len(truth)
    weights = (np.bincount(rng.integers(n, size=n), minlength=n).astype(float) for _ in range(DRAWS))
    return np.array([_index(codes, each) for each in weights])
