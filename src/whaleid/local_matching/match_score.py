"""Learned match score: how much a match of two keypoints supports an identity, fitted on matches whose truth is known.

Votes (`votes.py`) weigh a match by its distance alone. Two images of one animal agree in more: its marks lie at about
the same place, size and direction of the frame, on the animal and not on the ground beside it, and they agree with one
another. All of that describes a match, and trees (Ke et al., "LightGBM", 2017) fitted on out-of-fold queries say how
much likelier such a match is between two images of one identity than of two:

    score(match) = max(0, log p(match | same identity) - log p(match | different identities))

An identity has the sum over its matches, the sum over those that other matches of the same image support (as votes for
one arrangement: Jegou, Douze and Schmid, "Hamming embedding and weak geometric consistency", 2008), or the supported
sum of its best image. No feature names an identity or an image. Which folds a model is fitted on is decided by the
caller (the ensemble's ranker).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from whaleid.config import LearnedConfig, TreesConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.votes import Nearest, best_identities, chunks, scores_of
from whaleid.retrieval.identities import PADDING

if TYPE_CHECKING:
    import lightgbm as lgb

FORMS = ("all", "supported", "image")
"""Sum over an identity's matches; over its supported ones; over the supported ones of its best image."""
FEATURES = (
    "distance",
    "distance of the last",
    "share of the last",
    "share of the first",
    "place",
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
_LARGEST = np.log(2.0)  # log ratio of sizes; wider than between two similarly framed images of one animal
_WIDEST = 60.0  # degrees, likewise
_FARTHEST = 0.4  # share of the frame, likewise
_CONSPICUOUS = 0.85
"""A match nearer than this share of a chance match's distance counts wherever it lies in the frame, at any scale: an
image may show a part of another. Others are true hardly more often than by chance unless the frame speaks for them.
MAP@5 out of fold with 0.85 and 0.9: lion 0.408 and 0.398, nyala (a third of the queries) 0.414 and 0.404, cow faces
0.824 and 0.823; without this rule 0.198, 0.392 and 0.817."""
_SEED = 0


@dataclass(frozen=True)
class Matches:
    """Matches of some queries' keypoints that agree roughly in size, direction and place.

    Attributes
    ----------
    query : int64 array, shape (m,)
        Place of the query.
    rows : int64 array, shape (m,)
        The gallery image's row in images.parquet.
    keypoint, gallery_keypoint : int64 arrays, shape (m,)
        The two descriptors (rows of `Described.vectors`).
    values : float32 array, shape (m, len(FEATURES))
    """

    query: np.ndarray
    rows: np.ndarray
    keypoint: np.ndarray
    gallery_keypoint: np.ndarray
    values: np.ndarray


def matches_of(described: Described, frames: np.ndarray, queries: np.ndarray, nearest: Nearest) -> Matches:
    """Every neighbour but the last of each keypoint that is conspicuously near, or roughly where the frames put it.

    Parameters
    ----------
    described : Described
    frames : float array, shape (n, 2)
        Width and height of every image as described.
    queries : int64 array, shape (q,)
        Rows of images.parquet.
    nearest : Nearest
        Of these queries' descriptors, in their order. The last neighbour's distance is that of a chance match.
    """
    assert described.points is not None
    keypoints = described.places(queries)
    query = np.repeat(np.arange(len(queries)), described.counts(queries))
    strength = keypoints - described.offsets[queries][query]
    descriptor, place = np.nonzero(nearest.places[:, :-1] != PADDING)
    gallery_keypoint = nearest.places[descriptor, place].astype(np.int64)
    rows = described.image_of(gallery_keypoint)
    one, two = described.points[keypoints[descriptor]], described.points[gallery_keypoint]
    near, ratio, turn, at, shift = compare_points(one, two, frames[queries[query[descriptor]]], frames[rows])
    distance = np.sqrt(np.maximum(nearest.distance, 0)) / described.unit
    chance = np.maximum(np.where(nearest.places != PADDING, distance, 0).max(axis=1), 1e-6)
    own_distance = distance[descriptor, place]
    columns = (
        own_distance,
        chance[descriptor],
        own_distance / chance[descriptor],
        own_distance / np.maximum(distance[descriptor, 0], 1e-6),
        place,
        ratio,
        turn,
        *shift.T,
        one[:, 2],
        *at.T,
        one[:, 3],
        strength[descriptor],
    )
    kept = near | (own_distance <= _CONSPICUOUS * chance[descriptor])
    values = np.stack([np.asarray(column, dtype=np.float32)[kept] for column in columns], axis=1)
    descriptor = descriptor[kept]
    return Matches(query[descriptor], rows[kept], keypoints[descriptor], gallery_keypoint[kept], values)


def compare_points(
    one: np.ndarray, two: np.ndarray, frame: np.ndarray, other_frame: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """How matched points differ.

    Parameters
    ----------
    one, two : float32 arrays, shape (m, 4)
        Matched points (`detectors.Found`).
    frame, other_frame : float arrays, shape (m, 2) or (2,)
        Width and height of their images.

    Returns
    -------
    bool array, shape (m,)
        Whether the points agree roughly in size, direction and place.
    float arrays, shape (m,), (m,), (m, 2), (m, 2)
        Log ratio of sizes, turn in degrees, place of the first in its frame, shift as a share of the frames.
    """
    ratio = np.log(two[:, 2] / one[:, 2])
    turn = (two[:, 3] - one[:, 3] + 180) % 360 - 180
    at = one[:, :2] / frame
    shift = two[:, :2] / other_frame - at
    near = (np.abs(ratio) <= _LARGEST) & (np.abs(turn) <= _WIDEST)
    return near & (np.abs(shift).max(axis=1, initial=0) <= _FARTHEST), ratio, turn, at, shift


def supported(matches: Matches, described: Described, frames: np.ndarray, config: LearnedConfig) -> np.ndarray:
    """Which matches another match of the same two images agrees with in size, turn and place, bool (m,).

    The two must be of different keypoints on both sides. Their places agree where both shift alike in the frames, or
    where the segment between them is scaled and turned as the keypoints are: two similarities that are one, whatever
    part of the other image is shown. Cost: the square of the number of matches of two images.
    """
    order = np.lexsort((matches.rows, matches.query))
    own, other, rows = matches.keypoint[order], matches.gallery_keypoint[order], matches.rows[order]
    moves = _moves(matches.values[order], described, frames, own, other)
    starts = np.diff(matches.query[order], prepend=-1).astype(bool) | np.diff(rows, prepend=-1).astype(bool)
    pair = np.cumsum(starts)
    found, left, lag = np.zeros(len(order), dtype=bool), np.arange(len(order)), 0
    while len(left):  # matches `lag` places apart in the order, as long as any two are of the same images
        lag += 1
        left = left[left + lag < len(order)]
        left = left[pair[left] == pair[left + lag]]
        agree = (own[left] != own[left + lag]) & (other[left] != other[left + lag])
        one = left[agree]
        one = one[moves.agree(one, one + lag, config)]
        found[order[one]] = found[order[one + lag]] = True
    return found


@dataclass(frozen=True)
class _Moves:
    """How each match takes its place in one image to its place in the other.

    Places are complex numbers, of which a similarity is one product and one sum, as shares of the images' longer sides.
    """

    ratio: np.ndarray
    turn: np.ndarray
    shift: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def agree(self, one: np.ndarray, two: np.ndarray, config: LearnedConfig) -> np.ndarray:
        """Whether these matches agree, bool (m,). one, two: int64 (m,), places of matches of the same two images."""
        turn = (self.turn[two] - self.turn[one] + 180) % 360 - 180
        alike = np.abs(self.ratio[one] - self.ratio[two]) <= np.log(config.scale)
        alike &= np.abs(turn) <= config.turn
        left = np.flatnonzero(alike)
        one, two, turn = one[left], two[left], turn[left]
        shifted = (np.abs(self.shift[one] - self.shift[two]) <= config.shift).all(axis=1)
        mean = (self.ratio[one] + self.ratio[two]) / 2 + 1j * np.deg2rad(self.turn[one] + turn / 2)
        segment, other_segment = self.start[two] - self.start[one], self.end[two] - self.end[one]
        off = np.abs(other_segment * np.exp(-mean / 2) - segment * np.exp(mean / 2))  # the same from either image
        alike[left] = shifted | (off <= config.shift)
        return alike


def _moves(values: np.ndarray, described: Described, frames: np.ndarray, own: np.ndarray, other: np.ndarray) -> _Moves:
    """Of matches with these features and keypoints."""
    assert described.points is not None
    ratio, turn, *shift = (values[:, FEATURES.index(name)] for name in ("size ratio", "turn", "shift x", "shift y"))
    longest = frames.max(axis=1)
    scale, other_scale = longest[described.image_of(own)], longest[described.image_of(other)]
    start, end = described.points[own, :2] / scale[:, None], described.points[other, :2] / other_scale[:, None]
    ratio = ratio + np.log(scale / other_scale)
    return _Moves(ratio, turn, np.stack(shift, axis=1), start @ [1, 1j], end @ [1, 1j])


# ------------------------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class TrainingMatches:
    """Matches that a scorer is fitted on.

    Attributes
    ----------
    values : float32 array, shape (m, features)
    same : bool array, shape (m,)
        Whether the two images are of one identity.
    """

    values: np.ndarray
    same: np.ndarray


@dataclass(frozen=True)
class MatchScorer:
    """Trees that say how likely a match is one between images of one identity.

    Attributes
    ----------
    booster : lightgbm.Booster
    prior : float
        Log-odds of that in the training matches.
    """

    booster: lgb.Booster
    prior: float

    def score(self, values: np.ndarray) -> np.ndarray:
        """Scores of matches, float64 (m,), >= 0. values: float32 (m, features)."""
        return np.maximum(self.log_ratio(values), 0.0)

    def log_ratio(self, values: np.ndarray) -> np.ndarray:
        """log p(match | same identity) - log p(match | different identities), float64 (m,)."""
        if not len(values):
            return np.zeros(0)
        return np.asarray(self.booster.predict(values, raw_score=True, num_threads=1)) - self.prior


def training_matches_of(
    described: Described,
    frames: np.ndarray,
    queries: np.ndarray,
    truth: np.ndarray,
    codes: np.ndarray,
    nearest: Nearest,
    config: LearnedConfig,
) -> TrainingMatches:
    """All true matches of these queries, and `config.false_per_true` times as many false ones; deterministic.

    Parameters
    ----------
    described, frames, queries, nearest
        As for `matches_of`.
    truth : int64 array, shape (q,)
        True identities, -1 = unknown.
    codes : int64 array, shape (n,)
        Identity of every image of images.parquet, -1 = not in the gallery.
    config : LearnedConfig
    """
    parts = []
    for part, descriptors in query_chunks(described, queries):
        found = matches_of(described, frames, queries[part], nearest.of(descriptors))
        true = truth[part][found.query]
        same = (true == codes[found.rows]) & (true != PADDING)
        parts.append(sample_false_matches(found.values, same, config.false_per_true))
    return join_training_matches(parts)


def sample_false_matches(values: np.ndarray, same: np.ndarray, false_per_true: int) -> TrainingMatches:
    """All true matches, and a sample of the false ones (some where none is true); deterministic."""
    false = np.flatnonzero(~same)
    few = min(len(false), false_per_true * max(1, int(same.sum())))
    drawn = np.random.default_rng(_SEED).choice(false, few, replace=False)
    kept = np.sort(np.concatenate([np.flatnonzero(same), drawn]))
    return TrainingMatches(values[kept], same[kept])


def join_training_matches(parts: list[TrainingMatches]) -> TrainingMatches:
    """All matches of at least one part."""
    values, same = [part.values for part in parts], [part.same for part in parts]
    return TrainingMatches(np.concatenate(values), np.concatenate(same))


def fit_match_scorer(training: list[TrainingMatches], config: TreesConfig) -> MatchScorer | None:
    """A scorer fitted on these matches, deterministic; None where no match is true, or none is false."""
    import lightgbm as lgb

    matches = join_training_matches(training)
    if matches.same.all() or not matches.same.any():
        return None
    settings = {
        "objective": "binary",
        "learning_rate": config.learning_rate,
        "num_leaves": config.num_leaves,
        "min_data_in_leaf": config.min_data_in_leaf,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,  # several models are fitted at once instead: in trees this small, threads wait
        "seed": _SEED,
        "verbosity": -1,
    }
    share = matches.same.mean()
    data = lgb.Dataset(matches.values, matches.same.astype(np.float32), params={"verbosity": -1})
    booster = lgb.train(settings, data, num_boost_round=config.num_iterations)
    return MatchScorer(booster, float(np.log(share / (1 - share))))


def query_chunks(described: Described, queries: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """A few queries at a time: their slice of `queries`, and their descriptors' slice."""
    counts = described.counts(queries)
    starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
    return ((part, slice(starts[part.start], starts[part.stop])) for part in chunks(counts))


# ------------------------------------------------------------------------------------------------------- ranking


def match_score_candidates(
    described: Described,
    frames: np.ndarray,
    queries: np.ndarray,
    codes: np.ndarray,
    classes: int,
    nearest: Nearest,
    models: list[MatchScorer | None],
    config: LearnedConfig,
    keep: int,
    workers: int = 1,
) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The identities with the largest match scores for each query, by each model and in every form.

    Parameters
    ----------
    described, frames, queries, nearest
        As for `matches_of`.
    codes : int64 array, shape (n,)
        Identity of every image, -1 = not in the gallery.
    classes : int
        Number of identities.
    models : list of MatchScorer or None
        None scores every match 0.
    config : LearnedConfig
    keep : int
        Width of the lists.
    workers : int
        Threads; the result does not depend on them.

    Returns
    -------
    list of dict
        For each model, form -> codes int64 (q, keep), -1 padded, and scores float32 (q, keep), descending, -inf padded,
        as `votes.scores_of` gives them.
    """
    in_gallery = np.flatnonzero(codes != PADDING)
    held = np.bincount(codes[in_gallery], described.counts(in_gallery), classes).astype(np.int64)
    shape = len(queries), keep
    lists = [{form: (np.full(shape, PADDING), np.full(shape, -np.inf, np.float32)) for form in FORMS} for _ in models]

    def fill(work: tuple[slice, slice]) -> None:
        part, descriptors = work
        found = matches_of(described, frames, queries[part], nearest.of(descriptors))
        agreed = supported(found, described, frames, config)
        for place, model in enumerate(models):
            scores = np.zeros(len(found.query)) if model is None else model.score(found.values)
            for form, sums in sum_by_identity(found, scores, agreed, codes, part.stop - part.start, classes).items():
                power = 0.0 if form == "image" else config.power
                ranked = best_identities(scores_of(sums, held, power), keep)
                lists[place][form][0][part], lists[place][form][1][part] = ranked

    with ThreadPoolExecutor(workers) as pool:  # numpy and LightGBM release Python's lock
        for _ in pool.map(fill, query_chunks(described, queries)):
            pass
    return lists


def sum_by_identity(
    matches: Matches, scores: np.ndarray, agreed: np.ndarray, codes: np.ndarray, queries: int, classes: int
) -> dict[str, np.ndarray]:
    """Match scores summed for each identity, in every form of `FORMS`.

    Parameters
    ----------
    matches : Matches
    scores : float64 array, shape (m,)
    agreed : bool array, shape (m,)
        Whether a match is supported.
    codes : int64 array, shape (n,)
        Identity of every image; every matched image has one.
    queries, classes : int

    Returns
    -------
    dict of str to float64 array, shape (queries, classes)
    """
    cells = matches.query * classes + codes[matches.rows]

    def total(weights: np.ndarray) -> np.ndarray:
        return np.bincount(cells, weights, queries * classes).reshape(queries, classes)

    strong = np.where(agreed, scores, 0.0)
    images, inverse = np.unique(np.stack([cells, matches.rows]), axis=1, return_inverse=True)
    best = np.zeros(queries * classes)
    np.maximum.at(best, images[0], np.bincount(inverse.ravel(), strong, images.shape[1]))
    return {"all": total(scores), "supported": total(strong), "image": best.reshape(queries, classes)}
