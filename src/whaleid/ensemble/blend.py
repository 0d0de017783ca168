"""A weighted sum of several rankings' calibrated probabilities, its weights tuned on what it is judged by.

A member's probabilities may be raised to a power first and brought back to sum 1 with that of "none of them": an
exponent above 1 makes it surer than its calibration, which pays where the members' errors are independent.
With `form: rank` a query's probabilities are spread by 1 / (60 + rank) instead (reciprocal rank fusion: Cormack,
Clarke and Buettcher 2009); their sum stays, so that it still tells unknown queries.

Everything fitted here (calibrations, which class probabilities take part, weights, exponents, threshold) is fitted on
the queries it is given and on nothing else; `ladder` gives it the other folds' for each fold, and all for the
test set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from whaleid.config import BlendConfig
from whaleid.ensemble.calibrate import Calibration, Isotonic, calibrated, fit_calibration, fit_isotonic
from whaleid.ensemble.unknown import RankStats, best_threshold, map_without_unknown, rank_stats
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the whole that the search tries for each member in turn."""
EXPONENTS = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Exponents that the search tries for each member: equal steps of the logarithm, either way from 1."""
_RANK = 60  # reciprocal rank fusion's constant, from its paper: ranks far down weigh nearly alike
_ROUNDS = 6
_EQUAL = 1e-9  # values that differ less are equal
_SMOOTH = 0.1  # MAP@k jumps with single queries: this much of the mean log-likelihood steadies the search
_SEARCHED = 4  # the search looks at each member's first 4 k candidates: further ones hardly reach the first k
_CHUNK = 2048  # queries blended at a time


@dataclass(frozen=True)
class Targets:
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
    """names, weights (sum 1, none below 0), calibrations, exponents (> 0): one a member; map: of the queries it
    was tuned on. form: as in `BlendConfig`. A member of weight 0 was dropped: it does not help.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    calibrations: tuple[Calibration | Isotonic, ...]
    map: float
    exponents: tuple[float, ...]
    form: Literal["score", "rank"] = "score"

    @property
    def used(self) -> list[str]:
        """Members whose weight is above 0."""
        return [name for name, weight in zip(self.names, self.weights, strict=True) if weight > 0]


def fit_blend(members: list[Member], questions: Targets, config: BlendConfig | None = None) -> Blend:
    """Calibrate each member, then find the weights and exponents with the largest weighted MAP@k of the queries.

    Coordinate search: each member in turn is given the best share of the whole and the best exponent, until
    nothing improves; from equal weights, and from the best member alone. Pairwise: see `BlendConfig`. On these
    queries no member's MAP@k is above the blend's; where that holds, a likelier truth counts too (`_SMOOTH`).
    """
    config = config or BlendConfig()
    calibrations = tuple(_calibration(member, questions, config) for member in members)
    landscape = _blend_search(members, calibrations, questions, config)
    start = np.full(len(members), landscape.exponents.index(1.0))
    alone = [_objective(row, start, landscape) for row in np.eye(len(members))]
    floor = max(value for value, _ in alone)
    order = sorted(range(len(members)), key=lambda place: (alone[place], -place), reverse=True)
    best = np.eye(len(members))[order[0]]
    if config.search == "pairwise":
        found = _pair_up(order, best, start, landscape, floor)
    else:
        found = _coordinate_search(np.full(len(members), 1 / len(members)), start, landscape, floor)
        other = _coordinate_search(best, start, landscape, floor)
        found = other if _better(other[0], found[0], floor) else found
    value, weights, chosen = found
    return Blend(
        names=tuple(member.name for member in members),
        weights=tuple(float(weight) for weight in weights),
        calibrations=calibrations,
        map=value[0],
        exponents=tuple(landscape.exponents[place] for place in chosen),
        form=config.form,
    )


def _calibration(member: Member, questions: Targets, config: BlendConfig) -> Calibration | Isotonic:
    given = member.candidates, questions.truth, questions.weights
    return fit_isotonic(*given) if config.calibration == "isotonic" else fit_calibration(*given, member.probability)


