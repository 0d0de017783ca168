"""Query expansion and database-side augmentation: an image speaks together with its nearest.

Alpha query expansion: Radenovic, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", 2018.
Database-side augmentation does the same to the gallery: Arandjelovic and Zisserman, "Three things everyone should
know to improve object retrieval", 2012.
"""

from __future__ import annotations

import numpy as np

from whaleid.retrieval.graph import Neighbours, csr


def expand(
    embeddings: np.ndarray, gallery: np.ndarray, similarity: np.ndarray, rows: np.ndarray, alpha: float
) -> np.ndarray:
    """Each embedding plus its nearest gallery images, each times its cosine ** alpha, brought to length 1.

    embeddings: float32 (n, d), gallery: float32 (g, d), unit rows. similarity: float32 (n, m), cosines. rows: int64
    (n, m), gallery rows; -1: none. A cosine of 0 or less adds nothing, whatever alpha.
    Returns float32 (n, d); a row that cancels to zero stays as it was.
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
    """Database-side augmentation: `expand` of the gallery by itself. nearest: of the gallery, in the gallery."""
    return expand(gallery, gallery, nearest.similarity, nearest.rows, alpha)
