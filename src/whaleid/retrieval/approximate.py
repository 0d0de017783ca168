"""Nearest images in galleries too large for brute force: a faiss index, and how much of the truth it finds.

Cells (IVF) look into the few parts of the gallery nearest to a query, codes (PQ) hold each image in some bytes,
a navigable graph (HNSW) walks towards the query. All may miss a neighbour; what they find comes back with its true
similarity, and `recall_against_exact` says how often they find it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from whaleid.config.retrieval import IndexConfig
from whaleid.retrieval.index import by_row, check_finite, check_search, gpus, search
from whaleid.utils.errors import WhaleidError

EXACT_MOST = 200_000
"""Gallery images up to which `auto` compares with every one, however many ask. Set, not timed: a graph of as many
images of 512 dimensions is some 2 x 10^13 multiplications then, minutes of a core."""
PAYS = 10_000
"""Queries up to which `auto` compares with every image of any gallery. At a million images of 64 dimensions its cells
pay from 2,600 queries on (benchmarks/results/index.json) but find no more than half of the nearest images, on data as
hard as those; 10,000 exact queries are 20 seconds of a core there."""
_EXACT_MOST_GPU = 2_000_000  # ten times that: set as above, not timed
_FLAT_BYTES = 8 << 30  # a gallery above this is held as codes
_CODES = 64  # bytes of an image's code, at most
_POINTS = 64  # images that train a cell, at most: faiss asks for 39 at least
_CHUNK = 4096  # queries at a time
_CELLS = 1 << 24  # numbers gathered at a time for true similarities: 64 MB
_LOSSLESS = re.compile(r"Flat|IVF\d+(_HNSW\d+)?,Flat|HNSW\d*(,Flat)?")  # these return true similarities themselves


@dataclass(frozen=True)
class Opened:
    """A gallery made ready for searches.

    kind: "exact", or the string that faiss built the index from. search: float queries (q, d) and a number m ->
    similarity float32 (q, m'), descending, rows int64 (q, m'), m' = min(m, g); equals by ascending row. Where an
    approximate index finds fewer, the rest of the row is -inf and -1.
    """

    kind: str
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

    @property
    def exact(self) -> bool:
        return self.kind == "exact"


@dataclass(frozen=True)
class Recall:
    """Share of the true nearest images that an index finds. kind: as in `Opened`."""

    kind: str
    neighbours: int
    queries: int
    recall: float

    def line(self) -> str:
        return f"index {self.kind}: recall@{self.neighbours} {self.recall:.4f} of {self.queries:,} queries"


def index_kind(kind: str, images: int, dim: int, queries: int | None = None) -> str:
    """What `auto` stands for with a gallery of so many images, asked so many queries; any other kind is itself.

    As many cells as a power of two near sqrt(images). Four times as many, as faiss advises, are searched three times
    as fast at a million images, but cost nine times as much to build and find fewer of the nearest (33 % for 46 %):
    they are the cheaper way from 39,000 queries on.
    """
    if kind != "auto":
        return kind
    if images <= (_EXACT_MOST_GPU if gpus() else EXACT_MOST) or (queries is not None and queries <= PAYS):
        return "exact"
    cells = 2 ** round(np.log2(np.sqrt(images)))
    if 4 * images * dim <= _FLAT_BYTES:
        return f"IVF{cells},Flat"
    codes = max(size for size in range(1, min(_CODES, dim) + 1) if dim % size == 0)
    return f"IVF{cells},PQ{codes}"


def open_index(gallery: np.ndarray, config: IndexConfig, queries: int | None = None) -> Opened:
    """The gallery ready for searches. gallery: float (g, d), g >= 1, kept and not copied where it is float32.

    queries: how many it will be asked in all, where that is known: for few, `auto` builds nothing.
    The same gallery and seed give the same index. An approximate index is built and asked on the CPU.
    Raises WhaleidError where faiss cannot build such an index of such a gallery.
    """
    check_search(gallery[:0], gallery, 1, 1)
    kind = index_kind(config.kind, len(gallery), gallery.shape[1], queries)
    gallery = np.ascontiguousarray(gallery, dtype=np.float32)
    if kind == "exact":
        return Opened(kind, lambda queries, neighbours: search(queries, gallery, neighbours))
    index = _built(gallery, kind, config)
    fetch = 1 if _LOSSLESS.fullmatch(kind) else config.fetch

    def find(queries: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
        check_search(queries[:0], gallery[:1], neighbours, 1)
        check_finite("queries", queries)
        most = min(neighbours, len(gallery))
        _widen(index, fetch * most, config)
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

    return Opened(kind, find)


def recall_against_exact(
    queries: np.ndarray, gallery: np.ndarray, config: IndexConfig, neighbours: int = 10, most: int = 1000
) -> Recall:
    """How many of the true `neighbours` nearest images of each query the index finds.

    queries: float (q, d); at most `most` of them, drawn by the config's seed, are asked. gallery: float (g, d).
    """
    if not len(queries):
        raise WhaleidError("recall: no queries; at least one is needed")
    chosen = np.random.default_rng(config.seed).permutation(len(queries))[:most]
    opened = open_index(gallery, config)
    return recall_of(opened, queries[chosen], gallery, neighbours)


def recall_of(opened: Opened, queries: np.ndarray, gallery: np.ndarray, neighbours: int) -> Recall:
    """As `recall_against_exact`, of an index at hand and all these queries."""
    _, found = opened.search(queries, neighbours)
    _, true = search(queries, gallery, neighbours)
    hits = [len(np.intersect1d(one, other)) for one, other in zip(found, true, strict=True)]
    return Recall(opened.kind, neighbours, len(queries), float(np.sum(hits) / true.size))


def _built(gallery: np.ndarray, kind: str, config: IndexConfig) -> Any:
    """faiss's index of that kind, trained on a sample and filled."""
    try:
        index = faiss.index_factory(gallery.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        cells = faiss.try_extract_index_ivf(index)
        sample = gallery
        if cells is not None:
            cells.cp.seed = config.seed + 1  # faiss takes its own seed for a 0
            cells.nprobe = min(config.probes, cells.nlist)
            sample = _sample(gallery, _POINTS * cells.nlist, config.seed)
        coder = _innermost(index)
        if hasattr(coder, "do_polysemous_training"):
            coder.do_polysemous_training = False  # nine tenths of the training, for a search that is not used here
        index.train(sample)
        _add(index, gallery)
    except RuntimeError as error:
        said = " ".join(str(error).split("Error:")[-1].split())[:160]
        raise WhaleidError(
            f"index '{kind}' of {len(gallery)} images x {gallery.shape[1]}: {said}; take auto, exact or another string"
        ) from error
    return index


def _innermost(index: Any) -> Any:
    """The index that holds the images, whatever rotates or refines them."""
    index = faiss.downcast_index(index)
    while isinstance(index, (faiss.IndexPreTransform, faiss.IndexRefine)):
        index = faiss.downcast_index(index.base_index if isinstance(index, faiss.IndexRefine) else index.index)
    return index


def _add(index: Any, gallery: np.ndarray) -> None:
    """Fill the index. Threads that link an HNSW graph race, and no two graphs are alike: one thread alone there."""
    threads = faiss.omp_get_max_threads()
    try:
        if isinstance(index, faiss.IndexHNSW):
            faiss.omp_set_num_threads(1)
        index.add(gallery)
    finally:
        faiss.omp_set_num_threads(threads)


def _widen(index: Any, neighbours: int, config: IndexConfig) -> None:
    """HNSW finds no more than it keeps in sight."""
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = max(config.breadth, 2 * neighbours)


def _sample(gallery: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(gallery) <= most:
        return gallery
    return gallery[np.sort(np.random.default_rng(seed).choice(len(gallery), most, replace=False))]


def _true_similarity(queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inner products with the rows found, float32 (q, m), descending, and the rows in that order; -1 stays last."""
    similarity = np.empty(rows.shape, dtype=np.float32)
    step = max(1, _CELLS // max(1, rows.shape[1] * gallery.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        similarity[part] = np.einsum("qd,qmd->qm", queries[part], gallery[rows[part]])
    similarity[rows < 0] = -np.inf
    order = np.lexsort((rows, -similarity), axis=-1)
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(rows, order, axis=1)
