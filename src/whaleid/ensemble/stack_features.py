"""The stack's table: a row for each candidate of each query.

Candidates are the identities near the front of any ranking. The unknown identity is none of them: simulated unknown
queries (`simulation.py`) differ from real ones where a network was trained on their identity, which trees would learn.
Nothing in a row tells which identity or which image it is about: scores, places, agreement, how many images of the
candidate the gallery holds, and how sure the rankings are of the query as a whole. FEATURES describes each column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whaleid.config import StackConfig
from whaleid.ensemble.calibrate import Calibration, calibrated_scores
from whaleid.ensemble.embedding_features import COLUMNS, EmbeddingTable
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.identities import PADDING

OF_RANKING = {
    "odds": "logarithm of the candidate's calibrated probability against that of none of the candidates",
    "probability": "its calibrated probability",
    "place": "its place among the identities",
    "behind": "its odds less those of the best identity",
    "ahead": "its odds less those of the identity that follows it",
}
OF_CANDIDATE = {
    "first in": "share of the rankings in which it is the first identity ",
    "among first k in": "share of the rankings in which it is among the first k",
    "listed in": "share of the rankings that list it at all",
    "mean odds": "its odds, averaged over the rankings",
    "lowest odds": "the lowest of them",
    "spread of odds": "their standard deviation",
    "mean reciprocal place": "1 / place, averaged over the rankings",
    "images": "its images in the gallery, in units of the mean of all identities there",
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
FEATURES = {**{f"<ranking>: {name}": text for name, text in OF_RANKING.items()}, **OF_CANDIDATE, **OF_QUERY}
"""Name of every feature and what it is; `<ranking>` stands for each ranking's name, the blend's among them."""

_RISING = {"odds", "probability", "behind", "first in", "among first k in", "mean odds", "lowest odds"} | {
    "mean reciprocal place",
    "cosine",
}
_FALLING = {"place"}
_LEAST = 1e-9  # probabilities are read as at least this one before the logarithm
_CHUNK = 256  # queries at a time: their features stay in the processor's cache


@dataclass(frozen=True)
class View:
    """One ranking of some queries, as the stack reads it.

    Attributes
    ----------
    name : str
    lists : Candidates
    calibration : Calibration
        Of its scores, fitted on the stack's training folds.
    """

    name: str
    lists: Candidates
    calibration: Calibration


@dataclass(frozen=True)
class Table:
    """One row a candidate, queries in their order, each query's candidates together.

    Attributes
    ----------
    names : tuple of str
        Of the features.
    query : int64 array, shape (r,)
        Place of the query in the lists, ascending.
    codes : int64 array, shape (r,)
        Identity.
    values : float32 array, shape (r, len(names))
    start : float64 array, shape (r,)
        The blend's log-odds, from which boosting starts.
    queries : int
        Number of queries; some may have no row.
    """

    names: tuple[str, ...]
    query: np.ndarray
    codes: np.ndarray
    values: np.ndarray
    start: np.ndarray
    queries: int


def feature_table(
    views: list[View],
    sizes: np.ndarray,
    k: int,
    config: StackConfig,
    embeddings: EmbeddingTable | None = None,
) -> Table:
    """The candidates of all queries and their features, a chunk of queries at a time.

    Parameters
    ----------
    views : list of View
        Rankings of the same queries, the blend last.
    sizes : int64 array, shape (c,)
        Gallery images of each identity.
    k : int
        Number of guesses that count.
    config : StackConfig
    embeddings : EmbeddingTable or None
        Of the same queries; gives the columns `embedding_features.COLUMNS`.
    """
    names = feature_names([view.name for view in views], embeddings is not None)
    count = len(views[0].lists)
    relative = sizes / max(sizes[sizes > 0].mean(), 1.0) if sizes.any() else sizes.astype(float)
    parts = []
    for start in range(0, max(count, 1), _CHUNK):
        rows = slice(start, start + _CHUNK)
        codes = _candidates([view.lists.codes[rows, : config.first] for view in views], config.candidates)
        real = codes >= 0
        block = np.full((*real.shape, len(names)), np.nan, dtype=np.float32)
        base = _fill(block, [_read(view, rows) for view in views], codes, relative, k)
        if embeddings is not None:
            block[:, :, len(names) - len(COLUMNS) :] = embeddings.columns(rows, codes)
        parts.append((np.nonzero(real)[0] + start, codes[real], block[real], base[real]))
    query, codes, values, base = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Table(names, query.astype(np.int64), codes.astype(np.int64), values, base, count)


def feature_names(rankings: list[str], embeddings: bool) -> tuple[str, ...]:
    """Names of the columns, in their order. embeddings: whether those of the embeddings are among them."""
    own = [f"{ranking}: {name}" for ranking in rankings for name in OF_RANKING]
    return (*own, *OF_CANDIDATE, *OF_QUERY, *(COLUMNS if embeddings else ()))


def directions(names: tuple[str, ...]) -> list[int]:
    """1 where more of a feature can only speak for a candidate, -1 where less of it can, 0 otherwise."""
    last = [name.rsplit(": ", 1)[-1] if not name.startswith("query: ") else "" for name in names]
    return [1 if name in _RISING else -1 if name in _FALLING else 0 for name in last]


def _candidates(heads: list[np.ndarray], most: int) -> np.ndarray:
    """Codes int64 (n, u), -1 padded: the heads of all rankings, of these the best by summed 1 / place.

    heads: int64 (n, m), -1 padded, each. Equals by ascending code.
    """
    codes = np.concatenate(heads, axis=1)
    share = np.concatenate([1.0 / np.arange(1, head.shape[1] + 1) for head in heads])
    width = codes.shape[1]
    keys = np.sort(codes * width + np.arange(width), axis=1)  # by code, then by ranking
    codes, share = keys // width, share[keys % width]
    opens = codes >= 0
    opens[:, 1:] &= codes[:, 1:] != codes[:, :-1]
    slot = np.cumsum(opens, axis=1) - 1
    wide = max(int(slot.max(initial=0)) + 1, 1)
    row = np.broadcast_to(np.arange(len(codes))[:, None], codes.shape)
    real = codes >= 0
    total = np.bincount((row * wide + slot)[real], share[real], len(codes) * wide).reshape(-1, wide)
    joined = np.full(total.shape, PADDING, dtype=np.int64)
    joined[row[opens], slot[opens]] = codes[opens]
    best = np.argsort(-np.round(total, 9), axis=1, kind="stable")[:, :most]
    return np.take_along_axis(joined, best, axis=1)


def positions(codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Column of each wanted code in its row of codes, -1 where it is not there or is padding.

    codes: int64 (n, m), distinct in a row but for padding. wanted: int64 (n, u). Returns int64 (n, u).
    """
    if not codes.size:
        return np.full(wanted.shape, PADDING, dtype=np.int64)
    same = wanted.astype(np.int32)[:, :, None] == codes.astype(np.int32)[:, None, :]
    place = same.argmax(axis=2)  # of short rows, comparing all is several times faster than sorting
    found = (np.take_along_axis(codes, place, axis=1) == wanted) & (wanted >= 0)
    return np.where(found, place, PADDING)


