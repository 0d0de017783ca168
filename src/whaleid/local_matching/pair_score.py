"""Pictures matched pair by pair, each match weighed by what matches of the other folds taught.

`local_matching/match_score.py` looks at the few nearest keypoints among those of all images: a mark that many animals
share is
lost there. Matched with one picture alone it is found again. The query is matched with all pictures of the likeliest
identities: those whose keypoints were near, matches in one arrangement counted three times. A match is mutual, nearly
as near as any other allowed (a wider ratio test than that of `local_matching/geometric_verification.py`), and trees
say for or against:

    score(picture) = sum over its matches of log p(match | same) - log p(match | other)

A picture of another animal collects matches that speak against it, which no count of matches does.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from whaleid.config import LearnedConfig, PairsConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.match_score import (
    FARTHEST,
    FEATURES,
    LARGEST,
    WIDEST,
    Evidence,
    Lesson,
    in_chunks,
    matches_of,
    some_false,
    sums_of,
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
_ARRANGED = 2.0  # how much more a supported match counts


@dataclass(frozen=True)
class PairMatches:
    """Matches of queries with single pictures. asker: int64 (m,), place of the query. rows: int64 (m,), the picture
    in images.parquet. values: float32 (m, len(PAIR_FEATURES)). Sorted by asker.
    """

    asker: np.ndarray
    rows: np.ndarray
    values: np.ndarray


def likely_pictures(
    described: Described,
    frames: np.ndarray,
    queries: np.ndarray,
    codes: np.ndarray,
    classes: int,
    nearest: Nearest,
    config: LearnedConfig,
    most: int,
) -> np.ndarray:
    """All pictures of the identities that look most like each query, best identity first, int64 (q, most), -1 padded.

    Arguments as `evidence.evidence_candidates`. Nothing is learnt: any fold may look at what is found for another.
    Whole identities, not the pictures that look most alike: those are the luckiest of hundreds and prove less (nyala,
    MAP@5 out of fold of the pairs alone 0.386 instead of 0.414).
    """
    found = np.full((len(queries), most), PADDING)
    gallery = np.flatnonzero(codes != PADDING)
    order = gallery[np.argsort(codes[gallery], kind="stable")]
    ends = np.searchsorted(codes[order], np.arange(classes + 1))
    held = np.bincount(codes[gallery], described.counts(gallery), classes)
    for part, descriptors in in_chunks(described, queries):
        matches = matches_of(described, frames, queries[part], nearest.of(descriptors))
        agreed = supported(matches, config)
        gain = 1 - matches.values[:, FEATURES.index("share of the last")].astype(np.float64) ** 2
        gain *= 1 + _ARRANGED * agreed
        sums = sums_of(matches, gain, agreed, codes, part.stop - part.start, classes)["all"]
        best, _ = best_identities(scores_of(sums, held, config.power), min(most, classes))
        for place, row in zip(range(part.start, part.stop), best, strict=True):
            own = [order[ends[code] : ends[code + 1]] for code in row[row != PADDING]]
            pictures = np.concatenate([np.empty(0, np.int64), *own])[:most]
            found[place, : len(pictures)] = pictures
    return found


def match_pairs(
    described: Described,
    frames: np.ndarray,
    queries: np.ndarray,
    pictures: np.ndarray,
    config: PairsConfig,
    workers: int = 1,
) -> PairMatches:
    """Every query matched with its pictures. pictures: int64 (q, n), -1 padded. workers: threads; they change
    nothing.
    """

    def one(place: int) -> tuple[np.ndarray, np.ndarray]:
        own = pictures[place][pictures[place] != PADDING]
        found = [_match(described, frames, int(queries[place]), int(row), config.ratio) for row in own]
        values = np.concatenate([np.empty((0, len(PAIR_FEATURES)), np.float32), *found])
        return np.repeat(own, [len(part) for part in found]), values

    # products of matrices let other threads run; threads inside them as well would crowd each other out
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(one, range(len(queries))))
    asker = np.repeat(np.arange(len(queries)), [len(rows) for rows, _ in found])
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in found)])
    values = np.concatenate([np.empty((0, len(PAIR_FEATURES)), np.float32), *(values for _, values in found)])
    return PairMatches(asker, rows, values)


def _match(described: Described, frames: np.ndarray, query: int, row: int, ratio: float) -> np.ndarray:
    """The matches of two pictures that agree roughly in size, direction and place, float32 (m, len(PAIR_FEATURES))."""
    (vectors, points), (other_vectors, other_points) = described.image(query), described.image(row)
    own, other, first, second = matches_with_distances(vectors, other_vectors, ratio)
    one, two = points[own], other_points[other]
    size = np.log(two[:, 2] / one[:, 2])
    turn = (two[:, 3] - one[:, 3] + 180) % 360 - 180
    at = one[:, :2] / frames[query]
    shift = two[:, :2] / frames[row] - at
    near = (np.abs(size) <= LARGEST) & (np.abs(turn) <= WIDEST) & (np.abs(shift).max(axis=1, initial=0) <= FARTHEST)
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


def pair_lesson(matches: PairMatches, truth: np.ndarray, codes: np.ndarray, config: PairsConfig) -> Lesson:
    """What these matches teach. truth: int64 (q,), -1 = unknown. codes: int64 (n,), identity of every image."""
    own = truth[matches.asker]
    return some_false(matches.values, (own == codes[matches.rows]) & (own != PADDING), config.others)


def pair_candidates(
    matches: PairMatches, model: Evidence | None, codes: np.ndarray, shape: tuple[int, int], rest: float, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """The identities whose pictures matched best. shape: number of queries and of identities.

    Returns codes int64 (q, keep), -1 padded, and scores float32 (q, keep), descending, -inf padded. Identities none of
    whose pictures was matched are not listed. A model that is None knows nothing: all that were matched are equal.
    """
    ratio = np.zeros(len(matches.asker)) if model is None else model.ratio(matches.values)
    pairs, inverse = np.unique(np.stack([matches.asker, matches.rows]), axis=1, return_inverse=True)
    score = np.bincount(inverse.ravel(), ratio, pairs.shape[1])
    cells = pairs[0] * shape[1] + codes[pairs[1]]
    best = np.full(shape[0] * shape[1], -np.inf)
    np.maximum.at(best, cells, score)
    together = np.bincount(cells, np.maximum(score, 0), len(best))
    return best_identities((best + rest * together).reshape(shape), keep)
