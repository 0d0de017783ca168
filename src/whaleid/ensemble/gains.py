"""Difference of two ways of answering on the same queries, with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gain:
    """Difference of two rungs' MAP@k on the same queries, with its paired 95 % bootstrap interval."""

    gain: float
    low: float
    high: float


def paired_gain(difference: np.ndarray, weights: np.ndarray, seed: int, bootstraps: int = 1000) -> Gain:
    """Weighted mean of the queries' differences and its 95 % percentile bootstrap interval over queries.

    difference: float (n,), of the same queries' scores. weights: float (n,), >= 0, one above 0.
    Differences and weights take few values: drawing queries is drawing how often each pair of them comes.
    """
    used = weights > 0
    pairs, counts = np.unique(np.stack([difference[used], weights[used]], axis=1), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=bootstraps)
    means = drawn @ (pairs[:, 0] * pairs[:, 1]) / (drawn @ pairs[:, 1])
    low, high = np.quantile(means, (0.025, 0.975))
    mean = float(weights @ difference / weights.sum())
    return Gain(mean, min(float(low), mean), max(float(high), mean))
