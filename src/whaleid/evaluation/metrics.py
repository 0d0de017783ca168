"""MAP@k: the mean over queries of 1 / rank of the true identity among at most k distinct guesses.

Identities are int codes here, so that ten million guesses are a few array operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np

from whaleid.utils.errors import WhaleidError

PADDING = -1
"""Code of a missing guess; every negative code is read as this one."""
SLICES = ("1", "2-5", "6+", "unknown")
"""Names of the slices in their order: number of gallery images of the true identity."""

_BLOCK = 1 << 15  # rows at once: a few int32 columns of them and their masks stay in the CPU's cache
_MAX_GROUPS = 4096  # different (score, weight) pairs above which the interval is computed, not resampled
_CELLS = 1 << 20  # counts that the bootstrap draws at once: 8 MB
_Z95 = 1.959964  # 97.5 % quantile of the normal distribution


# --------------------------------------------------------------------------------------------------------- ranks


def reciprocal_rank_at_k(rank: np.ndarray, k: int = 5) -> np.ndarray:
    """Reciprocal rank of the true identity within the first k guesses.

    Parameters
    ----------
    rank : int array, shape (n_query,)
        Rank of the true identity, 1 for the first guess, 0 where it was not guessed.
    k : int
        Number of guesses that count.

    Returns
    -------
    float64 array, shape (n_query,)
        1 / rank where 1 <= rank <= k, else 0. Its mean is MAP@k.
    """
    return _reciprocals(k).take(rank, mode="clip")


@cache
def _reciprocals(k: int) -> np.ndarray:
    """1 / rank at the place of each rank that counts, 0 at either end."""
    return np.concatenate([[0.0], 1.0 / np.arange(1, k + 1), [0.0]])


def distinct_mask(guesses: np.ndarray) -> np.ndarray:
    """Where a guess is the first of its label in its row.

    Parameters
    ----------
    guesses : int array, shape (n, m)
        Codes; negative: padding.

    Returns
    -------
    bool array, shape (n, m)
        False for repeats and padding.
    """
    _check_guesses(guesses)
    mask = np.empty(guesses.shape, dtype=bool)
    for start in range(0, len(guesses), _BLOCK):
        mask[start : start + _BLOCK] = _first_occurrence(guesses[start : start + _BLOCK].T.copy()).T
    return mask


def rank_of_truth(guesses: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rank of the true identity among each row's distinct guesses.

    Parameters
    ----------
    guesses : int array, shape (n, m)
        Codes, best first; negative: padding. Neither repeats nor padding take a place.
    truth : int array, shape (n,)
        Codes; negative: an identity that no guess can name.

    Returns
    -------
    int32 array, shape (n,)
        1 for the first guess, 0 where the true identity was not guessed.
    """
    _check_guesses(guesses)
    if truth.shape != (len(guesses),):
        raise WhaleidError(f"truth: shape {truth.shape}, but there are {len(guesses)} rows of guesses")
    rank = np.zeros(len(guesses), dtype=np.int32)
    for start in range(0, len(guesses), _BLOCK):
        rows = slice(start, start + _BLOCK)
        columns = guesses[rows].T.copy()  # contiguous columns are several times as fast as rows
        place = np.zeros(columns.shape[1], dtype=np.int32)
        for column, first in zip(columns, _first_occurrence(columns), strict=True):
            place += first
            rank[rows] += place * (first & (column == truth[rows]))  # true at most once in a row
    return rank


def _first_occurrence(columns: np.ndarray) -> np.ndarray:
    """`distinct_mask` of the transposed guesses, (m, n) -> bool (m, n)."""
    first = columns >= 0
    for later in range(1, len(columns)):
        for earlier in range(later):
            first[later] &= columns[later] != columns[earlier]
    return first


# --------------------------------------------------------------------------------------------------------- score


@dataclass(frozen=True)
class SliceScore:
    """MAP@k of the queries of one slice."""

    map: float
    queries: int


