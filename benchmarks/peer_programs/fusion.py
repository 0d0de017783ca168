"""Calibrated scores of several matchers, averaged: WildFusion after its description (Cermak et al., 2024).

The release of wildlife-tools on the package index is older than WildFusion, so this is written anew. Each matcher's
scores become probabilities by isotonic regression on pairs of labelled images; a fast score makes a shortlist for each
query; the mean of the probabilities ranks it. What is added: the shortlist is as long as the time allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import IsotonicRegression

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Rows of the first and of the second images, int64 (n,), to their scores (n,); higher is more alike."""

OWN, NEAREST = 5, 10
"""Pairs of an image in calibration: at most so many of its identity, and its nearest others."""
MOST_IMAGES, FEWEST_IMAGES = 200, 20
"""Images in calibration; between the two, as many as fit its share of the time."""
_TIE = 1e-6  # of a score's range: breaks the ties of an isotonic fit without changing its order


@dataclass(frozen=True)
class Calibration:
    """A probability that rises with the score. fit: IsotonicRegression; low, high: scores that were seen."""

    fit: IsotonicRegression
    low: float
    high: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities, float64, of scores of any shape; NaN where there is no score."""
        flat = np.asarray(scores, np.float64).ravel()
        known = np.isfinite(flat)
        out = np.full(flat.shape, np.nan)
        place = (flat[known] - self.low) / max(self.high - self.low, 1e-12)
        out[known] = self.fit.predict(flat[known]) + _TIE * place
        return out.reshape(np.shape(scores))


def calibrate(scores: np.ndarray, same: np.ndarray) -> Calibration:
    """Isotonic regression of `same` (bool) on the scores; both have shape (n,)."""
    fit = IsotonicRegression(out_of_bounds="clip").fit(scores, same)
    return Calibration(fit, float(scores.min()), float(scores.max()))


def calibration_pairs(likeness: np.ndarray, codes: np.ndarray, seed: int) -> list[np.ndarray]:
    """For images in random order, pairs with images of their identity and with the nearest others.

    Parameters
    ----------
    likeness : float array, shape (g, g)
        Of the labelled images by the fast score.
    codes : int64 array, shape (g,)
    seed : int

    Returns
    -------
    list of int64 array, shape (m, 2)
        One for each image that has another one of its identity, MOST_IMAGES at most.
    """
    rng, pairs = np.random.default_rng(seed), []
    for row in rng.permutation(len(codes)).tolist():
        own = np.flatnonzero((codes == codes[row]) & (np.arange(len(codes)) != row))
        if not len(own) or len(pairs) == MOST_IMAGES:
            continue
        others = np.flatnonzero(codes != codes[row])
        nearest = others[np.argsort(-likeness[row, others], kind="stable")[:NEAREST]]
        partners = np.concatenate([rng.permutation(own)[:OWN], nearest])
        pairs.append(np.stack([np.full(len(partners), row), partners], axis=1))
    return pairs


def fit_calibration(score: Score, pairs: list[np.ndarray], codes: np.ndarray, seconds: float) -> Calibration:
    """Calibration on the pairs of as many images as fit the seconds; at least FEWEST_IMAGES."""
    begin, scores, taken = time.monotonic(), [], []
    for some in pairs:
        if len(taken) >= FEWEST_IMAGES and time.monotonic() - begin > seconds:
            break
        scores.append(score(some[:, 0], some[:, 1]))
        taken.append(some)
    rows = np.concatenate(taken)
    return calibrate(np.concatenate(scores), codes[rows[:, 0]] == codes[rows[:, 1]])


def match_shortlist(
    scores: list[Score], queries: np.ndarray, gallery: np.ndarray, order: np.ndarray, seconds: float
) -> tuple[np.ndarray, int]:
    """Scores of the first images of each query's shortlist, as many as fit the seconds.

    Parameters
    ----------
    scores : list of Score
    queries, gallery : int64 arrays, shapes (q,), (g,)
    order : int64 array, shape (q, g)
        Columns of the gallery, best first.
    seconds : float

    Returns
    -------
    float64 array, shape (len(scores), q, g)
        NaN where a pair was not matched.
    int
        Length of the shortlist, at least 1.
    """
    count, total = order.shape
    found = np.full((len(scores), count, total), np.nan)
    begin, done, width = time.monotonic(), 0, 1
    while done < total and width >= 1:
        columns = order[:, done : done + width]
        first, second = np.repeat(np.arange(count), columns.shape[1]), columns.ravel()
        for place, score in enumerate(scores):
            found[place, first, second] = score(queries[first], gallery[second])
        done += columns.shape[1]
        spent = time.monotonic() - begin
        width = min(done, int((seconds - spent) * done / max(spent, 1e-9)))  # at most twice as far, to measure again
    return found, done


def fused(better: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Mean probability of each pair that all matchers have seen, above all pairs that they have not.

    Parameters
    ----------
    better : float array, shape (m, q, g)
        Probabilities, NaN where not matched.
    key : float array, shape (q, g)
        What ranks the others.

    Returns
    -------
    float64 array, shape (q, g)
    """
    mean = better.mean(axis=0)
    return np.where(np.isnan(mean), key, np.ceil(key.max()) + mean)
