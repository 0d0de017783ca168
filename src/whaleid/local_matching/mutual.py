"""Mutual nearest neighbours that pass the ratio test (Lowe, "Distinctive image features from scale-invariant
keypoints", 2004).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import LocalConfig, VerifyConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.matchers import Matcher


def make_matcher(described: Described, _images: pd.DataFrame, config: LocalConfig, _weights: Path) -> Matcher:
    """The matcher of a recipe."""
    return mutual_matcher(described, (config.verify or VerifyConfig()).ratio)


def mutual_matcher(described: Described, ratio: float) -> Matcher:
    """Matches by `mutual_matches`."""

    def match(query: int, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        vectors, _ = described.image(query)
        for row in rows:
            yield mutual_matches(vectors, described.image(int(row))[0], ratio)

    return match


def mutual_matches(query: np.ndarray, gallery: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of descriptors that are each other's nearest, nearer than `ratio` times the query's second nearest.

    Parameters
    ----------
    query : float32 array, shape (n, d)
    gallery : float32 array, shape (m, d)
    ratio : float

    Returns
    -------
    int64 arrays, shape (matches,)
        Places in each; none where the gallery has fewer than 2 descriptors. Of equal distances the first counts.
    """
    return matches_with_distances(query, gallery, ratio)[:2]


def matches_with_distances(
    query: np.ndarray, gallery: np.ndarray, ratio: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `mutual_matches`, with the squared distances float32 (matches,) to the nearest and the second nearest."""
    if not len(query) or len(gallery) < 2:
        none, nothing = np.empty(0, np.int64), np.empty(0, np.float32)
        return none, none, nothing, nothing
    distance = _squared_distances(query, gallery)
    rows, nearest = np.arange(len(query)), distance.argmin(axis=1)
    first = distance[rows, nearest]
    distance[rows, nearest] = np.inf
    second = distance.min(axis=1)
    distance[rows, nearest] = first
    kept = np.flatnonzero(first < ratio**2 * second)
    kept = kept[distance[:, nearest[kept]].argmin(axis=0) == kept]  # down the columns is slow: only for these few
    return kept, nearest[kept], first[kept], second[kept]


def _squared_distances(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """float32 (n, m), in one product: descriptors stored as bytes give whole numbers that float32 holds exactly."""
    left = np.column_stack([-2 * query, (query**2).sum(axis=1), np.ones(len(query), np.float32)])
    right = np.column_stack([gallery, np.ones(len(gallery), np.float32), (gallery**2).sum(axis=1)])
    return left @ right.T