@dataclass(frozen=True)
class MapScore:
    """MAP@k of a set of queries with its 95 % interval; impossible values are refused.

    Attributes
    ----------
    map, low, high : float
        In [0, 1], low <= map <= high.
    k : int
    queries : int
        Number of queries, at least 1.
    slices : mapping
        Name -> score of disjoint parts of the queries.
    cmc : tuple of float
        Share of queries whose identity is among the first 1 .. k guesses (Recall@k); empty where not asked for.
    minp : float, optional
        Mean over queries of 1 / rank among all guesses, whatever k: mINP where one answer is right.
    """

    map: float
    k: int
    queries: int
    low: float
    high: float
    slices: Mapping[str, SliceScore] = field(default_factory=dict)
    cmc: tuple[float, ...] = ()
    minp: float | None = None

    def __post_init__(self) -> None:
        _check_k(self.k)
        if self.queries < 1:
            raise WhaleidError(f"MAP@{self.k}: {self.queries} queries; at least one is needed")
        if not 0.0 <= self.low <= self.map <= self.high <= 1.0:
            raise WhaleidError(f"MAP@{self.k}: not 0 <= {self.low} <= {self.map} <= {self.high} <= 1")
        if sum(part.queries for part in self.slices.values()) > self.queries:
            raise WhaleidError(f"MAP@{self.k}: the slices hold more than the {self.queries} queries")
        for name, part in self.slices.items():
            if not 0.0 <= part.map <= 1.0 or part.queries < 1:
                raise WhaleidError(f"MAP@{self.k}: slice {name!r} is impossible: {part}")

    @property
    def value(self) -> float:
        """MAP@k, by the name that scores of all forms have."""
        return self.map

    def line(self, label: str, interval: bool = False) -> str:
        """`MAP@5 (label): 0.91234`, and ` ± 0.00456` (half the interval's width) if `interval`."""
        spread = f" ± {(self.high - self.low) / 2:.5f}" if interval else ""
        return f"MAP@{self.k} ({label}): {self.map:.5f}{spread}"

    def as_json(self) -> dict[str, Any]:
        """The values as plain types: map, k, queries, low, high, slices."""
        values = {"map": self.map, "k": self.k, "queries": self.queries, "low": self.low, "high": self.high}
        return values | {"slices": {name: asdict(part) for name, part in self.slices.items()}}

    def part_lines(self) -> list[str]:
        """`name: 0.91234 (12 queries)` of each slice."""
        return [f"{name:>8}: {part.map:.5f} ({part.queries:,} queries)" for name, part in self.slices.items()]

    def details(self) -> dict[str, Any]:
        """CMC and mINP, for the command line's JSON."""
        return {"cmc": list(self.cmc), "minp": self.minp}


def score_ranks(
    rank: np.ndarray,
    k: int = 5,
    weights: np.ndarray | None = None,
    slices: np.ndarray | None = None,
    seed: int = 0,
    bootstraps: int = 1000,
) -> MapScore:
    """MAP@k with a 95 % percentile bootstrap interval over queries.

    Parameters
    ----------
    rank : int array, shape (n,)
        From `rank_of_truth`.
    k : int
        Number of guesses that count.
    weights : float array, shape (n,), optional
        At least 0, from `expected_share_weights`. They hold in the slices, too, except in a slice whose weights are
        all 0, whose mean is unweighted.
    slices : str array, shape (n,), optional
        From `size_slices`.
    seed, bootstraps : int
        Of the interval.

    Raises
    ------
    WhaleidError
        If there are no queries, or weights are negative, not finite or all zero.
    """
    _check_k(k)
    if rank.ndim != 1 or not len(rank):
        raise WhaleidError(f"rank: shape {rank.shape}; one rank for each of at least one query is needed")
    if bootstraps < 1:
        raise WhaleidError(f"bootstraps: {bootstraps}; at least 1 is needed")
    if weights is not None:
        _check_weights(weights, len(rank))
    scores = reciprocal_rank_at_k(rank, k)
    mean = _mean(scores, weights)
    low, high = _interval(rank, k, weights, mean, np.random.default_rng(seed), bootstraps)
    parts = {} if slices is None else score_slices(scores, weights, slices)
    return MapScore(mean, k, len(rank), low, high, parts)


def _mean(scores: np.ndarray, weights: np.ndarray | None) -> float:
    """Weighted mean in [0, 1]; unweighted where there are no weights, or none above zero."""
    if weights is None or not weights.any():
        return float(scores.mean())
    return min(float(np.average(scores, weights=weights)), 1.0)  # rounding may give 1.0000000000000002


