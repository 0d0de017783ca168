"""What the embeddings themselves say of a query and its candidates: further columns of the stack's table.

Lists of candidates tell the score of an identity's nearest images. They do not tell how its images lie around their
centroid, nor how close to anything at all the query lies: an unknown animal lies where few images are. All of it is
taken within a fold, from the whitened features that concat kNN compares, and from galleries that the fold's queries
have no part in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whaleid.config import KnnConfig
from whaleid.ensemble.protocol import FoldPart, Protocol
from whaleid.ensemble.stack_features import Extras
from whaleid.retrieval.approximate import open_index
from whaleid.retrieval.identities import centroids

COLUMNS = {
    "centroid: cosine": "cosine of the query and the candidate's centroid (the mean direction of its gallery images)",
    "centroid: behind": "that less the largest among the query's candidates; of unknown, 0 less the largest",
    "gallery: spread": "mean cosine of the candidate's gallery images and their centroid; 1 for a single image",
    "centroid: within spread": "cosine of query and centroid less that mean: above 0, it lies among the images",
    "query: nearest": "cosine of the query and the nearest image of the gallery",
    "query: local density": "mean cosine of the query and its 10 nearest images of the gallery",
}
"""Name of every further column and what it is; NaN of unknown where it is about a candidate's images."""
_NEAR = 10


@dataclass(frozen=True)
class Sight:
    """Queries and a gallery as the models of one fold see them.

    queries: float16 (q, d), unit rows. centroids: float16 (c, d), unit rows, zero for a class without images.
    spread: float32 (c,), NaN there. nearest, density: float32 (q,).
    """

    queries: np.ndarray
    centroids: np.ndarray
    spread: np.ndarray
    nearest: np.ndarray
    density: np.ndarray

    def extras(self) -> Extras:
        """As the stack's table takes them."""
        return Extras(tuple(COLUMNS), self.columns)

    def columns(self, rows: slice, codes: np.ndarray) -> np.ndarray:
        """COLUMNS float32 (n, u + 1, 6) of some queries' candidates, codes int64 (n, u), -1 padded, and of unknown."""
        out = np.full((len(codes), codes.shape[1] + 1, len(COLUMNS)), np.nan, dtype=np.float32)
        listed = codes >= 0
        places = np.maximum(codes, 0)
        queries = self.queries[rows].astype(np.float32)
        cosine = np.stack(
            [self.centroids[own].astype(np.float32) @ query for own, query in zip(places, queries, strict=True)]
        ).reshape(codes.shape)
        known = listed & np.isfinite(self.spread[places])
        cosine = np.where(known, cosine, np.nan)
        best = np.where(known, cosine, -1.0).max(axis=1, initial=-1.0)
        out[:, :-1, 0] = cosine
        out[:, :-1, 1] = cosine - best[:, None]
        out[:, -1, 1] = -best
        out[:, :-1, 2] = np.where(known, self.spread[places], np.nan)
        out[:, :-1, 3] = out[:, :-1, 0] - out[:, :-1, 2]
        out[:, :, 4] = self.nearest[rows, None]
        out[:, :, 5] = self.density[rows, None]
        return out


@dataclass(frozen=True)
class EmbeddingFeatures:
    """oof: of each fold's queries against the other folds' images. test: of the test images, under each fold's models,
    against all labelled ones; empty where there are none.
    """

    oof: tuple[Sight, ...]
    test: tuple[Sight, ...]

    def extras(self) -> tuple[tuple[Extras, ...], tuple[Extras, ...]]:
        """As `stack_rankings` takes them."""
        return tuple(one.extras() for one in self.oof), tuple(one.extras() for one in self.test)


def see_part(
    embeddings: np.ndarray, part: FoldPart, protocol: Protocol, knn: KnnConfig
) -> tuple[Sight | None, Sight | None]:
    """What one part's models see, out of fold (None where it holds no fold out) and of the test images (None where
    there are none). embeddings: float (n, d), unit rows, of all.
    """
    count = len(protocol.classes)
    oof = None
    if len(part.rows):
        oof = see(embeddings[part.rows], embeddings[part.gallery], part.gallery_codes, count, knn)
    if not len(protocol.test_rows):
        return oof, None
    whole = embeddings[protocol.gallery]
    return oof, see(embeddings[protocol.test_rows], whole, protocol.gallery_codes, count, knn)


def see(queries: np.ndarray, gallery: np.ndarray, codes: np.ndarray, classes: int, knn: KnnConfig) -> Sight:
    """queries: float (q, d), gallery: float (g, d), g >= 1, unit rows. codes: int64 (g,), below `classes`."""
    middle, names = centroids(gallery, codes)
    mean = np.zeros(classes)
    np.add.at(mean, codes, np.einsum("nd,nd->n", gallery, middle[np.searchsorted(names, codes)], dtype=np.float64))
    size = np.bincount(codes, minlength=classes)
    spread = np.full(classes, np.nan, dtype=np.float32)
    spread[names] = mean[names] / size[names]
    all_middles = np.zeros((classes, gallery.shape[1]), dtype=np.float16)
    all_middles[names] = middle
    near = min(_NEAR, len(gallery))
    similarity, rows = open_index(gallery, knn.index).search(queries, near)
    found = np.where(rows >= 0, similarity, np.nan)  # an approximate index may leave places empty
    density = np.nansum(found, axis=1) / np.maximum((rows >= 0).sum(axis=1), 1)
    return Sight(queries.astype(np.float16), all_middles, spread, found[:, 0], density.astype(np.float32))
