"""A weighted sum of several rankings' calibrated probabilities, its weights tuned on what it is judged by.

Everything fitted here (calibrations, which class probabilities take part, weights, threshold) is fitted on
the queries it is given and on nothing else; `ladder` gives it the other folds' for each fold, and all for the
test set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whaleid.ensemble.calibrate import Calibration, calibrated, fit_calibration
from whaleid.ensemble.unknown import Standing, best_threshold, map_without_unknown, standing
from whaleid.errors import WhaleidError
from whaleid.retrieval.candidates import Candidates

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the whole that the search tries for each member in turn."""
_ROUNDS = 6
_EQUAL = 1e-9  # values that differ less are equal
_SMOOTH = 0.1  # MAP@k jumps with single queries: this much of the mean log-likelihood steadies the search
_SEARCHED = 4  # the search looks at each member's first 4 k candidates: further ones hardly reach the first k
_CHUNK = 2048  # queries blended at a time


@dataclass(frozen=True)
class Questions:
    """What a blend is tuned on. truth: int64 (n,), -1 = unknown. weights: float64 (n,). k: guesses that
    count.

    unknown: whether `unknown` may be guessed.
    """

    truth: np.ndarray
    weights: np.ndarray
    k: int
    unknown: bool


@dataclass(frozen=True)
class Member:
    """One ranking's candidates for the same queries. probability: as in `rankings.Ranking`."""

    name: str
    candidates: Candidates
    probability: bool


