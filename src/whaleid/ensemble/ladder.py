"""The stage that makes one answer of many networks, and says what each step of it is worth.

Rungs, from the ground: every single network (kNN on its embeddings; its class probabilities; its siamese head's
second look at the nearest images), all of them side by side (kNN), a classifier on that, local matching where
the recipe asks for it, the blend and, where the recipe asks for it, the stack; the last one is the answer. Every
rung is scored out of fold: a fold's queries are ranked by what never saw them, and thresholds, weights and trees used
on them were learnt from the other folds' out-of-fold candidates (which were compared with this fold's images as
gallery: that much, and no more, the folds know of one another). For the test set all this is learnt from all folds,
and scores are averaged over the folds' models and, where there are such, over those that all labelled images taught:
these have no queries out of fold, learn nothing but by the folds' weights and thresholds, and are worth what the folds'
models are.

The best of averaged scores is lower than the average of best scores, so the tuned threshold is carried over
by rank: `unknown` comes first as often as the single models say it does. The test set's gallery is larger
than any fold's, by 1 / (folds - 1), so its best scores come out a little higher and `unknown` a little too
seldom; `ladder.json` shows both medians, and `combine.unknown: share` takes the expected share instead.

The final rung is always the last that the recipe asks for, also where a lower rung happens to score above it: choosing
the rung by the score that is reported would make that score optimistic.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import CombineConfig, Competition, Recipe
from whaleid.ensemble.blend import Blend, Member, apply_blend, best_members, fit_blend
from whaleid.ensemble.lists import average, concatenate_lists
from whaleid.ensemble.local_rankings import local_steps, rank_locally
from whaleid.ensemble.protocol import Protocol, read_protocol
from whaleid.ensemble.rankings import Ranking, Source, joint_parts, rank_jointly, rank_source
from whaleid.ensemble.results import LadderResult, compare, write_result
from whaleid.ensemble.scoring import place_of_truth, rung_of, threshold_of
from whaleid.ensemble.stack import StackInputs, stack_rankings
from whaleid.ensemble.stack_models import StackModels
from whaleid.ensemble.unknown import ShareMap, Thresholds, share_curve, with_unknown
from whaleid.ensemble.worth import BlendWorth, blend_worth
from whaleid.evaluation.metrics import reciprocal_rank_at_k
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError
from whaleid.utils.progress import progress_bar

BLEND = "blend"


def combine(
    images: pd.DataFrame,
    folds: pd.DataFrame,
    sources: list[Source],
    recipe: Recipe,
    competition: Competition,
    out: Path,
    local: Path | None = None,
    orders: StackModels | None = None,
    weights_folder: Path | None = None,
) -> LadderResult:
    """Rank, blend and score; write `oof.parquet`, `test.parquet` and `ladder.json` to the folder `out`.

    images, folds: images.parquet and folds.csv. sources: each with a folder of features for every fold used.
    local: folder of the keypoints' descriptors, where the recipe has `combine.local_matching`. orders: as
    `stack_rankings`. weights_folder: of a network that matches keypoints, default WEIGHTS_DIR.
    Raises WhaleidError where the sources' folds differ, or features do not fit the images.
    """
    protocol = protocol_of(images, folds, competition, sources)
    rankings = rank_all(sources, images, protocol, recipe.combine, recipe.seed, local, weights_folder=weights_folder)
    result = evaluate_ladder(protocol, rankings, recipe.combine, recipe.seed, orders)
    result = replace(result, full=tuple(source.name for source in sources if source.full is not None))
    result = replace(result, worth=members_worth(protocol, rankings, recipe.combine, result, recipe.seed))
    write_result(result, protocol, out)
    return result


def protocol_of(images: pd.DataFrame, folds: pd.DataFrame, competition: Competition, sources: list[Source]) -> Protocol:
    """The questions that these sources can answer."""
    whole = any(source.full is not None for source in sources)
    return read_protocol(images, folds, competition, common_folds(sources), whole)


def common_folds(sources: list[Source]) -> list[int]:
    """The folds for which every source has features, which must be the same for all."""
    if not sources:
        raise WhaleidError("combine: no sources; name experiments or sources in the recipe")
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise WhaleidError(f"combine: two sources have one name: {', '.join(sorted(names))}")
    numbers = sorted(set().union(*(source.folds for source in sources)))
    for source in sources:
        for number in numbers:
            if number not in source.folds:
                raise WhaleidError(
                    f"source '{source.name}': no features of fold {number}, which other sources have; "
                    "extract them, or leave the fold out (train_folds)"
                )
        for folder in [*source.folds.values(), *([] if source.full is None else [source.full])]:
            if not folder.is_dir():
                raise WhaleidError(
                    f"source '{source.name}': {folder}: no such folder; run the features stage, or mend the path"
                )
    if not numbers:
        raise WhaleidError(f"source '{names[0]}': no folds; extract its features first")
    return numbers


def rank_all(
    sources: list[Source],
    images: pd.DataFrame,
    protocol: Protocol,
    config: CombineConfig,
    seed: int,
    local: Path | None = None,
    decided: dict[str, str] | None = None,
    weights_folder: Path | None = None,
) -> list[Ranking]:
    """Every ranking below the blend: the singles in the sources' order, concat kNN, the classifier, local matching.

    Where some source has a model that all labelled images taught, each ranking answers the test set once for every
    fold and once for these models; one that they have no part in with the mean of its folds. decided: as in
    `choose_settings`. weights_folder: as in `combine`.
    """
    if (config.local_matching is None) != (local is None):
        raise WhaleidError("combine.local_matching and the folder of descriptors go together; give both or neither")
    unknown_names = sorted(set(config.concat.weights) - {source.name for source in sources})
    if unknown_names:
        raise WhaleidError(
            f"combine.concat.weights: '{unknown_names[0]}' is no source; sources: "
            f"{', '.join(source.name for source in sources)}"
        )
    rankings: list[Ranking] = []
    dims: list[int] = []
    local_work = 0 if config.local_matching is None else local_steps(protocol, config.local_matching)
    steps = len(sources) + len(joint_parts(sources, protocol)) + local_work
    with progress_bar("ranking", total=steps) as bar:
        for source in sources:
            found, dim = rank_source(source, images, protocol, config)
            rankings += found
            dims.append(dim)
            bar.advance(note=source.name)
        for ranking in rank_jointly(sources, dims, images, protocol, config, seed, decided):
            if ranking is None:
                bar.advance(note="all sources")
            else:
                rankings.append(ranking)
        found_locally = () if local is None else rank_locally(local, images, protocol, config, weights_folder)
        for ranking in found_locally:
            if ranking is None:
                bar.advance(note="local matching")
            else:
                rankings.append(ranking)
    keep = max(config.candidates, protocol.k)
    return [with_whole(ranking, protocol, keep) for ranking in rankings]


def with_whole(ranking: Ranking, protocol: Protocol, keep: int) -> Ranking:
    """The ranking with a test answer for every part that answers: the mean of its folds where it has none of the models
    that all labelled images taught; what the first fold's model sees stands in for what it would have seen.
    """
    if len(ranking.test) in (0, len(protocol.answering)):
        return ranking
    sights = ranking.sights
    if sights is not None:
        sights = replace(sights, test=(*sights.test, sights.test[0]))
    return replace(ranking, test=(*ranking.test, average(ranking.test, keep)), sights=sights)


def evaluate_ladder(
    protocol: Protocol,
    rankings: list[Ranking],
    config: CombineConfig,
    seed: int = 0,
    orders: StackModels | None = None,
) -> LadderResult:
    """Score every ranking, then the blend of them and the stack, cross-fitted as described at the top of this file.

    orders: as `stack_rankings`.
    """
    limits = [_limits(protocol, one) for one in rankings]
    final, by_fold, blend, limits_of_blend = blend_rankings(protocol, rankings, config)
    rungs = [rung_of(protocol, one, own, config, seed) for one, own in zip(rankings, limits, strict=True)]
    rungs.append(rung_of(protocol, blend, limits_of_blend, config, seed))
    last, of_last, stacked = blend, limits_of_blend, None
    if config.stack is not None:
        blends = [by_fold[part.fold] for part in protocol.parts]
        materials = _materials(protocol, rankings, blends, final, [*limits, limits_of_blend], config)
        optimistic = blend.optimistic or any(one.optimistic for one in rankings)
        sights = next((one.sights for one in rankings if one.sights is not None), None)
        extras = None if sights is None else sights.extras()
        stacked = stack_rankings(
            protocol, rankings, materials, config.stack, seed, extras=extras, optimistic=optimistic, orders=orders
        )
        last, of_last = stacked.ranking, stacked.limits
        rungs.append(rung_of(protocol, last, of_last, config, seed))
    return compare(rungs, final, by_fold, protocol, seed, stacked, _shares(protocol, last, of_last))


def _shares(protocol: Protocol, ranking: Ranking, limits: Thresholds) -> tuple[ShareMap, ...]:
    """What the ranking would score if other shares of the queries were unknown."""
    folds = [
        (lists, part.truth, limit)
        for lists, part, limit in zip(ranking.oof, protocol.parts, limits.by_fold, strict=True)
    ]
    teachers = [protocol.others(place) for place in range(len(folds))]
    return tuple(share_curve(folds, teachers, protocol.k)) if protocol.unknown is not None else ()


def _materials(
    protocol: Protocol,
    rankings: list[Ranking],
    blends: list[Blend],
    final: Blend,
    limits: list[Thresholds],
    config: CombineConfig,
) -> list[StackInputs]:
    """What the stack of every fold looks at, and that of the test set: all queries blended by the fold's own blend."""
    places = list(range(len(protocol.parts)))
    keep = max(config.candidates, protocol.k)

    def blended(blend: Blend, lists: list[dict[str, Candidates]]) -> tuple[Candidates, ...]:
        return tuple(apply_blend(blend, given, keep) for given in lists)

    def taught(target: int | None) -> list[dict[str, Candidates]]:
        return [{one.name: one.taught(target)[place] for one in rankings} for place in places]

    test = [{one.name: one.test[place] for one in rankings} for place in range(len(rankings[0].test))]
    found = [
        StackInputs(blended(blend, taught(place)), (), tuple(own.by_fold[place] for own in limits))
        for place, blend in enumerate(blends)
    ]
    whole = blended(final, taught(None))
    return [*found, StackInputs(whole, blended(final, test), tuple(own.tuned for own in limits))]


