"""Rankers by pairs of images: a query with the images of its likeliest identities, and with other queries.

Two rankings come of it: what each query's own pairs say, and what queries that may show one animal say together
(`local_matching/query_pairs.py`). All that is fitted is cross-fitted as in `match_scores.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from whaleid.config import CombineConfig
from whaleid.ensemble.rankers.base import Lists, Ranker, RankerContext, Without
from whaleid.ensemble.rankers.local import LocalQueries, local_inputs, network_candidates, network_queries
from whaleid.ensemble.rankers.match_scores import PAIRS, cross_fitted, image_frames, in_parallel, learned_config
from whaleid.ensemble.rankings import Ranking
from whaleid.local_matching.match_score import MatchScorer, fit_match_scorer
from whaleid.local_matching.pair_score import (
    MatchParts,
    PairMatches,
    fit_pair_scorer,
    identity_scores,
    likely_images,
    match_pairs,
    pair_training_matches,
    pair_values,
    parts_of,
    same_identity,
    score_candidates,
)
from whaleid.local_matching.query_pairs import Likeness, answering_together, fit_likeness, likely_queries, same_animal
from whaleid.utils.machine import cores

NAMES = {"alone": "local pairs", "together": "local together"}
"""How queries answer -> name of the ranking."""


class PairScoreRanker(Ranker):
    """The images of the likeliest identities, and other queries, matched pair by pair, each match with its score."""

    kind, level, blend = PAIRS, "local", "member"

    def is_on(self, config: CombineConfig) -> bool:
        return config.pairs is not None

    def rank(self, context: RankerContext) -> list[Ranking]:
        matched = _match(context)
        parts = _match_parts(matched[: len(local_inputs(context).folds)], context)
        context.report("scores of pairs")
        scored = _scored(matched, parts)

        def fit(folds: list[int]) -> _PairModel:
            return _fit([scored[place] for place in folds], parts.of_folds(folds))

        def rank(place: int, models: list[_PairModel]) -> list[dict[str, Lists]]:
            return [_rank(scored[place], model, context) for model in models]

        return cross_fitted(context, self.kind, NAMES, fit, rank)

    def ablations(self, config: CombineConfig) -> Iterator[Without]:
        assert config.local_matching is not None and config.local_matching.learned is not None
        learned = config.local_matching.learned.model_copy(update={"pairs": None})
        local = config.local_matching.model_copy(update={"learned": learned})
        yield Without("pair score", config.model_copy(update={"local_matching": local}), (self.kind,))


# ------------------------------------------------------------------------------------------------------ matching


@dataclass(frozen=True)
class _Matched:
    """A query set, its pairs with images of the gallery, and its pairs of queries."""

    given: LocalQueries
    images: PairMatches
    queries: PairMatches


def _match(context: RankerContext) -> list[_Matched]:
    """The pairs of each of `LocalInputs.all`."""
    local, config, pairs = local_inputs(context), learned_config(context), context.config.pairs
    frames, classes = image_frames(context), len(context.protocol.classes)
    assert pairs is not None
    matched = []
    by_networks = zip(network_candidates(context), network_queries(context), strict=True)
    for number, (one, (identities, alike)) in enumerate(zip(local.all, by_networks, strict=True)):
        context.report(f"{NAMES['alone']}: {number + 1} of {len(local.all)}")
        given = local.described, frames, one.queries.rows
        likely = likely_images(*given, one.codes, classes, one.nearest, config, pairs.images, identities)
        groups = [places for places, _ in context.protocol.pieces(one.queries)]
        others = likely_queries(*given, groups, config, alike)
        matched.append(_Matched(one, *(match_pairs(*given, rows, pairs, cores()) for rows in (likely, others))))
    return matched


# ------------------------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class _PairModel:
    """What scores pairs.

    Attributes
    ----------
    parts : bool array
        The models of matches that count (`pair_score.pair_values`).
    trees : MatchScorer or None
        The trees of pairs; None where nothing could be fitted.
    likeness : Likeness or None
        What they say of two queries.
    """

    parts: np.ndarray
    trees: MatchScorer | None
    likeness: Likeness | None


@dataclass(frozen=True)
class _Scored:
    """Pairs with the log ratios of their matches (`MatchParts.log_ratios`)."""

    matched: _Matched
    of_images: np.ndarray
    of_queries: np.ndarray

    def image_values(self, parts: np.ndarray) -> np.ndarray:
        """`pair_values` of the pairs with images."""
        return pair_values(self.matched.images, self.of_images, parts)

    def query_values(self, parts: np.ndarray) -> np.ndarray:
        """`pair_values` of the pairs of queries."""
        return pair_values(self.matched.queries, self.of_queries, parts)


def _match_parts(folds: list[_Matched], context: RankerContext) -> MatchParts:
    """The models of single matches, one for each part of each fold."""
    config, halves = context.config.pairs, parts_of(len(folds))
    assert config is not None
    tables = [
        table
        for one in folds
        for table in pair_training_matches(one.images, one.given.truth, one.given.codes, halves, config)
    ]
    return MatchParts(halves, tuple(in_parallel(lambda part: fit_match_scorer([tables[part]], config), len(tables))))


def _scored(matched: list[_Matched], parts: MatchParts) -> list[_Scored]:
    """The last one are the test images' where there is one more than folds: no model saw them."""
    folds = len(parts.models) // parts.halves

    def score(place: int) -> _Scored:
        one, fold = matched[place], place if place < folds else None
        return _Scored(one, parts.log_ratios(one.images, fold), parts.log_ratios(one.queries, fold))

    return in_parallel(score, len(matched))


def _fit(folds: list[_Scored], parts: np.ndarray) -> _PairModel:
    """Fitted on these folds. parts: models of matches that count, bool."""
    tables, of_queries = [], []
    for one in folds:
        given = one.matched.given
        tables.append((one.image_values(parts), same_identity(one.matched.images, given.truth, given.codes)))
    trees = fit_pair_scorer(tables)
    for one in folds:
        given = one.matched.given
        known, same = same_animal(one.matched.queries, given.queries.rows, given.truth)
        of_queries.append((_log_ratio(trees, one.query_values(parts))[known], same))
    return _PairModel(parts, trees, fit_likeness(of_queries))


def _log_ratio(trees: MatchScorer | None, values: np.ndarray) -> np.ndarray:
    """Log ratio of each pair, float64 (p,); 0 where nothing could be fitted. values: float32 (p, any)."""
    return np.zeros(len(values)) if trees is None else trees.log_ratio(values)


# ------------------------------------------------------------------------------------------------------- ranking


def _rank(scored: _Scored, model: _PairModel, context: RankerContext) -> dict[str, Lists]:
    """Lists of a query set by one model, in both ways of `NAMES`."""
    matched, pairs = scored.matched, context.config.pairs
    rows, codes = matched.given.queries.rows, matched.given.codes
    assert pairs is not None
    of_images = _log_ratio(model.trees, scored.image_values(model.parts))
    of_queries = _log_ratio(model.trees, scored.query_values(model.parts))
    shape = len(rows), len(context.protocol.classes)
    alone = identity_scores(matched.images, of_images, codes, shape, pairs.rest)
    together = answering_together(alone, matched.queries, of_queries, rows, model.likeness)
    return {"alone": score_candidates(alone, context.keep), "together": score_candidates(together, context.keep)}
