"""Votes: a query's descriptors vote for the identities whose descriptors are near.

Naive-Bayes nearest neighbour (Boiman, Shechtman and Irani, "In defense of nearest-neighbor based image classification",
2008) in its local form (McCann and Lowe, "Local naive Bayes nearest neighbor for image classification", 2012): each
descriptor has its k nearest among those of **all** identities. The distance of the k-th is that of a chance match; an
identity gains as much as its best descriptor is nearer:

    votes(identity) = sum over the query's descriptors of (d_k^2 - d_identity^2) / n ^ power

n is the identity's number of descriptors in the gallery; the division keeps identities with many images from collecting
chance votes. Nothing is trained: the errors differ from those of networks, and a blend gains from that.

The index holds only the descriptors of the gallery's rows, so that no other image can change even the k-th neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import faiss
import numpy as np

from whaleid.config import LocalConfig
from whaleid.local_matching.compressed import CompressedIndex, compressed_index
from whaleid.local_matching.keypoints import Described, chunks
from whaleid.local_matching.rootsift import UNIT
from whaleid.retrieval.identities import PADDING
from whaleid.utils.errors import WhaleidError

EXACT = 50_000
"""Galleries of up to this many descriptors are searched exactly."""
_IN_MEMORY = 1 << 28  # bytes of a table of neighbours


@dataclass(frozen=True)
class Nearest:
    """The nearest gallery descriptors of some descriptors.

    Attributes
    ----------
    distance : float32 array, shape (m, k)
        Squared, as stored (`Described.unit`), ascending.
    places : int array, shape (m, k)
        Rows of `Described.vectors`, -1 = none found.
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

    Parameters
    ----------
    described : Described
    queries : int64 array, shape (q,)
        Rows of images.parquet.
    gallery, gallery_codes : int64 arrays, shape (g,)
        Rows of images.parquet, and their identities, >= 0.
    config : LocalConfig
    keep : int
        Width of the lists.
    nearest : Nearest or None
        At least `config.neighbours` neighbours of the queries' descriptors; None: they are searched.

    Returns
    -------
    int64 and float32 arrays, shape (q, keep)
        Codes, -1 padded, and scores (`scores_of`), descending, -inf padded. Identities without a vote are not listed:
        the list of a query without keypoints is empty.

    Raises
    ------
    WhaleidError
        Where a query is in the gallery: it would find itself.
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
        query = np.repeat(np.arange(len(counts)), counts)
        of_part = nearest.of(slice(start, start + len(query)))
        start += len(query)
        places = of_part.places[:, : config.neighbours]
        found = np.where(places >= 0, code_of[described.image_of(places)], PADDING)
        distance = of_part.distance[:, : config.neighbours]
        votes = count_votes(query, distance, found, len(counts), classes, described.unit)
        codes[part], scores[part] = best_identities(scores_of(votes, held, config.power), keep)
    return codes, scores


def nearest_descriptors(described: Described, queries: np.ndarray, gallery: np.ndarray, neighbours: int) -> Nearest:
    """The nearest gallery descriptors of each of the queries' descriptors.

    queries, gallery: int64, rows of images.parquet. The result takes 8 bytes x neighbours a descriptor of a query; a
    large one is on disk, beside the descriptors.
    """
    total, k = int(described.counts(queries).sum()), min(neighbours, int(described.counts(gallery).sum()))
    distance = _table(described, (total, k), np.float32)
    found = _table(described, (total, k), np.int32 if len(described.vectors) < 2**31 else np.int64)
    if not total or not k:
        return Nearest(distance, found)
    index, start = build_index(described, gallery), 0
    for part in chunks(described.counts(queries)):
        vectors, _ = described.take(queries[part])
        stop = start + len(vectors)
        distance[start:stop], found[start:stop] = index.search(vectors, k)
        start = stop
    return Nearest(distance, found)