@dataclass(frozen=True)
class Blend:
    """names, weights (sum 1, none below 0), calibrations: one a member; map: of the queries it was tuned
    on.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    calibrations: tuple[Calibration, ...]
    map: float

    @property
    def used(self) -> list[str]:
        """Members whose weight is above 0."""
        return [name for name, weight in zip(self.names, self.weights, strict=True) if weight > 0]


def fit_blend(members: list[Member], questions: Questions) -> Blend:
    """Calibrate each member, then find the weights with the largest weighted MAP@k of the queries given.

    Coordinate search: each member in turn is given the best share of the whole, until nothing improves; from
    equal weights, and from the best member alone. On these queries no member's MAP@k is above the blend's;
    where that holds, a likelier truth counts too (`_SMOOTH`).
    """
    calibrations = tuple(
        fit_calibration(member.candidates, questions.truth, questions.weights, member.probability) for member in members
    )
    landscape = _landscape(members, calibrations, questions)
    alone = [_objective(row, landscape) for row in np.eye(len(members))]
    floor = max(value for value, _ in alone)
    best = max(range(len(members)), key=lambda place: (alone[place], -place))
    value, weights = _climb(np.full(len(members), 1 / len(members)), landscape, floor)
    other, other_weights = _climb(np.eye(len(members))[best], landscape, floor)
    if _better(other, value, floor):
        value, weights = other, other_weights
    names = tuple(member.name for member in members)
    return Blend(names, tuple(float(weight) for weight in weights), calibrations, value[0])


def apply_blend(blend: Blend, lists: dict[str, Candidates], keep: int) -> Candidates:
    """Blended candidates of any queries. lists: the candidates of each member in use, of the same queries."""
    chosen = [place for place, weight in enumerate(blend.weights) if weight > 0]
    first = lists[blend.names[chosen[0]]]
    tables = []
    for place in chosen:
        given = lists[blend.names[place]]
        tables.append((given.codes, calibrated(given, blend.calibrations[place])[0]))
    return _weighted(first, tables, [blend.weights[place] for place in chosen], keep)


def average(lists: tuple[Candidates, ...], keep: int) -> Candidates:
    """Mean score of each identity over several lists of the same queries (the folds, for the test set).

    An identity that a list does not hold gets the lowest score of that query's list.
    """
    tables = [(given.codes, given.scores) for given in lists]
    return _weighted(lists[0], tables, [1 / len(lists)] * len(lists), keep)


def best_members(members: list[Member], questions: Questions, most: int) -> list[Member]:
    """The `most` members with the largest weighted MAP@k of their own (each with its best threshold), best
    first.
    """
    score = [
        tuned_map(standing(member.candidates, questions.truth, questions.weights, questions.k), questions)[1]
        for member in members
    ]
    order = sorted(range(len(members)), key=lambda place: (-score[place], place))
    return [members[place] for place in order[:most]]


def tuned_map(given: Standing, questions: Questions) -> tuple[float | None, float]:
    """Best threshold (None where `unknown` may not be guessed) and the MAP@k it gives."""
    if not questions.unknown:
        return None, map_without_unknown(given, questions.k)
    return best_threshold(given, questions.k)


def stack(lists: list[Candidates]) -> Candidates:
    """Lists of different queries, one below the other. All of one width and one table of classes."""
    return Candidates(
        np.concatenate([given.queries for given in lists]),
        lists[0].classes,
        np.concatenate([given.codes for given in lists]),
        np.concatenate([given.scores for given in lists]),
    )


# -------------------------------------------------------------------------------------------------- the union


def union(tables: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Several candidate lists of the same queries as one table of identities.

    tables: (codes int64 (n, m), scores float32 (n, m)) each; codes distinct in a row, -1 padded.
    Returns codes int64 (n, u), ascending, -1 padded at the end, and scores float32 (lists, n, u): the floor
    (the lowest score of that query's list; 0 where it is empty) where a list does not hold the identity.
    """
    codes = np.concatenate([codes for codes, _ in tables], axis=1)
    scores = np.concatenate([scores for _, scores in tables], axis=1)
    origin = np.repeat(np.arange(len(tables)), [codes.shape[1] for codes, _ in tables])
    order = np.argsort(codes, axis=1, kind="stable")
    codes, scores = np.take_along_axis(codes, order, axis=1), np.take_along_axis(scores, order, axis=1)
    real = codes >= 0
    opens = real.copy()
    opens[:, 1:] &= codes[:, 1:] != codes[:, :-1]
    slot = np.cumsum(opens, axis=1) - 1
    width = int(opens.sum(axis=1).max(initial=1))
    row = np.broadcast_to(np.arange(len(codes))[:, None], codes.shape)
    joined = np.full((len(codes), width), -1, dtype=np.int64)
    joined[row[opens], slot[opens]] = codes[opens]
    spread = np.empty((len(tables), len(codes), width), dtype=np.float32)
    for place, (_, own) in enumerate(tables):
        lowest = np.where(np.isfinite(own), own, np.inf).min(axis=1)
        spread[place] = np.where(np.isfinite(lowest), lowest, 0.0)[:, None]
    spread[origin[order][real], row[real], slot[real]] = scores[real]
    return joined, spread


def _weighted(
    like: Candidates, tables: list[tuple[np.ndarray, np.ndarray]], weights: list[float], keep: int
) -> Candidates:
    """Weighted sum over the union of the lists, its `keep` best, a chunk of queries at a time."""
    codes = np.full((len(like), keep), -1, dtype=np.int64)
    scores = np.full((len(like), keep), -np.inf, dtype=np.float32)
    factor = np.asarray(weights, dtype=np.float32)
    for start in range(0, len(like), _CHUNK):
        part = slice(start, start + _CHUNK)
        joined, spread = union([(code[part], score[part]) for code, score in tables])
        total = np.where(joined >= 0, np.tensordot(factor, spread, axes=1), -np.inf).astype(np.float32)
        order = np.argsort(-total, axis=1, kind="stable")[:, :keep]
        codes[part, : order.shape[1]] = np.take_along_axis(joined, order, axis=1)
        scores[part, : order.shape[1]] = np.take_along_axis(total, order, axis=1)
    return Candidates(like.queries, like.classes, codes, scores)


# ------------------------------------------------------------------------------------------------- the search


