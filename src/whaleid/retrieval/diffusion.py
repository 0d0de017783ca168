"""Diffusion on the graph of nearest neighbours: what is similar to the similar is similar.

From a query to images, until it stands (Iscen, Tolias, Avrithis, Furon and Chum, "Efficient diffusion on region
manifolds", 2017); or from labels to images for a few steps (Douze, Szlam, Hariharan and Jegou, "Low-shot learning with
large-scale diffusion", 2018), where an identity with a single photograph reaches a query through photographs that
nobody has named. Unlabelled images take part in both: test images, or out of fold the fold's queries.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import issparse
from scipy.sparse.csgraph import dijkstra

from whaleid.retrieval.graph import Graph, csr
from whaleid.utils.errors import WhaleidError

_DENSE = 0.1  # share of entries above which a sparse table is slower than a full one
_CELLS = 1 << 23  # numbers in a block of columns: 32 MB of float32
_HOP = 1e-9  # cost of any step: of equally strong paths the shortest is taken


def diffuse(smooth: Graph, sources: Graph, alpha: float, iterations: int = 30, tolerance: float = 1e-4) -> np.ndarray:
    """(1 - alpha) (I - alpha S)^-1 y for every column y: what each image gets, float32 (n, b).

    smooth: S, symmetric float32 (n, n), eigenvalues in [-1, 1] (`graph.normalised`). sources: float (n, b), y.
    Conjugate gradient, all columns at once, each with its own steps; it stops where no column's residual is above
    `tolerance` times that column's length, or after `iterations`.
    """
    if not 0 < alpha < 1:
        raise WhaleidError(f"diffusion: alpha {alpha:g}; it must lie between 0 and 1")
    given = np.asarray(sources.toarray(), dtype=np.float32) * np.float32(1 - alpha)
    found = np.zeros_like(given)
    residual, direction = given.copy(), given.copy()
    square = np.einsum("ij,ij->j", residual, residual, dtype=np.float64)
    enough = square * tolerance**2
    for _ in range(iterations):
        moving = square > enough
        if not moving.any():
            break
        image = direction - np.float32(alpha) * (smooth @ direction)
        curve = np.einsum("ij,ij->j", direction, image, dtype=np.float64)
        step = np.where(moving, square / np.where(moving, curve, 1.0), 0.0).astype(np.float32)
        found += step * direction
        residual -= step * image
        after = np.einsum("ij,ij->j", residual, residual, dtype=np.float64)
        turn = np.where(moving, after / np.where(moving, square, 1.0), 0.0).astype(np.float32)
        direction = residual + turn * direction
        square = after
    return found


def from_rows(count: int, rows: np.ndarray) -> Graph:
    """One column for each row: 1 there, else 0. Float32 (count, b)."""
    columns = np.arange(len(rows))
    return csr((np.ones(len(rows), np.float32), (rows, columns)), shape=(count, len(rows)))


def columns_at_a_time(count: int) -> int:
    """How many columns of `count` numbers make one block."""
    return max(1, _CELLS // max(1, count))


# ----------------------------------------------------------------------------------------------------- labels


def spread_labels(
    smooth: Graph,
    labelled: np.ndarray,
    codes: np.ndarray,
    queries: np.ndarray,
    steps: list[int],
    alpha: float,
    keep: int,
    balance: float = 0.5,
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The identities whose labels reach each query most after each number of steps.

    smooth: S, float32 (n, n). labelled: int64 (g,), rows with a label; codes: int64 (g,), their identities, >= 0.
    queries: int64 (q,), rows asked about, none of them labelled. F(t + 1) = alpha S F(t) + (1 - alpha) Y with F(0) = Y,
    the labels: an identity's n images start with n ** -balance each.
    Returns for each number of `steps` codes int64 (q, keep) and scores float32 (q, keep), descending; -1 and -inf where
    fewer identities reach the query. Equals by ascending code. Scores are the mass that arrives, and are not brought to
    a sum of 1 for each query: how much arrives at all is what tells an unknown identity.
    """
    if not 0 < alpha <= 1 or min(steps) < 1:
        raise WhaleidError(f"label diffusion: alpha {alpha:g}, steps {steps}; alpha in (0, 1], steps from 1")
    names, place, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    start = (sizes[place] ** -float(balance)).astype(np.float32)
    labels = csr((start, (labelled, place)), shape=(smooth.shape[0], len(names))).tocsc()
    best = {number: _Best(len(queries), keep) for number in steps}
    width = columns_at_a_time(smooth.shape[0])
    for first in range(0, len(names), width):
        table = labels[:, first : first + width].tocsr()
        for number, reached in _steps(smooth, table, max(steps), alpha, queries):
            if number in best:
                best[number].add(names[first : first + width], reached)
    return {number: (best[number].codes, best[number].scores) for number in steps}


