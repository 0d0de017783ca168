"""Post-processing of the last ranking: what is known of queries together, or of an image beside its picture.

Each step is a rung of its own. The setting that a step has on a fold is chosen by the other folds' queries, ordered by
what learnt nothing from the fold's truth; the test set's is chosen by all folds. "Off" is among the settings and stays
where none is better by more than chance would give (`AfterConfig.errors`).

Queries so see one another's candidates, as test images do, and never a truth. But folds deal an identity's images
evenly: what is expected of an identity by its share of the gallery comes true in a fold as it never does in a test
set, and `claims` would seem to gain what it does not (whole folds of the sample promised 0.006 where its solution says
-0.008). So claims are counted in random halves of a fold's queries: of an identity's n images a half holds n / 2, give
or take sqrt(n) / 2, which is, for its size, the spread of a random test set as large as the fold; and fewer queries
rather promise too little. A test set whose identities come in other shares than the labelled images' is beyond what
folds can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd

from whaleid.config import AfterConfig, ClaimsConfig
from whaleid.data.duplicates import HASH_DISTANCE, renumbered
from whaleid.ensemble.blend import Targets, average, stack, tuned_map
from whaleid.ensemble.graph_rankings import OFF, Choices, Chosen
from whaleid.ensemble.protocol import FoldPart, Protocol
from whaleid.ensemble.rankings import Ranking
from whaleid.ensemble.unknown import Thresholds, rank_stats, with_unknown
from whaleid.evaluation.metrics import rank_of_truth, reciprocal_rank_at_k
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError

DUPLICATES, CLAIMS, SAME = "duplicates", "claims", "same"
STRENGTHS = (1.0, 3.0, 10.0)
"""`same`: what is tried, as log-odds taken from a candidate that the gallery never shows with the query's value: a
doubt, strong evidence, and behind all others."""
_NO_COLUMN = frozenset({"image", "path", "split", "identity", "phash", "group"})  # they name the image or its label
_PSEUDO = 1.0  # added to an identity's claims and to what is expected of it: one claim more or less is chance
_TINY = 1e-12  # probabilities below this are read as this one
_EQUAL = 1e-9  # gains below this are rounding


@dataclass(frozen=True)
class Facts:
    """What post-processing knows of every image; rows are those of images.parquet.

    copies: int64 (n,), equal for copies of one photograph. values: column -> int64 (n,), equal for equal values of it,
    -1 where an image has none.
    """

    copies: np.ndarray
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Asked:
    """Queries and the gallery that they stand against, as rows of images.parquet.

    rows: int64 (q,). gallery: int64 (g,). codes: int64 (g,), identity of each gallery image. part: int64 (q,), equal
    for queries whose claims are counted together.
    """

    rows: np.ndarray
    gallery: np.ndarray
    codes: np.ndarray
    part: np.ndarray


@dataclass(frozen=True)
class Scale:
    """What the scores of a ranking are: probabilities; or log-odds against the unknown identity, which are
    log-probabilities where there is no unknown label.
    """

    probability: bool
    unknown: bool


Setting = Callable[[Candidates, Asked], Candidates]


def read_facts(images: pd.DataFrame, config: AfterConfig) -> Facts:
    """Facts of all images. Raises WhaleidError for a column that is not there, or is empty for a whole split."""
    for name in ("group", "phash"):
        if config.duplicates and name not in images.columns:
            raise WhaleidError(f"images.parquet: column '{name}' is missing; make it again")
    values = {}
    for name in config.same:
        if name not in images.columns or name in _NO_COLUMN:
            usable = ", ".join(column for column in images.columns if column not in _NO_COLUMN)
            raise WhaleidError(f"combine.after.same: images.parquet has no column '{name}' for this; it has: {usable}")
        for split in ("train", "test"):
            own = images.loc[images["split"] == split, name]
            if len(own) and own.isna().all():
                raise WhaleidError(
                    f"combine.after.same: '{name}' is empty for every {split} image; name its column in "
                    f"{split}.extra of the competition's YAML, or leave it out"
                )
        values[name] = pd.factorize(images[name])[0].astype(np.int64)
    copies = copies_of(images["group"], images["phash"]) if config.duplicates else np.arange(len(images))
    return Facts(copies, values)


def copies_of(groups: pd.Series, phash: pd.Series) -> np.ndarray:
    """Number of the photograph that each image is a copy of, int64 (n,), from 0 in order of first appearance.

    Groups hold copies of one photograph, but encounters too: of a group those are copies whose hashes are near, or
    that others connect. groups: names (n,). phash: 16 hexadecimal digits (n,).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    hashes = np.array([int(text, 16) for text in phash], dtype=np.uint64)
    code = pd.factorize(groups)[0]
    order = np.argsort(code, kind="stable")
    count = np.bincount(code)
    starts = np.cumsum(count) - count
    left, right = [], []
    for group in np.flatnonzero(count > 1):
        rows = order[starts[group] : starts[group] + count[group]]
        near = np.bitwise_count(hashes[rows][:, None] ^ hashes[rows][None, :]) <= HASH_DISTANCE
        one, other = np.nonzero(np.triu(near, 1))
        left.append(rows[one])
        right.append(rows[other])
    ends = (np.concatenate([*left, []]).astype(np.int64), np.concatenate([*right, []]).astype(np.int64))
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(len(code), len(code)))
    return renumbered(connected_components(graph, directed=False)[1])


