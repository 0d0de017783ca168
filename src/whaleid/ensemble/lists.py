"""Joining candidate lists: of different queries one below the other, of the same queries by a weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whaleid.retrieval.candidates import Candidates

_CHUNK = 2048  # queries summed at a time


def concatenate_lists(lists: Sequence[Candidates]) -> Candidates:
    """Lists of different queries, one below the other. All have one width and one table of classes."""
    return Candidates(
        np.concatenate([given.queries for given in lists]),
        lists[0].classes,
        np.concatenate([given.codes for given in lists]),
        np.concatenate([given.scores for given in lists]),
    )


def average(lists: Sequence[Candidates], keep: int) -> Candidates:
    """Mean score of each identity over several lists of the same queries (the folds' models, for the test set).

    An identity that a list does not hold gets the lowest score of that query's list.

    Parameters
    ----------
    lists : sequence of Candidates
        Lists of the same queries in the same order.
    keep : int
        Width of the result.
    """
    tables = [(given.codes, given.scores) for given in lists]
    return weighted_sum(lists[0], tables, [1 / len(lists)] * len(lists), keep)


def weighted_sum(
    like: Candidates, tables: list[tuple[np.ndarray, np.ndarray]], weights: Sequence[float], keep: int
) -> Candidates:
    """The `keep` best identities by the weighted sum of several lists' scores (see `union`).

    Parameters
    ----------
    like : Candidates
        Gives the names of the queries and the classes.
    tables : list of (codes int64 (n, m), scores float32 (n, m))
        One a list.
    weights : sequence of float
        One a list.
    keep : int
        Width of the result. Equal sums stand by ascending code.
    """
    codes = np.full((len(like), keep), -1, dtype=np.int64)
    scores = np.full((len(like), keep), -np.inf, dtype=np.float32)
    largest = max(weights)
    factor = np.asarray(weights, dtype=np.float64) / largest  # 1 for equal weights: their sums are exact, and ties stay
    for start in range(0, len(like), _CHUNK):
        part = slice(start, start + _CHUNK)
        joined, spread = union([(code[part], score[part]) for code, score in tables])
        total = np.where(joined >= 0, np.tensordot(factor, spread, axes=1) * largest, -np.inf).astype(np.float32)
        order = np.argsort(-total, axis=1, kind="stable")[:, :keep]
        codes[part, : order.shape[1]] = np.take_along_axis(joined, order, axis=1)
        scores[part, : order.shape[1]] = np.take_along_axis(total, order, axis=1)
    return Candidates(like.queries, like.classes, codes, scores)


def union(tables: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Several lists of the same queries as one table of identities.

    Parameters
    ----------
    tables : list of (codes int64 (n, m), scores float32 (n, m))
        One a list; codes are distinct within a row, -1 padded.

    Returns
    -------
    codes : int64 array, shape (n, u)
        Ascending along a row, -1 padded at the end.
    scores : float32 array, shape (lists, n, u)
        Where a list does not hold an identity, the lowest score of that query's list; 0 where the list is empty.
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