def _interval(
    rank: np.ndarray,
    k: int,
    weights: np.ndarray | None,
    mean: float,
    rng: np.random.Generator,
    bootstraps: int,
) -> tuple[float, float]:
    """95 % interval of the weighted mean; it always holds the mean itself.

    Scores have few values (0 and 1/1 to 1/k) and weights usually two. So to resample n queries is to draw the number
    of each (score, weight) pair: one multinomial over a dozen groups, whatever n is.
    """
    place = np.where((rank >= 1) & (rank <= k), rank, 0)
    values = reciprocal_rank_at_k(np.arange(int(place.max()) + 1), k)
    levels, level_of = np.ones(1), np.zeros((), dtype=np.int64)
    if weights is not None:
        levels, level_of = np.unique(weights, return_inverse=True)
        if len(levels) * len(values) > _MAX_GROUPS:
            return _normal_interval(reciprocal_rank_at_k(rank, k), weights, mean)
    counts = np.bincount(level_of * len(values) + place, minlength=len(levels) * len(values))
    weight_of_group = np.repeat(levels, len(values))
    sums = np.tile(values, len(levels)) * weight_of_group
    used = (counts > 0) & (weight_of_group > 0)  # so that no resample has zero weight
    counts, weight_of_group, sums = counts[used], weight_of_group[used], sums[used]
    queries = int(counts.sum())
    means = np.empty(bootstraps)
    step = max(1, _CELLS // len(counts))
    for start in range(0, bootstraps, step):
        part = means[start : start + step]
        drawn = rng.multinomial(queries, counts / queries, size=len(part))
        part[:] = (drawn @ sums) / (drawn @ weight_of_group)
    low, high = np.quantile(means, (0.025, 0.975))
    return min(float(low), mean), min(max(float(high), mean), 1.0)


def _normal_interval(scores: np.ndarray, weights: np.ndarray, mean: float) -> tuple[float, float]:
    """Interval from the variance of a ratio of sums; with thousands of weights the means are normal."""
    deviation = math.sqrt(float(np.sum((weights * (scores - mean)) ** 2))) / float(weights.sum())
    return max(mean - _Z95 * deviation, 0.0), min(mean + _Z95 * deviation, 1.0)


def score_slices(scores: np.ndarray, weights: np.ndarray | None, slices: np.ndarray) -> dict[str, SliceScore]:
    """Score of each slice that holds a query: those of SLICES in their order, then others by name."""
    if slices.shape != scores.shape:
        raise WhaleidError(f"slices: shape {slices.shape}, but there are {len(scores)} queries")
    names = [str(name) for name in np.unique(slices)]
    parts: dict[str, SliceScore] = {}
    for name in sorted(names, key=lambda name: (SLICES.index(name) if name in SLICES else len(SLICES), name)):
        rows = slices == name
        part = _mean(scores[rows], None if weights is None else weights[rows])
        parts[name] = SliceScore(part, int(rows.sum()))
    return parts


# -------------------------------------------------------------------------------------------- slices and weights


def size_slices(truth_sizes: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Slice of each query by the number of gallery images of its true identity.

    Parameters
    ----------
    truth_sizes : int array, shape (n,)
        Without gallery images (0) an identity is unknown whatever `unknown` says.
    unknown : bool array, shape (n,)

    Returns
    -------
    str array, shape (n,)
        Values of SLICES.
    """
    if truth_sizes.shape != unknown.shape:
        raise WhaleidError(f"sizes: shape {truth_sizes.shape}, but unknown has {unknown.shape}")
    place = np.where(truth_sizes >= 6, 2, np.where(truth_sizes >= 2, 1, 0))
    return np.array(SLICES)[np.where(unknown | (truth_sizes < 1), 3, place)]


def expected_share_weights(is_unknown: np.ndarray, share: float | None) -> np.ndarray:
    """Weights of queries that give the unknown ones the share expected in the test set.

    Parameters
    ----------
    is_unknown : bool array, shape (n,)
    share : float or None
        In [0, 1]; None keeps the share that the queries have.

    Returns
    -------
    float64 array, shape (n,)
        Mean 1. All ones if `share` is None, and if all queries are known or all unknown: there is then nothing to
        balance them with.
    """
    if share is not None and not 0.0 <= share <= 1.0:  # NaN is refused, too
        raise WhaleidError(f"unknown_share: {share}; give a share from 0 to 1, or null")
    queries, unknown = len(is_unknown), int(np.count_nonzero(is_unknown))
    if share is None or unknown in (0, queries):
        return np.ones(queries)
    return np.where(is_unknown, share * queries / unknown, (1.0 - share) * queries / (queries - unknown))


# -------------------------------------------------------------------------------------------------------- checks


def _check_k(k: int) -> None:
    if k < 1:
        raise WhaleidError(f"k: {k}; at least 1 guess must count")


def _check_guesses(guesses: np.ndarray) -> None:
    if guesses.ndim != 2 or not np.issubdtype(guesses.dtype, np.signedinteger):
        raise WhaleidError(f"guesses: {guesses.dtype} {guesses.shape}; signed int codes (n, m) are needed")


def _check_weights(weights: np.ndarray, queries: int) -> None:
    if weights.shape != (queries,):
        raise WhaleidError(f"weights: shape {weights.shape}, but there are {queries} queries")
    if not np.isfinite(weights).all() or (weights < 0).any() or not (weights > 0).any():
        raise WhaleidError("weights: all must be finite and at least 0, and one above 0")
