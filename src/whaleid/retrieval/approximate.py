"""Nearest images in galleries too large for brute force: an approximate faiss index.

Cells (IVF) compare a query with the few parts of the gallery nearest to it, codes (RaBitQ, PQ) hold each image in a few
bytes, a navigable graph (HNSW) walks towards the query. All may miss a neighbour; what they find is returned with its
true similarity. How far an index looks is fitted to the queries: `open_for` widens it until it finds what is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
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
"""Queries up to which `auto` compares with every image of any gallery. An index takes as long to build as some thousand
exact queries take (benchmarks/results/index.json, mapped.json), and to be widened as some hundred."""
PROBES = 32
"""IVF: cells compared with each query, to begin with. More find more, and take proportionally longer."""
RECALL = 0.95
"""Share of the five nearest images of a sample of the queries up to which an index is widened."""
_NEAREST = 5
_BREADTH = 64  # HNSW: candidates kept during the search (efSearch), at least twice the neighbours
_FETCH = 4  # codes find this many times the neighbours asked for; true similarities choose among them
_FEWEST = 200  # images fetched at least: codes of a bit a dimension find 95 to 99 % of the five nearest in as many
_WIDEST = 16  # images fetched for each neighbour at most: to read 3,200 took half as long as to compare 250,000
_EXACT_MOST_GPU = 2_000_000  # ten times that: set as above, not timed
_POINTS = 64  # largest number of images that train a cell; faiss asks for at least 39
_CHUNK = 4096  # queries at a time
_CELLS = 1 << 24  # numbers gathered at a time for true similarities: 64 MB
_ASKED = 200  # queries by which the recall of an index is measured
_ADDED = 1 << 16  # mapped images put into an index at a time
_TRIED = 5_000  # images up to which an index is tried: seconds of a core
_SEED = 0
_LOSSLESS = re.compile(r"Flat|IVF\d+(_HNSW\d+)?,Flat|HNSW\d*(,Flat)?")  # these return true similarities themselves


Gallery = np.ndarray | MappedGallery


@dataclass(frozen=True)
class GalleryIndex:
    """A gallery ready for searches.

    Attributes
    ----------
    kind : str
        "exact", or the string that faiss built the index from.
    gallery : float array (g, d), or MappedGallery
    index : faiss's index, or None
        Its numbers of cells and of candidates are set anew by each search.
    effort : Effort or None
        How far that index looks.
    """

    kind: str
    gallery: Gallery
    index: Any = None
    effort: Effort | None = None

    @property
    def exact(self) -> bool:
        return self.index is None

    def search(self, queries: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest gallery images of float queries (q, d).

        Returns
        -------
        float32 and int64 arrays, shape (q, min(neighbours, g))
            Similarity, descending, and rows; ties by ascending row. Where an approximate index finds fewer, the rest
            is -inf and -1.
        """
        if self.effort is not None:
            return _search_approximately(self.index, self.gallery, queries, neighbours, self.effort)
        if isinstance(self.gallery, np.ndarray):
            return search(queries, self.gallery, neighbours)
        return search_mapped(queries, self.gallery, neighbours)


@dataclass(frozen=True)
class Effort:
    """How far an approximate index looks for a query.

    Attributes
    ----------
    reach : int
        IVF: cells compared. HNSW: candidates kept on the walk, at least. Nothing to others, where it is 0.
    most : int
        Largest reach: all cells, or all images.
    fetch : int
        Images whose true similarity is computed, as a multiple of the neighbours; 1: the index itself returns it.
    """

    reach: int
    most: int
    fetch: int

    def wider(self) -> list[Effort]:
        """The next steps, at most two: twice as much of the index, or twice as many images compared exactly."""
        steps = []
        if self.reach < self.most:
            steps.append(replace(self, reach=min(2 * self.reach, self.most)))
        if 1 < self.fetch < _WIDEST:
            steps.append(replace(self, fetch=2 * self.fetch))
        return steps


def index_kind(kind: str, images: int, dim: int, queries: int | None = None) -> str:
    """What `auto` stands for with this number of gallery images and queries; any other kind is returned as it is.

    There are as many cells as the power of two nearest to sqrt(images). Four times as many, as faiss advises, are
    searched three times as fast at a million images, but cost nine times as much to build and find fewer of the nearest
    (33 % instead of 46 %): they are cheaper from 39,000 queries on. In the cells are codes of a bit a dimension, of the
    embeddings turned at random: unlike codes of PQ they need no training.
    """
    if kind != "auto":
        return kind
    if images <= (_EXACT_MOST_GPU if gpus() else EXACT_MOST) or (queries is not None and queries <= EXACT_QUERIES):
        return "exact"
    cells = 2 ** round(np.log2(np.sqrt(images)))
    return f"RR{dim},IVF{cells},RaBitQ"


