"""From similar images to candidate identities: search, group by identity, keep the best.

The score of an identity is that of its most similar image. All queries are handled at once by sorting, not in a Python
loop.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from whaleid.config import KnnConfig
from whaleid.retrieval.approximate import open_for, open_index
from whaleid.retrieval.mapped import MappedGallery
from whaleid.utils.errors import WhaleidError

PADDING = -1
"""Code of "no candidate here"; its score is minus infinity."""


def nearest_identities(
    queries: np.ndarray,
    gallery: np.ndarray | MappedGallery,
    gallery_codes: np.ndarray,
    knn: KnnConfig,
    keep: int,
    chunk: int = 4096,
    report: Callable[[str], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` best identities of each query: search, then `identity_candidates`.

    Where a query's `knn.neighbours` nearest images hold fewer than `keep` identities, the query is searched again for
    twice as many, until they hold enough or the gallery ends: a list is shorter than `keep` only where the gallery has
    too few identities. Queries that an approximate index leaves short are searched exactly.

    Parameters
    ----------
    queries : float array, shape (q, d)
        Unit rows.
    gallery : float array, shape (g, d), or MappedGallery
        Unit rows.
    gallery_codes : int64 array, shape (g,)
        -1 = not a candidate.
    knn : KnnConfig
    keep : int
    chunk : int
        Queries at a time.
    report : callable, optional
        Is told the recall of an approximate index.

    Returns
    -------
    int64 array, shape (q, keep)
        Codes, -1 padded.
    float32 array, shape (q, keep)
        Scores, descending, -inf padded.
    """
    if len(gallery) != len(gallery_codes):
        raise WhaleidError(f"gallery: {len(gallery)} embeddings but {len(gallery_codes)} codes")
    known = gallery_codes >= 0
    if not known.all():
        gallery = gallery[known] if isinstance(gallery, np.ndarray) else gallery.take(known)
        gallery_codes = gallery_codes[known]
    if isinstance(gallery, np.ndarray):
        gallery = np.ascontiguousarray(gallery, dtype=np.float32)
    reachable = min(keep, len(np.unique(gallery_codes)))
    codes = np.full((len(queries), keep), PADDING, dtype=np.int64)
    scores = np.full((len(queries), keep), -np.inf, dtype=np.float32)
    if not len(queries):
        return codes, scores
    first = open_for(queries, gallery, max(knn.neighbours, keep), knn.index, report)
    exact = open_index(gallery, "exact")
    for start in range(0, len(queries), chunk):  # neighbours of all queries at once could exceed memory
        short = np.arange(start, min(start + chunk, len(queries)))
        neighbours = max(knn.neighbours, keep)
        index = first
        while len(short):
            similarity, rows = index.search(queries[short], neighbours)
            codes[short], scores[short] = identity_candidates(similarity, rows, gallery_codes, keep)
            short = short[(codes[short] >= 0).sum(axis=1) < reachable]
            neighbours = neighbours * 2 if index.exact else neighbours
            index = exact
    return codes, scores


