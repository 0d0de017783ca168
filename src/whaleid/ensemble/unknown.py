"""The unknown identity as one more candidate: its score is a threshold.

Guesses are ordered by score, and the unknown identity is placed before the first score below the threshold t. MAP@k as
a function of t is a step function that changes only at the scores themselves, so the best t is found exactly: sort the
steps, add them up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whaleid.ensemble.protocol import Targets
from whaleid.evaluation.metrics import expected_share_weights, reciprocal_rank_at_k
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of unknown queries for which the expected MAP@k is computed."""
_BEYOND = 2.0  # past all scores: cosines and probabilities span no more than 2
_EQUAL = 1e-12  # sums that differ less differ by rounding


@dataclass(frozen=True)
class RankStats:
    """What weighted MAP@k depends on.

    Attributes
    ----------
    rank : int array, shape (n,)
        Rank of the truth among the candidates, 1 = first; 0 where it is not among them.
    truth_score : float32 array, shape (n,)
        Score of the truth; any value where `rank` is 0.
    top : float32 array, shape (u, k)
        The k best scores of each **unknown** query, descending, -inf padded.
    is_unknown : bool array, shape (n,)
        Of which u are true.
    weights : float64 array, shape (n,)
    """

    rank: np.ndarray
    truth_score: np.ndarray
    top: np.ndarray
    is_unknown: np.ndarray
    weights: np.ndarray


def rank_stats(candidates: Candidates, truth: np.ndarray, weights: np.ndarray, k: int) -> RankStats:
    """Rank of the truth in each list. truth: int64 (n,), -1 = unknown. weights: float64 (n,)."""
    found = (candidates.codes == truth[:, None]) & (truth >= 0)[:, None]
    place = found.argmax(axis=1)
    rank = np.where(found.any(axis=1), place + 1, 0)
    score = np.take_along_axis(candidates.scores, place[:, None], axis=1)[:, 0]
    top = candidates.scores[truth < 0, :k]
    top = np.pad(top, ((0, 0), (0, k - top.shape[1])), constant_values=-np.inf)
    return RankStats(rank, score, top, truth < 0, weights)


def map_without_unknown(stats: RankStats, k: int) -> float:
    """Weighted MAP@k where `unknown` is never guessed."""
    return float(stats.weights @ reciprocal_rank_at_k(stats.rank, k) / stats.weights.sum())


def map_at(stats: RankStats, threshold: float, k: int) -> float:
    """Weighted MAP@k where `unknown` is placed before the first score below the threshold (a float32 value)."""
    return float(stats.weights @ _reciprocal(stats, threshold, k) / stats.weights.sum())


def best_map(stats: RankStats, targets: Targets) -> tuple[float | None, float]:
    """The best threshold at the queries' weights (None where unknown may not be guessed) and its MAP@k."""
    if not targets.unknown:
        return None, map_without_unknown(stats, targets.k)
    return best_threshold(stats, targets.k)


def fit_threshold(lists: Candidates, targets: Targets) -> float | None:
    """The threshold that loses least between the shares of `targets`; None where the unknown identity may not be
    guessed.
    """
    if not targets.unknown:
        return None
    stats = rank_stats(lists, targets.truth, targets.weights, targets.k)
    return best_threshold(stats, targets.k, targets.shares)[0]


def _reciprocal(stats: RankStats, threshold: float, k: int) -> np.ndarray:
    """Score float64 (n,) of each query under a threshold."""
    limit = np.float32(threshold)
    rank = np.where(stats.rank > 0, stats.rank + (stats.truth_score < limit), 0)
    rank[stats.is_unknown] = (stats.top >= limit).sum(axis=1) + 1
    return reciprocal_rank_at_k(rank, k)


def best_threshold(stats: RankStats, k: int, shares: tuple[float, float] | None = None) -> tuple[float, float]:
    """The threshold with the largest weighted MAP@k, exactly, and that MAP@k.

    With rising t a known query loses 1/r - 1/(r + 1) when t passes its truth's score at rank r, and an
    unknown one rises from rank j + 1 to j when t passes its j-th score: n k steps, sorted once.
    The threshold is a float32 value between two neighbouring steps: a candidate of exactly this score stands
    before `unknown`. Of equally good intervals the widest is taken; an end (always, never unknown first) only
    if better.

    Parameters
    ----------
    stats : RankStats
    k : int
        Number of guesses that count.
    shares : (float, float), optional
        The share of unknown queries lies between these: the threshold of least regret is taken. Its regret at a share
        is how far its MAP@k lies below the best threshold's. MAP@k is linear in the share and the best one's convex, so
        that no share between two has a larger regret than the worse of the two.
    """
    weightings = [stats.weights] if shares is None else [_weighted_to(stats, share) for share in shares]
    steps, changes, starts = _steps(stats, k, weightings)
    if not len(steps):
        return -_BEYOND, map_at(stats, -_BEYOND, k)
    order = np.argsort(steps, kind="stable")
    steps, heights = steps[order], starts[:, None] + np.cumsum(changes[:, order], axis=1)
    last = np.append(steps[1:] > steps[:-1], True)  # of equal steps, all are passed together
    steps, heights = steps[last], np.column_stack([starts, heights[:, last]])
    lower = np.concatenate([[steps[0] - 2 * _BEYOND], steps])
    upper = np.concatenate([steps, [steps[-1] + 2 * _BEYOND]])
    regret = (heights.max(axis=1, keepdims=True) - heights).max(axis=0)
    width = upper - lower
    width[[0, -1]] = 0.0
    best = np.flatnonzero(regret <= regret.min() + _EQUAL)
    choice = best[np.argmax(width[best])]
    threshold = _between(float(lower[choice]), float(upper[choice]))
    return threshold, float(heights[0, choice]) if shares is None else map_at(stats, threshold, k)


