"""Rankings by what matches are worth (`local_matching/match_score.py`), each fold's taught by the other folds alone.

Fold f's queries are weighed by a model that all other folds taught. What is learnt *for* fold f (weights of the blend,
thresholds, the stack) must not know f either: it reads lists of fold g by a model that neither f nor g taught. With n
folds that is n models, n (n - 1) / 2 more for the pairs, and one of all folds for the test images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from whaleid.config import LearnedConfig, TreesConfig
from whaleid.ensemble.protocol import NONE, Protocol
from whaleid.ensemble.rankings import Ranking, Taught
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.match_score import (
    MatchScorer,
    TrainingMatches,
    fit_match_scorer,
    match_score_candidates,
    training_matches_of,
)
from whaleid.local_matching.pair_score import likely_images, match_pairs, pair_score_candidates, pair_training_matches
from whaleid.local_matching.votes import Nearest
from whaleid.retrieval.candidates import Candidates

LEARNED = {"all": "local learned", "supported": "local supported", "image": "local image"}
"""Form of the evidence -> name of the ranking."""
PAIRS = "pairs"
BY_PAIRS = "local pairs"
"""Name of the ranking by pairs of pictures."""

Lists = tuple[np.ndarray, np.ndarray]
"""codes int64 (q, keep), -1 padded, and scores float32 (q, keep), descending, -inf padded."""
_Lists = dict[str, Candidates]
_Found = TypeVar("_Found")
_Without = frozenset[int]  # places of the folds that did not teach a model


@dataclass(frozen=True)
class Asked:
    """Queries against a gallery: a fold's, or the test images'. Rows are those of images.parquet.

    rows: int64 (q,). names: str (q,). gallery, gallery_codes: int64 (g,). truth: int64 (q,), -1 = unknown.
    nearest: neighbours of the queries' descriptors among the gallery's.
    """

    rows: np.ndarray
    names: np.ndarray
    gallery: np.ndarray
    gallery_codes: np.ndarray
    truth: np.ndarray
    nearest: Nearest


def learned_steps(parts: int, config: LearnedConfig) -> int:
    """How many times `learned_rankings` yields None."""
    return (parts + 1) * (1 if config.pairs is None else 3)


def learned_rankings(
    described: Described,
    frames: np.ndarray,
    folds: list[Asked],
    test: Asked | None,
    protocol: Protocol,
    config: LearnedConfig,
    keep: int,
) -> Iterator[Ranking | None]:
    """The rankings by evidence, one for every form of it, and that by pairs of pictures.

    frames: float (n, 2), width and height of every picture as described. folds: in the protocol's order, at least
    `config.recipe.FEWEST_FOLDS`. Yields None after every step, then the rankings.
    """
    asked = [*folds, *([] if test is None else [test])]
    codes = [_codes(described, one) for one in asked]

    def lesson(place: int) -> TrainingMatches:
        one = asked[place]
        return training_matches_of(described, frames, one.rows, one.truth, codes[place], one.nearest, config)

    def rank(place: int, models: list[MatchScorer | None]) -> list[dict[str, Lists]]:
        one, many = asked[place], len(protocol.classes)
        given = described, frames, one.rows, codes[place], many, one.nearest, models, config, keep
        return match_score_candidates(*given, workers=_workers())

    training = _together(lesson, len(folds))
    yield from _crossfitted(LEARNED, asked, training, rank, protocol, config)
    if config.pairs is None:
        return
    pairs, matched = config.pairs, []
    for one, own in zip(asked, codes, strict=True):
        many = len(protocol.classes)
        pictures = likely_images(described, frames, one.rows, own, many, one.nearest, config, pairs.images)
        matched.append(match_pairs(described, frames, one.rows, pictures, pairs, _workers()))
        yield None
    if test is None:
        yield None

    def rank_pairs(place: int, models: list[MatchScorer | None]) -> list[dict[str, Lists]]:
        shape = len(asked[place].rows), len(protocol.classes)
        given = matched[place], codes[place], shape, pairs.rest, keep
        return [{PAIRS: pair_score_candidates(given[0], model, *given[1:])} for model in models]

    training = [
        pair_training_matches(matched[place], one.truth, codes[place], pairs) for place, one in enumerate(folds)
    ]
    yield from _crossfitted({PAIRS: BY_PAIRS}, asked, training, rank_pairs, protocol, pairs)


def _crossfitted(
    names: dict[str, str],
    asked: list[Asked],
    training: list[TrainingMatches],
    rank: Callable[[int, list[MatchScorer | None]], list[dict[str, Lists]]],
    protocol: Protocol,
    trees: TreesConfig,
) -> Iterator[Ranking | None]:
    """Rankings whose models were taught as the head of this file says.

    names: form -> ranking. asked: the folds and, where there is one, the test set. training: one a fold. rank: place in
    `asked`, models -> for each model the lists of every form. Yields None for every fold and the test set, then these.
    """
    places = range(len(training))
    models = _models(training, trees)

    def ranked(place: int, without: list[_Without]) -> dict[_Without, _Lists]:
        found = rank(place, [models[one] for one in without])
        named = [
            {form: Candidates(asked[place].names, protocol.classes, *lists[form]) for form in names} for lists in found
        ]
        return dict(zip(without, named, strict=True))

    oof: list[dict[_Without, _Lists]] = []
    for place in places:
        oof.append(ranked(place, [frozenset({place, other}) for other in places]))
        yield None
    answer = ranked(len(training), [frozenset()])[frozenset()] if len(asked) > len(training) else None
    yield None
    for form, name in names.items():
        own = tuple(oof[place][frozenset({place})][form] for place in places)
        without = tuple(tuple(oof[other][frozenset({place, other})][form] for other in places) for place in places)
        tests = () if answer is None else (answer[form],) * len(protocol.answering)
        yield Ranking(name, "local", own, tests, False, taught_lists=Taught(without, own))


def _models(training: list[TrainingMatches], trees: TreesConfig) -> dict[_Without, MatchScorer | None]:
    """The models by the folds that had no part in them: none, each one, each pair."""
    places = range(len(training))
    wanted = {frozenset[int]()} | {frozenset({one, other}) for one in places for other in places}
    order = sorted(wanted, key=sorted)

    def taught(number: int) -> MatchScorer | None:
        return fit_match_scorer([training[place] for place in places if place not in order[number]], trees)

    return dict(zip(order, _together(taught, len(order)), strict=True))


def _together(work: Callable[[int], _Found], count: int) -> list[_Found]:
    """work(0) .. work(count - 1), at once on all cores."""
    with ThreadPoolExecutor(_workers()) as pool:
        return list(pool.map(work, range(count)))


def _workers() -> int:
    return os.cpu_count() or 1


def _codes(described: Described, asked: Asked) -> np.ndarray:
    """Identity of every image, -1 where it is not in the gallery, int64 (n,)."""
    codes = np.full(len(described.offsets) - 1, NONE, dtype=np.int64)
    codes[asked.gallery] = asked.gallery_codes
    return codes
