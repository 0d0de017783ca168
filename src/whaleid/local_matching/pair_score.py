"""Pair score: images matched pair by pair, each match weighted by a score that was fitted on other folds.

`match_score.py` considers the few nearest keypoints among those of all images: a mark that many animals share is lost
there. Matched with a single image it is found again. The query is matched with all images of the likeliest identities:
those with near keypoints, where matches in one arrangement count three times. A match is mutual and passes a wider
ratio test than that of `geometric_verification.py`, and trees say for or against:

    score(image) = sum over its matches of log p(match | same identity) - log p(match | different identities)

An image of another animal collects matches that count against it, which no number of matches does.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from whaleid.config import LearnedConfig, PairsConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.match_score import (
    FEATURES,
    MatchScorer,
    TrainingMatches,
    compare_points,
    matches_of,
    query_chunks,
    sample_false_matches,
    sum_by_identity,
    supported,
)
from whaleid.local_matching.mutual import matches_with_distances
from whaleid.local_matching.votes import Nearest, best_identities, scores_of
from whaleid.retrieval.identities import PADDING

PAIR_FEATURES = (
    "distance",
    "share of the second",
    "size ratio",
    "turn",
    "shift x",
    "shift y",
    "size",
    "x",
    "y",
    "direction",
    "strength",
)
_ARRANGED = 2.0  # additional weight of a supported match


@dataclass(frozen=True)
class PairMatches:
    """Matches of queries with single images, sorted by query.

    Attributes
    ----------
    query : int64 array, shape (m,)
        Place of the query.
    rows : int64 array, shape (m,)
        The image's row in images.parquet.
    values : float32 array, shape (m, len(PAIR_FEATURES))
    """

    query: np.ndarray
    rows: np.ndarray
    values: np.ndarray


def likely_images(
    described: Described,
    frames: np.ndarray,
    queries: np.ndarray,
    codes: np.ndarray,
    classes: int,
    nearest: Nearest,
    config: LearnedConfig,
    most: int,
) -> np.ndarray:
    """All images of the identities that look most like each query. Nothing is fitted.

    Whole identities, not the images that look most alike: those are the luckiest of hundreds and prove less (nyala,
    MAP@5 out of fold of the pairs alone 0.386 instead of 0.414).

    Parameters
    ----------
    described, frames, queries, codes, classes, nearest, config
        As for `match_score.match_score_candidates`.
    most : int
        Largest number of images of a query.

    Returns
    -------
    int64 array, shape (q, most)
        Rows of images.parquet, best identity first, -1 padded.
    """
    found = np.full((len(queries), most), PADDING)
    gallery = np.flatnonzero(codes != PADDING)
    order = gallery[np.argsort(codes[gallery], kind="stable")]
    ends = np.searchsorted(codes[order], np.arange(classes + 1))
    held = np.bincount(codes[gallery], described.counts(gallery), classes)
    for part, descriptors in query_chunks(described, queries):
        matches = matches_of(described, frames, queries[part], nearest.of(descriptors))
        agreed = supported(matches, described, frames, config)
        gain = 1 - matches.values[:, FEATURES.index("share of the last")].astype(np.float64) ** 2
        gain *= 1 + _ARRANGED * agreed
        sums = sum_by_identity(matches, gain, agreed, codes, part.stop - part.start, classes)["all"]
        best, _ = best_identities(scores_of(sums, held, config.power), min(most, classes))
        for place, row in zip(range(part.start, part.stop), best, strict=True):
            of_identities = [order[ends[code] : ends[code + 1]] for code in row[row != PADDING]]
            images = np.concatenate([np.empty(0, np.int64), *of_identities])[:most]
            found[place, : len(images)] = images
    return found


def match_pairs(
    described: Described,
    frames: np.ndarray,
    queries: np.ndarray,
    images: np.ndarray,
    config: PairsConfig,
    workers: int = 1,
) -> PairMatches:
    """Every query matched with its images.

    Parameters
    ----------
    described, frames, queries
        As for `match_score.matches_of`.
    images : int64 array, shape (q, n)
        Rows of images.parquet, -1 padded.
    config : PairsConfig
    workers : int
        Threads; the result does not depend on them.
    """

    def match(place: int) -> tuple[np.ndarray, np.ndarray]:
        rows = images[place][images[place] != PADDING]
        found = [_match(described, frames, int(queries[place]), int(row), config.ratio) for row in rows]
        values = np.concatenate([np.empty((0, len(PAIR_FEATURES)), np.float32), *found])
        return np.repeat(rows, [len(part) for part in found]), values

    # products of matrices release Python's lock; threads inside them as well would slow each other down
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(match, range(len(queries))))
    query = np.repeat(np.arange(len(queries)), [len(rows) for rows, _ in found])
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in found)])
    values = np.concatenate([np.empty((0, len(PAIR_FEATURES)), np.float32), *(values for _, values in found)])
    return PairMatches(query, rows, values)


def _match(described: Described, frames: np.ndarray, query: int, row: int, ratio: float) -> np.ndarray:
    """The matches of two images that agree roughly in size, direction and place, float32 (m, len(PAIR_FEATURES))."""
    (vectors, points), (other_vectors, other_points) = described.image(query), described.image(row)
    own, other, first, second = matches_with_distances(vectors, other_vectors, ratio)
    one, two = points[own], other_points[other]
    near, size, turn, at, shift = compare_points(one, two, frames[query], frames[row])
    first, second = np.maximum(first, 0), np.maximum(second, 1e-6)
    columns = (
        np.sqrt(first) / described.unit,
        np.sqrt(first / second),
        size,
        turn,
        *shift.T,
        one[:, 2],
        *at.T,
        one[:, 3],
        own,
    )
    return np.stack([np.asarray(column, dtype=np.float32)[near] for column in columns], axis=1)


def pair_training_matches(
    matches: PairMatches, truth: np.ndarray, codes: np.ndarray, config: PairsConfig
) -> TrainingMatches:
    """These matches for fitting. truth: int64 (q,), -1 = unknown. codes: int64 (n,), identity of every image."""
    true = truth[matches.query]
    same = (true == codes[matches.rows]) & (true != PADDING)
    return sample_false_matches(matches.values, same, config.false_per_true)


def pair_score_candidates(
    matches: PairMatches, model: MatchScorer | None, codes: np.ndarray, shape: tuple[int, int], rest: float, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """The identities whose images matched best.

    Parameters
    ----------
    matches : PairMatches
    model : MatchScorer or None
        None gives all matched identities the same score.
    codes : int64 array, shape (n,)
        Identity of every image.
    shape : (int, int)
        Number of queries and of identities.
    rest : float
        Weight of what an identity's images score together, beside its best image.
    keep : int
        Width of the lists.

    Returns
    -------
    int64 and float32 arrays, shape (q, keep)
        Codes, -1 padded, and scores, descending, -inf padded. Only identities with a matched image are listed.
    """
    ratio = np.zeros(len(matches.query)) if model is None else model.log_ratio(matches.values)
    pairs, inverse = np.unique(np.stack([matches.query, matches.rows]), axis=1, return_inverse=True)
    score = np.bincount(inverse.ravel(), ratio, pairs.shape[1])
    cells = pairs[0] * shape[1] + codes[pairs[1]]
    best = np.full(shape[0] * shape[1], -np.inf)
    np.maximum.at(best, cells, score)
    together = np.bincount(cells, np.maximum(score, 0), len(best))
    return best_identities((best + rest * together).reshape(shape), keep)