# --------------------------------------------------------------------------------------------------- the rungs


def after_rankings(
    protocol: Protocol,
    last: Ranking,
    limits: Thresholds,
    taught: list[tuple[Candidates, ...]],
    config: AfterConfig,
    images: pd.DataFrame,
    seed: int = 0,
) -> Iterator[tuple[Ranking, Thresholds]]:
    """Each step's ranking on top of the one before, and its thresholds.

    last: the ranking that is gone on from. taught: for each fold, in the protocol's order, the lists of **all** folds
    that its truth had no part in; then those for the test set, that all had a part in.
    """
    scale = Scale(last.probability, protocol.unknown is not None)
    places = list(range(len(protocol.parts)))
    asked = [Asked(part.rows, part.gallery, part.gallery_codes, _halves(part, seed)) for part in protocol.parts]
    whole = np.zeros(len(protocol.test_rows), dtype=np.int64)
    test = Asked(protocol.test_rows, protocol.gallery, protocol.gallery_codes, whole)
    for name, settings in steps(config, read_facts(images, config), scale):
        teachers = [*(protocol.others(place) for place in places), places]
        choice = [
            choose(protocol, lists, asked, settings, chosen, config.errors)
            for lists, chosen in zip(taught, teachers, strict=True)
        ]
        taught = [
            tuple(_applied(settings.get(own), given, queries) for given, queries in zip(lists, asked, strict=True))
            for lists, own in zip(taught, choice, strict=True)
        ]
        before = [*limits.by_fold, limits.tuned]
        found = [
            old if own == OFF else _questioned(protocol, [lists[place] for place in chosen], chosen)[0]
            for old, own, lists, chosen in zip(before, choice, taught, teachers, strict=True)
        ]
        limits = Thresholds(found[:-1], found[-1])
        chosen = Chosen(
            method=name,
            choices=Choices({part.fold: own for part, own in zip(protocol.parts, choice, strict=False)}, choice[-1]),
            oof=tuple(_applied(settings.get(choice[place]), last.oof[place], asked[place]) for place in places),
            test=tuple(_applied(settings.get(choice[-1]), lists, test) for lists in last.test),
            without=tuple(taught[:-1]),
            whole=taught[-1],
        )
        last = Ranking(name, "after", chosen.oof, chosen.test, last.probability, last.optimistic, chosen)
        yield last, limits


def steps(config: AfterConfig, facts: Facts, scale: Scale) -> Iterator[tuple[str, dict[str, Setting]]]:
    """Name of every step asked for, and its settings by name, "off" not among them."""
    for column in config.same:
        values = facts.values[column]
        yield f"{SAME} {column}", {f"{strength:g}": _same(values, strength, scale) for strength in STRENGTHS}
    if config.duplicates:
        yield DUPLICATES, {"shared": lambda lists, asked: share_answers(lists, facts.copies[asked.rows])}
    if config.claims is not None:
        yield CLAIMS, dict(_claims(config.claims, scale))


