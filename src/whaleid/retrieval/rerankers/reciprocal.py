"""k-reciprocal re-ranking, sparse: two images are alike where they have the same neighbours.

Zhong, Zheng, Cao and Li, "Re-ranking person re-identification with k-reciprocal encoding", 2017. Each image has a
sparse code: the images R* that are among its nearest and it among theirs, weighted by how near they are. The Jaccard
similarity of two codes, sum of minima over sum of maxima, is computed from inverted lists and averaged with the cosine.
Distances are (1 - cosine) / 2 in the average and 2 - 2 cosine (squared Euclidean) in the weights.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.sparse import vstack

from whaleid.config import ReciprocalConfig
from whaleid.retrieval.graph import Graph, Neighbours, csr
from whaleid.retrieval.rerankers.base import (
    Lists,
    QueryGraph,
    Reranker,
    Settings,
    image_scores_to_identities,
    join_queries,
)
from whaleid.utils.errors import WhaleidError

_ROWS = 4096  # images whose sets are expanded at a time
_PAIRS = 1 << 23  # numbers gathered at a time: 32 MB for each side
_QUERIES = 128  # queries compared with the whole gallery at a time: 17 MB for 33,000 images
_MINIMA = 1 << 22  # minima of code entries held at a time: about 100 MB with their places


def reciprocal_codes(embeddings: np.ndarray, nearest: Neighbours, k1: int, k2: int) -> Graph:
    """Codes of all images, queries and gallery.

    N(i, k) is an image and its k nearest. R(i, k): those j of N(i, k) with i in N(j, k). R*: R(i, k1) and every
    R(j, k1 / 2) of a j in R(i, k1) of which two thirds lie in R(i, k1).

    Parameters
    ----------
    embeddings : float32 array, shape (n, d)
        Unit rows.
    nearest : Neighbours
        At least max(k1, k2 - 1) neighbours of each image, or all there are.
    k1 : int
    k2 : int
        Each code becomes the mean of the codes of N(i, k2 - 1).

    Returns
    -------
    sparse float32 array, shape (n, n)
        Rows of sum 1.
    """
    if k1 < 1 or k2 < 1:
        raise WhaleidError(f"k-reciprocal: k1 {k1}, k2 {k2}; both must be at least 1")
    wide, half = (_mutual(nearest, k) for k in (k1, max(1, round(k1 / 2))))
    sizes = np.diff(half.indptr)
    half_turned = csr(half.T)
    blocks = []
    for start in range(0, len(nearest), _ROWS):
        block = wide[start : start + _ROWS]
        shared = csr((block @ half_turned).multiply(block))  # |R(i, k1) and R(j, k1 / 2)| for each j of R(i, k1)
        shared.data = (3 * shared.data >= 2 * sizes[shared.indices]).astype(np.int32)
        shared.eliminate_zeros()
        blocks.append(csr(block + shared @ half))
    sets = csr(vstack(blocks, format="csr")) if blocks else wide
    codes = csr((_weights(embeddings, sets), sets.indices, sets.indptr), shape=sets.shape)
    codes.data /= np.repeat(codes.sum(axis=1), np.diff(codes.indptr))
    if k2 > 1:
        around = _with_itself(nearest, k2 - 1)
        mean = csr((np.float32(1.0) / np.diff(around.indptr))[:, None] * around.astype(np.float32))
        codes = csr(mean @ codes)
    codes.sort_indices()
    return codes.astype(np.float32)


def _with_itself(nearest: Neighbours, k: int) -> Graph:
    """N(i, k) as ones, int32 (n, n)."""
    rows = np.column_stack([np.arange(len(nearest)), nearest.rows[:, :k]])
    starts = np.arange(len(nearest) + 1) * rows.shape[1]
    table = csr((np.ones(rows.size, np.int32), rows.ravel(), starts), shape=(len(nearest), len(nearest)))
    table.sort_indices()
    return table


def _mutual(nearest: Neighbours, k: int) -> Graph:
    """R(i, k) as ones, int32 (n, n)."""
    around = _with_itself(nearest, k)
    return csr(around.multiply(csr(around.T)))


def _weights(embeddings: np.ndarray, sets: Graph) -> np.ndarray:
    """exp(-|x_i - x_j|^2) of every pair in the sets, float32, a block of pairs at a time."""
    left = np.repeat(np.arange(sets.shape[0]), np.diff(sets.indptr))
    out = np.empty(len(left), dtype=np.float32)
    step = max(1, _PAIRS // max(1, embeddings.shape[1]))
    for start in range(0, len(left), step):
        part = slice(start, start + step)
        cosine = np.einsum("ij,ij->i", embeddings[left[part]], embeddings[sets.indices[part]])
        out[part] = np.exp(2 * np.minimum(cosine, 1.0) - 2)
    return out


def jaccard(codes: Graph, lists: Graph) -> np.ndarray:
    """Jaccard similarity of codes with every image of the inverted lists.

    Parameters
    ----------
    codes : sparse float32 array, shape (b, n)
        Rows of sum 1.
    lists : sparse float32 array, shape (g, n), by column
        Codes of the gallery.

    Returns
    -------
    float32 array, shape (b, g)
        In [0, 1].
    """
    count = lists.shape[0]
    total = np.zeros(codes.shape[0] * count, dtype=np.float32)
    row = np.repeat(np.arange(codes.shape[0]), np.diff(codes.indptr))
    length = np.diff(lists.indptr)[codes.indices]
    for part in _pieces(length, _MINIMA):
        size = length[part]
        where = np.repeat(lists.indptr[codes.indices[part]] - np.cumsum(size) + size, size) + np.arange(size.sum())
        least = np.minimum(np.repeat(codes.data[part], size), lists.data[where])
        place = np.repeat(row[part] * count, size) + lists.indices[where]
        first = int(row[part.start]) * count
        last = (int(row[part.stop - 1]) + 1) * count
        total[first:last] += np.bincount(place - first, weights=least, minlength=last - first).astype(np.float32)
    shared = np.minimum(total.reshape(codes.shape[0], count), 1.0)
    return shared / (2 - shared)


def _pieces(length: np.ndarray, most: int) -> list[slice]:
    """Consecutive entries whose lengths sum to about `most` at most (one entry at least)."""
    if not len(length):
        return []
    number = np.cumsum(length) // max(1, most)
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return [slice(int(start), int(stop)) for start, stop in zip(starts, [*starts[1:], len(length)], strict=True)]


def reciprocal_scores(alike: np.ndarray, cosine: np.ndarray, lambda_value: float) -> np.ndarray:
    """1 - final distance of the paper: (1 - lambda) * Jaccard + lambda * (1 + cosine) / 2.

    alike: float32 (b, g), of `jaccard`. cosine: float32 (b, g). Returns float32 (b, g), in [0, 1].
    """
    return ((1 - lambda_value) * alike + lambda_value / 2 * (1 + cosine)).astype(np.float32)


def _rerank(graph: QueryGraph, grid: ReciprocalConfig) -> Settings:
    for k1, k2 in product(grid.k1, grid.k2):
        codes = reciprocal_codes(graph.nodes, graph.nearest, k1, k2)
        queries, lists = codes[graph.query_rows], codes[: len(graph.gallery)].tocsc()
        parts: dict[float, list[Lists]] = {value: [] for value in grid.lambda_value}
        for start in range(0, graph.count, _QUERIES):
            part = slice(start, start + _QUERIES)
            alike = jaccard(queries[part], lists)
            cosine = graph.queries[part] @ graph.gallery.T
            for value, found in parts.items():
                found.append(image_scores_to_identities(reciprocal_scores(alike, cosine, value), graph))
        for value, found in parts.items():
            yield f"k1 {k1}, k2 {k2}, lambda {value:g}", join_queries(found)


RECIPROCAL = Reranker("k-reciprocal", _rerank, lambda grid: max(*grid.k1, *grid.k2))
