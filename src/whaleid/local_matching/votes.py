"""Local matching: an image's descriptors vote for identities, each for those whose marks it finds nearby.

Naive-Bayes nearest neighbour (Boiman, Shechtman and Irani, "In defense of nearest-neighbor based image
classification", 2008) in its local form (McCann and Lowe, "Local naive Bayes nearest neighbor for image
classification", 2012): a descriptor looks at its k nearest among those of **all** identities. The distance of
the k-th says how near chance alone comes; an identity is given as much as its best descriptor is nearer:

    votes(identity) = sum over the query's descriptors of (d_k^2 - d_identity^2) / n ^ power

n is the identity's number of descriptors in the gallery; the division keeps those with many pictures from
collecting chance votes. Nothing is trained: the source errs where networks do not, and a blend gains from that.

Which images may vote is decided by the rows that are given as the gallery. Its index holds nothing else, so
no other image can move even the k-th neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np

from whaleid.config import LocalConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.rootsift import UNIT
from whaleid.retrieval.identities import PADDING
from whaleid.utils.errors import WhaleidError

EXACT = 50_000
"""Galleries of up to this many descriptors are searched exactly."""
_LISTED = 256  # descriptors in a list of the inverted file: lists and descriptors in them then cost about the same
_MOST_LISTS = 8192
_PROBES = 32  # lists looked into; MAP@5 out of fold, nyala: 0.303 with 16 and 0.310 with 32; learned 0.402 and 0.408
_TAUGHT = 40  # descriptors a list from which k-means learns them, as many as faiss asks for
_ROUNDS = 10  # of k-means
_SEED = 0
_CHUNK = 1 << 15  # query descriptors searched at a time
_LEAST = 64  # descriptors that a query counts as at the least, which bounds the table of votes


@dataclass(frozen=True)
class Nearest:
    """The nearest gallery descriptors of some descriptors. distance: float32 (m, k), squared, as stored
    (`Described.unit`), ascending. places: int (m, k), rows of `Described.vectors`, -1 = none found.
    """

    distance: np.ndarray
    places: np.ndarray

    def of(self, part: slice) -> Nearest:
        """Of some of the descriptors."""
        return Nearest(self.distance[part], self.places[part])


def local_candidates(
    described: Described,
    queries: np.ndarray,
    gallery: np.ndarray,
    gallery_codes: np.ndarray,
    config: LocalConfig,
    keep: int,
    nearest: Nearest | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` identities with most votes for each query.

    queries: int64 (q,), gallery: int64 (g,), rows of images.parquet. gallery_codes: int64 (g,), >= 0.
    nearest: neighbours of the queries' descriptors, `config.neighbours` at least; None: they are looked for.
    Returns codes int64 (q, keep), -1 padded, and scores float32 (q, keep), descending, -inf padded: see
    `scores_of`. Identities without a vote are not listed: the list of a query without keypoints is empty.
    Raises WhaleidError where a query is in the gallery: it would find itself.
    """
    if len(np.intersect1d(queries, gallery)):
        raise WhaleidError("local matching: a query is in its own gallery; take it out")
    codes = np.full((len(queries), keep), PADDING, dtype=np.int64)
    scores = np.full((len(queries), keep), -np.inf, dtype=np.float32)
    owner_codes = np.repeat(gallery_codes, described.counts(gallery))
    if not len(owner_codes):
        return codes, scores
    classes = int(gallery_codes.max()) + 1
    held = np.bincount(owner_codes, minlength=classes)
    code_of = np.full(len(described.offsets) - 1, PADDING, dtype=np.int64)
    code_of[gallery] = gallery_codes
    if nearest is None:
        nearest = nearest_descriptors(described, queries, gallery, config.neighbours)
    start = 0
    for part in chunks(described.counts(queries)):
        counts = described.counts(queries[part])
        asker = np.repeat(np.arange(len(counts)), counts)
        own = nearest.of(slice(start, start + len(asker)))
        start += len(asker)
        places = own.places[:, : config.neighbours]
        found = np.where(places >= 0, code_of[described.image_of(places)], PADDING)
        near = own.distance[:, : config.neighbours]
        votes = count_votes(asker, near, found, len(counts), classes, described.unit)
        codes[part], scores[part] = best_identities(scores_of(votes, held, config.power), keep)
    return codes, scores


def nearest_descriptors(described: Described, queries: np.ndarray, gallery: np.ndarray, neighbours: int) -> Nearest:
    """The nearest gallery descriptors of each of the queries' descriptors.

    queries, gallery: int64, rows of images.parquet. Memory: 8 bytes x neighbours a descriptor of a query.
    """
    places = described.places(gallery)
    total, k = int(described.counts(queries).sum()), min(neighbours, len(places))
    distance = np.empty((total, k), dtype=np.float32)
    found = np.full((total, k), PADDING, dtype=np.int32 if len(described.vectors) < 2**31 else np.int64)
    if not k:
        return Nearest(distance, found)
    index, start = build_index(described, gallery), 0
    for part in chunks(described.counts(queries)):
        asked, _ = described.take(queries[part])
        stop = start + len(asked)
        distance[start:stop], rows = index.search(asked, k)
        found[start:stop] = np.where(rows >= 0, places[rows], PADDING)
        start = stop
    return Nearest(distance, found)