def open_index(gallery: Gallery, kind: str = "auto", queries: int | None = None) -> GalleryIndex:
    """The gallery ready for searches; the same gallery always gives the same index.

    Parameters
    ----------
    gallery : float array, shape (g, d), g >= 1, or MappedGallery
        Kept and not copied where it is float32. A mapped one is read in blocks, and by the images that an index finds.
    kind : str
        exact; auto: exact where that is faster overall, else an index by size; any other string is for faiss's
        index_factory (IVF4096,Flat or RR512,IVF4096,RaBitQ or HNSW32). Approximate indexes run on the CPU.
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
        return GalleryIndex(kind, gallery)
    index = _build(gallery, kind)
    return GalleryIndex(kind, gallery, index, _first_effort(index, kind))


def open_for(
    queries: np.ndarray,
    gallery: Gallery,
    neighbours: int,
    kind: str = "auto",
    report: Callable[[str], None] | None = None,
) -> GalleryIndex:
    """`open_index`, widened until it finds RECALL of the five nearest images of a sample of these queries.

    Parameters
    ----------
    queries : float array, shape (q, d)
    gallery, kind
        As in `open_index`.
    neighbours : int
        How many will be asked for.
    report : callable, optional
        Is told how far an approximate index looks and what it finds; where that is too little, what to do.
    """
    index = open_index(gallery, kind, len(queries))
    if index.exact or not len(queries):
        return index
    index, found = widened(index, queries, neighbours)
    if report is not None:
        report(_line(index, found))
    return index


def widened(index: GalleryIndex, queries: np.ndarray, neighbours: int) -> tuple[GalleryIndex, float]:
    """The index with as little effort as finds RECALL, and what it finds, in [0, 1].

    Each step doubles what finds more: the part of the index, or the images that are compared exactly. Where neither
    finds more, or nothing is left, that is all that such an index finds.
    """
    sample = queries[:: max(1, len(queries) // _ASKED)]
    true = GalleryIndex("exact", index.gallery).search(sample, _NEAREST)[1]
    found = _share(index, sample, neighbours, true)
    while found < RECALL and index.effort is not None:
        steps = [replace(index, effort=effort) for effort in index.effort.wider()]
        shares = [_share(step, sample, neighbours, true) for step in steps]
        if not shares or max(shares) <= found:
            break
        found = max(shares)
        index = steps[shares.index(found)]
    return index, found


def _share(index: GalleryIndex, queries: np.ndarray, neighbours: int, true: np.ndarray) -> float:
    """Recall of an index that is asked for so many neighbours."""
    return recall(index.search(queries, max(neighbours, true.shape[1]))[1], true)


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true nearest rows, int64 (q, m), that are the first m of those found, int64 (q, at least m)."""
    first = found[:, : true.shape[1]]
    return float((first[:, :, None] == true[:, None, :]).any(axis=1).mean())


def _line(index: GalleryIndex, found: float) -> str:
    effort = index.effort
    assert effort is not None
    parts = [f"{effort.reach:,} of {effort.most:,} cells"] if faiss.try_extract_index_ivf(index.index) else []
    parts += [f"{effort.fetch} x the neighbours compared exactly"] if effort.fetch > 1 else []
    looked = f" ({', '.join(parts)})" if parts else ""
    advice = "" if found >= RECALL else f", less than {RECALL}: combine.knn.index=exact finds all"
    return f"index {index.kind}: recall@{_NEAREST} of the nearest images {found:.3f}{looked}{advice}"


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


def _first_effort(index: Any, kind: str) -> Effort:
    fetch = 1 if _LOSSLESS.fullmatch(kind) else _FETCH
    cells = faiss.try_extract_index_ivf(index)
    if cells is not None:
        return Effort(min(PROBES, cells.nlist), cells.nlist, fetch)
    if isinstance(index, faiss.IndexHNSW):
        return Effort(min(_BREADTH, index.ntotal), index.ntotal, fetch)
    return Effort(0, 0, fetch)


def _search_approximately(
    index: Any, gallery: Gallery, queries: np.ndarray, neighbours: int, effort: Effort
) -> tuple[np.ndarray, np.ndarray]:
    """`GalleryIndex.search`."""
    check_search(queries[:0], gallery[:1], neighbours, 1)
    check_finite("queries", queries)
    most = min(neighbours, len(gallery))
    fetch = most if effort.fetch == 1 else min(max(effort.fetch * most, _FEWEST), len(gallery))
    cells = faiss.try_extract_index_ivf(index)
    if cells is not None:
        cells.nprobe = effort.reach
    elif isinstance(index, faiss.IndexHNSW):  # it finds no more images than efSearch
        index.hnsw.efSearch = max(effort.reach, 2 * fetch)
    similarity = np.empty((len(queries), most), dtype=np.float32)
    rows = np.empty((len(queries), most), dtype=np.int64)
    for start in range(0, len(queries), _CHUNK):
        block = np.ascontiguousarray(queries[start : start + _CHUNK], dtype=np.float32)
        found, found_rows = index.search(block, fetch)
        found[found_rows < 0] = -np.inf
        if effort.fetch > 1:
            found, found_rows = _true_similarity(block, gallery, found_rows)
        part = slice(start, start + len(block))
        similarity[part], rows[part] = by_row(found[:, :most], found_rows[:, :most])
        if isinstance(gallery, MappedGallery):
            gallery.forget_pages()
    return similarity, rows


def _build(gallery: Gallery, kind: str) -> Any:
    """faiss's index of that kind, trained on a sample and filled."""
    index = _factory(gallery.shape[1], kind, len(gallery))
    try:
        cells = faiss.try_extract_index_ivf(index)
        sample = slice(None)
        if cells is not None:
            cells.cp.seed = _SEED + 1  # faiss takes its own seed for a 0
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


def _add(index: Any, gallery: Gallery) -> None:
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
            gallery.forget_pages()
    finally:
        faiss.omp_set_num_threads(threads)


def _sample(images: int, most: int) -> slice | np.ndarray:
    """At most so many rows, drawn."""
    if images <= most:
        return slice(None)
    return np.sort(np.random.default_rng(_SEED).choice(images, most, replace=False))


def _true_similarity(queries: np.ndarray, gallery: Gallery, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inner products with these rows, float32 (q, m), descending, and the rows in that order; -1 stays last."""
    similarity = np.empty(rows.shape, dtype=np.float32)
    step = max(1, _CELLS // max(1, rows.shape[1] * gallery.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        similarity[part] = np.einsum("qd,qmd->qm", queries[part], gallery[rows[part]])
    similarity[rows < 0] = -np.inf
    order = np.lexsort((rows, -similarity), axis=-1)
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(rows, order, axis=1)
