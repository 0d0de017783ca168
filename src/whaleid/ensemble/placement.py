"""Where among its guesses a query's `unknown` stands, by calibrated probabilities instead of one threshold for all.

What the out-of-fold lists teach is how often a query is unknown whose best candidate has this score, and how often the
candidate of this place and score is the true one: isotonic regression (Zadrozny and Elkan, "Transforming classifier
scores into accurate multiclass probability estimates", 2002) or a logistic curve (Platt, "Probabilistic outputs for
support vector machines", 1999). With these probabilities the expected MAP@k of every place of `unknown`, first to
k-th or none, is a sum of k terms, and the place with the largest is taken: no threshold is tuned.

Which way of placing is best is shown for the ladder's last rung, each learnt from the other folds alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from whaleid.ensemble.protocol import Protocol
from whaleid.ensemble.rankings import Ranking
from whaleid.ensemble.unknown import best_threshold, rank_stats, share_threshold, with_unknown
from whaleid.evaluation.metrics import rank_of_truth
from whaleid.retrieval.candidates import Candidates

Form = Literal["isotonic", "platt"]
FORMS: tuple[Form, ...] = ("isotonic", "platt")
_FLOOR = 1e-9  # probabilities nearer to 0 or 1 are read as this far from it
_RIDGE = 1e-3  # pull of a logistic curve's slope towards 0, in units of a query's mean loss
_STEPS = 100
_DONE = 1e-10  # a step of Newton's method that is shorter ends it

Curve = Callable[[np.ndarray], np.ndarray]
"""From scores (n,), -inf where there is no candidate, to probabilities float64 (n,)."""


Lessons = Callable[[int | None], Candidates]
"""Of a fold (by its place; None: of the test set) the lists, one below the other, of the folds that teach it, made by
what never saw its truth."""


@dataclass(frozen=True)
class Placer:
    """Calibrated probabilities. unknown: of the unknown identity, given the best score. hits: one a place 1..k, of the
    candidate there being the true one, given its score.
    """

    unknown: Curve
    hits: tuple[Curve, ...]


def fit_placer(
    lists: Candidates, truth: np.ndarray, weights: np.ndarray, k: int, form: Form, probability: bool
) -> Placer:
    """Calibrate on these queries. truth: int64 (n,), -1 = unknown. weights: float64 (n,), one above 0.

    probability: scores are probabilities: a logistic curve looks at their log-odds.
    """
    places = min(k, lists.codes.shape[1])

    def fitted(place: int, hit: np.ndarray, rising: bool) -> Curve:
        score = lists.scores[:, place]
        used = np.isfinite(score) & (weights > 0)
        if not used.any():
            return lambda asked: np.zeros(len(asked))
        return _curve(score[used], hit[used], weights[used], form, rising, probability)

    hits = [fitted(place, (lists.codes[:, place] == truth) & (truth >= 0), True) for place in range(places)]
    return Placer(fitted(0, truth < 0, False), tuple(hits))


def best_places(lists: Candidates, placer: Placer, k: int) -> np.ndarray:
    """Place int64 (n,) of `unknown`, 1..k, that is expected to score most; k + 1: not among the first k.

    Of equals the last: an identity costs no more there. A query without candidates has `unknown` first.
    """
    count, places = len(lists), len(placer.hits)
    chance = np.zeros((count, k))
    for place, curve in enumerate(placer.hits):
        score = lists.scores[:, place]
        chance[:, place] = np.where(np.isfinite(score), curve(score), 0.0)
    first = lists.scores[:, 0] if places else np.full(count, -np.inf)
    unknown = np.where(np.isfinite(first), placer.unknown(first), 1.0)
    value = np.empty((count, k + 1))
    worth = 1.0 / np.arange(1, k + 2)
    for place in range(k + 1):
        stays, falls = chance[:, :place] @ worth[:place], chance[:, place : k - 1] @ worth[place + 1 : k]
        value[:, place] = stays + falls + (unknown * worth[place] if place < k else 0.0)
    return k + 1 - np.argmax(value[:, ::-1], axis=1)


def place_unknown(lists: Candidates, places: np.ndarray, unknown: str) -> Candidates:
    """The same lists with `unknown` at these places, or at the end of a shorter list. Its score is that of the
    candidate before it; of the first one, where it stands first.
    """
    length = (lists.codes >= 0).sum(axis=1)
    column = np.minimum(places - 1, length)[:, None]
    width = lists.codes.shape[1]
    at = np.arange(width + 1)[None, :]
    source = np.clip(np.where(at > column, at - 1, at), 0, width - 1)
    before = np.take_along_axis(lists.scores, np.maximum(column - 1, 0), axis=1)
    own = np.where(np.isfinite(before), before, np.float32(0.0))
    codes = np.where(at == column, len(lists.classes), np.take_along_axis(lists.codes, source, axis=1))
    scores = np.where(at == column, own, np.take_along_axis(lists.scores, source, axis=1))
    classes = np.append(lists.classes.astype(object), unknown).astype(str)
    return Candidates(lists.queries, classes, codes, scores.astype(np.float32))


def like_single(averaged: Candidates, single: tuple[Candidates, ...]) -> Candidates:
    """Averaged lists with their scores brought, by rank, to the height of the folds' models': what a curve knows of.

    A best score's quantile among the averaged best scores becomes that quantile of the single models' best scores;
    lower scores move by the same map.
    """
    if len(single) < 2 or not len(averaged):
        return averaged
    wanted = np.sort(np.concatenate([lists.scores[:, 0] for lists in single]).astype(np.float64))
    have = np.sort(averaged.scores[:, 0].astype(np.float64))
    have, wanted = have[np.isfinite(have)], wanted[np.isfinite(wanted)]
    if not len(have) or not len(wanted):
        return averaged
    steps = np.linspace(0, 1, len(have))
    target = np.quantile(wanted, steps)
    have, first = np.unique(have, return_index=True)
    target = target[first]
    scores = averaged.scores.astype(np.float64)
    moved = np.interp(scores, have, target)
    moved = np.where(scores < have[0], scores + target[0] - have[0], moved)
    moved = np.where(averaged.codes >= 0, moved, -np.inf).astype(np.float32)
    return Candidates(averaged.queries, averaged.classes, averaged.codes, moved)


# ------------------------------------------------------------------------------------------------ one ranking


def place_by_form(
    protocol: Protocol, ranking: Ranking, lessons: Lessons, form: Form, test: Candidates | None
) -> tuple[list[Candidates], Candidates | None]:
    """Lists of every fold, and the test set's averaged ones, with `unknown` placed by what the other folds teach."""

    def answered(place: int | None, lists: Candidates, heights: Candidates) -> Candidates:
        chosen = list(range(len(protocol.parts))) if place is None else protocol.others(place)
        truth, weights = protocol.truth(chosen), protocol.weights(chosen)
        placer = fit_placer(lessons(place), truth, weights, protocol.k, form, ranking.probability)
        return place_unknown(lists, best_places(heights, placer, protocol.k), str(protocol.unknown))

    oof = [answered(place, lists, lists) for place, lists in enumerate(ranking.oof)]
    return oof, None if test is None else answered(None, test, like_single(test, ranking.test))


