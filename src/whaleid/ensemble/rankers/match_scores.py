"""Rankers by learned match scores: what a match of two keypoints is worth, fitted on the other folds' queries.

Fold f's queries are scored by a model fitted on all other folds. What is fitted *for* fold f (weights of the blend,
thresholds, the stack) must not use f either: it reads lists of fold g by a model that was fitted on neither f nor g.
With n folds that is n models, n (n - 1) / 2 more without two folds, and one of all folds for the test images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from whaleid.config import CombineConfig, LearnedConfig
from whaleid.config.recipe import FEWEST_FOLDS
from whaleid.ensemble.cross_fitting import OofLists
from whaleid.ensemble.rankers.base import Lists, Ranker, RankerContext, Without
from whaleid.ensemble.rankers.local import local_inputs, test_lists
from whaleid.ensemble.rankings import Ranking
from whaleid.local_matching.keypoints import frames_of
from whaleid.local_matching.match_score import (
    MatchScorer,
    TrainingMatches,
    fit_match_scorer,
    match_score_candidates,
    training_matches_of,
)
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError
from whaleid.utils.machine import cores

LEARNED = {"all": "local learned", "supported": "local supported", "image": "local image"}
"""Form of the match score -> name of the ranking."""
PAIRS = "pair_score"
"""Kind of the rankings by pairs of images (`pair_scores.py`), which need match scores."""

_Result = TypeVar("_Result")
_Excluded = frozenset[int]  # places of the folds that a model was not fitted on
_Model = TypeVar("_Model")
_Rank = Callable[[int, list[_Model]], list[dict[str, Lists]]]
"""(place in `LocalInputs.all`, models) -> for each model the lists of every form."""


class MatchScoreRanker(Ranker):
    """Identities by the summed scores of their matches, one ranking for each form of the sum."""

    kind, level, blend = "match_score", "local", "member"

    def is_on(self, config: CombineConfig) -> bool:
        return config.local_matching is not None and config.local_matching.learned is not None

    def rank(self, context: RankerContext) -> list[Ranking]:
        local, config, classes = local_inputs(context), learned_config(context), len(context.protocol.classes)
        frames = image_frames(context)
        if len(local.folds) < FEWEST_FOLDS:
            raise WhaleidError(
                f"combine.local_matching.learned: {len(local.folds)} folds with features; it needs {FEWEST_FOLDS}: "
                "what is fitted for a fold must be checked on folds that had no part in it. Take more, or leave it out"
            )

        def training_matches(place: int) -> TrainingMatches:
            one = local.folds[place]
            given = local.described, frames, one.queries.rows, one.truth, one.codes, one.nearest
            return training_matches_of(*given, config)

        def rank(place: int, models: list[MatchScorer | None]) -> list[dict[str, Lists]]:
            one = local.all[place]
            given = local.described, frames, one.queries.rows, one.codes, classes, one.nearest, models
            return match_score_candidates(*given, config, context.keep, workers=cores())

        context.report("matches of the training folds")
        tables = in_parallel(training_matches, len(local.folds))

        def fit(folds: list[int]) -> MatchScorer | None:
            return fit_match_scorer([tables[place] for place in folds], config)

        return cross_fitted(context, self.kind, LEARNED, fit, rank)

    def ablations(self, config: CombineConfig) -> Iterator[Without]:
        assert config.local_matching is not None
        votes = config.local_matching.model_copy(update={"learned": None})
        kinds = (self.kind, PAIRS)
        yield Without("learned match score", config.model_copy(update={"local_matching": votes}), kinds)


def learned_config(context: RankerContext) -> LearnedConfig:
    """The recipe's learned match score."""
    assert context.config.local_matching is not None and context.config.local_matching.learned is not None
    return context.config.local_matching.learned


def image_frames(context: RankerContext) -> np.ndarray:
    """Width and height of every image as described, float (n, 2)."""
    assert context.config.local_matching is not None
    return frames_of(context.images, context.config.local_matching.size)


def cross_fitted(
    context: RankerContext,
    kind: str,
    names: dict[str, str],
    fit: Callable[[list[int]], _Model],
    rank: _Rank[_Model],
) -> list[Ranking]:
    """One ranking for each form, by models that are fitted as described at the top of this file.

    names: form -> name of the ranking. fit: from places of folds to a model fitted on them.
    """
    protocol, local = context.protocol, local_inputs(context)
    places = range(len(local.folds))
    models = _fit_models(fit, len(places))

    def ranked(place: int, excluded: list[_Excluded]) -> dict[_Excluded, dict[str, Candidates]]:
        names_of_queries = local.all[place].queries.names
        found = rank(place, [models[one] for one in excluded])
        named = [{form: Candidates(names_of_queries, protocol.classes, *of[form]) for form in names} for of in found]
        return dict(zip(excluded, named, strict=True))

    oof: list[dict[_Excluded, dict[str, Candidates]]] = []
    for place in places:
        context.report(f"{next(iter(names.values()))}: {place + 1} of {len(local.all)}")
        oof.append(ranked(place, [frozenset({place, other}) for other in places]))
    of_test = ranked(len(places), [frozenset()])[frozenset()] if local.test is not None else None
    rankings = []
    for form, name in names.items():
        lists = OofLists(
            tuple(tuple(oof[other][frozenset({place, other})][form] for other in places) for place in places),
            tuple(oof[place][frozenset({place})][form] for place in places),
        )
        test = test_lists(protocol, None if of_test is None else of_test[form])
        rankings.append(Ranking(name, kind, lists, test, False))
    return rankings


def _fit_models(fit: Callable[[list[int]], _Model], folds: int) -> dict[_Excluded, _Model]:
    """The models without no fold, without each fold and without each pair of folds."""
    places = range(folds)
    wanted = {frozenset[int]()} | {frozenset({one, other}) for one in places for other in places}
    order = sorted(wanted, key=sorted)
    models = in_parallel(lambda number: fit([place for place in places if place not in order[number]]), len(order))
    return dict(zip(order, models, strict=True))


def in_parallel(work: Callable[[int], _Result], count: int) -> list[_Result]:
    """work(0) .. work(count - 1), on all cores."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(work, range(count)))