@dataclass(frozen=True)
class _Calibrated:
    """One ranking of a chunk of queries. codes: (n, m). p, odds: float64 (n, m), calibrated probability, 0 where
    padded, and log p_i - log p_none. none: float64 (n,), probability of none of them.
    """

    codes: np.ndarray
    p: np.ndarray
    odds: np.ndarray
    none: np.ndarray


def _read(view: View, rows: slice) -> _Calibrated:
    """Padding, and the first of an empty list, is as improbable as can be."""
    codes, scores = view.lists.codes[rows], view.lists.scores[rows]
    p, none = calibrated_scores(scores, view.calibration)
    p, none = np.where(codes >= 0, p, 0.0).astype(np.float64), none.astype(np.float64)
    odds = np.log(np.maximum(p, _LEAST)) - np.log(np.maximum(none, _LEAST))[:, None]
    return _Calibrated(codes, p, odds, none)


def _fill(
    block: np.ndarray, rankings: list[_Calibrated], codes: np.ndarray, relative: np.ndarray, k: int
) -> np.ndarray:
    """Write the features of the candidates: block float32 (n, u, f), the further columns excepted. Returns the blend's
    odds float64 (n, u).
    """
    own = len(OF_RANKING)
    shape = block.shape[:2]
    members = max(len(rankings) - 1, 1)  # the blend is made of the others and is not counted beside them
    member_odds, places = np.empty((members, *shape), np.float32), np.empty((members, *shape), np.float32)
    listed = np.zeros(shape, dtype=np.float32)
    for number, ranking in enumerate(rankings):
        at = positions(ranking.codes, codes)
        columns = block[:, :, own * number : own * (number + 1)]
        odds = _of_ranking(columns, ranking, at)
        if number < members:
            member_odds[number], places[number] = columns[:, :, 0], columns[:, :, 2]
            listed += at >= 0
    of_candidate = block[:, :, own * len(rankings) :]
    of_candidate[:, :, 0] = (places == 1).mean(axis=0)
    of_candidate[:, :, 1] = (places <= k).mean(axis=0)
    of_candidate[:, :, 2] = listed / members
    of_candidate[:, :, 3] = member_odds.mean(axis=0)
    of_candidate[:, :, 4] = member_odds.min(axis=0)
    of_candidate[:, :, 5] = member_odds.std(axis=0)
    of_candidate[:, :, 6] = (1.0 / places).mean(axis=0)
    of_candidate[:, :, 7] = np.where(codes >= 0, relative[np.maximum(codes, 0)], 0.0)
    of_query = of_candidate[:, :, len(OF_CANDIDATE) :]
    for number, value in enumerate(_of_query(rankings)):
        of_query[:, :, number] = value[:, None]
    return odds