def identity_candidates(
    similarity: np.ndarray, rows: np.ndarray, gallery_codes: np.ndarray, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct identities of each query's nearest images, best first.

    Parameters
    ----------
    similarity : float array, shape (q, m)
        Descending.
    rows : int64 array, shape (q, m)
        Rows of the gallery, -1 = none.
    gallery_codes : int64 array, shape (g,)
        Identity of each gallery row, -1 = not a candidate.
    keep : int

    Returns
    -------
    int64 and float32 arrays, shape (q, keep)
        Codes and scores, descending, ties in the order of their best images; -1 and -inf where the neighbours hold
        fewer than `keep` identities.
    """
    _check_neighbours(similarity, rows, keep)
    if not similarity.size:
        return _padded(np.empty((len(rows), 0), np.int64), np.empty((len(rows), 0), np.float32), keep)
    neighbour_codes = np.where(rows >= 0, gallery_codes[rows], PADDING)
    best_images = _first_of_each(neighbour_codes) & (neighbour_codes != PADDING)
    score_at = np.where(best_images, similarity, -np.inf).astype(np.float32)
    order = np.argsort(-score_at, axis=1, kind="stable")[:, :keep]
    scores = np.take_along_axis(score_at, order, axis=1)
    codes = np.where(np.isfinite(scores), np.take_along_axis(neighbour_codes, order, axis=1), PADDING)
    return _padded(codes, scores, keep)


def _first_of_each(codes: np.ndarray) -> np.ndarray:
    """Whether a code, int64 (q, m), is the first of its kind in its row: a stable sort brings equal codes together."""
    order = np.argsort(codes, axis=1, kind="stable")
    in_runs = np.take_along_axis(codes, order, axis=1)
    opens = np.ones(codes.shape, dtype=bool)
    opens[:, 1:] = in_runs[:, 1:] != in_runs[:, :-1]
    first = np.empty(codes.shape, dtype=bool)
    np.put_along_axis(first, order, opens, axis=1)
    return first


def _padded(codes: np.ndarray, scores: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Both tables widened to `keep` columns by padding."""
    missing = ((0, 0), (0, max(0, keep - codes.shape[1])))
    return (
        np.pad(codes, missing, constant_values=PADDING),
        np.pad(scores, missing, constant_values=-np.inf),
    )


def best_columns(scores: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest scores of each row and their columns.

    Parameters
    ----------
    scores : float array, shape (b, g)
        No NaN.
    most : int

    Returns
    -------
    float32 and int64 arrays, shape (b, min(most, g))
        Scores, descending, and columns, ties by ascending column: the beginning of a stable sort of each row, but only
        what reaches the last one is sorted.
    """
    width = scores.shape[1]
    if most >= width or not len(scores):
        columns = np.argsort(-scores, axis=1, kind="stable")[:, :most]
        return np.take_along_axis(scores, columns, axis=1).astype(np.float32), columns
    last = np.partition(scores, width - most, axis=1)[:, width - most, None]
    above, level = scores > last, scores == last
    missing = most - above.sum(axis=1, keepdims=True)
    chosen = above | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= missing))
    columns = (np.flatnonzero(chosen) % width).reshape(len(scores), most)
    values = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1).astype(np.float32), np.take_along_axis(columns, order, axis=1)


def centroids(embeddings: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean direction of each identity.

    Parameters
    ----------
    embeddings : float array, shape (n, d)
        Unit rows.
    codes : int64 array, shape (n,)
        -1 = left out.

    Returns
    -------
    float32 array, shape (c, d)
        Unit rows; zero where an identity's embeddings cancel to zero.
    int64 array, shape (c,)
        Their codes, ascending.
    """
    known = np.flatnonzero(codes >= 0)
    known = known[np.argsort(codes[known], kind="stable")]
    identities, starts = np.unique(codes[known], return_index=True)
    if not len(identities):
        return np.empty((0, embeddings.shape[1]), dtype=np.float32), identities
    sums = np.add.reduceat(embeddings[known], starts, axis=0, dtype=np.float64)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    unit = np.divide(sums, length, out=np.zeros_like(sums), where=length > 1e-6)
    return unit.astype(np.float32), identities


def _check_neighbours(similarity: np.ndarray, rows: np.ndarray, keep: int) -> None:
    if similarity.ndim != 2 or similarity.shape != rows.shape:
        raise WhaleidError(f"neighbours: similarity {similarity.shape} and rows {rows.shape} must be one (q, m)")
    if keep < 1:
        raise WhaleidError(f"candidates: keep {keep}; at least 1 is needed")
    if np.isnan(similarity).any() or (similarity[:, 1:] > similarity[:, :-1]).any():
        raise WhaleidError("neighbours: similarities must be descending along each row, without NaN")
