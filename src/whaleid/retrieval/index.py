"""Nearest images by inner product, exactly: faiss in chunks of queries.

Brute force suits this field: 25,000 gallery images of 512 dimensions are 50 MB, a query costs 13 million
multiplications, and nothing is lost. The full matrix of queries x gallery (25 GB for happywhale) is never made: faiss
keeps only the best of each query. Much larger galleries use an approximate index (`approximate.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from whaleid.utils.errors import WhaleidError

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""float32 queries (q, d) and a number of neighbours m -> similarity float32 (q, m), rows int64 (q, m)."""

_CHUNK = 4096  # queries at a time: enough to fill a GPU, 400 MB with 8,192 dimensions and 200 neighbours
_GPU_MOST = 2048  # faiss on a GPU returns no more neighbours than this
_WIDE = 1 << 23  # similarities held at a time while ties are widened: 100 MB


def search(
    queries: np.ndarray, gallery: np.ndarray, neighbours: int, chunk: int = _CHUNK
) -> tuple[np.ndarray, np.ndarray]:
    """The gallery rows with the largest inner product with each query, exactly.

    Parameters
    ----------
    queries : float array, shape (q, d)
    gallery : float array, shape (g, d), g >= 1
        float32 is compared, whatever the type.
    neighbours : int
    chunk : int
        Queries at a time.

    Returns
    -------
    float32 and int64 arrays, shape (q, min(neighbours, g))
        Similarity, descending, and gallery rows. Ties by ascending row, also where the last place is shared: the lowest
        rows are kept.

    Raises
    ------
    WhaleidError
        For an empty gallery, different dimensions, NaN or infinity, less than 1 neighbour.
    """
    check_search(queries, gallery, neighbours, chunk)
    return nearest(queries, gallery, neighbours, chunk)


def nearest(
    queries: np.ndarray, gallery: np.ndarray, neighbours: int, chunk: int = _CHUNK
) -> tuple[np.ndarray, np.ndarray]:
    """`search` in a gallery and of queries that were checked before."""
    most = min(neighbours, len(gallery))
    find = _finder(np.ascontiguousarray(gallery, dtype=np.float32), most)
    similarity = np.empty((len(queries), most), dtype=np.float32)
    rows = np.empty((len(queries), most), dtype=np.int64)
    for start in range(0, len(queries), chunk):
        part = slice(start, start + chunk)
        block = np.ascontiguousarray(queries[part], dtype=np.float32)
        similarity[part], rows[part] = _settled(block, len(gallery), most, find)
    return similarity, rows


def _finder(gallery: np.ndarray, most: int) -> Search:
    """faiss on the gallery: on the first GPU if there is one, else on the CPU, without a copy."""
    if gpus() and most < _GPU_MOST:
        return _gpu_finder(gallery)

    def find(queries: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
        return faiss.knn(queries, gallery, neighbours, metric=faiss.METRIC_INNER_PRODUCT)

    return find


def gpus() -> int:
    """GPUs that this faiss can use; a build for CPUs cannot be asked."""
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def _gpu_finder(gallery: np.ndarray) -> Search:
    module: Any = faiss  # its GPU names exist in GPU builds alone
    resources = module.StandardGpuResources()
    index = module.GpuIndexFlatIP(resources, gallery.shape[1])
    index.add(gallery)

    def find(queries: np.ndarray, neighbours: int, _alive: Any = resources) -> tuple[np.ndarray, np.ndarray]:
        if neighbours > _GPU_MOST:  # only ever asked for while ties are widened
            return faiss.knn(queries, gallery, neighbours, metric=faiss.METRIC_INNER_PRODUCT)
        return index.search(queries, neighbours)

    return find


# ------------------------------------------------------------------------------------------------------- ties


def _settled(queries: np.ndarray, gallery: int, most: int, find: Search) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of one chunk with ties by row.

    faiss keeps any of several equal similarities at the last place. One further neighbour shows where that happened;
    such a query is searched again, for twice as many each time, until all its ties are found.
    """
    wide = min(most + 1, gallery)
    similarity, rows = by_row(*find(queries, wide))
    if wide > most:
        open_end = np.flatnonzero(similarity[:, most - 1] == similarity[:, most])
        similarity, rows = similarity[:, :most], rows[:, :most]
        while len(open_end) and wide < gallery:
            wide = min(2 * wide, gallery)
            open_end = _widen(queries, open_end, wide, similarity, rows, find)
    return similarity, rows


def _widen(
    queries: np.ndarray,
    open_end: np.ndarray,
    wide: int,
    similarity: np.ndarray,
    rows: np.ndarray,
    find: Search,
) -> np.ndarray:
    """Search `open_end` again with `wide` neighbours, in place; returns the queries with ties still open."""
    most = similarity.shape[1]
    step = max(1, _WIDE // wide)
    unsettled = []
    for start in range(0, len(open_end), step):
        part = open_end[start : start + step]
        wider, wider_rows = by_row(*find(queries[part], wide))
        similarity[part], rows[part] = wider[:, :most], wider_rows[:, :most]
        unsettled.append(part[wider[:, most - 1] == wider[:, -1]])
    return np.concatenate(unsettled)


def by_row(similarity: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same neighbours with ties by ascending row; in place. Few queries need it."""
    unruly = (similarity[:, 1:] == similarity[:, :-1]) & (rows[:, 1:] < rows[:, :-1])
    broken = np.flatnonzero(unruly.any(axis=1))
    if len(broken):
        order = np.lexsort((rows[broken], -similarity[broken]), axis=-1)
        similarity[broken] = np.take_along_axis(similarity[broken], order, axis=1)
        rows[broken] = np.take_along_axis(rows[broken], order, axis=1)
    return similarity, rows


# ----------------------------------------------------------------------------------------------------- checks


def check_search(queries: np.ndarray, gallery: np.ndarray, neighbours: int, chunk: int) -> None:
    """Raise WhaleidError for what cannot be searched."""
    for name, table in (("queries", queries), ("gallery", gallery)):
        if table.ndim != 2 or not np.issubdtype(table.dtype, np.floating):
            raise WhaleidError(f"{name}: {table.dtype} {table.shape}; float embeddings (n, d) are needed")
    if not len(gallery):
        raise WhaleidError("gallery: no image to compare with; at least one labelled image is needed")
    if queries.shape[1] != gallery.shape[1]:
        raise WhaleidError(
            f"queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}; "
            "both must come from the same model"
        )
    if neighbours < 1 or chunk < 1:
        raise WhaleidError(f"neighbours {neighbours}, chunk {chunk}; both must be at least 1")
    for name, table in (("queries", queries), ("gallery", gallery)):
        check_finite(name, table)


def check_finite(name: str, table: np.ndarray, block: int = 8192) -> None:
    """Raise WhaleidError for NaN, which faiss would compare as smaller than anything, and infinity."""
    for start in range(0, len(table), block):
        finite = np.isfinite(table[start : start + block]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise WhaleidError(f"{name}: row {row} holds NaN or infinity; embed that image again")
