"""Nearest images in galleries too large for brute force: an approximate faiss index.

Cells (IVF) compare a query with the few parts of the gallery nearest to it, codes (PQ) hold each image in a few bytes,
a navigable graph (HNSW) walks towards the query. All may miss a neighbour; what they find is returned with its true
similarity.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import faiss
import numpy as np

from whaleid.retrieval.index import by_row, check_finite, check_search, gpus, search
from whaleid.retrieval.mapped import MappedGallery, search_mapped
from whaleid.utils.errors import WhaleidError

EXACT_MOST = 200_000
"""Gallery images up to which `auto` compares with every one, for any number of queries. Set, not timed: a graph of as
many images of 512 dimensions is some 2 x 10^13 multiplications then, minutes of a core."""
EXACT_QUERIES = 10_000
"""Queries up to which `auto` compares with every image of any gallery. At a million images of 64 dimensions its cells
pay from 2,600 queries on (benchmarks/results/index.json) but find no more than half of the nearest images, on data as
hard as those; 10,000 exact queries are 20 seconds of a core there."""
PROBES = 32
"""IVF: cells compared with each query. More find more, and take proportionally longer."""
_BREADTH = 64  # HNSW: candidates kept during the search (efSearch), at least twice the neighbours
_FETCH = 4  # codes find this many times the neighbours asked for; true similarities choose among them
_EXACT_MOST_GPU = 2_000_000  # ten times that: set as above, not timed
_FLAT_BYTES = 8 << 30  # a larger gallery is held as codes
_CODES = 64  # largest number of bytes of an image's code
_POINTS = 64  # largest number of images that train a cell; faiss asks for at least 39
_CHUNK = 4096  # queries at a time
_CELLS = 1 << 24  # numbers gathered at a time for true similarities: 64 MB
_ASKED = 200  # queries by which the recall of an index is measured
_ADDED = 1 << 16  # mapped images put into an index at a time
_TRIED = 5_000  # images up to which an index is tried: seconds of a core
_SEED = 0
_LOSSLESS = re.compile(r"Flat|IVF\d+(_HNSW\d+)?,Flat|HNSW\d*(,Flat)?")  # these return true similarities themselves


@dataclass(frozen=True)
class GalleryIndex:
    """A gallery ready for searches.

    Attributes
    ----------
    kind : str
        "exact", or the string that faiss built the index from.
    search : callable
        Float queries (q, d) and a number m -> similarity float32 (q, m'), descending, and rows int64 (q, m'), with
        m' = min(m, g); ties by ascending row. Where an approximate index finds fewer, the rest is -inf and -1.
    """

    kind: str
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

    @property
    def exact(self) -> bool:
        return self.kind == "exact"


def index_kind(kind: str, images: int, dim: int, queries: int | None = None) -> str:
    """What `auto` stands for with this number of gallery images and queries; any other kind is returned as it is.

    There are as many cells as the power of two nearest to sqrt(images). Four times as many, as faiss advises, are
    searched three times as fast at a million images, but cost nine times as much to build and find fewer of the nearest
    (33 % instead of 46 %): they are cheaper from 39,000 queries on.
    """
    if kind != "auto":
        return kind
    if images <= (_EXACT_MOST_GPU if gpus() else EXACT_MOST) or (queries is not None and queries <= EXACT_QUERIES):
        return "exact"
    cells = 2 ** round(np.log2(np.sqrt(images)))
    if 4 * images * dim <= _FLAT_BYTES:
        return f"IVF{cells},Flat"
    codes = max(size for size in range(1, min(_CODES, dim) + 1) if dim % size == 0)
    return f"IVF{cells},PQ{codes}"


def open_index(gallery: np.ndarray | MappedGallery, kind: str = "auto", queries: int | None = None) -> GalleryIndex:
    """The gallery ready for searches; the same gallery always gives the same index.

    Parameters
    ----------
    gallery : float array, shape (g, d), g >= 1, or MappedGallery
        Kept and not copied where it is float32. A mapped one is read in blocks, and by the images that an index finds.
    kind : str
        exact; auto: exact where that is faster overall, else an index by size; any other string is for faiss's
        index_factory (IVF4096,Flat or IVF4096,PQ32 or HNSW32). Approximate indexes run on the CPU.
    queries : int or None
        How many queries there will be in all, where that is known: for few, `auto` builds nothing.

    Raises
    ------
    WhaleidError
        Where faiss cannot build such an index of this gallery.
    """
    kind = index_kind(kind, len(gallery), gallery.shape[1], queries)
    if isinstance(gallery, np.ndarray):
        check_search(gallery[:0], gallery, 1, 1)
        gallery = np.ascontiguousarray(gallery, dtype=np.float32)
    if kind == "exact":
        return GalleryIndex(kind, partial(_search_exactly, gallery))
    index = _build(gallery, kind)
    fetch = 1 if _LOSSLESS.fullmatch(kind) else _FETCH
    return GalleryIndex(
        kind, lambda queries, neighbours: _search_approximately(index, gallery, queries, neighbours, fetch)
    )


def _search_exactly(
    gallery: np.ndarray | MappedGallery, queries: np.ndarray, neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(gallery, np.ndarray):
        return search(queries, gallery, neighbours)
    return search_mapped(queries, gallery, neighbours)


def recall(index: GalleryIndex, exact: GalleryIndex, queries: np.ndarray, nearest: int = 5) -> float:
    """Share of the nearest images of a sample of the queries that an index finds among as many, in [0, 1]."""
    step = max(1, len(queries) // _ASKED)
    found, true = (one.search(queries[::step], nearest)[1] for one in (index, exact))
    return float((found[:, :, None] == true[:, None, :]).any(axis=1).mean())


def require_index(kind: str, images: int, dim: int) -> None:
    """Raise WhaleidError where faiss cannot build such an index of a gallery of this size.

    Small galleries are tried with random numbers; of larger ones, which have images enough to train any index, the
    string alone is read.
    """
    kind = index_kind(kind, images, dim)
    if kind == "exact":
        return
    if images <= _TRIED:
        _build(np.random.default_rng(_SEED).normal(size=(images, dim)).astype(np.float32), kind)
    else:
        _factory(dim, kind, images)


def _search_approximately(
    index: Any, gallery: np.ndarray | MappedGallery, queries: np.ndarray, neighbours: int, fetch: int
) -> tuple[np.ndarray, np.ndarray]:
    """`GalleryIndex.search`. fetch: images looked at, as a multiple of the neighbours."""
    check_search(queries[:0], gallery[:1], neighbours, 1)
    check_finite("queries", queries)
    most = min(neighbours, len(gallery))
    if isinstance(index, faiss.IndexHNSW):  # it finds no more images than efSearch
        index.hnsw.efSearch = max(_BREADTH, 2 * fetch * most)
    similarity = np.empty((len(queries), most), dtype=np.float32)
    rows = np.empty((len(queries), most), dtype=np.int64)
    for start in range(0, len(queries), _CHUNK):
        block = np.ascontiguousarray(queries[start : start + _CHUNK], dtype=np.float32)
        found, found_rows = index.search(block, min(fetch * most, len(gallery)))
        found[found_rows < 0] = -np.inf
        if fetch > 1:
            found, found_rows = _true_similarity(block, gallery, found_rows)
        part = slice(start, start + len(block))
        similarity[part], rows[part] = by_row(found[:, :most], found_rows[:, :most])
    return similarity, rows


def _build(gallery: np.ndarray | MappedGallery, kind: str) -> Any:
    """faiss's index of that kind, trained on a sample and filled."""
    index = _factory(gallery.shape[1], kind, len(gallery))
    try:
        cells = faiss.try_extract_index_ivf(index)
        sample = slice(None)
        if cells is not None:
            cells.cp.seed = _SEED + 1  # faiss takes its own seed for a 0
            cells.nprobe = min(PROBES, cells.nlist)
            sample = _sample(len(gallery), _POINTS * cells.nlist)
        coder = _innermost(index)
        if hasattr(coder, "do_polysemous_training"):
            coder.do_polysemous_training = False  # nine tenths of the training, for a search that is not used here
        index.train(gallery[sample])
        _add(index, gallery)
    except RuntimeError as error:
        raise _refusal(kind, gallery.shape, error) from error
    return index


