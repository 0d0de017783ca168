"""How likely two images show one identity: P(same), from the whitened concatenation of all networks and keypoints.

A pair is described by its cosine and by how far the two images share their neighbours (Zhong, Zheng, Cao and Li,
"Re-ranking person re-identification with k-reciprocal encoding", 2017); where the recipe has local matching, the most
similar pairs also by how many of their keypoints agree. A logistic regression, fitted on pairs whose truth is known,
makes one probability of all: a few weights cannot learn a training set by heart, and few pairs show one identity. Pairs
are sparse: each image with its nearest ones, so that 100,000 images are a few million pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import KnnConfig, PairsConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.pair_score import PAIR_FEATURES, match_pairs
from whaleid.retrieval.approximate import open_for
from whaleid.retrieval.graph import find_neighbours
from whaleid.retrieval.identities import PADDING
from whaleid.retrieval.rerankers.reciprocal import reciprocal_codes
from whaleid.utils.errors import WhaleidError
from whaleid.utils.machine import cores

NEIGHBOURS = 50
"""Nearest images of each image that are compared with it: more than an identity has in nearly every data set of the
field."""
GALLERY_NEIGHBOURS = 100
"""Nearest labelled images of each image: as many as a ranking of images holds."""
MATCHED = 10
"""Most similar pairs of each image whose keypoints are matched, at about 1 ms of a core each: the million pairs of
100,000 images take a quarter of an hour of a core."""
_K1, _K2 = 20, 6  # of the k-reciprocal codes: the paper's
_CELLS = 1 << 24  # numbers gathered at a time: 64 MB
_PAIRS = 1 << 16  # pairs whose sparse codes are compared at a time


@dataclass(frozen=True)
class PairModel:
    """P(same) of a pair: logistic(weights @ values + offset).

    Attributes
    ----------
    weights : float64 array, shape (v,)
        Of the cosine, of the shared neighbours and, where keypoints are matched, of `matched_values`.
    offset : float
    """

    weights: np.ndarray
    offset: float

    def probability(self, values: np.ndarray) -> np.ndarray:
        """float64 (p,) of the pairs' values, float (p, v)."""
        from scipy.special import expit

        return expit(values @ self.weights + self.offset)


def nearest_pairs(embeddings: np.ndarray, rows: np.ndarray, config: KnnConfig) -> np.ndarray:
    """Pairs of images of which one is among the nearest of the other.

    Parameters
    ----------
    embeddings : float array, shape (n, d)
        Unit rows, of all images.
    rows : int64 array, shape (m,)
        The images that are paired.
    config : KnnConfig
        Its index.

    Returns
    -------
    int64 array, shape (p, 2)
        Places in `rows`, first < second, each pair once, ascending.
    """
    nearest = find_neighbours(embeddings[rows], NEIGHBOURS, config.index).rows
    first = np.repeat(np.arange(len(rows)), nearest.shape[1])
    pairs = np.sort(np.column_stack([first, nearest.ravel()]), axis=1)
    return distinct_pairs([pairs], len(rows))


def nearest_gallery_pairs(
    embeddings: np.ndarray,
    rows: np.ndarray,
    gallery: np.ndarray,
    config: KnnConfig,
    neighbours: int = GALLERY_NEIGHBOURS,
) -> np.ndarray:
    """Pairs of an image and one of its nearest labelled images, int64 (p, 2): places in `rows` and in `gallery`."""
    most = min(neighbours, len(gallery))
    queries = embeddings[rows]
    _, nearest = open_for(queries, embeddings[gallery], most, config.index).search(queries, most)
    pairs = np.column_stack([np.repeat(np.arange(len(rows)), nearest.shape[1]), nearest.ravel()])
    return pairs[pairs[:, 1] >= 0]


