"""Local matching: an image's descriptors vote for identities, each for those whose marks it finds nearby.

Naive-Bayes nearest neighbour (Boiman, Shechtman and Irani, "In defense of nearest-neighbor based image
classification", 2008) in its local form (McCann and Lowe, "Local naive Bayes nearest neighbor for image
classification", 2012): a descriptor looks at its k nearest among those of **all** identities. The distance of
the k-th says how near chance alone comes; an identity is given as much as its best descriptor is nearer:

    vote(identity) = sum over the query's descriptors of max(0, d_k^2 - d_identity^2) / (descriptors in gallery) ^ power

The division keeps identities with many pictures from collecting chance votes. Nothing is trained: the source
errs where networks do not, and a blend of both gains from that.

Which images may vote is decided by the rows that are given as the gallery. Its index holds nothing else, so
no other image can move even the k-th neighbour.
"""

from __future__ import annotations

import faiss
import numpy as np

from whaleid.config import LocalConfig
from whaleid.errors import WhaleidError
from whaleid.retrieval.identities import PADDING
from whaleid.retrieval.keypoints import LENGTH, UNIT, Described

EXACT = 50_000
"""Galleries of up to this many descriptors are searched exactly."""
_LISTED = 256  # descriptors in a list of the inverted file: lists and descriptors in them then cost about the same
_MOST_LISTS = 8192
_PROBES = 16
_TAUGHT = 40  # descriptors a list from which k-means learns them; faiss warns below 39
_SEED = 0
_CHUNK = 1 << 15  # query descriptors searched at a time
_LEAST = 64  # descriptors that a query counts as at the least, which bounds the table of votes


def local_candidates(
    described: Described,
    queries: np.ndarray,
    gallery: np.ndarray,
    gallery_codes: np.ndarray,
    config: LocalConfig,
    keep: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` identities with most votes for each query.

    queries: int64 (q,), gallery: int64 (g,), rows of images.parquet. gallery_codes: int64 (g,), >= 0.
    Returns codes int64 (q, keep), -1 padded, and scores float32 (q, keep), descending, -inf padded: see
    `scores_of`. Identities without a vote are not listed: the list of a query without keypoints is empty.
    Raises WhaleidError where a query is in the gallery: it would find itself.
    """
    if len(np.intersect1d(queries, gallery)):
        raise WhaleidError("local matching: a query is in its own gallery; take it out")
    codes = np.full((len(queries), keep), PADDING, dtype=np.int64)
    scores = np.full((len(queries), keep), -np.inf, dtype=np.float32)
    vectors, owner = described.take(gallery)
    owner_codes = gallery_codes[owner]
    if not len(vectors):
        return codes, scores
    index = build_index(vectors)
    classes = int(gallery_codes.max()) + 1
    held = np.maximum(np.bincount(owner_codes, minlength=classes), 1).astype(np.float64)
    for part in _chunks(described.counts(queries)):
        asked, asker = described.take(queries[part])
        distance, rows = index.search(asked, min(config.neighbours, len(vectors)))
        found = np.where(rows >= 0, owner_codes[rows], PADDING)
        votes = count_votes(asker, distance, found, len(queries[part]), classes)
        codes[part], scores[part] = _best(scores_of(votes, held, config.power), keep)
    return codes, scores


def build_index(vectors: np.ndarray) -> faiss.Index:
    """Index of the gallery's descriptors by squared distance: exact where they are few, else an inverted file.

    vectors: float32 (m, 128), whole numbers 0 to 255. k-means deals them to lists of about 256, and a query
    looks into the 16 nearest lists, where it finds nearly all of its neighbours; they are kept as bytes.
    Distances are whole numbers below 2 ** 24, so float32 holds them exactly.
    """
    if len(vectors) <= EXACT:
        index = faiss.IndexFlatL2(LENGTH)
        index.add(vectors)
        return index
    lists = min(_MOST_LISTS, len(vectors) // _LISTED)
    quantizer = faiss.IndexFlatL2(LENGTH)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, LENGTH, lists, faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_L2, False
    )
    index.cp.seed, index.cp.niter = _SEED, 10
    taught = np.random.default_rng(_SEED).choice(len(vectors), min(len(vectors), _TAUGHT * lists), replace=False)
    index.train(vectors[np.sort(taught)])
    index.add(vectors)
    index.nprobe = _PROBES
    return index


def count_votes(asker: np.ndarray, distance: np.ndarray, codes: np.ndarray, queries: int, classes: int) -> np.ndarray:
    """What the descriptors of each query give to each identity, in squared distance between unit vectors.

    asker: int64 (m,), the descriptor's query. distance: float32 (m, k), squared, ascending, as stored (`UNIT`).
    codes: int64 (m, k), identity of each neighbour, -1 = none found. Returns float64 (queries, classes), >= 0;
    exact, so that it does not depend on the order of summing.
    """
    found = codes != PADDING
    last = np.where(found, distance, -np.inf).max(axis=1, keepdims=True)
    gain = np.where(found, last - distance, 0.0) / UNIT**2
    for place in range(1, codes.shape[1]):  # neighbours stand by distance: the first of an identity is its best
        gain[(codes[:, :place] == codes[:, place : place + 1]).any(axis=1), place] = 0.0
    used = gain > 0
    cells = np.broadcast_to(asker[:, None], codes.shape)[used] * classes + codes[used]
    return np.bincount(cells, weights=gain[used], minlength=queries * classes).reshape(queries, classes)


def scores_of(votes: np.ndarray, held: np.ndarray, power: float) -> np.ndarray:
    """Votes (q, c) as scores.

    held: float64 (c,), descriptors of each identity in the gallery, >= 1.
    """
    return votes / (held / held.mean()) ** power


def _best(scores: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` largest scores of each row that are above 0, as codes and scores; equals by code."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
    best = np.take_along_axis(scores, order, axis=1)
    padding = ((0, 0), (0, keep - order.shape[1]))
    codes = np.pad(np.where(best > 0, order, PADDING), padding, constant_values=PADDING)
    return codes, np.pad(np.where(best > 0, best, -np.inf), padding, constant_values=-np.inf).astype(np.float32)


def _chunks(counts: np.ndarray) -> list[slice]:
    """Runs of queries that together have about `_CHUNK` descriptors, and are not too many where they have few."""
    cost = np.maximum(counts, _LEAST)
    starts = np.flatnonzero(np.diff((np.cumsum(cost) - cost) // _CHUNK, prepend=-1)).tolist()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True)]