def ranks_by_form(
    protocol: Protocol, ranking: Ranking, lessons: Lessons, own: list[float | None]
) -> dict[str, np.ndarray]:
    """Place of the truth, int (n,), of every query out of fold, by each way of placing `unknown`.

    own: for each fold the ranking's own threshold. Forms: `own`, threshold (tuned for MAP@k), share (first for the
    expected share of the queries), isotonic, platt, never. Empty where there is no unknown label.
    """
    if protocol.unknown is None:
        return {}
    answers = {form: place_by_form(protocol, ranking, lessons, form, None)[0] for form in FORMS}
    found: dict[str, list[np.ndarray]] = {}
    for place, part in enumerate(protocol.parts):
        lists, others = ranking.oof[place], protocol.others(place)
        truth, weights = protocol.truth(others), protocol.weights(others)
        taught = lessons(place)
        tuned = best_threshold(rank_stats(taught, truth, weights, protocol.k), protocol.k)[0]
        placed = {
            "own": with_unknown(lists, own[place], protocol.unknown),
            "threshold": with_unknown(lists, tuned, protocol.unknown),
            "share": with_unknown(lists, weighted_share_threshold(taught, truth, weights), protocol.unknown),
        }
        placed |= {form: lists_placed[place] for form, lists_placed in answers.items()}
        placed["never"] = lists
        wanted = np.where(part.truth < 0, len(protocol.classes), part.truth)
        for form, answer in placed.items():
            found.setdefault(form, []).append(rank_of_truth(answer.codes[:, : protocol.k], wanted))
    return {form: np.concatenate(ranks) for form, ranks in found.items()}


