"""Label diffusion: labels spread over the graph of nearest neighbours for a few steps.

Douze, Szlam, Hariharan and Jegou, "Low-shot learning with large-scale diffusion", 2018. An identity with a single image
reaches a query through unlabelled images: test images, or out of fold the fold's queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from scipy.sparse import issparse

from whaleid.config import LabelConfig
from whaleid.retrieval.graph import Graph, csr, neighbour_graph, normalised
from whaleid.retrieval.rerankers.base import Lists, QueryGraph, Reranker, Settings, fill_from_plain
from whaleid.retrieval.rerankers.diffusion import columns_at_a_time, graph_name
from whaleid.utils.errors import WhaleidError

_DENSE = 0.1  # share of entries above which a sparse table is slower than a full one
_BALANCE = 0.5  # each of an identity's n images starts with n ** -0.5: between one mass an identity and one an image


def spread_labels(
    smooth: Graph,
    labelled: np.ndarray,
    codes: np.ndarray,
    queries: np.ndarray,
    steps: list[int],
    alpha: float,
    keep: int,
) -> dict[int, Lists]:
    """The identities whose labels reach each query most after each number of steps.

    F(t + 1) = alpha S F(t) + (1 - alpha) Y with F(0) = Y, the labels: an identity's n images start with n ** -0.5 each.

    Parameters
    ----------
    smooth : sparse float32 array, shape (n, n)
        S (`graph.normalised`).
    labelled, codes : int64 arrays, shape (g,)
        Rows with a label, and their identities, >= 0.
    queries : int64 array, shape (q,)
        Rows of the queries, none of them labelled.
    steps : list of int
    alpha : float
        Share that moves on at each step, in (0, 1].
    keep : int
        Width of the lists.

    Returns
    -------
    dict of int to (int64 array, float32 array), shape (q, keep)
        For each number of steps codes and scores, descending; -1 and -inf where fewer identities reach the query. Ties
        by ascending code. Scores are the mass that arrives. They are not normalised for each query: how much arrives at
        all is what tells an unknown identity.
    """
    if not 0 < alpha <= 1 or min(steps) < 1:
        raise WhaleidError(f"label diffusion: alpha {alpha:g}, steps {steps}; alpha in (0, 1], steps from 1")
    identities, place, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    start = (sizes[place] ** -_BALANCE).astype(np.float32)
    labels = csr((start, (labelled, place)), shape=(smooth.shape[0], len(identities))).tocsc()
    shape = len(queries), keep
    best = {number: (np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)) for number in steps}
    width = columns_at_a_time(smooth.shape[0])
    for first in range(0, len(identities), width):
        table = labels[:, first : first + width].tocsr()
        for number, reached in _spread(smooth, table, max(steps), alpha, queries):
            if number in best:
                best[number] = _with_block(best[number], identities[first : first + width], reached)
    return best


def _spread(
    smooth: Graph, labels: Graph, most: int, alpha: float, rows: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """(1, F(1)[rows]), (2, F(2)[rows]), ... as full float32 tables; F is sparse as long as that is faster."""
    table = labels
    for number in range(1, most + 1):
        if issparse(table) and table.nnz > _DENSE * table.shape[0] * table.shape[1]:
            table, labels = table.toarray(), labels.toarray()
        table = np.float32(alpha) * (smooth @ table) + np.float32(1 - alpha) * labels
        reached = table[rows]
        yield number, np.asarray(reached.toarray() if issparse(reached) else reached, dtype=np.float32)


def _with_block(best: Lists, identities: np.ndarray, scores: np.ndarray) -> Lists:
    """The best identities so far and of a further block; blocks come by ascending code.

    identities: int64 (b,). scores: float32 (q, b), >= 0; 0 is not reached.
    """
    codes = np.concatenate([best[0], np.broadcast_to(identities, scores.shape)], axis=1)
    every = np.concatenate([best[1], np.where(scores > 0, scores, -np.inf)], axis=1)
    order = np.argsort(-every, axis=1, kind="stable")[:, : best[0].shape[1]]
    found = np.take_along_axis(every, order, axis=1)
    return np.where(np.isfinite(found), np.take_along_axis(codes, order, axis=1), -1), found


def _rerank(graph: QueryGraph, grid: LabelConfig) -> Settings:
    labelled = np.arange(len(graph.gallery))
    for neighbours, gamma, mutual in product(grid.neighbours, grid.gamma, grid.mutual):
        smooth = normalised(neighbour_graph(graph.nearest.first(neighbours), gamma, mutual))
        for alpha in grid.alpha:
            spread = spread_labels(smooth, labelled, graph.codes, graph.query_rows, grid.steps, alpha, graph.keep)
            for steps, lists in spread.items():
                name = f"{graph_name(neighbours, gamma, mutual)}, alpha {alpha:g}, {steps} steps"
                yield name, fill_from_plain(lists, graph.plain)


LABEL_DIFFUSION = Reranker("label diffusion", _rerank, lambda grid: max(grid.neighbours))
