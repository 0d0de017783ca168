"""Which images are the same photograph: equal files, and recompressed or resized copies.

Two signs must agree. A perceptual hash is quick to compare, but takes two seas under two skies for one
picture. So thumbnails of near hashes are compared by what is left of them without the mean of each row and
column: that takes away sky, horizon and vignette, which correlate at 0.99 between photographs that have
nothing else in common, and leaves the animal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from whaleid.data.fingerprints import Fingerprints

HASH_DISTANCE = 6
"""Bits of 64 in which the hashes of one photograph's copies may differ. Unrelated pictures lie around 32.
Copies at a third to four times the size, at JPEG quality 20, in grey, 20 % brighter or cropped by 1 % a side
stay within 6, save one in twenty."""
CORRELATION = 0.95
"""Least correlation of the detail of two thumbnails that show one photograph. Those copies reach 0.97 and
more (sea without a feature at quality 20: 0.93). Of 1,942 real, 1,400 drawn and 400 sea pictures, no two
others with near hashes passed 0.90."""
FLAT = 0.5
"""Standard deviation of a thumbnail's detail, in grey levels, below which there is nothing to compare."""
TILE = (64, 4096)
"""Hashes compared at a time: their 2 MB of differences stay in the processor's cache."""
CONFIRM = 65_536
"""Pairs whose thumbnails are compared at a time: 128 MB."""


def duplicate_components(found: Fingerprints) -> np.ndarray:
    """Number of the photograph that each image is a copy of, int64 (n,), from 0 in order of first appearance.

    Images of one connected component of `duplicate_pairs` have the same number; most images have their own.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(found.phash)
    pairs = duplicate_pairs(found)
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return renumbered(connected_components(graph, directed=False)[1])


def duplicate_pairs(found: Fingerprints) -> np.ndarray:
    """Pairs of rows that show the same photograph, int64 (m, 2): enough of them to connect every copy.

    Equal files are chained, without comparing pictures. Among the rest, near in hash and alike in thumbnail.
    """
    chained, firsts = _equal_files(found.digest)
    detail = standardised_detail(found.thumbnail[firsts])
    parts = [chained]
    for left, right in _near_hashes(found.phash[firsts]):
        for start in range(0, len(left), CONFIRM):
            one, other = left[start : start + CONFIRM], right[start : start + CONFIRM]
            alike = np.einsum("nd,nd->n", detail[one], detail[other]) >= CORRELATION
            parts.append(firsts[np.column_stack([one[alike], other[alike]])])
    return np.concatenate(parts)


def renumbered(labels: np.ndarray) -> np.ndarray:
    """The same parts numbered from 0 in the order in which they first appear, int64 (n,)."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _equal_files(digest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (m, 2) of a repeated file's first row and another of its rows; the first row of every file."""
    _, first, inverse = np.unique(digest, return_index=True, return_inverse=True)
    rows = np.arange(len(digest))
    repeated = first[inverse] != rows
    return np.column_stack([first[inverse[repeated]], rows[repeated]]), np.sort(first)


def _near_hashes(phash: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row pairs (i < j) within HASH_DISTANCE, in portions.

    All pairs by XOR and bit count in tiles that stay in cache, about 10^9 pairs a second: 33,000 images take
    under a second and 100,000 about 5, exactly. Bands of bits (pigeonhole) would need seven of nine bits for
    this distance, with over a hundred images in every bucket; faiss's binary index is not lighter to load.
    """
    height, width = TILE
    for top in range(0, len(phash), height):
        block = phash[top : top + height, None]
        for start in range(top, len(phash), width):
            near = np.bitwise_count(block ^ phash[None, start : start + width]) <= HASH_DISTANCE
            flat = np.flatnonzero(near)
            left, right = top + flat // near.shape[1], start + flat % near.shape[1]
            above = left < right
            if above.any():
                yield left[above], right[above]


def standardised_detail(thumbnail: np.ndarray) -> np.ndarray:
    """What thumbnails show beyond each row's and column's mean, with norm 1: dot products are correlations.

    thumbnail: uint8 (n, side * side). Returns float32 (n, side * side); flat ones are 0 and so like nothing.
    """
    side = math.isqrt(thumbnail.shape[1])
    detail = thumbnail.reshape(-1, side, side).astype(np.float32)
    detail -= detail.mean(axis=1, keepdims=True)
    detail -= detail.mean(axis=2, keepdims=True)
    detail = detail.reshape(thumbnail.shape)
    norm = np.linalg.norm(detail, axis=1, keepdims=True)
    return np.where(norm > FLAT * side, detail / np.maximum(norm, 1e-6), np.float32(0))
