"""Features of a query and its candidates from the embeddings themselves: further columns of the stack's table.

Candidate lists hold the score of an identity's nearest images. They do not hold how its images lie around their
centroid, nor how close to anything at all the query lies: an unknown animal lies where few images are. All of it is
computed within a fold, from the whitened embeddings that the concatenation's kNN compares, and from galleries without
the fold's queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whaleid.config import KnnConfig
from whaleid.ensemble.protocol import QuerySet
from whaleid.retrieval.approximate import open_for
from whaleid.retrieval.identities import centroids

COLUMNS = {
    "centroid: cosine": "cosine of the query and the candidate's centroid (the mean direction of its gallery images)",
    "centroid: behind": "that less the largest among the query's candidates",
    "gallery: spread": "mean cosine of the candidate's gallery images and their centroid; 1 for a single image",
    "centroid: within spread": "cosine of query and centroid less that mean: above 0, it lies among the images",
    "query: nearest": "cosine of the query and the nearest image of the gallery",
    "query: local density": "mean cosine of the query and its 10 nearest images of the gallery",
}
"""Name and description of every column; NaN for a candidate without images."""
_NEAR = 10


@dataclass(frozen=True)
class EmbeddingTable:
    """What the columns are computed from: a query set as the models of one fold embed it.

    Attributes
    ----------
    queries : float16 array, shape (q, d)
        Unit rows.
    centroids : float16 array, shape (c, d)
        Unit rows, zero for a class without images.
    spread : float32 array, shape (c,)
        Mean cosine of a class's images and their centroid, NaN for a class without images.
    nearest, density : float32 arrays, shape (q,)
        Cosine of the nearest gallery image, and mean cosine of the 10 nearest.
    nearest_other, density_other : float32 arrays, shape (q,)
        The same in the gallery without the query's true identity, for simulated unknown queries.
    """

    queries: np.ndarray
    centroids: np.ndarray
    spread: np.ndarray
    nearest: np.ndarray
    density: np.ndarray
    nearest_other: np.ndarray
    density_other: np.ndarray

    def columns(self, rows: slice, codes: np.ndarray) -> np.ndarray:
        """The columns of some queries' candidates.

        Parameters
        ----------
        rows : slice
            The queries.
        codes : int64 array, shape (n, u)
            Their candidates, -1 padded.

        Returns
        -------
        float32 array, shape (n, u, len(COLUMNS))
        """
        out = np.full((*codes.shape, len(COLUMNS)), np.nan, dtype=np.float32)
        listed = codes >= 0
        places = np.maximum(codes, 0)
        queries = self.queries[rows].astype(np.float32)
        cosine = np.stack(
            [self.centroids[own].astype(np.float32) @ query for own, query in zip(places, queries, strict=True)]
        ).reshape(codes.shape)
        known = listed & np.isfinite(self.spread[places])
        cosine = np.where(known, cosine, np.nan)
        best = np.where(known, cosine, -1.0).max(axis=1, initial=-1.0)
        out[:, :, 0] = cosine
        out[:, :, 1] = cosine - best[:, None]
        out[:, :, 2] = np.where(known, self.spread[places], np.nan)
        out[:, :, 3] = out[:, :, 0] - out[:, :, 2]
        out[:, :, 4] = self.nearest[rows, None]
        out[:, :, 5] = self.density[rows, None]
        return out


@dataclass(frozen=True)
class EmbeddingFeatures:
    """Embedding tables of a ranking.

    Attributes
    ----------
    oof : tuple of EmbeddingTable
        Each fold's queries and the other folds' images.
    test : tuple of EmbeddingTable
        The test images and all labelled ones, under each fold's models; empty where there are no test images.
    """

    oof: tuple[EmbeddingTable, ...]
    test: tuple[EmbeddingTable, ...]


def embedding_table(
    embeddings: np.ndarray, query_set: QuerySet, classes: int, knn: KnnConfig, truth: np.ndarray | None = None
) -> EmbeddingTable:
    """Centroids, spreads and densities for a query set.

    Parameters
    ----------
    embeddings : float array, shape (n, d)
        Unit rows, of all images.
    query_set : QuerySet
        Its gallery has at least one image.
    classes : int
        Number of identities.
    knn : KnnConfig
        Its index is used to find the nearest images.
    truth : int64 array, shape (q,), or None
        True identity of each query, -1 = unknown; None: no query's identity is taken out.
    """
    queries, gallery = embeddings[query_set.rows], embeddings[query_set.gallery]
    codes = query_set.gallery_codes
    middle, names = centroids(gallery, codes)
    mean = np.zeros(classes)
    np.add.at(mean, codes, np.einsum("nd,nd->n", gallery, middle[np.searchsorted(names, codes)], dtype=np.float64))
    size = np.bincount(codes, minlength=classes)
    spread = np.full(classes, np.nan, dtype=np.float32)
    spread[names] = mean[names] / size[names]
    all_middles = np.zeros((classes, gallery.shape[1]), dtype=np.float16)
    all_middles[names] = middle
    largest = 0 if truth is None or not (truth >= 0).any() else int(size[truth[truth >= 0]].max())
    near = min(_NEAR + largest, len(gallery))
    similarity, rows = open_for(queries, gallery, near, knn.index).search(queries, near)
    found = np.where(rows >= 0, similarity, np.nan)  # an approximate index may leave places empty
    plain = nearest, density = _nearest_and_density(found)
    if truth is not None:
        nearest, density = _nearest_and_density(np.where(codes[rows] == truth[:, None], np.nan, found))
    return EmbeddingTable(queries.astype(np.float16), all_middles, spread, *plain, nearest, density)


def _nearest_and_density(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest cosine and the mean of the 10 largest, float32 (q,). found: (q, m), descending, NaN: left out."""
    kept = np.cumsum(np.isfinite(found), axis=1)
    first = np.where(np.isfinite(found) & (kept <= _NEAR), found, 0.0)
    nearest = np.where(np.isfinite(found) & (kept == 1), found, 0.0).sum(axis=1)
    nearest = np.where(kept[:, -1] > 0, nearest, np.nan)
    density = first.sum(axis=1) / np.maximum(np.minimum(kept[:, -1], _NEAR), 1)
    return nearest.astype(np.float32), density.astype(np.float32)
