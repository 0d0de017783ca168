"""The unknown identity as one more candidate: its score is a threshold.

Guesses stand by score; `unknown` stands where the scores fall under the threshold t. MAP@k as a function of t
is a staircase that changes only at the scores themselves, so the best t is found exactly: sort the steps, add
them up.
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
    """What MAP@k needs to know about ranked lists whose queries weigh something.

    rank: int (n,), place of the truth among the candidates, 1 = first; 0 where it is not among them.
    truth_score: float32 (n,), its score (anything where rank is 0).
    top: float32 (u, k), the k best scores of each **unknown** query, descending, -inf padded.
    is_unknown: bool (n,), u of them. weights: float64 (n,).
    """

    rank: np.ndarray
    truth_score: np.ndarray
    top: np.ndarray
    is_unknown: np.ndarray
    weights: np.ndarray


def rank_stats(candidates: Candidates, truth: np.ndarray, weights: np.ndarray, k: int) -> RankStats:
    """Where the truth stands in each list. truth: int64 (n,), -1 = unknown. weights: float64 (n,)."""
    found = (candidates.codes == truth[:, None]) & (truth >= 0)[:, None]
    place = found.argmax(axis=1)
    rank = np.where(found.any(axis=1), place + 1, 0)
    score = np.take_along_axis(candidates.scores, place[:, None], axis=1)[:, 0]
    top = candidates.scores[truth < 0, :k]
    top = np.pad(top, ((0, 0), (0, k - top.shape[1])), constant_values=-np.inf)
    return RankStats(rank, score, top, truth < 0, weights)


def map_without_unknown(given: RankStats, k: int) -> float:
    """Weighted MAP@k where `unknown` is never guessed."""
    return float(given.weights @ reciprocal_rank_at_k(given.rank, k) / given.weights.sum())


def map_at(given: RankStats, threshold: float, k: int) -> float:
    """Weighted MAP@k where `unknown` stands before the first score under the threshold (a float32 value)."""
    return float(given.weights @ _reciprocal(given, threshold, k) / given.weights.sum())


def best_map(given: RankStats, targets: Targets) -> tuple[float | None, float]:
    """The best threshold (None where the unknown identity may not be guessed) and its MAP@k."""
    if not targets.unknown:
        return None, map_without_unknown(given, targets.k)
    return best_threshold(given, targets.k)


def _reciprocal(given: RankStats, threshold: float, k: int) -> np.ndarray:
    """Score float64 (n,) of each query under a threshold."""
    limit = np.float32(threshold)
    rank = np.where(given.rank > 0, given.rank + (given.truth_score < limit), 0)
    rank[given.is_unknown] = (given.top >= limit).sum(axis=1) + 1
    return reciprocal_rank_at_k(rank, k)


def best_threshold(given: RankStats, k: int) -> tuple[float, float]:
    """The threshold with the largest weighted MAP@k, exactly, and that MAP@k.

    With rising t a known query loses 1/r - 1/(r + 1) when t passes its truth's score at rank r, and an
    unknown one climbs from rank j + 1 to j when t passes its j-th score: n k steps, sorted once.
    The threshold is a float32 value between two neighbouring steps: a candidate of exactly this score stands
    before `unknown`. Of equally good intervals the widest is taken; an end (always, never unknown first) only
    if better.
    """
    steps, change, start = _staircase(given, k)
    if not len(steps):
        return -_BEYOND, start
    order = np.argsort(steps, kind="stable")
    steps, height = steps[order], start + np.cumsum(change[order])
    last = np.append(steps[1:] > steps[:-1], True)  # of equal steps, all are passed together
    steps, height = steps[last], height[last]
    lower = np.concatenate([[steps[0] - 2 * _BEYOND], steps])
    upper = np.concatenate([steps, [steps[-1] + 2 * _BEYOND]])
    height = np.concatenate([[start], height])
    width = upper - lower
    width[[0, -1]] = 0.0
    best = np.flatnonzero(height >= height.max() - _EQUAL)
    choice = best[np.argmax(width[best])]
    return _between(float(lower[choice]), float(upper[choice])), float(height[choice])


@dataclass(frozen=True)
class ShareMap:
    """Expected MAP@k where this share of the queries is unknown.

    kept: with the thresholds as they were tuned for the expected share. best: with those tuned for this share.
    """

    share: float
    kept: float
    best: float


def share_curve(
    folds: list[tuple[Candidates, np.ndarray, float | None]], teachers: list[list[int]], k: int
) -> list[ShareMap]:
    """What a share of unknown that is not the expected one would cost, out of fold; empty where nothing is unknown.

    folds: candidates without `unknown`, truth int64 (n,) (-1 = unknown) and threshold of each fold. teachers: for
    each fold the places of those by which a threshold for another share may be tuned.
    """
    truths = [truth for _, truth, _ in folds]
    is_unknown = np.concatenate(truths) < 0
    if is_unknown.all() or not is_unknown.any() or any(limit is None for *_, limit in folds):
        return []
    points = []
    for share in SHARES:
        given = [rank_stats(lists, truth, expected_share_weights(truth < 0, share), k) for (lists, truth, _) in folds]
        kept, best = [], []
        for place, (_, _, limit) in enumerate(folds):
            taught = _joined([given[other] for other in teachers[place]], share)
            tuned = best_threshold(taught, k)[0]
            kept.append(_reciprocal(given[place], float(limit or 0.0), k))
            best.append(_reciprocal(given[place], tuned, k))
        weights = expected_share_weights(is_unknown, share)
        points.append(ShareMap(share, *(float(np.average(np.concatenate(v), weights=weights)) for v in (kept, best))))
    return points


def _joined(given: list[RankStats], share: float) -> RankStats:
    """Several folds' standings as one, weighted anew."""
    is_unknown = np.concatenate([one.is_unknown for one in given])
    return RankStats(
        np.concatenate([one.rank for one in given]),
        np.concatenate([one.truth_score for one in given]),
        np.concatenate([one.top for one in given]),
        is_unknown,
        expected_share_weights(is_unknown, share),
    )