def _factory(dim: int, kind: str, images: int) -> Any:
    try:
        return faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _refusal(kind, (images, dim), error) from error


def _refusal(kind: str, shape: tuple[int, ...], error: RuntimeError) -> WhaleidError:
    reason = " ".join(str(error).split("Error:")[-1].split())[:160]
    return WhaleidError(
        f"combine.knn.index '{kind}' of {shape[0]} images x {shape[1]}: {reason}; use auto, exact or another string"
    )


def _innermost(index: Any) -> Any:
    """The index that holds the images, inside of rotations and refinements."""
    index = faiss.downcast_index(index)
    while isinstance(index, (faiss.IndexPreTransform, faiss.IndexRefine)):
        index = faiss.downcast_index(index.base_index if isinstance(index, faiss.IndexRefine) else index.index)
    return index


def _add(index: Any, gallery: np.ndarray | MappedGallery) -> None:
    """Fill the index. Threads that link an HNSW graph race, and no two graphs are alike: one thread only there."""
    threads = faiss.omp_get_max_threads()
    try:
        if isinstance(index, faiss.IndexHNSW):
            faiss.omp_set_num_threads(1)
        if isinstance(gallery, np.ndarray):  # at once: the links of HNSW depend on what is added together
            index.add(gallery)
            return
        for start in range(0, len(gallery), _ADDED):
            index.add(gallery[start : start + _ADDED])
    finally:
        faiss.omp_set_num_threads(threads)


def _sample(images: int, most: int) -> slice | np.ndarray:
    """At most so many rows, drawn."""
    if images <= most:
        return slice(None)
    return np.sort(np.random.default_rng(_SEED).choice(images, most, replace=False))


def _true_similarity(
    queries: np.ndarray, gallery: np.ndarray | MappedGallery, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products with these rows, float32 (q, m), descending, and the rows in that order; -1 stays last."""
    similarity = np.empty(rows.shape, dtype=np.float32)
    step = max(1, _CELLS // max(1, rows.shape[1] * gallery.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        similarity[part] = np.einsum("qd,qmd->qm", queries[part], gallery[rows[part]])
    similarity[rows < 0] = -np.inf
    order = np.lexsort((rows, -similarity), axis=-1)
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(rows, order, axis=1)