def nearest_apart(
    described: Described, queries: np.ndarray, pieces: list[tuple[np.ndarray, np.ndarray]], neighbours: int
) -> Nearest:
    """As `nearest_descriptors`, where some queries are compared with another gallery than others.

    pieces: places in `queries`, int64, and the gallery of the queries in these places. Rows of a gallery with fewer
    descriptors than another are filled up with the distance of their last, and place -1.
    """
    if len(pieces) == 1:
        return nearest_descriptors(described, queries, pieces[0][1], neighbours)
    found = [nearest_descriptors(described, queries[places], gallery, neighbours) for places, gallery in pieces]
    width = max(one.distance.shape[1] for one in found)
    counts = described.counts(queries)
    starts, total = np.cumsum(counts) - counts, int(counts.sum())
    joined = Nearest(np.zeros((total, width), np.float32), np.full((total, width), PADDING, np.int64))
    for (places, _), one in zip(pieces, found, strict=True):
        rows = np.concatenate(
            [np.arange(start, start + counts[at]) for at, start in zip(places, starts[places], strict=True)]
        )
        own = one.distance.shape[1]
        joined.distance[rows, :own], joined.places[rows, :own] = one.distance, one.places
        joined.distance[rows, own:] = one.distance[:, -1:] if own else 0.0
    return joined


def _table(described: Described, shape: tuple[int, int], kind: type) -> np.ndarray:
    """An array to fill: in a file without a name beside the descriptors where it is large, else in memory."""
    large = np.prod(shape) * np.dtype(kind).itemsize > _IN_MEMORY
    if not large or not isinstance(described.vectors, np.memmap):
        return np.empty(shape, dtype=kind)
    with TemporaryFile(dir=Path(str(described.vectors.filename)).parent) as file:  # gone when nothing reads it any more
        return np.memmap(file, dtype=kind, mode="w+", shape=shape)


def build_index(described: Described, gallery: np.ndarray) -> faiss.IndexIDMap | CompressedIndex:
    """Index of the descriptors of these images by squared distance: exact where they are few, else compressed.

    Its `search(vectors, k)` gives distances and rows of `Described.vectors`. Distances are whole numbers below 2 ** 24,
    which float32 holds exactly.
    """
    if described.counts(gallery).sum() > EXACT:
        return compressed_index(described, gallery)
    index = faiss.IndexIDMap(faiss.IndexFlatL2(described.vectors.shape[1]))
    index.add_with_ids(described.take(gallery)[0], described.places(gallery))
    return index


def count_votes(
    query: np.ndarray, distance: np.ndarray, codes: np.ndarray, queries: int, classes: int, unit: float = UNIT
) -> np.ndarray:
    """Votes of each query's descriptors for each identity, in squared distance between unit vectors.

    Parameters
    ----------
    query : int64 array, shape (m,)
        The descriptor's query.
    distance : float32 array, shape (m, k)
        Squared, ascending, as stored.
    codes : int64 array, shape (m, k)
        Identity of each neighbour, -1 = none found.
    queries, classes : int
    unit : float
        A power of two (`Described.unit`).

    Returns
    -------
    float64 array, shape (queries, classes)
        >= 0; exact, so that the order of summation does not matter.
    """
    found = codes != PADDING
    last = np.where(found, distance, -np.inf).max(axis=1, keepdims=True)
    gain = np.where(found, last - distance, 0.0) / unit**2
    for place in range(1, codes.shape[1]):  # neighbours are sorted by distance: the first of an identity is its best
        gain[(codes[:, :place] == codes[:, place : place + 1]).any(axis=1), place] = 0.0
    used = gain > 0
    cells = np.broadcast_to(query[:, None], codes.shape)[used] * classes + codes[used]
    return np.bincount(cells, weights=gain[used], minlength=queries * classes).reshape(queries, classes)


def scores_of(votes: np.ndarray, held: np.ndarray, power: float) -> np.ndarray:
    """Logarithm of each identity's share of its query's votes.

    A share does not depend on the number of keypoints. Logarithms are calibrated far better than plain votes (nyala,
    out of fold: mean log-likelihood -2.76 instead of -3.20).

    Parameters
    ----------
    votes : float64 array, shape (q, c)
    held : int64 array, shape (c,)
        Descriptors of each identity in the gallery.
    power : float
        Votes are divided by held ** power.

    Returns
    -------
    float64 array, shape (q, c)
        <= 0; -inf where an identity has no votes.
    """
    fair = votes / np.maximum(held, 1) ** power
    total = fair.sum(axis=1, keepdims=True)
    share = np.divide(fair, total, out=np.zeros_like(fair), where=total > 0)
    return np.log(share, out=np.full_like(share, -np.inf), where=share > 0)


def best_identities(scores: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` largest finite scores of each row, as codes and scores; ties by code."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
    best = np.take_along_axis(scores, order, axis=1)
    padding = ((0, 0), (0, keep - order.shape[1]))
    codes = np.pad(np.where(np.isfinite(best), order, PADDING), padding, constant_values=PADDING)
    return codes, np.pad(best, padding, constant_values=-np.inf).astype(np.float32)