def apply_blend(blend: Blend, lists: dict[str, Candidates], keep: int) -> Candidates:
    """Blended candidates of any queries. lists: the candidates of each member in use, of the same queries."""
    chosen = [place for place, weight in enumerate(blend.weights) if weight > 0]
    first = lists[blend.names[chosen[0]]]
    tables = []
    for place in chosen:
        given = lists[blend.names[place]]
        scores, none = calibrated(given, blend.calibrations[place])
        tables.append((given.codes, reshaped(scores, none, blend.exponents[place], blend.form)[0]))
    return _weighted(first, tables, [blend.weights[place] for place in chosen], keep)


def reshaped(
    scores: np.ndarray, none: np.ndarray, exponent: float, form: Literal["score", "rank"] = "score"
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities to a power, or by rank. scores: float32 (n, m), descending, -inf padded. none: (n,).

    Returns both as they were given, each row with `none` of sum 1. A rank's exponent is that of 1 / (60 + rank).
    """
    if exponent == 1.0 and form == "score":
        return scores, none
    real = np.isfinite(scores)
    mass = np.where(real, scores, 0.0)
    if form == "rank":
        parts = np.where(real, (_RANK + 1.0 + np.arange(scores.shape[1])) ** -exponent, 0.0)
        listed = parts.sum(axis=1, keepdims=True)
        spread = np.divide(parts, listed, out=np.zeros(parts.shape), where=listed > 0) * mass.sum(axis=1, keepdims=True)
        return np.where(real, spread, -np.inf).astype(np.float32), none
    raised, rest = mass.astype(np.float64) ** exponent, none.astype(np.float64) ** exponent
    total = np.maximum(raised.sum(axis=1) + rest, np.finfo(np.float64).tiny)
    out = np.where(real, raised / total[:, None], -np.inf)
    return out.astype(np.float32), (rest / total).astype(np.float32)


def average(lists: tuple[Candidates, ...], keep: int) -> Candidates:
    """Mean score of each identity over several lists of the same queries (the folds, for the test set).

    An identity that a list does not hold gets the lowest score of that query's list.
    """
    tables = [(given.codes, given.scores) for given in lists]
    return _weighted(lists[0], tables, [1 / len(lists)] * len(lists), keep)


def best_members(members: list[Member], questions: Targets, most: int) -> list[Member]:
    """The `most` members with the largest weighted MAP@k of their own (each with its best threshold), best
    first.
    """
    score = [
        tuned_map(rank_stats(member.candidates, questions.truth, questions.weights, questions.k), questions)[1]
        for member in members
    ]
    order = sorted(range(len(members)), key=lambda place: (-score[place], place))
    return [members[place] for place in order[:most]]


def tuned_map(given: RankStats, questions: Targets) -> tuple[float | None, float]:
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
class _BlendSearch:
    """The union of the members' first candidates as the search sees it, queries of weight 0 left out.

    exponents: the e that are tried. scores: float32 (e, members, n, u). real: bool (n, u). place: int64 (n,),
    column of the truth, -1 = not there. none: float32 (e, members, n), probability of none of the candidates.
    """

    exponents: tuple[float, ...]
    scores: np.ndarray
    real: np.ndarray
    place: np.ndarray
    none: np.ndarray
    questions: Targets


_Found = tuple[tuple[float, float], np.ndarray, np.ndarray]
"""(MAP@k, log-likelihood), weights float64 (members,) and places of the exponents int64 (members,)."""


def _blend_search(
    members: list[Member], calibrations: tuple[Calibration | Isotonic, ...], questions: Targets, config: BlendConfig
) -> _BlendSearch:
    used = questions.weights > 0
    if not used.any():
        raise WhaleidError("blend: no query weighs anything; nothing can be tuned")
    exponents = EXPONENTS if config.exponents else (1.0,)
    first = _SEARCHED * questions.k
    spread, none = [], []
    codes = np.empty((0, 0), dtype=np.int64)
    plain = [calibrated(member.candidates, one) for member, one in zip(members, calibrations, strict=True)]
    for exponent in exponents:
        tables = []
        for member, (scores, rest) in zip(members, plain, strict=True):
            scores, rest = reshaped(scores, rest, exponent, config.form)
            tables.append((member.candidates.codes[used, :first], scores[used, :first]))
            none.append(rest[used])
        codes, scores = union(tables)  # the codes are the same for every exponent
        spread.append(scores)
    truth = questions.truth[used]
    hit = (codes == truth[:, None]) & (truth >= 0)[:, None]
    place = np.where(hit.any(axis=1), hit.argmax(axis=1), -1)
    inner = Targets(truth, questions.weights[used], questions.k, questions.unknown)
    nothing = np.stack(none).reshape(len(exponents), len(members), -1)
    return _BlendSearch(exponents, np.stack(spread), codes >= 0, place, nothing, inner)


def _coordinate_search(weights: np.ndarray, powers: np.ndarray, landscape: _BlendSearch, floor: float) -> _Found:
    """Coordinate search from `weights` (sum 1) and places of exponents."""
    best = _objective(weights, powers, landscape)
    for _ in range(_ROUNDS):
        before = best
        for place in range(len(weights)):
            for tried, power in _moves(weights, powers, place, landscape):
                value = _objective(tried, power, landscape)
                if _better(value, best, floor):
                    best, weights, powers = value, tried, power
        if not _better(best, before, floor):
            break
    return best, weights, powers


def _moves(
    weights: np.ndarray, powers: np.ndarray, place: int, landscape: _BlendSearch
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the search tries for one member: every share of the whole, at every exponent."""
    rest = weights.copy()
    rest[place] = 0.0
    alone = rest.sum() == 0.0
    for exponent in range(len(landscape.exponents)):
        power = powers.copy()
        power[place] = exponent
        if alone:
            yield weights, power
            continue
        for share in SHARES:
            tried = rest / rest.sum() * (1 - share)
            tried[place] = share
            yield tried, power


def _pair_up(
    order: list[int], weights: np.ndarray, powers: np.ndarray, landscape: _BlendSearch, floor: float
) -> _Found:
    """Greedy: the best member, then whichever of the rest improves the sum most, until none does."""
    best = _objective(weights, powers, landscape)
    left = list(order)
    while left:
        before, chosen = best, None
        grown, grown_powers = weights, powers
        for place in left:
            for tried, power in _moves(weights, powers, place, landscape):
                value = _objective(tried, power, landscape)
                if _better(value, best, floor):
                    best, grown, grown_powers, chosen = value, tried, power, place
        if chosen is None or not _better(best, before, floor):
            break
        weights, powers = grown, grown_powers
        left.remove(chosen)
    return best, weights, powers


def _better(one: tuple[float, float], other: tuple[float, float], floor: float) -> bool:
    """Whether (MAP@k, log-likelihood) is better: MAP@k up to `floor`, above it the smoothed sum of both."""
    short, other_short = min(one[0] - floor, 0.0), min(other[0] - floor, 0.0)
    if abs(short - other_short) > _EQUAL:
        return short > other_short
    return one[0] + _SMOOTH * one[1] > other[0] + _SMOOTH * other[1] + _EQUAL


def _objective(weights: np.ndarray, powers: np.ndarray, landscape: _BlendSearch) -> tuple[float, float]:
    """MAP@k with its best threshold, and the mean log of the probability given to the truth."""
    factor = weights.astype(np.float32)
    used = np.flatnonzero(factor)  # most weights are 0 most of the time
    total = np.tensordot(factor[used], landscape.scores[powers[used], used], axes=1)
    total[~landscape.real] = -np.inf
    questions, listed = landscape.questions, landscape.place >= 0
    column = np.maximum(landscape.place, 0)[:, None]
    own = np.take_along_axis(total, column, axis=1)
    ahead = (total > own) | ((total == own) & (np.arange(total.shape[1]) < column))
    rank = np.where(listed, ahead.sum(axis=1) + 1, 0)
    given = RankStats(
        rank, own[:, 0], _top(total[questions.truth < 0], questions.k), questions.truth < 0, questions.weights
    )
    likely = np.where(listed, own[:, 0], factor[used] @ landscape.none[powers[used], used])
    logs = np.log(np.maximum(likely, 1e-6))
    return tuned_map(given, questions)[1], float(questions.weights @ logs / questions.weights.sum())


def _top(total: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, descending, -inf padded."""
    if total.shape[1] > k:
        total = -np.partition(-total, k - 1, axis=1)[:, :k]
    ordered = -np.sort(-total, axis=1)
    return np.pad(ordered, ((0, 0), (0, k - ordered.shape[1])), constant_values=-np.inf)
