"""Images that show the same photograph: equal files, and recompressed or resized copies.

Two criteria must agree. A perceptual hash is fast, but confuses photographs that share a composition, such as sea
under sky. So thumbnails of images with similar hashes are compared after the mean of each row and column is removed:
this takes away sky, horizon and vignette, which correlate at 0.99 between unrelated photographs, and keeps the animal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from whaleid.data.fingerprints import Fingerprints

HASH_DISTANCE = 6
"""Greatest Hamming distance of the 64-bit hashes of copies; unrelated images are about 32 apart. 95 % of the copies at
a third to four times the size, at JPEG quality 20, in grey, 20 % brighter or cropped by 1 % a side are within 6."""
CORRELATION = 0.95
"""Least correlation of the detail of two thumbnails of one photograph. Those copies reach 0.97 (featureless sea at
quality 20: 0.93); of 1,942 real, 1,400 drawn and 400 sea images, no unrelated pair with similar hashes passed 0.90."""
FLAT = 0.5
"""Standard deviation of a thumbnail's detail, in grey levels, below which there is nothing to compare."""
TILE = (64, 4096)
"""Hashes compared at once: their 2 MB of differences stay in the processor's cache."""
CONFIRM = 65_536
"""Pairs whose thumbnails are compared at once: 128 MB."""


def duplicate_components(found: Fingerprints, similar: bool = True) -> np.ndarray:
    """Photograph of each image: connected components of `duplicate_pairs`.

    similar: whether files that look alike are one photograph; otherwise, equal files are.

    Returns
    -------
    int64 array, shape (n,)
        Number of the photograph, from 0 in order of first appearance.
    """
    return connected(len(found.phash), duplicate_pairs(found) if similar else _equal_files(found.digest)[0])


def connected(n: int, pairs: np.ndarray) -> np.ndarray:
    """Connected component of each of n nodes, int64 (n,), numbered by first appearance. pairs: int (m, 2)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return pd.factorize(connected_components(graph, directed=False)[1])[0]


def duplicate_pairs(found: Fingerprints) -> np.ndarray:
    """Pairs of images that show the same photograph.

    Returns
    -------
    int64 array, shape (m, 2)
        Rows: each repeated file with its first occurrence, and among distinct files all pairs with similar hash and
        thumbnail.
    """
    repeated, firsts = _equal_files(found.digest)
    detail = standardised_detail(found.thumbnail[firsts])
    parts = [repeated]
    for left, right in similar_hashes(found.phash[firsts]):
        for start in range(0, len(left), CONFIRM):
            i, j = left[start : start + CONFIRM], right[start : start + CONFIRM]
            alike = np.einsum("nd,nd->n", detail[i], detail[j]) >= CORRELATION
            parts.append(firsts[np.column_stack([i[alike], j[alike]])])
    return np.concatenate(parts)


def _equal_files(digest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (m, 2) of a repeated file's first row and another of its rows; the first row of every file."""
    _, first, inverse = np.unique(digest, return_index=True, return_inverse=True)
    rows = np.arange(len(digest))
    repeated = first[inverse] != rows
    return np.column_stack([first[inverse[repeated]], rows[repeated]]), np.sort(first)


def similar_hashes(phash: np.ndarray, distance: int = HASH_DISTANCE) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row pairs (i < j) of hashes, uint64 (n,), within a Hamming distance, in portions.

    Brute force in tiles, about 10^9 pairs a second: 100,000 images take 5 s. faiss's binary index is not faster.
    """
    height, width = TILE
    for top in range(0, len(phash), height):
        block = phash[top : top + height, None]
        for start in range(top, len(phash), width):
            near = np.bitwise_count(block ^ phash[None, start : start + width]) <= distance
            i, j = np.nonzero(near)
            i, j = top + i, start + j
            above = i < j
            if above.any():
                yield i[above], j[above]


def standardised_detail(thumbnail: np.ndarray) -> np.ndarray:
    """Thumbnails without the mean of each row and column, with norm 1, so that dot products are correlations.

    Parameters
    ----------
    thumbnail : uint8 array, shape (n, side ** 2)

    Returns
    -------
    float32 array, shape (n, side ** 2)
        Flat thumbnails are 0 and thus similar to nothing.
    """
    side = math.isqrt(thumbnail.shape[1])
    detail = thumbnail.reshape(-1, side, side).astype(np.float32)
    detail -= detail.mean(axis=1, keepdims=True)
    detail -= detail.mean(axis=2, keepdims=True)
    detail = detail.reshape(thumbnail.shape)
    norm = np.linalg.norm(detail, axis=1, keepdims=True)
    return np.where(norm > FLAT * side, detail / np.maximum(norm, 1e-6), np.float32(0))
