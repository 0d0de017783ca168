"""The graph of nearest neighbours among images: sparse, symmetric, never an n x n table.

A nearest neighbour of one image may have nearer ones of its own, so that the raw graph is lopsided; what spreads
over a graph wants it symmetric. `plain` keeps an edge that either end asks for, `mutual` only where both do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from whaleid.config.retrieval import IndexConfig
from whaleid.retrieval.approximate import open_index
from whaleid.retrieval.index import check_finite, search
from whaleid.utils.errors import WhaleidError

csr: Any = sparse.csr_array  # scipy brings no types: a checker would take its arrays' fields for None
Graph = Any
"""scipy.sparse.csr_array (n, n): row i holds the edges of image i."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest other images of each image, most similar first; equals by ascending row.

    similarity: float32 (n, m), cosines, descending. rows: int64 (n, m), never the image itself.
    """

    similarity: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, neighbours: int) -> Neighbours:
        """The nearest few; all where there are fewer."""
        return Neighbours(self.similarity[:, :neighbours], self.rows[:, :neighbours])


def find_neighbours(embeddings: np.ndarray, neighbours: int, kind: str = "auto") -> Neighbours:
    """The `neighbours` nearest other images of each image; n - 1 where there are fewer.

    embeddings: float (n, d), unit rows; a zero row is as near to all as chance (cosine 0).
    kind: of the index (`IndexConfig`); places that an approximate index leaves empty are filled by exact search.
    Raises WhaleidError for NaN or infinity, or nothing to look for.
    """
    if neighbours < 1:
        raise WhaleidError(f"graph: {neighbours} neighbours; at least 1 is needed")
    check_finite("features", embeddings)
    count = len(embeddings)
    if count < 2:
        return Neighbours(np.empty((count, 0), np.float32), np.empty((count, 0), np.int64))
    most = min(neighbours, count - 1)
    similarity, rows = open_index(embeddings, IndexConfig(kind=kind), count).search(embeddings, most + 1)
    missing = np.flatnonzero((rows < 0).any(axis=1))
    if len(missing):
        similarity[missing], rows[missing] = search(embeddings[missing], embeddings, most + 1)
    own = rows == np.arange(count)[:, None]
    own[~own.any(axis=1), -1] = (
        True  # among many equals the image itself may not be in sight: one too many all the same
    )
    return Neighbours(similarity[~own].reshape(count, most), rows[~own].reshape(count, most))


def neighbour_graph(nearest: Neighbours, gamma: float = 3.0, mutual: bool = False) -> Graph:
    """Symmetric graph float32 (n, n): an edge weighs its cosine to the power gamma; none at or below 0, none to itself.

    mutual: only edges that both ends ask for; else those that either does.
    """
    count, width = nearest.rows.shape
    weight = np.maximum(nearest.similarity, 0.0) ** gamma
    weight[nearest.similarity <= 0] = 0.0  # also where gamma is 0
    starts = np.arange(0, count * width + 1, max(width, 1)) if width else np.zeros(count + 1, dtype=np.int64)
    one_way = csr((weight.astype(np.float32).ravel(), nearest.rows.ravel(), starts), shape=(count, count))
    other_way = csr(one_way.T)
    graph = csr(one_way.minimum(other_way) if mutual else one_way.maximum(other_way))
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def normalised(graph: Graph) -> Graph:
    """D^-1/2 W D^-1/2 with the degrees D of a symmetric graph: its eigenvalues lie in [-1, 1]. Float32 (n, n)."""
    degree = np.asarray(graph.sum(axis=1), dtype=np.float64).ravel()
    scale = np.where(degree > 0, 1.0 / np.sqrt(np.where(degree > 0, degree, 1.0)), 0.0)  # an image alone stays alone
    diagonal = sparse.diags_array(scale)
    return csr(diagonal @ graph @ diagonal, dtype=np.float32)
