"""Pair score: images matched pair by pair, and how likely the two show one animal.

`match_score.py` considers the few nearest keypoints among those of all images: a mark that many animals share is lost
there. Matched with a single image it is found again. The query is matched with all images of the likeliest identities:
those with near keypoints, where matches in one arrangement count three times. A match is mutual and passes a wider
ratio test than that of `geometric_verification.py`.

Two steps are fitted. Trees say what each match is worth, as in `match_score.py`. Then trees say what a pair of images
is worth, from the sums of these scores and from counts of matches: all, those where the frames put them, and those that
agree with the pair's own similarity (`similarity.py`), which is found at any scale, turn and shift. Which of these
tell the truth differs: flanks of antelopes fill their frames alike, photographs of lions show the whole animal or its
nose. An image of another animal collects matches that count against it, which no number of matches does.

The second step must not see scores of matches that the first was fitted on. The first is therefore fitted several
times, on the queries of one fold, or of one half of a fold (`parts_of`): a pair is scored by the mean of the models
that did not see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy import sparse

from whaleid.config import LearnedConfig, PairsConfig, TreesConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.match_score import (
    FEATURES,
    MatchScorer,
    TrainingMatches,
    compare_points,
    fit_match_scorer,
    matches_of,
    query_chunks,
    sample_false_matches,
    sum_by_identity,
    supported,
)
from whaleid.local_matching.mutual import MutualMatches, matching_threads, mutual_matches
from whaleid.local_matching.pair_candidates import images_of_identities, in_turn
from whaleid.local_matching.similarity import MatchMoves, Similarities, find_similarities
from whaleid.local_matching.votes import Nearest, best_identities, scores_of
from whaleid.retrieval.identities import PADDING

MATCH_FEATURES = (
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


PAIR_FEATURES = (
    *(
        f"{name} of {kind}"
        for kind in ("all", "near", "agreeing", "close", "both")
        for name in ("number", "share left", "nearness", "distinct")
    ),
    "scale",
    "turn",
    "shift x",
    "shift y",
)
"""What is known of a pair of images before anything is fitted: of all its matches, of those where the frames put them,
those that agree with its similarity, those closer to it, and those that agree with both, their number, the sum of
1 - share of the second ^ 2, the sum of how much they are nearer than 0.5, and the number of those with a share of the
second below 0.8; then the similarity, with the shift of the frame's middle."""
_NEARNESS, _DISTINCT = 0.5, 0.8
_CLOSE = 0.02  # of `TOLERANCE` 0.05
_ARRANGED = 2.0  # additional weight of a supported match
_TELLING = 0.75
"""Share of the second up to which a match is scored wherever it lies. Others are scored where the frames or the
similarity put them: that leaves a fifth of all matches, and a better score (MAP@5 out of fold: lion 0.365, with all
matches 0.356; cow faces 0.827 and 0.822)."""
_PAIR_TREES = TreesConfig(num_iterations=60, num_leaves=7, min_data_in_leaf=50, false_per_true=20)
_NO_MATCH = -5.0  # log ratio of the best match of a pair without one that is scored
_TABLED = 256  # queries with a table of all identities at a time
_FEW_FOLDS = 3  # up to which folds are halved: with two left out, one fold alone must be scored by models without it


@dataclass(frozen=True)
class PairMatches:
    """Pairs of a query and an image with at least one match, sorted by query; those of their matches that are scored.

    Attributes
    ----------
    query : int64 array, shape (p,)
        Place of the pair's query.
    rows : int64 array, shape (p,)
        The image's row in images.parquet.
    features : float32 array, shape (p, len(PAIR_FEATURES))
    pair : int64 array, shape (m,)
        The match's pair, ascending.
    values : float32 array, shape (m, len(MATCH_FEATURES))
    agrees : bool array, shape (m,)
        Whether the match agrees with its pair's similarity.
    """

    query: np.ndarray
    rows: np.ndarray
    features: np.ndarray
    pair: np.ndarray
    values: np.ndarray
    agrees: np.ndarray


