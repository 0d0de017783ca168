"""Mutual nearest neighbours that pass the ratio test (Lowe, "Distinctive image features from scale-invariant
keypoints", 2004), of one image with many.

Nearly all time goes into products of descriptors. Descriptors are bytes, so that products of whole numbers are exact:
they are the same from float32 and from the instructions for bytes that newer processors have (RootSIFT of 1,000
keypoints: 2.1 ms and 0.36 ms of a core), whichever is faster here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from whaleid.config import LocalConfig, VerifyConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.matchers import Matcher
from whaleid.utils.machine import busy_seconds

_BLOCK = 1 << 20  # distances at a time: 4 MiB, which stay in a processor's cache
_FAR = 1 << 29  # a squared distance above all others
_BYTES = "_int_mm"  # of torch, not documented: where it is missing, or errs, floats are multiplied
_MIDDLE = 128  # subtracted from bytes; it changes no distance
_DRAWN, _TIMES = 1000, 15  # descriptors of `product_seconds`, and how often they are multiplied


@dataclass(frozen=True)
class MutualMatches:
    """Matches of one image with others, sorted by image and by the query's keypoint.

    Attributes
    ----------
    image : int64 array, shape (m,)
        Place among the images that were asked for.
    own, other : int64 arrays, shape (m,)
        Places of the keypoints in the query and in the image.
    first, second : float32 arrays, shape (m,)
        Squared distances to the image's nearest and second nearest keypoint, as stored.
    """

    image: np.ndarray
    own: np.ndarray
    other: np.ndarray
    first: np.ndarray
    second: np.ndarray


def make_matcher(described: Described, _images: pd.DataFrame, config: LocalConfig, _weights: Path) -> Matcher:
    """The matcher of a recipe."""
    return mutual_matcher(described, (config.verify or VerifyConfig()).ratio)


def mutual_matcher(described: Described, ratio: float) -> Matcher:
    """Matches by `mutual_matches`."""

    def match(query: int, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        found = mutual_matches(described, query, rows, ratio)
        for start, end in pairwise(np.searchsorted(found.image, np.arange(len(rows) + 1))):
            yield found.own[start:end], found.other[start:end]

    return match


def mutual_matches(described: Described, query: int, rows: np.ndarray, ratio: float) -> MutualMatches:
    """Pairs of descriptors that are each other's nearest, nearer than `ratio` times the query's second nearest.

    Parameters
    ----------
    described : Described
    query : int
        Row of images.parquet.
    rows : int64 array, shape (n,)
        Likewise, the images that it is matched with.
    ratio : float

    Returns
    -------
    MutualMatches
        None of images with fewer than 2 descriptors. Of equal distances the first counts.
    """
    own, counts = _signed(described, query), described.counts(rows)
    parts = [_match_block(own, described, rows, block, ratio) for block in _blocks(len(own), counts)]
    columns = list(zip(*parts, strict=True))
    if not columns:
        return MutualMatches(*np.zeros((3, 0), np.int64), *np.zeros((2, 0), np.float32))
    image, mine, theirs, first, second = (np.concatenate(column) for column in columns)
    order = np.lexsort((mine, image))
    return MutualMatches(image[order], mine[order], theirs[order], first[order], second[order])


@cache
def product_seconds() -> float:
    """Of a core, for the product of two descriptors while all cores multiply; measured in a tenth of a second."""
    drawn = np.random.default_rng(0).integers(-_MIDDLE, _MIDDLE, (_DRAWN, 128), dtype=np.int8)
    lengths = _lengths(drawn)
    _bytes_are_faster()
    with _one_thread_each():
        return busy_seconds(lambda: _less_own(drawn, drawn, lengths), _TIMES) / _DRAWN**2


@contextmanager
def matching_threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that match images: products release Python's lock, and a library's threads inside them would wait."""
    import torch

    with _one_thread_each(), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Products of numpy and torch take one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(threads)


def _blocks(keypoints: int, counts: np.ndarray) -> Iterator[np.ndarray]:
    """Places of images that are matched in one product, those of about as many keypoints together."""
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] >= 2] if keypoints else order[:0]
    while len(order):
        cost = keypoints * counts[order] * np.arange(1, len(order) + 1)
        some = max(1, int(np.searchsorted(cost, _BLOCK, "right")))
        yield order[:some]
        order = order[some:]


