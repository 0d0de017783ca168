"""MAP@k: the mean over queries of 1 / rank of the true identity among at most k distinct guesses.

Identities are int codes here, so that ten million guesses are a few array operations; `submissions.py` deals
with names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from whaleid.utils.errors import WhaleidError

PADDING = -1
"""Code of "no guess here"; every negative code is read as this one."""
SLICES = ("1", "2-5", "6+", "unknown")
"""Names of the slices, in the order they are shown: number of gallery images of the true identity."""

_BLOCK = 1 << 15  # rows at a time: five int32 columns of them and their masks stay in the CPU's cache
_MAX_GROUPS = 4096  # different (score, weight) pairs above which the interval is computed, not resampled
_CELLS = 1 << 20  # counts drawn at a time by the bootstrap: 8 MB
_Z95 = 1.959964  # 97.5 % quantile of the normal distribution


# ------------------------------------------------------------------------------------------------------ ranks


def reciprocal_rank_at_k(rank: np.ndarray, k: int = 5) -> np.ndarray:
    """Score of each query when one identity is true: 1 / rank within the first k guesses, else 0.

    rank: int (n_query,), 1 for the first guess, 0 where the true identity was not guessed.
    Returns float64 (n_query,); its mean is MAP@k.
    """
    return np.where((rank >= 1) & (rank <= k), 1.0 / np.maximum(rank, 1), 0.0)


def distinct_mask(guesses: np.ndarray) -> np.ndarray:
    """Where a guess is the first of its label in its row; padding and repeats are False.

    guesses: int (n, m), negative = padding. Returns bool (n, m).
    """
    _check_guesses(guesses)
    mask = np.empty(guesses.shape, dtype=bool)
    for start in range(0, len(guesses), _BLOCK):
        mask[start : start + _BLOCK] = _first_seen(guesses[start : start + _BLOCK].T.copy()).T
    return mask


def first_distinct(guesses: np.ndarray, k: int) -> np.ndarray:
    """The first k distinct guesses of each row, repeats and padding closed up, the rest filled with PADDING.

    guesses: int (n, m), negative = padding. Returns the same dtype, (n, min(k, m)).
    """
    _check_k(k)
    mask = distinct_mask(guesses)
    place = np.cumsum(mask, axis=1) - 1
    mask &= place < k
    packed = np.full((len(guesses), min(k, guesses.shape[1])), PADDING, dtype=guesses.dtype)
    packed[np.nonzero(mask)[0], place[mask]] = guesses[mask]
    return packed


def rank_of_truth(guesses: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Place of the true identity among each row's distinct guesses.

    A label's second occurrence neither counts nor takes a place, nor does padding.

    guesses: int (n, m), negative = padding. truth: int (n,), negative = an identity that no guess can name.
    Returns int32 (n,): 1 for the first guess, 0 where the true identity was not guessed.
    """
    _check_guesses(guesses)
    if truth.shape != (len(guesses),):
        raise WhaleidError(f"truth: shape {truth.shape}, but there are {len(guesses)} rows of guesses")
    rank = np.zeros(len(guesses), dtype=np.int32)
    for start in range(0, len(guesses), _BLOCK):
        rows = slice(start, start + _BLOCK)
        columns = guesses[rows].T.copy()  # a column at a time is contiguous: several times as fast as by rows
        place = np.zeros(columns.shape[1], dtype=np.int32)
        for column, fresh in zip(columns, _first_seen(columns), strict=True):
            place += fresh
            rank[rows] += place * (fresh & (column == truth[rows]))  # fresh once in a row: never added twice
    return rank


def _first_seen(columns: np.ndarray) -> np.ndarray:
    """`distinct_mask` of the transposed guesses, (m, n) -> bool (m, n)."""
    fresh = columns >= 0
    for later in range(1, len(columns)):
        for earlier in range(later):
            fresh[later] &= columns[later] != columns[earlier]
    return fresh


# ------------------------------------------------------------------------------------------------------ score


@dataclass(frozen=True)
class SliceScore:
    """MAP@k of the queries of one slice."""

    map: float
    queries: int


@dataclass(frozen=True)
class MapScore:
    """MAP@k of a set of queries, with its 95 % interval; refuses to exist with figures that cannot be true.

    map, low, high: in [0, 1], low <= map <= high. queries: how many were scored, at least 1.
    slices: name -> score, over disjoint parts of the queries.
    """

    map: float
    k: int
    queries: int
    low: float
    high: float
    slices: Mapping[str, SliceScore] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_k(self.k)
        if self.queries < 1:
            raise WhaleidError(f"MAP@{self.k}: {self.queries} queries; at least one is needed")
        if not 0.0 <= self.low <= self.map <= self.high <= 1.0:
            raise WhaleidError(f"MAP@{self.k}: not 0 <= {self.low} <= {self.map} <= {self.high} <= 1")
        if sum(part.queries for part in self.slices.values()) > self.queries:
            raise WhaleidError(f"MAP@{self.k}: the slices hold more queries than the whole, {self.queries}")
        for name, part in self.slices.items():
            if not 0.0 <= part.map <= 1.0 or part.queries < 1:
                raise WhaleidError(f"MAP@{self.k}: slice {name!r} is impossible: {part}")

    def line(self, label: str, interval: bool = False) -> str:
        """`MAP@5 (label): 0.91234`, with ` ± 0.00456` (half the interval's width) where asked for."""
        spread = f" ± {(self.high - self.low) / 2:.5f}" if interval else ""
        return f"MAP@{self.k} ({label}): {self.map:.5f}{spread}"

    def as_json(self) -> dict[str, Any]:
        """The same figures as plain types: map, k, queries, low, high, slices."""
        figures = {"map": self.map, "k": self.k, "queries": self.queries, "low": self.low, "high": self.high}
        return figures | {"slices": {name: asdict(part) for name, part in self.slices.items()}}