def build_index(described: Described, gallery: np.ndarray) -> faiss.Index:
    """Index of the descriptors of these images, in their order, by squared distance.

    Exact where they are few, else an inverted file: k-means deals them to lists of about 256, a query looks into
    the nearest few lists, and they are kept as bytes. Distances are whole numbers below 2 ** 24: float32 holds
    them exactly.
    """
    counts = described.counts(gallery)
    total = int(counts.sum())
    index: faiss.Index = faiss.IndexFlatL2(described.vectors.shape[1])
    if total > EXACT:
        index = _inverted_file(described, gallery, min(_MOST_LISTS, max(1, total // _LISTED)))
    for part in chunks(counts):
        index.add(described.take(gallery[part])[0])
    return index


def _inverted_file(described: Described, gallery: np.ndarray, lists: int) -> faiss.IndexIVF:
    """An empty inverted file whose lists were learnt from some of the gallery's descriptors, the same everywhere."""
    places = described.places(gallery)
    taught = np.random.default_rng(_SEED).choice(len(places), min(len(places), _TAUGHT * lists), replace=False)
    vectors = described.vectors[places[np.sort(taught)]].astype(np.float32)
    length = vectors.shape[1]
    quantizer = faiss.IndexFlatL2(length)
    quantizer.add(whole_centres(vectors, lists))
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, length, lists, faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_L2, False
    )
    index.nprobe = _PROBES
    index.train(vectors[:1])  # its lists are there already, and bytes need no training
    return index


def whole_centres(vectors: np.ndarray, count: int) -> np.ndarray:
    """k-means whose centres are whole numbers, float32 (count, d).

    vectors: float32 (n, d), n >= count, whole numbers in [0, 255]. Distances and sums are then exact: every processor
    and every build of a library finds the same centres, while rounding would lead them far apart in ten rounds. A
    centre that nothing is near to stays where it is.
    """
    centres = vectors[np.random.default_rng(_SEED).choice(len(vectors), count, replace=False)]
    for _ in range(_ROUNDS):
        index = faiss.IndexFlatL2(vectors.shape[1])
        index.add(centres)
        own = index.search(vectors, 1)[1][:, 0]
        order = np.argsort(own, kind="stable")
        found, starts, counts = np.unique(own[order], return_index=True, return_counts=True)
        sums = np.add.reduceat(vectors[order], starts, axis=0, dtype=np.float64)
        moved = centres.copy()
        moved[found] = np.rint(sums / counts[:, None])
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def count_votes(
    asker: np.ndarray, distance: np.ndarray, codes: np.ndarray, queries: int, classes: int, unit: float = UNIT
) -> np.ndarray:
    """What the descriptors of each query give to each identity, in squared distance between unit vectors.

    asker: int64 (m,), the descriptor's query. distance: float32 (m, k), squared, ascending, as stored.
    codes: int64 (m, k), identity of each neighbour, -1 = none found. unit: a power of two (`Described.unit`).
    Returns float64 (queries, classes), >= 0; exact, so that it does not depend on the order of summing.
    """
    found = codes != PADDING
    last = np.where(found, distance, -np.inf).max(axis=1, keepdims=True)
    gain = np.where(found, last - distance, 0.0) / unit**2
    for place in range(1, codes.shape[1]):  # neighbours stand by distance: the first of an identity is its best
        gain[(codes[:, :place] == codes[:, place : place + 1]).any(axis=1), place] = 0.0
    used = gain > 0
    cells = np.broadcast_to(asker[:, None], codes.shape)[used] * classes + codes[used]
    return np.bincount(cells, weights=gain[used], minlength=queries * classes).reshape(queries, classes)


def scores_of(votes: np.ndarray, held: np.ndarray, power: float) -> np.ndarray:
    """Logarithm of each identity's share of its query's votes, float64 (q, c), <= 0; -inf where it has none.

    votes: float64 (q, c). held: int64 (c,), descriptors of each identity in the gallery. A share says how far an
    identity stands out whatever the number of keypoints; calibration takes logarithms of evidence far better than
    plain votes (nyala, out of fold: mean log-likelihood -2.76 instead of -3.20).
    """
    fair = votes / np.maximum(held, 1) ** power
    total = fair.sum(axis=1, keepdims=True)
    share = np.divide(fair, total, out=np.zeros_like(fair), where=total > 0)
    return np.log(share, out=np.full_like(share, -np.inf), where=share > 0)


def best_identities(scores: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` largest finite scores of each row, as codes and scores; equals by code."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
    best = np.take_along_axis(scores, order, axis=1)
    padding = ((0, 0), (0, keep - order.shape[1]))
    codes = np.pad(np.where(np.isfinite(best), order, PADDING), padding, constant_values=PADDING)
    return codes, np.pad(best, padding, constant_values=-np.inf).astype(np.float32)


def chunks(counts: np.ndarray) -> list[slice]:
    """Runs of queries that together have about `_CHUNK` descriptors, and are not too many where they have few."""
    cost = np.maximum(counts, _LEAST)
    starts = np.flatnonzero(np.diff((np.cumsum(cost) - cost) // _CHUNK, prepend=-1)).tolist()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True)]
