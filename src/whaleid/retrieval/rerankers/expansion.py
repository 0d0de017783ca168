"""Query expansion and database augmentation: an image is averaged with its nearest images.

Alpha query expansion: Radenovic, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", 2018.
Database augmentation does the same to the gallery: Arandjelovic and Zisserman, "Three things everyone should know to
improve object retrieval", 2012.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from whaleid.config import AugmentationConfig, ExpansionConfig
from whaleid.retrieval.graph import Neighbours, csr, find_neighbours
from whaleid.retrieval.identities import nearest_identities
from whaleid.retrieval.index import search
from whaleid.retrieval.rerankers.base import QueryGraph, Reranker, Settings


def expand(
    embeddings: np.ndarray, gallery: np.ndarray, similarity: np.ndarray, rows: np.ndarray, alpha: float
) -> np.ndarray:
    """Each embedding plus its nearest gallery images, each weighted by its cosine ** alpha, L2-normalised.

    Parameters
    ----------
    embeddings : float32 array, shape (n, d)
        Unit rows.
    gallery : float32 array, shape (g, d)
        Unit rows.
    similarity : float32 array, shape (n, m)
        Cosines. One of 0 or less has no weight.
    rows : int64 array, shape (n, m)
        Rows of the gallery; -1: none.
    alpha : float

    Returns
    -------
    float32 array, shape (n, d)
        A row whose sum is zero stays as it was.
    """
    weight = np.maximum(similarity, 0.0) ** alpha
    weight[(similarity <= 0) | (rows < 0)] = 0.0
    count, width = rows.shape
    starts = np.arange(count + 1) * width
    table = csr((weight.astype(np.float32).ravel(), np.maximum(rows, 0).ravel(), starts), (count, len(gallery)))
    total = embeddings + table @ gallery
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 1e-6, total / np.maximum(length, 1e-6), embeddings).astype(np.float32)


def augment(gallery: np.ndarray, nearest: Neighbours, alpha: float) -> np.ndarray:
    """Database augmentation: `expand` of the gallery by itself. nearest: of the gallery, in the gallery."""
    return expand(gallery, gallery, nearest.similarity, nearest.rows, alpha)


def _rerank_by_expansion(graph: QueryGraph, grid: ExpansionConfig) -> Settings:
    similarity, rows = search(graph.queries, graph.gallery, max(grid.neighbours))
    for count, alpha in product(grid.neighbours, grid.alpha):
        queries = expand(graph.queries, graph.gallery, similarity[:, :count], rows[:, :count], alpha)
        lists = nearest_identities(queries, graph.gallery, graph.codes, graph.knn, graph.keep)
        yield f"{count} neighbours, alpha {alpha:g}", lists


def _rerank_by_augmentation(graph: QueryGraph, grid: AugmentationConfig) -> Settings:
    nearest = find_neighbours(graph.gallery, max(grid.neighbours), graph.knn.index)
    for count, alpha in product(grid.neighbours, grid.alpha):
        gallery = augment(graph.gallery, nearest.first(count), alpha)
        lists = nearest_identities(graph.queries, gallery, graph.codes, graph.knn, graph.keep)
        yield f"{count} neighbours, alpha {alpha:g}", lists


EXPANSION = Reranker("query expansion", _rerank_by_expansion)
AUGMENTATION = Reranker("database augmentation", _rerank_by_augmentation)
