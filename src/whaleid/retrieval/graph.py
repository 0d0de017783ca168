"""The graph of nearest neighbours among images: sparse and symmetric, never an n x n table.

An image need not be among the nearest of its own nearest neighbour; diffusion needs symmetric edges. An edge is kept
where either image has the other among its nearest, or, in a mutual graph, only where both have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from whaleid.retrieval.approximate import open_for
from whaleid.retrieval.index import check_finite, search
from whaleid.utils.errors import WhaleidError

csr: Any = sparse.csr_array  # scipy brings no types: a checker would take its arrays' fields for None
Graph = Any
"""scipy.sparse.csr_array (n, n): row i holds the edges of image i."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest other images of each image.

    Attributes
    ----------
    similarity : float32 array, shape (n, m)
        Cosines, descending; ties by ascending row.
    rows : int64 array, shape (n, m)
        Never the image itself.
    """

    similarity: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, neighbours: int) -> Neighbours:
        """The nearest few; all where there are fewer."""
        return Neighbours(self.similarity[:, :neighbours], self.rows[:, :neighbours])


def find_neighbours(embeddings: np.ndarray, neighbours: int, kind: str = "auto") -> Neighbours:
    """The `neighbours` nearest other images of each image.

    Parameters
    ----------
    embeddings : float array, shape (n, d)
        Unit rows; a zero row has cosine 0 with all.
    neighbours : int
        All n - 1 where there are fewer.
    kind : str
        Of the index (`approximate.open_for`). Places that an approximate index leaves empty are filled by exact
        search.

    Raises
    ------
    WhaleidError
        For NaN or infinity, or less than 1 neighbour.
    """
    if neighbours < 1:
        raise WhaleidError(f"graph: {neighbours} neighbours; at least 1 is needed")
    check_finite("features", embeddings)
    count = len(embeddings)
    if count < 2:
        return Neighbours(np.empty((count, 0), np.float32), np.empty((count, 0), np.int64))
    most = min(neighbours, count - 1)
    similarity, rows = open_for(embeddings, embeddings, most + 1, kind).search(embeddings, most + 1)
    missing = np.flatnonzero((rows < 0).any(axis=1))
    if len(missing):
        similarity[missing], rows[missing] = search(embeddings[missing], embeddings, most + 1)
    own = rows == np.arange(count)[:, None]
    own[~own.any(axis=1), -1] = True  # among many equals the image itself may not be listed: drop the last one then
    return Neighbours(similarity[~own].reshape(count, most), rows[~own].reshape(count, most))


def neighbour_graph(nearest: Neighbours, gamma: float = 3.0, mutual: bool = False) -> Graph:
    """Symmetric graph of nearest neighbours.

    Parameters
    ----------
    nearest : Neighbours
    gamma : float
        An edge has the weight cosine ** gamma; there is none at or below 0.
    mutual : bool
        Keep only edges between images that are both among each other's nearest.

    Returns
    -------
    sparse float32 array, shape (n, n)
        Without loops.
    """
    count, width = nearest.rows.shape
    weight = np.maximum(nearest.similarity, 0.0) ** gamma
    weight[nearest.similarity <= 0] = 0.0  # also where gamma is 0
    starts = np.arange(count + 1) * width
    outgoing = csr((weight.astype(np.float32).ravel(), nearest.rows.ravel(), starts), shape=(count, count))
    incoming = csr(outgoing.T)
    graph = csr(outgoing.minimum(incoming) if mutual else outgoing.maximum(incoming))
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def normalised(graph: Graph) -> Graph:
    """D^-1/2 W D^-1/2 with the degrees D of a symmetric graph: its eigenvalues lie in [-1, 1]. Float32 (n, n)."""
    degree = np.asarray(graph.sum(axis=1), dtype=np.float64).ravel()
    scale = np.where(degree > 0, 1.0 / np.sqrt(np.where(degree > 0, degree, 1.0)), 0.0)  # an image alone stays alone
    diagonal = sparse.diags_array(scale)
    return csr(diagonal @ graph @ diagonal, dtype=np.float32)