def choose(
    protocol: Protocol,
    lists: tuple[Candidates, ...],
    asked: list[Asked],
    settings: dict[str, Setting],
    places: list[int],
    errors: float,
) -> str:
    """The setting with the largest gain in MAP@k on the queries of these folds, each list with its best threshold.

    A gain counts where it is above `errors` of its standard errors; where none does, "off". Of equals the earlier.
    """
    weights = protocol.weights(places) / protocol.weights(places).sum()
    plain = _questioned(protocol, [lists[place] for place in places], places)[1]
    best, highest = OFF, _EQUAL
    for name, setting in settings.items():
        changed = [setting(lists[place], asked[place]) for place in places]
        difference = _questioned(protocol, changed, places)[1] - plain
        gain = float(weights @ difference)
        error = float(np.sqrt(weights**2 @ (difference - gain) ** 2))
        if gain > highest + _EQUAL * (best != OFF) and gain > errors * error:
            best, highest = name, gain
    return best


def _halves(part: FoldPart, seed: int) -> np.ndarray:
    """0 or 1 for each query of a fold, int64 (q,): two random halves of it."""
    return np.random.default_rng([seed, 11, part.fold]).permutation(len(part.rows)) % 2


def _applied(setting: Setting | None, lists: Candidates, asked: Asked) -> Candidates:
    return lists if setting is None else setting(lists, asked)


def _questioned(protocol: Protocol, lists: list[Candidates], places: list[int]) -> tuple[float | None, np.ndarray]:
    """The best threshold of the queries of these folds, and the score float64 (n,) that it gives to each."""
    questions = Targets(protocol.truth(places), protocol.weights(places), protocol.k, protocol.unknown is not None)
    whole = stack(lists)
    threshold = tuned_map(rank_stats(whole, questions.truth, questions.weights, questions.k), questions)[0]
    placed = with_unknown(whole, threshold, protocol.unknown)
    truth = questions.truth
    if protocol.unknown is not None:
        truth = np.where(truth < 0, len(protocol.classes), truth)
    return threshold, reciprocal_rank_at_k(rank_of_truth(placed.codes[:, : protocol.k], truth), protocol.k)


# --------------------------------------------------------------------------------------------------- the steps


def share_answers(lists: Candidates, copies: np.ndarray) -> Candidates:
    """Copies of one photograph get the mean of their scores. copies: int64 (q,), photograph of each query.

    An identity that a copy's list does not hold has that list's lowest score, as in `blend.average`.
    """
    _, photograph, count = np.unique(copies, return_inverse=True, return_counts=True)
    order = np.argsort(photograph, kind="stable")
    starts = np.cumsum(count) - count
    codes, scores = lists.codes.copy(), lists.scores.copy()
    for size in np.unique(count[count > 1]):
        members = order[starts[count == size][:, None] + np.arange(size)]
        shared = average(tuple(_rows(lists, own) for own in members.T), codes.shape[1])
        for own in members.T:
            codes[own], scores[own] = shared.codes, shared.scores
    return Candidates(lists.queries, lists.classes, codes, scores)


