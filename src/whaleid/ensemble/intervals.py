"""Difference of two rankings' or answers' scores on the same queries, with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from whaleid.ensemble.protocol import Protocol
from whaleid.evaluation.form_score import resampled_counts
from whaleid.evaluation.forms import Form
from whaleid.evaluation.metrics import reciprocal_rank_at_k


@dataclass(frozen=True)
class Gain:
    """Difference of two scores on the same queries, with its paired 95 % bootstrap interval."""

    gain: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.gain:+.5f} [{self.low:+.5f}, {self.high:+.5f}]"


def paired_gain(difference: np.ndarray, weights: np.ndarray, seed: int, bootstraps: int = 1000) -> Gain:
    """Weighted mean of the queries' differences and its 95 % percentile bootstrap interval over queries.

    Parameters
    ----------
    difference : float array, shape (n,)
        Score of each query by one ranking less that by the other.
    weights : float array, shape (n,)
        >= 0, one above 0.
    seed : int
        Of the bootstrap.
    bootstraps : int
        Number of bootstrap samples.
    """
    used = weights > 0
    # differences and weights take few values: sampling queries is sampling how often each pair of them comes
    pairs, counts = np.unique(np.stack([difference[used], weights[used]], axis=1), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=bootstraps)
    means = drawn @ (pairs[:, 0] * pairs[:, 1]) / (drawn @ pairs[:, 1])
    low, high = np.quantile(means, (0.025, 0.975))
    mean = float(weights @ difference / weights.sum())
    return Gain(mean, min(float(low), mean), max(float(high), mean))


def paired_answer_gain(form: Form, first: pd.DataFrame, second: pd.DataFrame, seed: int) -> Gain:
    """Difference in a form's metric, second less first, with the 95 % interval over what the form's own resamples.

    first, second: outcomes (`Form.outcomes`) of the same rows in the same order.
    """
    one, other = form.metric(first), form.metric(second)
    counts = resampled_counts(first, form.UNIT, form.STRATUM, np.random.default_rng(seed))
    low, high = np.quantile([other(drawn) - one(drawn) for drawn in counts], (0.025, 0.975))
    every = np.ones(len(first), dtype=int)
    gain = other(every) - one(every)
    return Gain(gain, min(float(low), gain), max(float(high), gain))


def weighted_map(protocol: Protocol, ranks: np.ndarray) -> float:
    """MAP@k of all queries out of fold. ranks: int (n,), rank of the truth; 0 where it was not guessed."""
    weights = protocol.weights(protocol.places)
    return float(weights @ reciprocal_rank_at_k(ranks, protocol.k) / weights.sum())


def rank_gain(protocol: Protocol, ranks: np.ndarray, other: np.ndarray, seed: int) -> Gain:
    """Gain in MAP@k of one ranking over another on all queries out of fold.

    Parameters
    ----------
    protocol : Protocol
    ranks, other : int arrays, shape (n,)
        Rank of the truth of every query, in the protocol's order; 0 where it was not guessed.
    seed : int
        Of the bootstrap.
    """
    difference = reciprocal_rank_at_k(ranks, protocol.k) - reciprocal_rank_at_k(other, protocol.k)
    return paired_gain(difference, protocol.weights(protocol.places), seed)