def _limits(protocol: Protocol, ranking: Ranking) -> Thresholds:
    """UnknownSummary of a ranking in which nothing but the threshold is tuned on other queries' truth."""

    def fitted(place: int | None, training: list[int]) -> float | None:
        return threshold_of(protocol, concatenate_lists([ranking.taught(place)[other] for other in training]), training)

    places = list(range(len(protocol.parts)))
    return Thresholds([fitted(place, protocol.others(place)) for place in places], fitted(None, places))


# -------------------------------------------------------------------------------------------------- the blend


def blend_rankings(
    protocol: Protocol, rankings: list[Ranking], config: CombineConfig
) -> tuple[Blend, dict[int, Blend], Ranking, Thresholds]:
    """The blend for the test set (tuned on all folds), each fold's (tuned on the others), ranking, thresholds.

    The threshold of fold k comes from the other folds' queries blended by **fold k's** blend. Their own
    out-of-fold answers would not do: those were blended by weights that fold k's truth had a part in.
    """
    places = list(range(len(protocol.parts)))
    keep = max(config.candidates, protocol.k)

    def blended(blend: Blend, chosen: list[int], place: int | None) -> list[Candidates]:
        return [apply_blend(blend, {one.name: one.taught(place)[other] for one in rankings}, keep) for other in chosen]

    by_fold: dict[int, Blend] = {}
    oof: list[Candidates] = []
    lessons: dict[int | None, Candidates] = {}
    with progress_bar("blending", total=len(places) + 1) as bar:
        for place in places:
            others = protocol.others(place)
            blend = _tune(protocol, rankings, config, others, place)
            by_fold[protocol.parts[place].fold] = blend
            oof += blended(blend, [place], place)
            lessons[place] = concatenate_lists(blended(blend, others, place))
            bar.advance()
        final = _tune(protocol, rankings, config, places, None)
        lessons[None] = concatenate_lists(blended(final, places, None))
        bar.advance()
    test = [
        apply_blend(final, {one.name: one.test[place] for one in rankings}, keep)
        for place in range(len(rankings[0].test))
    ]
    used = set(final.used).union(*(blend.used for blend in by_fold.values()))
    optimistic = any(one.optimistic for one in rankings if one.name in used)
    by_place = [threshold_of(protocol, lessons[place], protocol.others(place)) for place in places]
    limits = Thresholds(by_place, threshold_of(protocol, lessons[None], places))
    ranking = Ranking(BLEND, "blend", tuple(oof), tuple(test), True, optimistic)
    return final, by_fold, ranking, limits