def score_ranks(
    rank: np.ndarray,
    k: int = 5,
    weights: np.ndarray | None = None,
    slices: np.ndarray | None = None,
    seed: int = 0,
    bootstraps: int = 1000,
) -> MapScore:
    """MAP@k with a 95 % percentile bootstrap interval over queries, and that of each slice.

    rank: int (n,), from `rank_of_truth`. slices: str (n,), from `size_slices`.
    weights: float (n,), at least 0, from `expected_share_weights`; None for equal ones. They hold in the
    slices too, but for a slice whose weights are all 0, which is averaged plainly.
    The same arguments and seed give the same interval.
    Raises WhaleidError where there are no queries, or weights are negative, not finite or all zero.
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
    parts = {} if slices is None else _by_slice(scores, weights, slices)
    return MapScore(mean, k, len(rank), low, high, parts)


def _mean(scores: np.ndarray, weights: np.ndarray | None) -> float:
    """Weighted mean in [0, 1]; plain where there are no weights, or none above zero."""
    if weights is None or not weights.any():
        return float(scores.mean())
    return min(float(np.average(scores, weights=weights)), 1.0)  # rounding may add up to 1.0000000000000002


def _interval(
    rank: np.ndarray,
    k: int,
    weights: np.ndarray | None,
    mean: float,
    rng: np.random.Generator,
    bootstraps: int,
) -> tuple[float, float]:
    """95 % interval of the weighted mean; it always holds the mean itself.

    Scores take few values (0 and 1/1 to 1/k) and weights usually two, so that drawing n queries again is
    drawing how often each (score, weight) pair comes: one multinomial over a dozen groups, whatever n is.
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
    used = (counts > 0) & (weight_of_group > 0)  # so that no draw weighs nothing in all
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
    """Interval from the variance of a ratio of sums: with thousands of weights the means are normal."""
    deviation = math.sqrt(float(np.sum((weights * (scores - mean)) ** 2))) / float(weights.sum())
    return max(mean - _Z95 * deviation, 0.0), min(mean + _Z95 * deviation, 1.0)


def _by_slice(scores: np.ndarray, weights: np.ndarray | None, slices: np.ndarray) -> dict[str, SliceScore]:
    """The score of each slice that holds a query: SLICES in their order, then other names by alphabet."""
    if slices.shape != scores.shape:
        raise WhaleidError(f"slices: shape {slices.shape}, but there are {len(scores)} queries")
    names = [str(name) for name in np.unique(slices)]
    parts: dict[str, SliceScore] = {}
    for name in sorted(names, key=lambda name: (SLICES.index(name) if name in SLICES else len(SLICES), name)):
        rows = slices == name
        part = _mean(scores[rows], None if weights is None else weights[rows])
        parts[name] = SliceScore(part, int(rows.sum()))
    return parts


# ----------------------------------------------------------------------------------------- slices and weights


def size_slices(truth_sizes: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Slice of each query by how many gallery images its true identity has.

    truth_sizes: int (n,); 0, an identity with no gallery image, is an unknown one whatever `unknown` says.
    unknown: bool (n,). Returns str (n,), each one of SLICES.
    """
    if truth_sizes.shape != unknown.shape:
        raise WhaleidError(f"sizes: shape {truth_sizes.shape}, but unknown has {unknown.shape}")
    place = np.where(truth_sizes >= 6, 2, np.where(truth_sizes >= 2, 1, 0))
    return np.array(SLICES)[np.where(unknown | (truth_sizes < 1), 3, place)]


def expected_share_weights(is_unknown: np.ndarray, share: float | None) -> np.ndarray:
    """Weight of each query so that the unknown ones weigh `share` of the whole, as expected of the test set.

    is_unknown: bool (n,). share: in [0, 1], where 0 gives unknown queries weight 0, and 1 the known ones;
    None keeps the share that the queries have.
    Returns float64 (n,), mean 1. All ones if share is None, and where every query is known or every one
    unknown: there is then nothing to weigh them against.
    """
    if share is not None and not 0.0 <= share <= 1.0:  # NaN is refused too
        raise WhaleidError(f"unknown_share: {share}; give a share from 0 to 1, or null")
    queries, unknown = len(is_unknown), int(np.count_nonzero(is_unknown))
    if share is None or unknown in (0, queries):
        return np.ones(queries)
    return np.where(is_unknown, share * queries / unknown, (1.0 - share) * queries / (queries - unknown))


# ----------------------------------------------------------------------------------------------------- checks


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