def weighted_share_threshold(lists: Candidates, truth: np.ndarray, weights: np.ndarray) -> float:
    """The threshold that puts `unknown` first for as much of the queries' weight as unknown queries have."""
    first, share = lists.scores[:, 0], float(weights[truth < 0].sum() / weights.sum())
    order = np.argsort(first, kind="stable")
    passed = np.cumsum(weights[order]) / weights.sum()
    return share_threshold(first, int(np.searchsorted(passed, share + _FLOOR, side="right")) / len(first))


# ------------------------------------------------------------------------------------------------- the curves


def _curve(
    score: np.ndarray, hit: np.ndarray, weights: np.ndarray, form: Form, rising: bool, probability: bool
) -> Curve:
    if form == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        model = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=rising, out_of_bounds="clip")
        model.fit(score.astype(np.float64), hit.astype(np.float64), sample_weight=weights)
        return lambda asked: _where_finite(asked, model.predict)
    x = _height(score, probability)
    center, spread = float(x.mean()), max(float(x.std()), _FLOOR)
    slope, offset = _logistic((x - center) / spread, hit, weights / weights.sum())

    def logistic(asked: np.ndarray) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-np.clip(slope * (_height(asked, probability) - center) / spread + offset, -50, 50)))

    return lambda asked: _where_finite(asked, logistic)


def _where_finite(asked: np.ndarray, curve: Curve) -> np.ndarray:
    out, finite = np.zeros(len(asked)), np.isfinite(asked)
    if finite.any():
        out[finite] = curve(asked[finite].astype(np.float64))
    return out


def _height(score: np.ndarray, probability: bool) -> np.ndarray:
    """What a logistic curve looks at: log-odds of a probability, else the score itself. float64 (n,)."""
    score = score.astype(np.float64)
    if not probability:
        return score
    p = np.clip(score, _FLOOR, 1 - _FLOOR)
    return np.log(p) - np.log1p(-p)


def _logistic(x: np.ndarray, hit: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the least log-loss by Newton's method. Platt's targets, a little off 0 and 1, and a ridge
    keep both finite where the hits are parted from the rest. weights: float64 (n,), sum 1.
    """
    hits, rest = int(hit.sum()), int((~hit).sum())
    target = np.where(hit, (hits + 1) / (hits + 2), 1 / (rest + 2))
    table = np.column_stack([x, np.ones(len(x))])
    ridge = np.array([_RIDGE, 0.0])
    mean = float(weights @ target)
    at = np.array([0.0, np.log(mean / (1 - mean))])
    for _ in range(_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(table @ at, -50, 50)))
        gradient = table.T @ (weights * (p - target)) + ridge * at
        curvature = (table * (weights * p * (1 - p))[:, None]).T @ table + np.diag(ridge + _FLOOR)
        step = np.linalg.solve(curvature, gradient)
        at = at - step / max(1.0, float(np.abs(step).max()))  # no longer than 1: far off, the curve is flat
        if np.abs(step).max() < _DONE:
            break
    return float(at[0]), float(at[1])