def likely_images(
    described: Described,
    frames: np.ndarray,
    queries: np.ndarray,
    codes: np.ndarray,
    classes: int,
    nearest: Nearest,
    config: LearnedConfig,
    most: int,
    by_networks: np.ndarray | None = None,
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
    by_networks : int64 array, shape (q, m), or None
        Identities that networks name, best first, -1 padded: they are taken in turn with those by keypoints.

    Returns
    -------
    int64 array, shape (q, most)
        Rows of images.parquet, best identity first, -1 padded.
    """
    gallery = np.flatnonzero(codes != PADDING)
    best = np.full((len(queries), min(most, classes)), PADDING)
    held = np.bincount(codes[gallery], described.counts(gallery), classes)
    for part, descriptors in query_chunks(described, queries):
        matches = matches_of(described, frames, queries[part], nearest.of(descriptors))
        agreed = supported(matches, described, frames, config)
        gain = 1 - matches.values[:, FEATURES.index("share of the last")].astype(np.float64) ** 2
        gain *= 1 + _ARRANGED * agreed
        sums = sum_by_identity(matches, gain, agreed, codes, part.stop - part.start, classes)["all"]
        best[part], _ = best_identities(scores_of(sums, held, config.power), best.shape[1])
    return images_of_identities(best if by_networks is None else in_turn(best, by_networks), codes, most)


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

    def match(place: int) -> PairMatches:
        rows = images[place][images[place] != PADDING]
        found = mutual_matches(described, int(queries[place]), rows, config.ratio)
        return _described_pairs(described, frames, int(queries[place]), rows, found, place)

    with matching_threads(workers) as pool:
        found = list(pool.map(match, range(len(queries))))
    before = np.cumsum([0, *(len(one.rows) for one in found)])
    moved = [replace(one, pair=one.pair + first) for one, first in zip(found, before[:-1], strict=True)]
    columns = [[getattr(one, field.name) for one in (_NOTHING, *moved)] for field in fields(PairMatches)]
    return PairMatches(*(np.concatenate(column) for column in columns))


def _described_pairs(
    described: Described, frames: np.ndarray, query: int, rows: np.ndarray, found: MutualMatches, place: int
) -> PairMatches:
    """The pairs of one query, at `place`, with the images `rows`."""
    if not len(found.image):
        return _NOTHING
    images, pair, counts = np.unique(found.image, return_inverse=True, return_counts=True)
    rows, points = rows[images], described.points
    assert points is not None
    one = points[described.offsets[query] + found.own]
    two = points[described.offsets[rows[pair]] + found.other]
    near, size, turn, at, shift = compare_points(one, two, frames[query], frames[rows[pair]])
    distance = np.sqrt(np.maximum(found.first, 0)) / described.unit
    share = np.sqrt(np.maximum(found.first, 0) / np.maximum(found.second, 1e-6))
    weight = (1 - share**2).astype(np.float32)
    longest, others = frames[query].max(), frames[rows].max(axis=1)
    relative = size + np.log(longest / others[pair])
    start, end = one[:, :2] / longest @ [1, 1j], two[:, :2] / others[pair][:, None] @ [1, 1j]
    similar = find_similarities(MatchMoves(start, end, relative, np.deg2rad(turn), weight), counts)
    middles = (frames[query] / longest @ [0.5, 0.5j]), (frames[rows] / others[:, None]) @ [0.5, 0.5j]
    features = _pair_features(pair, distance, share, weight, near, similar, middles)
    columns = (distance, share, size, turn, *shift.T, one[:, 2], *at.T, one[:, 3], found.own)
    kept = near | similar.agrees | (share < _TELLING)
    values = np.stack([np.asarray(column, dtype=np.float32)[kept] for column in columns], axis=1)
    return PairMatches(np.full(len(rows), place), rows, features, pair[kept], values, similar.agrees[kept])


def _pair_features(
    pair: np.ndarray,
    distance: np.ndarray,
    share: np.ndarray,
    weight: np.ndarray,
    near: np.ndarray,
    similar: Similarities,
    middles: tuple[complex, np.ndarray],
) -> np.ndarray:
    """float32 (p, len(PAIR_FEATURES)). middles: of the query's frame, and of each image's, complex (p,)."""
    agrees, columns = similar.agrees, []
    sums = np.ones(len(pair)), weight, np.maximum(_NEARNESS - distance, 0), share < _DISTINCT
    for kind in (np.ones(len(pair), bool), near, agrees, agrees & (similar.distance <= _CLOSE), agrees & near):
        columns += [np.bincount(pair, values * kind, len(middles[1])) for values in sums]
    shift = similar.factor * middles[0] + similar.shift - middles[1]
    turned = np.rad2deg(np.angle(similar.factor))
    columns += [np.log(np.abs(similar.factor)), turned, shift.real, shift.imag]
    return np.stack(columns, axis=1).astype(np.float32)


_NOTHING = PairMatches(
    query=np.zeros(0, np.int64),
    rows=np.zeros(0, np.int64),
    features=np.zeros((0, len(PAIR_FEATURES)), np.float32),
    pair=np.zeros(0, np.int64),
    values=np.zeros((0, len(MATCH_FEATURES)), np.float32),
    agrees=np.zeros(0, bool),
)


# ------------------------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class MatchParts:
    """Models of single matches, each fitted on a part of the labelled queries.

    Attributes
    ----------
    halves : int
        Parts of a fold, 1 or 2. Fold f has the parts halves * f and the next; a query is in the part of its place
        modulo `halves`.
    models : tuple of MatchScorer or None
        One a part; None where the part has no true match, or no false one.
    """

    halves: int
    models: tuple[MatchScorer | None, ...]

    def of_folds(self, folds: Sequence[int]) -> np.ndarray:
        """Which models are of these folds and not None, bool (parts,)."""
        return np.array([model is not None and k // self.halves in folds for k, model in enumerate(self.models)])

    def log_ratios(self, matches: PairMatches, fold: int | None) -> np.ndarray:
        """Log ratio of each match by each model that did not see it, float32 (m, parts), NaN where it did.

        fold: the queries' fold; None: no model saw them.
        """
        found = np.full((len(matches.pair), len(self.models)), np.nan, np.float32)
        half = matches.query[matches.pair] % self.halves
        for k, model in enumerate(self.models):
            if model is None:
                continue
            unseen = np.ones(len(half), bool) if k // self.halves != fold else half != k % self.halves
            found[unseen, k] = model.log_ratio(matches.values[unseen])
        return found


def parts_of(folds: int) -> int:
    """Parts of a fold (`MatchParts.halves`) where there are so many folds."""
    return 2 if folds <= _FEW_FOLDS else 1


def pair_training_matches(
    matches: PairMatches, truth: np.ndarray, codes: np.ndarray, halves: int, config: PairsConfig
) -> list[TrainingMatches]:
    """The matches of each part of a fold, for fitting.

    Parameters
    ----------
    matches : PairMatches
    truth : int64 array, shape (q,)
        True identities, -1 = unknown.
    codes : int64 array, shape (n,)
        Identity of every image.
    halves : int
        As in `MatchParts`.
    config : PairsConfig
    """
    same, half = same_identity(matches, truth, codes)[matches.pair], matches.query[matches.pair] % halves
    parts = [half == number for number in range(halves)]
    return [sample_false_matches(matches.values[part], same[part], config.false_per_true) for part in parts]


def same_identity(matches: PairMatches, truth: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Which pairs show one identity, bool (p,). truth: int64 (q,), -1 = unknown. codes: int64 (n,)."""
    true = truth[matches.query]
    return (true == codes[matches.rows]) & (true != PADDING)


def pair_values(matches: PairMatches, log_ratios: np.ndarray, models: np.ndarray) -> np.ndarray:
    """Features of each pair and sums of its matches' scores, float32 (p, len(PAIR_FEATURES) + 5).

    Parameters
    ----------
    matches : PairMatches
    log_ratios : float32 array, shape (m, parts)
        `MatchParts.log_ratios`.
    models : bool array, shape (parts,)
        Which models count. A match's score is their mean, without those that saw it; 0 where none is left.
    """
    given = log_ratios[:, models].astype(np.float64)
    known = ~np.isnan(given)
    score = np.where(known, given, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    for_it = np.maximum(score, 0)
    sums = [
        np.bincount(matches.pair, values, len(matches.rows))
        for values in (score, for_it, score * matches.agrees, for_it * matches.agrees)
    ]
    best = np.full(len(matches.rows), _NO_MATCH)
    np.maximum.at(best, matches.pair, score)
    return np.column_stack([matches.features, *sums, best]).astype(np.float32)


def fit_pair_scorer(tables: Sequence[tuple[np.ndarray, np.ndarray]]) -> MatchScorer | None:
    """Trees that say how likely a pair shows one identity; None where no pair does, or all do.

    tables: for each fold, `pair_values` and `same_identity` of its pairs.
    """
    given = [sample_false_matches(values, same, _PAIR_TREES.false_per_true) for values, same in tables]
    return fit_match_scorer(given, _PAIR_TREES)


# ------------------------------------------------------------------------------------------------------- ranking


def identity_scores(
    matches: PairMatches, score: np.ndarray, codes: np.ndarray, shape: tuple[int, int], rest: float
) -> sparse.csr_matrix:
    """What each query's matched identities score, float64 (q, c); identities without a matched image have no element.

    Parameters
    ----------
    matches : PairMatches
    score : float64 array, shape (p,)
        Log ratio of each pair.
    codes : int64 array, shape (n,)
        Identity of every image.
    shape : (int, int)
        Number of queries and of identities.
    rest : float
        Weight of what an identity's images score together, beside its best image.
    """
    cells, place = np.unique(matches.query * shape[1] + codes[matches.rows], return_inverse=True)
    best = np.full(len(cells), -np.inf)
    np.maximum.at(best, place, score)
    together = np.bincount(place, np.maximum(score, 0), len(cells))
    return sparse.csr_matrix((best + rest * together, (cells // shape[1], cells % shape[1])), shape)


def score_candidates(scores: sparse.csr_matrix, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The identities that score best.

    Parameters
    ----------
    scores : sparse matrix, shape (q, c)
        As from `identity_scores`.
    keep : int
        Width of the lists.

    Returns
    -------
    int64 and float32 arrays, shape (q, keep)
        Codes, -1 padded, and scores, descending, -inf padded. Only identities with an element are listed.
    """
    queries = len(scores.indptr) - 1
    found = np.empty((queries, keep), dtype=np.int64), np.empty((queries, keep), dtype=np.float32)
    for start in range(0, queries, _TABLED):
        part = scores[start : start + _TABLED].tocoo()
        table = np.full(part.shape, -np.inf)
        table[part.row, part.col] = part.data
        found[0][start : start + _TABLED], found[1][start : start + _TABLED] = best_identities(table, keep)
    return found
