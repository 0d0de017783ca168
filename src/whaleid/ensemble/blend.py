"""A weighted sum of several rankings' calibrated probabilities.

Everything that is fitted here (calibrations, the class probabilities that take part, weights) is fitted on the queries
that are given, and on nothing else: the caller gives the training folds' queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from whaleid.ensemble.calibrate import Calibration, calibrated, fit_calibration
from whaleid.ensemble.lists import union, weighted_sum
from whaleid.ensemble.protocol import Targets
from whaleid.ensemble.unknown import RankStats, best_map, rank_stats
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the whole that the search tries for each member in turn."""
_ROUNDS = 6
_EQUAL = 1e-9  # values that differ less are equal
_SMOOTH = 0.1  # MAP@k jumps with single queries: this much of the mean log-likelihood steadies the search
_SEARCHED = 4  # the search looks at each member's first 4 k candidates: further ones hardly reach the first k


@dataclass(frozen=True)
class Member:
    """One ranking's candidates of the queries. `probability`: as in `Ranking`."""

    name: str
    candidates: Candidates
    probability: bool


@dataclass(frozen=True)
class Blend:
    """Weights of the members. A member of weight 0 is dropped: it does not help.

    Attributes
    ----------
    names : tuple of str
    weights : tuple of float
        One a member, none below 0, sum 1.
    calibrations : tuple of Calibration
        One a member.
    map : float
        MAP@k of the queries that the blend was fitted on.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    calibrations: tuple[Calibration, ...]
    map: float

    @property
    def used(self) -> list[str]:
        """Members whose weight is above 0."""
        return [name for name, weight in zip(self.names, self.weights, strict=True) if weight > 0]


def fit_blend(members: list[Member], targets: Targets) -> Blend:
    """Calibrate each member, then find the weights with the largest weighted MAP@k.

    Coordinate search: each member in turn is given the best share of the whole, until nothing improves; once from
    equal weights, once from the best member alone. The blend's MAP@k on these queries is never below its best
    member's; above that, a larger likelihood of the truth counts too.
    """
    calibrations = tuple(
        fit_calibration(member.candidates, targets.truth, targets.weights, member.probability) for member in members
    )
    value_of = _remembering(_blend_search(members, calibrations, targets))
    alone = [value_of(row) for row in np.eye(len(members))]
    floor = max(value for value, _ in alone)
    best = max(range(len(members)), key=lambda place: (alone[place], -place))
    value, weights = _coordinate_search(np.full(len(members), 1 / len(members)), value_of, floor)
    other_value, other_weights = _coordinate_search(np.eye(len(members))[best], value_of, floor)
    if _better(other_value, value, floor):
        value, weights = other_value, other_weights
    names = tuple(member.name for member in members)
    return Blend(names, tuple(float(weight) for weight in weights), calibrations, value[0])


def apply_blend(blend: Blend, lists: dict[str, Candidates], keep: int) -> Candidates:
    """Blended candidates of any queries.

    Parameters
    ----------
    blend : Blend
    lists : dict of str to Candidates
        Candidates of the same queries by each member whose weight is above 0.
    keep : int
        Width of the result.
    """
    chosen = [place for place, weight in enumerate(blend.weights) if weight > 0]
    members = [lists[blend.names[place]] for place in chosen]
    tables = [
        (given.codes, calibrated(given, blend.calibrations[place])[0])
        for place, given in zip(chosen, members, strict=True)
    ]
    return weighted_sum(members[0], tables, [blend.weights[place] for place in chosen], keep)


def best_members(members: list[Member], targets: Targets, most: int) -> list[Member]:
    """The `most` members with the largest MAP@k of their own, each with its best threshold; best first."""
    score = [
        best_map(rank_stats(member.candidates, targets.truth, targets.weights, targets.k), targets)[1]
        for member in members
    ]
    order = sorted(range(len(members)), key=lambda place: (-score[place], place))
    return [members[place] for place in order[:most]]


# ------------------------------------------------------------------------------------------------- the search

_Value = tuple[float, float]
"""MAP@k and mean log-likelihood of the truth."""


@dataclass(frozen=True)
class _BlendSearch:
    """The union of the members' first candidates, queries of weight 0 left out.

    scores: float32 (members, n, u). real: bool (n, u). place: int64 (n,), column of the truth, -1 = not there.
    none: float32 (members, n), probability of none of the candidates.
    """

    scores: np.ndarray
    real: np.ndarray
    place: np.ndarray
    none: np.ndarray
    targets: Targets


def _blend_search(members: list[Member], calibrations: tuple[Calibration, ...], targets: Targets) -> _BlendSearch:
    used = targets.weights > 0
    if not used.any():
        raise WhaleidError("blend: every query has weight 0; no weights can be fitted")
    first = _SEARCHED * targets.k
    tables, none = [], []
    for member, calibration in zip(members, calibrations, strict=True):
        scores, rest = calibrated(member.candidates, calibration)
        tables.append((member.candidates.codes[used, :first], scores[used, :first]))
        none.append(rest[used])
    codes, scores = union(tables)
    truth = targets.truth[used]
    hit = (codes == truth[:, None]) & (truth >= 0)[:, None]
    place = np.where(hit.any(axis=1), hit.argmax(axis=1), -1)
    inner = Targets(truth, targets.weights[used], targets.k, targets.unknown)
    return _BlendSearch(scores, codes >= 0, place, np.stack(none), inner)


def _remembering(search: _BlendSearch) -> Callable[[np.ndarray], _Value]:
    """The objective, which looks up weights that were tried: a last round tries what followed the last step again."""
    found: dict[bytes, _Value] = {}

    def value_of(weights: np.ndarray) -> _Value:
        key = weights.tobytes()
        if key not in found:
            found[key] = _objective(weights, search)
        return found[key]

    return value_of


def _coordinate_search(
    weights: np.ndarray, value_of: Callable[[np.ndarray], _Value], floor: float
) -> tuple[_Value, np.ndarray]:
    best = value_of(weights)
    for _ in range(_ROUNDS):
        before = best
        for place in range(len(weights)):
            for tried in _moves(weights, place):
                value = value_of(tried)
                if _better(value, best, floor):
                    best, weights = value, tried
        if not _better(best, before, floor):
            break
    return best, weights


def _moves(weights: np.ndarray, place: int) -> Iterator[np.ndarray]:
    """The weights with every share for one member; the others keep their proportions."""
    rest = weights.copy()
    rest[place] = 0.0
    if rest.sum() == 0.0:
        return
    for share in SHARES:
        tried = rest / rest.sum() * (1 - share)
        tried[place] = share
        yield tried


def _better(one: _Value, other: _Value, floor: float) -> bool:
    """Whether a value is better: by MAP@k up to `floor`, above it by the smoothed sum of both."""
    short, other_short = min(one[0] - floor, 0.0), min(other[0] - floor, 0.0)
    if abs(short - other_short) > _EQUAL:
        return short > other_short
    return one[0] + _SMOOTH * one[1] > other[0] + _SMOOTH * other[1] + _EQUAL


def _objective(weights: np.ndarray, search: _BlendSearch) -> _Value:
    """MAP@k with its best threshold, and the mean log of the probability given to the truth."""
    factor = weights.astype(np.float32)
    used = np.flatnonzero(factor)  # most weights are 0 most of the time
    total = np.tensordot(factor[used], search.scores[used], axes=1)
    total[~search.real] = -np.inf
    targets, listed = search.targets, search.place >= 0
    column = np.maximum(search.place, 0)[:, None]
    own = total[np.arange(len(total)), column[:, 0]][:, None]
    ahead = (total > own) | ((total == own) & (np.arange(total.shape[1]) < column))
    rank = np.where(listed, ahead.sum(axis=1) + 1, 0)
    unknown = targets.truth < 0
    stats = RankStats(rank, own[:, 0], _top(total[unknown], targets.k), unknown, targets.weights)
    likelihood = np.where(listed, own[:, 0], factor[used] @ search.none[used])
    logs = np.log(np.maximum(likelihood, 1e-6))
    return best_map(stats, targets)[1], float(targets.weights @ logs / targets.weights.sum())


def _top(total: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, descending, -inf padded."""
    if total.shape[1] > k:
        total = -np.partition(-total, k - 1, axis=1)[:, :k]
    ordered = -np.sort(-total, axis=1)
    if ordered.shape[1] == k:
        return ordered
    return np.pad(ordered, ((0, 0), (0, k - ordered.shape[1])), constant_values=-np.inf)
