"""What the learned order knows of a candidate: a table with a row for each candidate of each query.

Candidates are the identities near the front of any ranking, and the unknown identity as one more. Nothing in a
row tells which identity or which image it is about: scores, places, agreement, how much the gallery knows of
the candidate, and how sure the rankings are of the query as a whole. FEATURES says what each column is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from whaleid.config import StackConfig
from whaleid.ensemble.blend import union
from whaleid.ensemble.calibrate import Calibration, calibrated
from whaleid.retrieval.candidates import PADDING, Candidates

OF_RANKING = {
    "odds": "logarithm of the candidate's calibrated probability against that of none of the candidates",
    "probability": "its calibrated probability",
    "place": "its place among the identities; of unknown, the place that the ranking's tuned threshold gives it",
    "behind": "its odds less those of the best identity",
    "ahead": "its odds less those of the identity that follows it",
}
OF_CANDIDATE = {
    "first in": "share of the rankings in which it is the first identity (or unknown is placed first)",
    "among first k in": "share of the rankings in which it is among the first k",
    "listed in": "share of the rankings that list it at all",
    "mean odds": "its odds, averaged over the rankings",
    "lowest odds": "the lowest of them",
    "spread of odds": "their standard deviation",
    "mean reciprocal place": "1 / place, averaged over the rankings",
    "images": "its images in the gallery, in units of the mean of all identities there; 0 for unknown",
    "unknown": "1 for the unknown identity, else 0",
}
OF_QUERY = {
    "query: best odds": "odds of the blend's first identity",
    "query: gap": "those less the odds of its second",
    "query: none": "probability that the blend gives to none of the candidates",
    "query: entropy": "of the blend's probabilities, none included",
    "query: density": "identities that the blend gives at least half of the best one's probability",
    "query: agreement": "share of the rankings whose first identity is the most frequent first one",
    "query: firsts": "different first identities, as a share of the rankings",
}
FEATURES = {**{f"<ranking>: {name}": said for name, said in OF_RANKING.items()}, **OF_CANDIDATE, **OF_QUERY}
"""Name of every feature and what it is; `<ranking>` stands for each ranking's name, the blend's among them."""

_RISING = {"odds", "probability", "behind", "first in", "among first k in", "mean odds", "lowest odds"} | {
    "mean reciprocal place"
}
_FALLING = {"place"}
_LEAST = 1e-9  # probabilities are read as at least this one before the logarithm
_CHUNK = 1024  # queries at a time: with 60 rankings of 50 candidates some 300 MB


@dataclass(frozen=True)
class View:
    """One ranking of some queries as the stack sees it.

    lists: their candidates. calibration: of its scores. limit: score of `unknown` in it, None without unknown
    label. Both come from queries that the one who looks may learn from.
    """

    name: str
    lists: Candidates
    calibration: Calibration
    limit: float | None


@dataclass(frozen=True)
class Extras:
    """Further columns. columns: (slice of queries, codes int64 (n, u)) -> float32 (n, u, names)."""

    names: tuple[str, ...]
    columns: Callable[[slice, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Table:
    """One row a candidate, queries in their order, each query's candidates together.

    names: of the features. query: int64 (r,), ascending, place of the query in the lists. codes: int64 (r,),
    the number of classes for unknown. values: float32 (r, features). start: float64 (r,), the blend's odds.
    queries: how many there are (some may have no row).
    """

    names: tuple[str, ...]
    query: np.ndarray
    codes: np.ndarray
    values: np.ndarray
    start: np.ndarray
    queries: int


def feature_table(
    views: list[View], sizes: np.ndarray, k: int, unknown: bool, config: StackConfig, extras: Extras | None = None
) -> Table:
    """The candidates of all queries and their features, a chunk of queries at a time.

    views: rankings of the same queries, the blend last. sizes: int64 (c,), gallery images of each identity.
    unknown: whether the unknown identity is a candidate.
    """
    names = feature_names([view.name for view in views], extras)
    count = len(views[0].lists)
    relative = sizes / max(sizes[sizes > 0].mean(), 1.0) if sizes.any() else sizes.astype(float)
    parts = []
    for start in range(0, max(count, 1), _CHUNK):
        rows = slice(start, start + _CHUNK)
        codes = _candidates(views, rows, config)
        real = np.column_stack([codes >= 0, np.full(len(codes), unknown)])
        block, base = _block(views, rows, codes, relative, k)
        if extras is not None:
            more = np.full((*block.shape[:2], len(extras.names)), np.nan, dtype=np.float32)
            more[:, :-1] = extras.columns(rows, codes)
            block = np.concatenate([block, more], axis=2)
        codes = np.column_stack([codes, np.full(len(codes), len(views[0].lists.classes))])
        parts.append((np.nonzero(real)[0] + start, codes[real], block[real], base[real]))
    query, codes, values, base = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Table(names, query.astype(np.int64), codes.astype(np.int64), values, base.astype(np.float64), count)


def feature_names(rankings: list[str], extras: Extras | None = None) -> tuple[str, ...]:
    """Names of the columns, in their order."""
    own = [f"{ranking}: {name}" for ranking in rankings for name in OF_RANKING]
    return (*own, *OF_CANDIDATE, *OF_QUERY, *(() if extras is None else extras.names))


def directions(names: tuple[str, ...]) -> list[int]:
    """1 where more of a feature can only speak for a candidate, -1 where less of it can, 0 otherwise."""
    last = [name.rsplit(": ", 1)[-1] if not name.startswith("query: ") else "" for name in names]
    return [1 if name in _RISING else -1 if name in _FALLING else 0 for name in last]


def _candidates(views: list[View], rows: slice, config: StackConfig) -> np.ndarray:
    """Codes int64 (n, u), -1 padded: the heads of all rankings, of these the best by summed 1 / place."""
    tables = []
    for view in views:
        codes = view.lists.codes[rows, : config.first]
        share = 1.0 / np.arange(1, codes.shape[1] + 1, dtype=np.float32)
        tables.append((codes, np.where(codes >= 0, share, -np.inf).astype(np.float32)))
    codes, share = union(tables)
    for place, (own, _) in enumerate(tables):
        share[place][positions(own, codes) < 0] = 0.0
    total = np.where(codes >= 0, share.sum(axis=0, dtype=np.float64), -1.0)
    best = np.argsort(-total, axis=1, kind="stable")[:, : config.candidates]
    return np.take_along_axis(codes, best, axis=1)


def positions(codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Column of each wanted code in its row of codes, -1 where it is not there or is padding.

    codes: int64 (n, m), distinct in a row but for padding. wanted: int64 (n, u). Returns int64 (n, u).
    """
    if not codes.size:
        return np.full(wanted.shape, PADDING, dtype=np.int64)
    step = int(max(codes.max(), wanted.max(initial=0))) + 2
    line = np.arange(len(codes))[:, None] * step + 1
    keys = (codes + line).ravel()
    order = np.argsort(keys, kind="stable")
    asked = wanted + line
    place = np.minimum(np.searchsorted(keys, asked, sorter=order), len(keys) - 1)
    found = (keys[order[place]] == asked) & (wanted >= 0)
    return np.where(found, order[place] % codes.shape[1], PADDING)