def _steps(smooth: Graph, labels: Graph, most: int, alpha: float, rows: np.ndarray):
    """(1, F(1)[rows]), (2, F(2)[rows]), ... as full float32 tables; F is sparse as long as that is quicker."""
    table = labels
    for number in range(1, most + 1):
        if issparse(table) and table.nnz > _DENSE * table.shape[0] * table.shape[1]:
            table, labels = table.toarray(), labels.toarray()
        table = np.float32(alpha) * (smooth @ table) + np.float32(1 - alpha) * labels
        reached = table[rows]
        yield number, np.asarray(reached.toarray() if issparse(reached) else reached, dtype=np.float32)


class _Best:
    """The best identities of each query so far; blocks come by ascending code."""

    def __init__(self, queries: int, keep: int):
        self.codes = np.full((queries, keep), -1, dtype=np.int64)
        self.scores = np.full((queries, keep), -np.inf, dtype=np.float32)

    def add(self, names: np.ndarray, scores: np.ndarray) -> None:
        """names: int64 (b,). scores: float32 (q, b), >= 0; 0 is not reached."""
        keep = self.codes.shape[1]
        codes = np.concatenate([self.codes, np.broadcast_to(names, scores.shape)], axis=1)
        every = np.concatenate([self.scores, np.where(scores > 0, scores, -np.inf)], axis=1)
        order = np.argsort(-every, axis=1, kind="stable")[:, :keep]
        self.scores = np.take_along_axis(every, order, axis=1)
        self.codes = np.where(np.isfinite(self.scores), np.take_along_axis(codes, order, axis=1), -1)


# ------------------------------------------------------------------------------------------------------ paths


def strongest_path(graph: Graph, query: int, identity_rows: np.ndarray) -> np.ndarray:
    """Rows from the query to the image of an identity that it is tied to most: the largest product of weights.

    graph: float32 (n, n), weights in (0, 1] (`graph.neighbour_graph`). query: a row. identity_rows: int64 (m,).
    Returns int64 (p,), the query first, an image of the identity last; empty where no path leads there. Of equally
    strong paths one with the fewest steps is taken.
    """
    count = graph.shape[0]
    rows = np.asarray(identity_rows, dtype=np.int64)
    if not 0 <= query < count or (len(rows) and not (rows.min() >= 0 and rows.max() < count)):
        raise WhaleidError(f"path: query {query} or an identity's row is outside the graph's 0..{count - 1}")
    weights = np.asarray(graph.data, dtype=np.float64)
    if len(weights) and not weights.min() > 0:
        raise WhaleidError("path: the graph has a weight that is not above 0; make it by neighbour_graph")
    cost = csr((_HOP - np.log(np.minimum(weights, 1.0)), graph.indices, graph.indptr), shape=graph.shape)
    distance, before = dijkstra(cost, directed=False, indices=query, return_predecessors=True)
    if not len(rows) or not np.isfinite(distance[rows]).any():
        return np.empty(0, dtype=np.int64)
    path = [int(rows[np.argmin(distance[rows])])]
    while path[-1] != query:
        path.append(int(before[path[-1]]))
    return np.array(path[::-1], dtype=np.int64)