def never_shown(lists: Candidates, values: np.ndarray, shown: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Where the gallery shows a candidate with other values than the query's alone. bool (q, m).

    values: int64 (q,) of the queries, -1 = none. shown: int64 (g,) of the gallery images, codes: int64 (g,). A query
    without a value, and an identity without any, contradict nothing.
    """
    told = shown >= 0
    has = np.bincount(codes[told], minlength=len(lists.classes)) > 0
    base = max(int(shown.max(initial=0)), int(values.max(initial=0))) + 1
    pairs = np.unique(codes[told] * base + shown[told])
    real = (lists.codes >= 0) & (values >= 0)[:, None]
    met = np.isin(lists.codes * base + values[:, None], pairs)
    return real & has[np.maximum(lists.codes, 0)] & ~met


def _same(values: np.ndarray, strength: float, scale: Scale) -> Setting:
    def fall_back(lists: Candidates, asked: Asked) -> Candidates:
        strange = never_shown(lists, values[asked.rows], values[asked.gallery], asked.codes)
        return moved(lists, np.where(strange, -strength, 0.0), scale)

    return fall_back


def _claims(config: ClaimsConfig, scale: Scale) -> Iterator[tuple[str, Setting]]:
    def setting(expected: Literal["gallery", "even"], rounds: int, weight: float) -> Setting:
        def weigh(lists: Candidates, asked: Asked) -> Candidates:
            share = np.bincount(asked.codes, minlength=len(lists.classes)).astype(np.float64)
            share = share if expected == "gallery" else (share > 0).astype(np.float64)
            change = np.zeros(lists.codes.shape)
            for part in np.unique(asked.part):
                rows = np.flatnonzero(asked.part == part)
                change[rows] = claim_penalties(_rows(lists, rows), share / share.sum(), weight, rounds, scale)
            return moved(lists, change, scale)

        return weigh

    for expected, rounds, weight in product(config.expected, config.rounds, config.weights):
        yield f"{weight:g}, {expected}, {rounds} round{'s' * (rounds > 1)}", setting(expected, rounds, weight)


def claim_penalties(lists: Candidates, share: np.ndarray, weight: float, rounds: int, scale: Scale) -> np.ndarray:
    """Change float64 (q, m) of the candidates' log-odds: -weight x log(claims / expected) of their identity.

    An identity's claims are the sum of its probabilities over the queries: a sure first guess is one claim, a tie of
    two is half a claim for each. Rounds beyond the first count them again with the change on and divide what the change
    did to them out: Sinkhorn's steps on one side, with the relaxed marginal of Chizat et al. ("Scaling algorithms for
    unbalanced optimal transport problems", 2018); the other side is each query's sum, which is always kept.

    share: float64 (c,), sum 1, of all claims that each identity is expected to have.
    """
    mass, none = masses(lists, scale)
    place = np.maximum(lists.codes, 0)
    change = np.zeros(len(share))
    for _ in range(rounds):
        raised = mass * np.exp(change)[place]
        probability = raised / np.maximum(raised.sum(axis=1) + none, _TINY)[:, None]
        claims = np.bincount(place.ravel(), probability.ravel(), len(share))  # padding weighs 0
        expected = claims.sum() * share
        change = -weight * np.log((claims * np.exp(-change) + _PSEUDO) / (expected + _PSEUDO))
    return change[place]


# ------------------------------------------------------------------------------------------------ their scores


def masses(lists: Candidates, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """What each candidate weighs against the others, float64 (q, m), 0 where padded, and none of them float64 (q,)."""
    real = np.isfinite(lists.scores)
    scores = np.where(real, lists.scores, 0.0).astype(np.float64)
    if scale.probability:
        return np.where(real, scores, 0.0), np.maximum(1.0 - scores.sum(axis=1), _TINY)
    none = np.zeros(len(scores)) if scale.unknown else np.full(len(scores), -np.inf)
    top = np.maximum(np.where(real, scores, -np.inf).max(axis=1, initial=-np.inf), none)
    top = np.where(np.isfinite(top), top, 0.0)
    return np.where(real, np.exp(scores - top[:, None]), 0.0), np.exp(none - top)


def moved(lists: Candidates, change: np.ndarray, scale: Scale) -> Candidates:
    """The lists with `change` float64 (q, m) added to the candidates' log-odds, in their new order.

    Probabilities keep their sum with that of none of them, so that the unknown identity gains what candidates lose.
    """
    if scale.probability:
        mass, none = masses(lists, scale)
        raised = mass * np.exp(change)
        kept = (mass.sum(axis=1) + none) / (raised.sum(axis=1) + none)
        scores = raised * kept[:, None]
    else:
        scores = lists.scores + change
    scores = np.where(lists.codes >= 0, scores, -np.inf).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")
    codes = np.take_along_axis(lists.codes, order, axis=1)
    return Candidates(lists.queries, lists.classes, codes, np.take_along_axis(scores, order, axis=1))


def _rows(lists: Candidates, rows: np.ndarray) -> Candidates:
    return Candidates(lists.queries[rows], lists.classes, lists.codes[rows], lists.scores[rows])