def _block(
    views: list[View], rows: slice, codes: np.ndarray, relative: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (n, u + 1, f) of the candidates and, last, of unknown; and the blend's odds (n, u + 1)."""
    shape = len(codes), codes.shape[1] + 1
    columns: list[np.ndarray] = []
    all_odds, places, listed = [], [], []
    odds = np.zeros(shape)
    for view in views:
        own, at = _of_ranking(view, rows, codes)
        columns += own
        odds = own[0]
        all_odds.append(own[0])
        places.append(own[2])
        listed.append(np.column_stack([at >= 0, np.ones(len(at), dtype=bool)]))
    some = slice(0, max(len(views) - 1, 1))  # the blend is made of the others: it is no voice of its own
    heights, place = np.stack(all_odds[some]), np.stack(places[some])
    size = np.column_stack([np.where(codes >= 0, relative[np.maximum(codes, 0)], 0.0), np.zeros(len(codes))])
    columns += [
        (place == 1).mean(axis=0),
        (place <= k).mean(axis=0),
        np.stack(listed[some]).mean(axis=0),
        heights.mean(axis=0),
        heights.min(axis=0),
        heights.std(axis=0),
        (1.0 / place).mean(axis=0),
        size,
        np.broadcast_to(np.arange(shape[1]) == shape[1] - 1, shape),
    ]
    columns += [np.broadcast_to(value[:, None], shape) for value in _of_query(views, rows)]
    block = np.empty((*shape, len(columns)), dtype=np.float32)
    for number, column in enumerate(columns):
        block[:, :, number] = column
    return block, odds


def _of_ranking(view: View, rows: slice, codes: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Columns OF_RANKING, each float64 (n, u + 1), unknown last, and the candidates' columns in the list (-1: none).

    A candidate that is not listed has the lowest odds of the list and stands after its end.
    """
    lists = _rows(view.lists, rows)
    own, at = _odds(lists, view.calibration), positions(lists.codes, codes)
    p, none = calibrated(lists, view.calibration)
    width = (lists.codes >= 0).sum(axis=1)
    last = np.maximum(width - 1, 0)[:, None]
    at_or_last = np.where(at >= 0, at, last)
    odds = np.take_along_axis(own, at_or_last, axis=1)
    probability = np.take_along_axis(np.where(lists.codes >= 0, p, 0.0), at_or_last, axis=1)
    place = np.where(at >= 0, at, width[:, None]) + 1
    after = np.minimum(np.where(at >= 0, at + 1, last), last)
    ahead = odds - np.take_along_axis(own, after, axis=1)
    limit = np.inf if view.limit is None else np.float32(view.limit)
    over = (lists.scores >= limit).sum(axis=1)
    of_unknown = [
        np.zeros(len(codes)),
        none,
        over + 1,
        -own[:, 0],
        -np.take_along_axis(own, np.minimum(over[:, None], last), axis=1)[:, 0],
    ]
    of_identity = [odds, probability, place, odds - own[:, :1], ahead]
    columns = [np.column_stack(pair).astype(np.float64) for pair in zip(of_identity, of_unknown, strict=True)]
    return columns, at


def _odds(lists: Candidates, calibration: Calibration) -> np.ndarray:
    """log p_i - log p_none, float64 (n, m); padding, and the first of an empty list, as improbable as can be."""
    p, none = calibrated(lists, calibration)
    p = np.where(lists.codes >= 0, p, 0.0).astype(np.float64)
    return np.log(np.maximum(p, _LEAST)) - np.log(np.maximum(none.astype(np.float64), _LEAST))[:, None]


def _of_query(views: list[View], rows: slice) -> list[np.ndarray]:
    """Columns OF_QUERY, each float64 (n,)."""
    blend = _rows(views[-1].lists, rows)
    odds = _odds(blend, views[-1].calibration)
    p, none = calibrated(blend, views[-1].calibration)
    p = np.where(blend.codes >= 0, p, 0.0).astype(np.float64)
    second = odds[:, min(1, odds.shape[1] - 1)]
    whole = np.maximum(np.column_stack([p, none]), 1e-300)
    firsts = np.sort(np.stack([view.lists.codes[rows, 0] for view in views[: max(len(views) - 1, 1)]], axis=1), axis=1)
    same = (firsts[:, :, None] == firsts[:, None, :]).sum(axis=2)
    changes = (firsts[:, 1:] != firsts[:, :-1]).sum(axis=1) + 1
    return [
        odds[:, 0],
        odds[:, 0] - second,
        none.astype(np.float64),
        -(whole * np.log(whole)).sum(axis=1),
        (p >= 0.5 * p[:, :1]).sum(axis=1).astype(np.float64),
        same.max(axis=1) / firsts.shape[1],
        changes / firsts.shape[1],
    ]


def _rows(lists: Candidates, rows: slice) -> Candidates:
    return Candidates(lists.queries[rows], lists.classes, lists.codes[rows], lists.scores[rows])