@dataclass(frozen=True)
class _Landscape:
    """The union of the members' first candidates as the search sees it, queries of weight 0 left out.

    scores: float32 (members, n, u). real: bool (n, u). place: int64 (n,), column of the truth, -1 = not
    there. none: float32 (members, n), probability of none of the candidates.
    """

    scores: np.ndarray
    real: np.ndarray
    place: np.ndarray
    none: np.ndarray
    questions: Questions


def _landscape(members: list[Member], calibrations: tuple[Calibration, ...], questions: Questions) -> _Landscape:
    used = questions.weights > 0
    if not used.any():
        raise WhaleidError("blend: no query weighs anything; nothing can be tuned")
    first = _SEARCHED * questions.k
    tables, none = [], []
    for member, calibration in zip(members, calibrations, strict=True):
        scores, rest = calibrated(member.candidates, calibration)
        tables.append((member.candidates.codes[used, :first], scores[used, :first]))
        none.append(rest[used])
    codes, scores = union(tables)
    truth = questions.truth[used]
    hit = (codes == truth[:, None]) & (truth >= 0)[:, None]
    place = np.where(hit.any(axis=1), hit.argmax(axis=1), -1)
    inner = Questions(truth, questions.weights[used], questions.k, questions.unknown)
    return _Landscape(scores, codes >= 0, place, np.stack(none), inner)


def _climb(weights: np.ndarray, landscape: _Landscape, floor: float) -> tuple[tuple[float, float], np.ndarray]:
    """Coordinate search from `weights` (sum 1); returns (MAP@k, log-likelihood) and the weights reached."""
    best = _objective(weights, landscape)
    for _ in range(_ROUNDS):
        before = best
        for place in range(len(weights)):
            rest = weights.copy()
            rest[place] = 0.0
            if rest.sum() == 0.0:
                continue
            rest /= rest.sum()
            for share in SHARES:
                tried = rest * (1 - share)
                tried[place] = share
                value = _objective(tried, landscape)
                if _better(value, best, floor):
                    best, weights = value, tried
        if not _better(best, before, floor):
            break
    return best, weights


def _better(one: tuple[float, float], other: tuple[float, float], floor: float) -> bool:
    """Whether (MAP@k, log-likelihood) is better: MAP@k up to `floor`, above it the smoothed sum of both."""
    short, other_short = min(one[0] - floor, 0.0), min(other[0] - floor, 0.0)
    if abs(short - other_short) > _EQUAL:
        return short > other_short
    return one[0] + _SMOOTH * one[1] > other[0] + _SMOOTH * other[1] + _EQUAL


def _objective(weights: np.ndarray, landscape: _Landscape) -> tuple[float, float]:
    """MAP@k with its best threshold, and the mean log of the probability given to the truth."""
    factor = weights.astype(np.float32)
    used = np.flatnonzero(factor)  # most weights are 0 most of the time
    total = np.tensordot(factor[used], landscape.scores[used], axes=1)
    total[~landscape.real] = -np.inf
    questions, listed = landscape.questions, landscape.place >= 0
    column = np.maximum(landscape.place, 0)[:, None]
    own = np.take_along_axis(total, column, axis=1)
    ahead = (total > own) | ((total == own) & (np.arange(total.shape[1]) < column))
    rank = np.where(listed, ahead.sum(axis=1) + 1, 0)
    given = Standing(
        rank, own[:, 0], _top(total[questions.truth < 0], questions.k), questions.truth < 0, questions.weights
    )
    likely = np.where(listed, own[:, 0], factor @ landscape.none)
    logs = np.log(np.maximum(likely, 1e-6))
    return tuned_map(given, questions)[1], float(questions.weights @ logs / questions.weights.sum())


def _top(total: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, descending, -inf padded."""
    if total.shape[1] > k:
        total = -np.partition(-total, k - 1, axis=1)[:, :k]
    ordered = -np.sort(-total, axis=1)
    return np.pad(ordered, ((0, 0), (0, k - ordered.shape[1])), constant_values=-np.inf)