def share_threshold(top: np.ndarray, share: float) -> float:
    """The threshold that puts `unknown` first for a `share` of the queries.

    top: float32 (n,), best score of each query. share: in [0, 1]. Equal scores at the border stay on the
    known side.
    """
    if not len(top):
        raise WhaleidError("combine.unknown: share needs test images; take threshold")
    ordered = np.sort(top)
    first = round(share * len(top))
    if first == 0:
        return float(np.float32(ordered[0] - _BEYOND))
    if first == len(top):
        return float(np.float32(ordered[-1] + _BEYOND))
    return _between(ordered[first - 1], ordered[first])


def with_unknown(candidates: Candidates, threshold: float | None, unknown: str | None) -> Candidates:
    """The same lists with `unknown` placed among them, before the first score under the threshold.

    Its code is len(candidates.classes), its score the threshold. Without unknown label or threshold:
    unchanged.
    """
    if unknown is None or threshold is None:
        return candidates
    width = candidates.codes.shape[1]
    limit = np.float32(threshold)
    place = (candidates.scores >= limit).sum(axis=1)[:, None]
    column = np.arange(width + 1)[None, :]
    source = np.clip(np.where(column > place, column - 1, column), 0, width - 1)
    here = column == place
    codes = np.where(here, len(candidates.classes), np.take_along_axis(candidates.codes, source, axis=1))
    scores = np.where(here, limit, np.take_along_axis(candidates.scores, source, axis=1))
    classes = np.append(candidates.classes.astype(object), unknown).astype(str)
    return Candidates(candidates.queries, classes, codes, scores.astype(np.float32))


def _staircase(given: RankStats, k: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Steps float64 (s,), change of MAP@k on passing each, and MAP@k under all of them."""
    weight = given.weights / given.weights.sum()
    known = (given.rank >= 1) & (given.rank <= k) & (weight > 0)
    rank = given.rank[known]
    fall = (reciprocal_rank_at_k(rank + 1, k) - reciprocal_rank_at_k(rank, k)) * weight[known]
    evaluate_ladder = reciprocal_rank_at_k(np.arange(1, k + 1), k) - reciprocal_rank_at_k(np.arange(2, k + 2), k)
    listed = np.isfinite(given.top)
    rise = (evaluate_ladder * weight[given.is_unknown][:, None])[listed]
    steps = np.concatenate([given.truth_score[known], given.top[listed]]).astype(np.float64)
    below = reciprocal_rank_at_k(listed.sum(axis=1) + 1, k)  # a list shorter than k has `unknown` at its end
    start = float(weight @ reciprocal_rank_at_k(given.rank, k)) + float(weight[given.is_unknown] @ below)
    return steps, np.concatenate([fall, rise]), start


def _between(lower: float, upper: float) -> float:
    """A float32 value above `lower`, at most `upper`: scores are float32, and must fall on the side meant."""
    middle = np.float32((float(lower) + float(upper)) / 2)
    return float(middle) if middle > np.float32(lower) else float(np.float32(upper))