def _tune(
    protocol: Protocol, rankings: list[Ranking], config: CombineConfig, places: list[int], target: int | None
) -> Blend:
    """Blend of concat kNN, re-ranking, classifier, siamese heads, local matching and best class probabilities, tuned
    on these folds alone, for fold `target` (None: for the test set).
    """
    targets = protocol.targets(places)

    def members(*kinds: str) -> list[Member]:
        chosen = [ranking for ranking in rankings if ranking.kind in kinds]
        return [
            Member(one.name, concatenate_lists([one.taught(target)[p] for p in places]), one.probability)
            for one in chosen
        ]

    singles = best_members(members("logits"), targets, config.logits)
    return fit_blend([*members("concat", "rerank", "classifier", "siamese", "local"), *singles], targets)


def members_worth(
    protocol: Protocol, rankings: list[Ranking], config: CombineConfig, result: LadderResult, seed: int = 0
) -> BlendWorth:
    """What each member of the blend is worth: the blend is tuned again without it, as `blend_rankings` does.

    result: what `evaluate_ladder` made of the same rankings. Without one network's class probabilities, the next best
    network's
    may take their place (`combine.logits`).
    """
    shares = {rung.name: rung.weight for rung in result.rungs if rung.weight is not None}
    scores = {rung.name: reciprocal_rank_at_k(rung.rank, protocol.k) for rung in result.rungs}
    without: dict[str, np.ndarray] = {}
    for name in shares if len(shares) > 1 else ():
        _, _, blend, limits = blend_rankings(protocol, [one for one in rankings if one.name != name], config)
        oof = [
            with_unknown(lists, limit, protocol.unknown) for lists, limit in zip(blend.oof, limits.by_fold, strict=True)
        ]
        rank = np.concatenate([place_of_truth(lists, protocol, place) for place, lists in enumerate(oof)])
        without[name] = reciprocal_rank_at_k(rank, protocol.k)
    alone = {name: scores[name] for name in shares}
    weights = protocol.weights(list(range(len(protocol.parts))))
    return blend_worth(scores[BLEND], alone, without, shares, weights, seed)
