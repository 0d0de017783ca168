"""What a match of two keypoints is worth as evidence for an identity, learnt from matches whose truth is known.

Votes (`local_matching/votes.py`) weigh a match by its distance alone. Two photographs of one animal agree in more: its
marks lie at about the same place, size and turn of the frame, on the animal and not on the ground beside it, and
they agree together. A match is described by all of that, and trees (Ke et al., "LightGBM", 2017) learn from out-of-fold
queries how much likelier such a match is between two pictures of one identity than of two:

    evidence(match) = max(0, log p(match | same) - log p(match | other))

An identity is given the sum over its matches, the sum over those that others of the same picture support (a vote for
one arrangement: Jegou, Douze and Schmid, "Hamming embedding and weak geometric consistency", 2008), or the supported
sum of its best picture. No feature names an identity or a picture. Who may teach whom is decided by the caller
(`ensemble/rankers/match_scores.py`).
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
"""Sum over an identity's matches; over its supported ones; over the supported ones of its best picture."""
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
LARGEST = np.log(2.0)  # wider than any match between two pictures of one animal that frames show alike
WIDEST = 60.0  # degrees, as above
FARTHEST = 0.4  # share of the frame, as above
_SHIFTS = ("shift x", "shift y")
_SEED = 0


@dataclass(frozen=True)
class Matches:
    """Matches of some queries' keypoints that agree roughly in size, direction and place.

    asker: int64 (m,), place of the query. rows: int64 (m,), the gallery image in images.parquet. values: float32
    (m, len(FEATURES)). keypoint, other: int64 (m,), the two descriptors (rows of `Described.vectors`).
    """

    asker: np.ndarray
    rows: np.ndarray
    keypoint: np.ndarray
    other: np.ndarray
    values: np.ndarray


def matches_of(described: Described, frames: np.ndarray, queries: np.ndarray, nearest: Nearest) -> Matches:
    """Every neighbour but the last of each keypoint, described; those that disagree widely are left out.

    frames: float (n, 2), width and height of every picture as described. queries: int64 (q,), rows of images.parquet.
    nearest: of these queries' descriptors, in their order; its last column says how near chance alone comes.
    """
    assert described.points is not None
    own = described.places(queries)
    asker = np.repeat(np.arange(len(queries)), described.counts(queries))
    strength = own - described.offsets[queries][asker]
    descriptor, place = np.nonzero(nearest.places[:, :-1] != PADDING)
    other = nearest.places[descriptor, place].astype(np.int64)
    rows = described.image_of(other)
    one, two = described.points[own[descriptor]], described.points[other]
    frame, other_frame = frames[queries[asker[descriptor]]], frames[rows]
    ratio = np.log(two[:, 2] / one[:, 2])
    turn = (two[:, 3] - one[:, 3] + 180) % 360 - 180
    at = one[:, :2] / frame
    shift = two[:, :2] / other_frame - at
    near = (np.abs(ratio) <= LARGEST) & (np.abs(turn) <= WIDEST) & (np.abs(shift).max(axis=1) <= FARTHEST)
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
        shift[:, 0],
        shift[:, 1],
        one[:, 2],
        at[:, 0],
        at[:, 1],
        one[:, 3],
        strength[descriptor],
    )
    values = np.stack([np.asarray(column, dtype=np.float32)[near] for column in columns], axis=1)
    descriptor = descriptor[near]
    return Matches(asker[descriptor], rows[near], own[descriptor], other[near], values)


def supported(matches: Matches, config: LearnedConfig) -> np.ndarray:
    """Which matches another match of the same two pictures agrees with, in shift, size and turn, bool (m,).

    The two must be of different keypoints on both sides. Cost: matches x matches of their two pictures.
    """
    ratio, turn, *shift = (matches.values[:, FEATURES.index(name)] for name in ("size ratio", "turn", *_SHIFTS))
    order = np.lexsort((matches.rows, matches.asker))
    pair = np.stack([matches.asker[order], matches.rows[order]])
    found, left, lag = np.zeros(len(order), dtype=bool), np.arange(len(order)), 0
    while len(left):
        lag += 1
        left = left[left + lag < len(order)]
        left = left[(pair[:, left] == pair[:, left + lag]).all(axis=0)]
        one, two = order[left], order[left + lag]
        agree = (matches.keypoint[one] != matches.keypoint[two]) & (matches.other[one] != matches.other[two])
        agree &= np.abs(ratio[one] - ratio[two]) <= np.log(config.scale)
        agree &= np.abs((turn[one] - turn[two] + 180) % 360 - 180) <= config.turn
        for axis in shift:
            agree &= np.abs(axis[one] - axis[two]) <= config.shift
        found[one[agree]] = found[two[agree]] = True
    return found


# ------------------------------------------------------------------------------------------------------ learning


@dataclass(frozen=True)
class Lesson:
    """Matches that teach. values: float32 (m, features). same: bool (m,)."""

    values: np.ndarray
    same: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """Trees that say how likely a match is one of one identity. prior: log-odds of that among what taught them."""

    trees: lgb.Booster
    prior: float

    def of(self, values: np.ndarray) -> np.ndarray:
        """Evidence of matches, float64 (m,), >= 0. values: float32 (m, features)."""
        return np.maximum(self.ratio(values), 0.0)

    def ratio(self, values: np.ndarray) -> np.ndarray:
        """Logarithm of how much likelier each match is between pictures of one identity, float64 (m,)."""
        if not len(values):
            return np.zeros(0)
        return np.asarray(self.trees.predict(values, raw_score=True, num_threads=1)) - self.prior