def _match_block(
    own: np.ndarray, described: Described, rows: np.ndarray, block: np.ndarray, ratio: float
) -> tuple[np.ndarray, ...]:
    """Image, both keypoints, and both distances of each match with the images `rows[block]`."""
    width = int(described.counts(rows[block]).max())
    vectors = np.zeros((len(block), width, own.shape[1]), np.int8)
    lengths = np.full((len(block), width), _FAR, np.int32)
    for place, row in enumerate(rows[block]):
        theirs = _signed(described, int(row))
        vectors[place, : len(theirs)], lengths[place, : len(theirs)] = theirs, _lengths(theirs)
    vectors, own_lengths = vectors.reshape(-1, own.shape[1]), _lengths(own)
    distance = _less_own(own, vectors, lengths.ravel()).reshape(len(own), len(block), width)
    nearest = distance.argmin(axis=2)[..., None]
    first = np.take_along_axis(distance, nearest, axis=2)[..., 0]
    np.put_along_axis(distance, nearest, _FAR, axis=2)
    first = (first + own_lengths[:, None]).astype(np.float32)
    second = (distance.min(axis=2) + own_lengths[:, None]).astype(np.float32)
    mine, image = np.nonzero(first < ratio**2 * second)
    column = image * width + nearest[mine, image, 0]
    # only a column's nearest can be mutual; whether it is shows in the distances from that column
    order = np.lexsort((mine, first[mine, image], column))
    order = order[np.diff(column[order], prepend=-1) > 0]
    mine, image, column = mine[order], image[order], column[order]
    mutual = _less_own(vectors[column], own, own_lengths).argmin(axis=1) == mine if len(column) else order > 0
    mine, image, column = mine[mutual], image[mutual], column[mutual]
    return block[image], mine, column - image * width, first[mine, image], second[mine, image]


def _signed(described: Described, row: int) -> np.ndarray:
    """An image's descriptors less 128, int8 (n, length)."""
    stored = described.vectors[described.offsets[row] : described.offsets[row + 1]]
    return (stored ^ np.uint8(_MIDDLE)).view(np.int8)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Squared lengths, int32 (n,). vectors: int8 (n, length)."""
    numbers = vectors.astype(np.float32)
    return np.einsum("ij,ij->i", numbers, numbers).astype(np.int32)


def _less_own(own: np.ndarray, other: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Squared distances less the squared lengths of `own`, whole numbers (n, m), exact.

    own, other: int8 (n, length) and (m, length). lengths: int32 (m,), those of `other`.
    """
    if _bytes_are_faster():
        return _by_bytes(own, other, lengths)
    return _by_floats(own, other, lengths)


def _by_bytes(own: np.ndarray, other: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    import torch

    multiply = getattr(torch, _BYTES)
    product = multiply(torch.from_numpy(own), torch.from_numpy(other).T)
    return torch.sub(torch.from_numpy(lengths), product, alpha=2, out=product).numpy()


def _by_floats(own: np.ndarray, other: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    left = np.column_stack([-2 * own.astype(np.float32), np.ones(len(own), np.float32)])
    return left @ np.column_stack([other.astype(np.float32), lengths.astype(np.float32)]).T


@cache
def _bytes_are_faster() -> bool:
    """Whether torch multiplies bytes here, rightly and faster than numpy multiplies floats; tried once."""
    import torch

    if not hasattr(torch, _BYTES):
        return False
    drawn = np.random.default_rng(0).integers(-_MIDDLE, _MIDDLE, (512, 128), dtype=np.int8)
    lengths, seconds, results = _lengths(drawn), [], []
    with _one_thread_each():
        for product in (_by_bytes, _by_floats):
            tries = []
            for _ in range(5):
                start = time.thread_time()  # of a processor: others may use it at the same time
                result = product(drawn, drawn, lengths)
                tries.append(time.thread_time() - start)
            results.append(result)
            seconds.append(min(tries))
    return bool(seconds[0] < seconds[1] and np.array_equal(*results))