def _weighted_to(stats: RankStats, share: float) -> np.ndarray:
    """The weights with this share of the unknown queries in their sum; unchanged where all or none are unknown."""
    of_unknown, total = stats.weights[stats.is_unknown].sum(), stats.weights.sum()
    if not 0 < of_unknown < total:
        return stats.weights
    return stats.weights * np.where(stats.is_unknown, share / of_unknown, (1 - share) / (total - of_unknown))


@dataclass(frozen=True)
class ShareMap:
    """Expected MAP@k where this share of the queries is unknown.

    kept: with the thresholds fitted for the expected share. best: with those fitted for this share.
    """

    share: float
    kept: float
    best: float


def share_curve(
    folds: list[tuple[Candidates, np.ndarray, float | None]], training: list[list[int]], k: int
) -> list[ShareMap]:
    """MAP@k out of fold for other shares of unknown queries than the expected one; empty where nothing is unknown.

    Parameters
    ----------
    folds : list of (Candidates, int64 array, float or None)
        Candidates without `unknown`, truth (-1 = unknown) and threshold of each fold.
    training : list of list of int
        For each fold the places of the folds that a threshold for another share may be fitted on.
    k : int
        Number of guesses that count.
    """
    truths = [truth for _, truth, _ in folds]
    is_unknown = np.concatenate(truths) < 0
    if is_unknown.all() or not is_unknown.any() or any(limit is None for *_, limit in folds):
        return []
    points = []
    for share in SHARES:
        stats = [rank_stats(lists, truth, expected_share_weights(truth < 0, share), k) for (lists, truth, _) in folds]
        kept, best = [], []
        for place, (_, _, limit) in enumerate(folds):
            joined = _joined([stats[other] for other in training[place]], share)
            tuned = best_threshold(joined, k)[0]
            kept.append(_reciprocal(stats[place], float(limit or 0.0), k))
            best.append(_reciprocal(stats[place], tuned, k))
        weights = expected_share_weights(is_unknown, share)
        points.append(ShareMap(share, *(float(np.average(np.concatenate(v), weights=weights)) for v in (kept, best))))
    return points


def _joined(stats: list[RankStats], share: float) -> RankStats:
    """The statistics of several folds as one, weighted to the share."""
    is_unknown = np.concatenate([one.is_unknown for one in stats])
    return RankStats(
        np.concatenate([one.rank for one in stats]),
        np.concatenate([one.truth_score for one in stats]),
        np.concatenate([one.top for one in stats]),
        is_unknown,
        expected_share_weights(is_unknown, share),
    )


def share_threshold(top: np.ndarray, share: float) -> float:
    """The threshold that puts `unknown` first for a `share` of the queries.

    top: float32 (n,), best score of each query. share: in [0, 1]. Of equal scores at the border
    all count as known.
    """
    if not len(top):
        raise WhaleidError("a threshold by share needs test images")
    ordered = np.sort(top)
    first = round(share * len(top))
    if first == 0:
        return float(np.float32(ordered[0] - _BEYOND))
    if first == len(top):
        return float(np.float32(ordered[-1] + _BEYOND))
    return _between(ordered[first - 1], ordered[first])


def with_unknown(candidates: Candidates, threshold: float | np.ndarray | None, unknown: str | None) -> Candidates:
    """The same lists with `unknown` placed among them, before the first score below the threshold.

    Its code is len(candidates.classes), its score the threshold: one for all queries, or float (q,). Without unknown
    label or threshold: unchanged.
    """
    if unknown is None or threshold is None:
        return candidates
    width = candidates.codes.shape[1]
    limit = np.broadcast_to(np.float32(threshold), len(candidates))[:, None]
    place = (candidates.scores >= limit).sum(axis=1)[:, None]
    column = np.arange(width + 1)[None, :]
    source = np.clip(np.where(column > place, column - 1, column), 0, width - 1)
    here = column == place
    codes = np.where(here, len(candidates.classes), np.take_along_axis(candidates.codes, source, axis=1))
    scores = np.where(here, limit, np.take_along_axis(candidates.scores, source, axis=1))
    classes = np.append(candidates.classes.astype(object), unknown).astype(str)
    return Candidates(candidates.queries, classes, codes, scores.astype(np.float32))


def _steps(stats: RankStats, k: int, weightings: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps float64 (s,); of each weighting the change of MAP@k on passing each, (w, s), and MAP@k under all, (w,)."""
    weight = np.stack([one / one.sum() for one in weightings])
    known = (stats.rank >= 1) & (stats.rank <= k) & (stats.weights > 0)
    rank = stats.rank[known]
    fall = (reciprocal_rank_at_k(rank + 1, k) - reciprocal_rank_at_k(rank, k)) * weight[:, known]
    climb = reciprocal_rank_at_k(np.arange(1, k + 1), k) - reciprocal_rank_at_k(np.arange(2, k + 2), k)
    listed = np.isfinite(stats.top)
    of_unknown = weight[:, stats.is_unknown]
    rise = (climb * of_unknown[:, :, None])[:, listed]
    steps = np.concatenate([stats.truth_score[known], stats.top[listed]]).astype(np.float64)
    below = reciprocal_rank_at_k(listed.sum(axis=1) + 1, k)  # a list shorter than k has `unknown` at its end
    start = weight @ reciprocal_rank_at_k(stats.rank, k) + of_unknown @ below
    return steps, np.concatenate([fall, rise], axis=1), start


def _between(lower: float, upper: float) -> float:
    """A float32 value above `lower`, at most `upper`: scores are float32, and must fall on the side meant."""
    middle = np.float32((float(lower) + float(upper)) / 2)
    return float(middle) if middle > np.float32(lower) else float(np.float32(upper))
