"""Diffusion from a query over the graph of nearest neighbours: what is similar to the similar is similar.

Iscen, Tolias, Avrithis, Furon and Chum, "Efficient diffusion on region manifolds", 2017. Unlabelled images take part:
test images, or out of fold the fold's queries.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.sparse.csgraph import dijkstra

from whaleid.config import DiffusionConfig
from whaleid.retrieval.graph import Graph, csr, neighbour_graph, normalised
from whaleid.retrieval.rerankers.base import (
    QueryGraph,
    Reranker,
    Settings,
    fill_from_plain,
    image_scores_to_identities,
    join_queries,
)
from whaleid.utils.errors import WhaleidError

_ITERATIONS = 30  # of the conjugate gradient, at most; the paper stops after 20
_TOLERANCE = 1e-4  # where it stops, as a share of the query's own mass
_CELLS = 1 << 23  # numbers in a block of columns: 32 MB of float32
_HOP = 1e-9  # cost of any step: of equally strong paths the shortest is taken


def diffuse(
    smooth: Graph, sources: Graph, alpha: float, iterations: int = _ITERATIONS, tolerance: float = _TOLERANCE
) -> np.ndarray:
    """(1 - alpha) (I - alpha S)^-1 y for every column y, by conjugate gradient on all columns at once.

    Parameters
    ----------
    smooth : sparse float32 array, shape (n, n)
        S, symmetric, eigenvalues in [-1, 1] (`graph.normalised`).
    sources : sparse float array, shape (n, b)
        The columns y.
    alpha : float
        Share of the mass that moves on at each step, between 0 and 1.
    iterations : int
        Largest number of iterations.
    tolerance : float
        Stops where no column's residual is above this multiple of the column's length.

    Returns
    -------
    float32 array, shape (n, b)
        What each image receives.
    """
    if not 0 < alpha < 1:
        raise WhaleidError(f"diffusion: alpha {alpha:g}; it must lie between 0 and 1")
    target = np.asarray(sources.toarray(), dtype=np.float32) * np.float32(1 - alpha)
    solution = np.zeros_like(target)
    residual, direction = target.copy(), target.copy()
    square = np.einsum("ij,ij->j", residual, residual, dtype=np.float64)
    enough = square * tolerance**2
    for _ in range(iterations):
        moving = square > enough
        if not moving.any():
            break
        image = direction - np.float32(alpha) * (smooth @ direction)
        curve = np.einsum("ij,ij->j", direction, image, dtype=np.float64)
        step = np.where(moving, square / np.where(moving, curve, 1.0), 0.0).astype(np.float32)
        solution += step * direction
        residual -= step * image
        after = np.einsum("ij,ij->j", residual, residual, dtype=np.float64)
        turn = np.where(moving, after / np.where(moving, square, 1.0), 0.0).astype(np.float32)
        direction = residual + turn * direction
        square = after
    return solution


def from_rows(count: int, rows: np.ndarray) -> Graph:
    """One column for each row, with a 1 there: sparse float32 (count, b)."""
    columns = np.arange(len(rows))
    return csr((np.ones(len(rows), np.float32), (rows, columns)), shape=(count, len(rows)))


def columns_at_a_time(count: int) -> int:
    """How many columns of `count` numbers make one block."""
    return max(1, _CELLS // max(1, count))


def graph_name(neighbours: int, gamma: float, mutual: bool) -> str:
    """Name of a graph in the name of a setting."""
    return f"{neighbours} {'mutual ' if mutual else ''}neighbours, gamma {gamma:g}"


def _rerank(graph: QueryGraph, grid: DiffusionConfig) -> Settings:
    for neighbours, gamma, mutual in product(grid.neighbours, grid.gamma, grid.mutual):
        smooth = normalised(neighbour_graph(graph.nearest.first(neighbours), gamma, mutual))
        for alpha in grid.alpha:
            lists = fill_from_plain(_lists(graph, smooth, alpha), graph.plain)
            yield f"{graph_name(neighbours, gamma, mutual)}, alpha {alpha:g}", lists


def _lists(graph: QueryGraph, smooth: Graph, alpha: float):
    """Candidates by what reaches the gallery's images from each query, a block of queries at a time."""
    count, parts = len(graph.nodes), []
    step = columns_at_a_time(count)
    for start in range(0, graph.count, step):
        sources = from_rows(count, graph.query_rows[start : start + step])
        reached = diffuse(smooth, sources, alpha)[: len(graph.gallery)]
        parts.append(image_scores_to_identities(np.maximum(reached.T, 0.0), graph))
    return join_queries(parts)


DIFFUSION = Reranker("diffusion", _rerank, lambda grid: max(grid.neighbours))


def strongest_path(graph: Graph, query: int, identity_rows: np.ndarray) -> np.ndarray:
    """The path from a query to an image of an identity with the largest product of weights.

    Parameters
    ----------
    graph : sparse float32 array, shape (n, n)
        Weights in (0, 1] (`graph.neighbour_graph`).
    query : int
        Row of the query.
    identity_rows : int64 array, shape (m,)

    Returns
    -------
    int64 array, shape (p,)
        Rows, the query first, an image of the identity last; empty where no path leads there. Of equally strong paths
        one with the fewest steps is taken.
    """
    count = graph.shape[0]
    rows = np.asarray(identity_rows, dtype=np.int64)
    if not 0 <= query < count or (len(rows) and not (rows.min() >= 0 and rows.max() < count)):
        raise WhaleidError(f"path: query {query} or an identity's row is outside the graph's 0..{count - 1}")
    weights = np.asarray(graph.data, dtype=np.float64)
    if len(weights) and not weights.min() > 0:
        raise WhaleidError("path: the graph has a weight that is not above 0; build it by neighbour_graph")
    cost = csr((_HOP - np.log(np.minimum(weights, 1.0)), graph.indices, graph.indptr), shape=graph.shape)
    distance, previous = dijkstra(cost, directed=False, indices=query, return_predecessors=True)
    if not len(rows) or not np.isfinite(distance[rows]).any():
        return np.empty(0, dtype=np.int64)
    path = [int(rows[np.argmin(distance[rows])])]
    while path[-1] != query:
        path.append(int(previous[path[-1]]))
    return np.array(path[::-1], dtype=np.int64)