def lesson_of(
    described: Described,
    frames: np.ndarray,
    queries: np.ndarray,
    truth: np.ndarray,
    codes: np.ndarray,
    nearest: Nearest,
    config: LearnedConfig,
) -> Lesson:
    """All true matches of these queries, and `config.others` times as many false ones, drawn the same each time.

    truth: int64 (q,), -1 = unknown. codes: int64 (n,), identity of every image of images.parquet, -1 = not in the
    gallery.
    """
    parts = []
    for part, descriptors in in_chunks(described, queries):
        found = matches_of(described, frames, queries[part], nearest.of(descriptors))
        own = truth[part][found.asker]
        parts.append(some_false(found.values, (own == codes[found.rows]) & (own != PADDING), config.others))
    return join_lessons(parts)


def some_false(values: np.ndarray, same: np.ndarray, others: int) -> Lesson:
    """All true matches, and `others` times as many false ones (some where none is true), the same each time."""
    false = np.flatnonzero(~same)
    few = min(len(false), others * max(1, int(same.sum())))
    drawn = np.random.default_rng(_SEED).choice(false, few, replace=False)
    kept = np.sort(np.concatenate([np.flatnonzero(same), drawn]))
    return Lesson(values[kept], same[kept])


def join_lessons(parts: list[Lesson]) -> Lesson:
    """One lesson of several; needs one at least."""
    return Lesson(np.concatenate([part.values for part in parts]), np.concatenate([part.same for part in parts]))


def learn(lessons: list[Lesson], config: TreesConfig) -> Evidence | None:
    """Trees taught by these lessons; None where they hold no true match, or no false one. The same each time."""
    import lightgbm as lgb

    taught = join_lessons(lessons)
    values, same = taught.values, taught.same
    if same.all() or not same.any():
        return None
    settings = {
        "objective": "binary",
        "learning_rate": config.learning_rate,
        "num_leaves": config.num_leaves,
        "min_data_in_leaf": config.min_data_in_leaf,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,  # models learn beside one another instead: trees of this size wait for their threads
        "seed": _SEED,
        "verbosity": -1,
    }
    share = same.mean()
    data = lgb.Dataset(values, same.astype(np.float32), params={"verbosity": -1})
    return Evidence(
        lgb.train(settings, data, num_boost_round=config.num_iterations), float(np.log(share / (1 - share)))
    )


def in_chunks(described: Described, queries: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Some queries at a time: their slice of `queries`, and their descriptors' slice."""
    counts = described.counts(queries)
    starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
    return ((part, slice(starts[part.start], starts[part.stop])) for part in chunks(counts))


# ------------------------------------------------------------------------------------------------------- ranking


def evidence_candidates(
    described: Described,
    frames: np.ndarray,
    queries: np.ndarray,
    codes: np.ndarray,
    classes: int,
    nearest: Nearest,
    models: list[Evidence | None],
    config: LearnedConfig,
    keep: int,
    workers: int = 1,
) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The identities with most evidence for each query: for each model, the lists of every form.

    codes: int64 (n,), identity of every image, -1 = not in the gallery. classes: number of identities. A model that is
    None gives nobody evidence.
    Returns for each model {form: (codes int64 (q, keep), -1 padded, scores float32 (q, keep), descending, -inf
    padded)}, scores as `local.scores_of` gives them.
    """
    held = np.zeros(classes, dtype=np.int64)
    owned = codes[codes != PADDING], described.counts(np.flatnonzero(codes != PADDING))
    np.add.at(held, *owned)
    shape = len(queries), keep
    lists = [{form: (np.full(shape, PADDING), np.full(shape, -np.inf, np.float32)) for form in FORMS} for _ in models]

    def fill(work: tuple[slice, slice]) -> None:
        part, descriptors = work
        found = matches_of(described, frames, queries[part], nearest.of(descriptors))
        agreed = supported(found, config)
        for place, model in enumerate(models):
            given = np.zeros(len(found.asker)) if model is None else model.of(found.values)
            for form, sums in sums_of(found, given, agreed, codes, part.stop - part.start, classes).items():
                power = 0.0 if form == "image" else config.power
                ranked = best_identities(scores_of(sums, held, power), keep)
                lists[place][form][0][part], lists[place][form][1][part] = ranked

    with ThreadPoolExecutor(workers) as pool:  # numpy and trees let other threads run while they work
        for _ in pool.map(fill, in_chunks(described, queries)):
            pass
    return lists


def sums_of(
    matches: Matches, given: np.ndarray, agreed: np.ndarray, codes: np.ndarray, queries: int, classes: int
) -> dict[str, np.ndarray]:
    """Evidence for each identity in every form of `FORMS`, float64 (queries, classes).

    given: float64 (m,), evidence of each match. agreed: bool (m,), whether it is supported. codes: as
    `evidence_candidates`; every matched picture has one.
    """
    cells = matches.asker * classes + codes[matches.rows]

    def total(weights: np.ndarray) -> np.ndarray:
        return np.bincount(cells, weights, queries * classes).reshape(queries, classes)

    strong = np.where(agreed, given, 0.0)
    pictures, inverse = np.unique(np.stack([cells, matches.rows]), axis=1, return_inverse=True)
    best = np.zeros(queries * classes)
    np.maximum.at(best, pictures[0], np.bincount(inverse.ravel(), strong, pictures.shape[1]))
    return {"all": total(given), "supported": total(strong), "image": best.reshape(queries, classes)}