def _of_ranking(columns: np.ndarray, ranking: _Calibrated, at: np.ndarray) -> np.ndarray:
    """Write OF_RANKING, float32 (n, u, 5); returns the candidates' odds float64 (n, u).

    at: int64 (n, u), column of each candidate in the list, -1 = none. A candidate that is not listed has the lowest
    odds of the list and stands after its end.
    """
    listed = at >= 0
    width = (ranking.codes >= 0).sum(axis=1)
    last = np.maximum(width - 1, 0)[:, None]
    at_or_last = np.where(listed, at, last)
    odds = np.take_along_axis(ranking.odds, at_or_last, axis=1)
    after = np.take_along_axis(ranking.odds, np.minimum(at_or_last + 1, last), axis=1)
    columns[:, :, 0] = odds
    columns[:, :, 1] = np.take_along_axis(ranking.p, at_or_last, axis=1)
    columns[:, :, 2] = np.where(listed, at, width[:, None]) + 1
    columns[:, :, 3] = odds - ranking.odds[:, :1]
    columns[:, :, 4] = odds - after
    return odds


def _of_query(rankings: list[_Calibrated]) -> list[np.ndarray]:
    """Columns OF_QUERY, each float64 (n,)."""
    blend = rankings[-1]
    second = blend.odds[:, min(1, blend.odds.shape[1] - 1)]
    whole = np.maximum(np.column_stack([blend.p, blend.none]), 1e-300)
    firsts = np.sort(
        np.stack([ranking.codes[:, 0] for ranking in rankings[: max(len(rankings) - 1, 1)]], axis=1), axis=1
    )
    same = (firsts[:, :, None] == firsts[:, None, :]).sum(axis=2)
    changes = (firsts[:, 1:] != firsts[:, :-1]).sum(axis=1) + 1
    return [
        blend.odds[:, 0],
        blend.odds[:, 0] - second,
        blend.none,
        -(whole * np.log(whole)).sum(axis=1),
        (blend.p >= 0.5 * blend.p[:, :1]).sum(axis=1).astype(np.float64),
        same.max(axis=1) / firsts.shape[1],
        changes / firsts.shape[1],
    ]