def distinct_pairs(tables: Sequence[np.ndarray], width: int) -> np.ndarray:
    """All pairs of several tables, each once, ascending. width: above every second place."""
    keys = np.unique(np.concatenate([table[:, 0] * width + table[:, 1] for table in tables]))
    return np.column_stack([keys // width, keys % width])


def pair_values(embeddings: np.ndarray, rows: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """What is known of each pair: its cosine, and the Jaccard similarity of its images' k-reciprocal codes.

    Parameters
    ----------
    embeddings : float array, shape (n, d)
        Unit rows, of all images.
    rows : int64 array, shape (m,)
        The images among which neighbours are looked for.
    pairs : int64 array, shape (p, 2)
        Places in `rows`.

    Returns
    -------
    float32 array, shape (p, 2)
    """
    nodes = np.ascontiguousarray(embeddings[rows], dtype=np.float32)
    nearest = find_neighbours(nodes, max(_K1, _K2 - 1))
    codes = reciprocal_codes(nodes, nearest, min(_K1, max(1, len(rows) - 1)), _K2)
    values = np.empty((len(pairs), 2), dtype=np.float32)
    step = max(1, min(_PAIRS, _CELLS // nodes.shape[1]))
    for start in range(0, len(pairs), step):
        first, second = pairs[start : start + step].T
        shared: Any = codes[first].minimum(codes[second]).sum(axis=1)
        values[start : start + step, 0] = np.einsum("ij,ij->i", nodes[first], nodes[second])
        values[start : start + step, 1] = shared / (2 - shared)
    return values


def matched_values(
    described: Described, frames: np.ndarray, first: np.ndarray, second: np.ndarray, cosine: np.ndarray
) -> np.ndarray:
    """What keypoints say of the pairs that are among the most similar of either image.

    Parameters
    ----------
    described : Described
        Keypoints of all images, with their points.
    frames : float array, shape (n, 2)
        Width and height of every image as described.
    first, second : int64 arrays, shape (p,)
        Rows of images.parquet.
    cosine : float array, shape (p,)

    Returns
    -------
    float32 array, shape (p, 2)
        Logarithm of 1 + the weight of the matches that agree with the pair's similarity; whether the pair was matched.
    """
    chosen = np.flatnonzero(_most_similar(first, cosine) | _most_similar(second, cosine))
    order = chosen[np.argsort(first[chosen], kind="stable")]
    queries, place, counts = np.unique(first[order], return_inverse=True, return_counts=True)
    column = np.arange(len(order)) - (np.cumsum(counts) - counts)[place]
    images = np.full((len(queries), counts.max(initial=1)), PADDING, dtype=np.int64)
    images[place, column] = second[order]
    found = match_pairs(described, frames, queries, images, PairsConfig(), cores())
    agreeing = np.zeros(images.shape, dtype=np.float32)
    weight = np.log1p(found.features[:, PAIR_FEATURES.index("share left of agreeing")])
    for query in np.unique(found.query):
        of_query = slice(*np.searchsorted(found.query, (query, query + 1)))
        agreeing[query] = pd.Series(weight[of_query], found.rows[of_query]).reindex(images[query], fill_value=0.0)
    values = np.zeros((len(first), 2), dtype=np.float32)
    values[order] = np.column_stack([agreeing[place, column], np.ones(len(order))])
    return values


def _most_similar(end: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """Whether a pair is among the MATCHED most similar ones with its image at this end, bool (p,)."""
    order = np.lexsort((-cosine, end))
    _, starts, counts = np.unique(end[order], return_index=True, return_counts=True)
    rank = np.empty(len(end), dtype=np.int64)
    rank[order] = np.arange(len(end)) - np.repeat(starts, counts)
    return rank < MATCHED


def fit_pair_model(values: np.ndarray, same: np.ndarray) -> PairModel:
    """The logistic regression of pairs whose truth is known.

    Parameters
    ----------
    values : float array, shape (p, v)
        From `pair_values` and `matched_values`.
    same : bool array, shape (p,)

    Raises
    ------
    WhaleidError
        Where no pair shows one identity, or all do.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not same.any() or same.all():
        raise WhaleidError(
            f"P(same): {same.sum()} of {len(same)} pairs out of fold show one identity, and some of both kinds are "
            "needed to fit it; take fewer folds, so that a fold holds several images of an identity"
        )
    scaler, regression = make_pipeline(StandardScaler(), LogisticRegression()).fit(values, same).named_steps.values()
    weights = regression.coef_[0] / scaler.scale_
    return PairModel(weights, float(regression.intercept_[0] - weights @ scaler.mean_))
