"""Pairs of queries: photographs to identify that show one animal answer together.

A test set often has several photographs of an animal, of one encounter or of several, and one of them may match a
gallery image that the others do not. So queries are matched with one another, too, by the learned scores of
`pair_score.py`. An identity's score for a query is its own and, of every other query that may show the same animal, the
positive score times the probability that it does:

    score'(q, i) = score(q, i) + sum over q' of p(q, q') max(score(q', i), 0)

p is a logistic function of the pair's log ratio, fitted on the pairs of the other folds' queries. No label of these
queries is read. Out of fold, the queries of one fold are such a test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import expit

from whaleid.config import LearnedConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.match_score import query_chunks
from whaleid.local_matching.pair_candidates import in_turn
from whaleid.local_matching.pair_score import PairMatches, likely_images
from whaleid.local_matching.votes import Nearest, nearest_descriptors
from whaleid.retrieval.identities import PADDING

MOST = 8
"""Other queries that each query is matched with (nyala, 20 pairs a query, pairs alone, by keypoints only, MAP@5 out of
fold: 0.402 with none, 0.416 with 2, 0.418 with 4, 0.418 with 12)."""
_LEAST = 0.05
"""Probability below which two queries do not answer together: many that do not show one animal would outweigh the few
that do (nyala, 20 pairs a query, pairs alone, MAP@5 out of fold: 0.418 with 0.05, 0.415 with 0.02, 0.406 with 0.005,
0.402 without other queries)."""


@dataclass(frozen=True)
class Likeness:
    """Probability that two queries show one animal: expit(slope * log ratio of the pair + level)."""

    slope: float
    level: float

    def of(self, score: np.ndarray) -> np.ndarray:
        """Probabilities float64 (p,). score: float64 (p,), log ratios."""
        return expit(self.slope * score + self.level)


def likely_queries(
    described: Described,
    frames: np.ndarray,
    queries: np.ndarray,
    groups: Sequence[np.ndarray],
    config: LearnedConfig,
    by_networks: np.ndarray | None = None,
) -> np.ndarray:
    """The other queries that look most like each query, by their near keypoints and by networks. Nothing is fitted.

    Parameters
    ----------
    described, frames, queries
        As for `match_score.matches_of`.
    groups : sequence of int64 arrays
        Places of queries that may be compared with one another.
    config : LearnedConfig
    by_networks : int64 array, shape (q, m), or None
        Rows of images.parquet that networks name, best first, -1 padded, taken in turn with those by keypoints.

    Returns
    -------
    int64 array, shape (q, MOST)
        Rows of images.parquet, most alike first, -1 padded.
    """
    found = np.full((len(queries), MOST), PADDING)
    for places in groups:
        rows = queries[places]
        if len(rows) < 2:
            continue
        codes = np.full(len(described.offsets) - 1, PADDING)
        codes[rows] = np.arange(len(rows))  # every query as an identity of one image
        nearest = nearest_others(described, rows, config.neighbours)
        if nearest.places.shape[1] > 1:
            found[places] = likely_images(described, frames, rows, codes, len(rows), nearest, config, MOST)
    return found if by_networks is None else in_turn(found, by_networks)[:, :MOST]


def nearest_others(described: Described, queries: np.ndarray, neighbours: int) -> Nearest:
    """The nearest descriptors of other queries, of each of the queries' descriptors.

    In place of an image's own ones stand places of -1 at the end, with the distance of the last one of another image.
    """
    found = nearest_descriptors(described, queries, queries, neighbours + 1)
    for part, descriptors in query_chunks(described, queries):
        distance, places = found.distance[descriptors], found.places[descriptors]
        own = described.image_of(places) == np.repeat(queries[part], described.counts(queries[part]))[:, None]
        last = np.where(own, 0, distance).max(axis=1, keepdims=True, initial=0)
        order = np.argsort(own, axis=1, kind="stable")
        found.distance[descriptors] = np.take_along_axis(np.where(own, last, distance), order, axis=1)
        found.places[descriptors] = np.take_along_axis(np.where(own, PADDING, places), order, axis=1)
    return Nearest(found.distance[:, :neighbours], found.places[:, :neighbours])


def fit_likeness(tables: Sequence[tuple[np.ndarray, np.ndarray]]) -> Likeness | None:
    """What a pair's log ratio says of two queries; None where no pair shows one animal, all do, or it says nothing.

    tables: for each fold, the log ratios of pairs of its queries, and which of them show one identity.
    """
    from sklearn.linear_model import LogisticRegression

    score, same = (np.concatenate(column) for column in zip(*tables, strict=True))
    if same.all() or not same.any():
        return None
    fitted = LogisticRegression().fit(score[:, None], same)
    slope, level = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return Likeness(slope, level) if slope > 0 else None


def same_animal(matches: PairMatches, queries: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of queries of which it is known whether they show one identity, int64, and whether they do, bool.

    Of two queries without a known identity it is not known.

    Parameters
    ----------
    matches : PairMatches
    queries : int64 array, shape (q,)
        Rows of images.parquet.
    truth : int64 array, shape (q,)
        True identities, -1 = unknown.
    """
    one, two = truth[matches.query], truth[_places(matches, queries)]
    known = np.flatnonzero((one != PADDING) | (two != PADDING))
    return known, (one == two)[known]


def answering_together(
    scores: sparse.csr_matrix, matches: PairMatches, score: np.ndarray, queries: np.ndarray, likeness: Likeness | None
) -> sparse.csr_matrix:
    """Scores of identities for each query with those of the queries that may show the same animal.

    Parameters
    ----------
    scores : sparse matrix, shape (q, c)
        As from `pair_score.identity_scores`.
    matches : PairMatches
        Of queries with queries.
    score : float64 array, shape (p,)
        Log ratio of each pair.
    queries : int64 array, shape (q,)
        Rows of images.parquet.
    likeness : Likeness or None
        None: each query answers alone.
    """
    if likeness is None:
        return scores
    probability = likeness.of(score)
    used = probability >= _LEAST
    cells = matches.query[used], _places(matches, queries)[used]
    table = sparse.csr_matrix((probability[used], cells), (len(queries), len(queries)))
    return (scores + table.maximum(table.T) @ scores.maximum(0)).tocsr()


def _places(matches: PairMatches, queries: np.ndarray) -> np.ndarray:
    """Place of each pair's second query."""
    order = np.argsort(queries)
    return order[np.searchsorted(queries, matches.rows, sorter=order)]
