"""The ladder: all rankers of a recipe in order, each scored out of fold; the last one gives the submission.

Every rung is scored out of fold: a fold's queries are ranked by models that were trained without it, and thresholds,
weights and trees that are used on them were fitted on the other folds' out-of-fold candidates (whose gallery does hold
this fold's images: that much, and no more, is shared between folds). For the test set all of this is fitted on all
folds, and scores are averaged over the folds' models and, where there are any, the full-data models. These have no
queries out of fold: they use the weights and thresholds of the folds, and are worth what the folds' models are.

Where there is an unknown label, every query is scored twice, once with its identity taken out of the gallery
(`simulation.py`), and what is fitted and scored is weighted to the expected share of unknown queries. Where that share
is not known, thresholds are those of least regret (`unknown.best_threshold`).

The best of averaged scores is lower than the average of best scores, so the fitted threshold is carried over by rank:
the unknown identity comes first as often as the single models put it first. The test set's gallery is larger than any
fold's, by 1 / (folds - 1), so its best scores are a little higher and unknown comes a little too seldom; `ladder.json`
has both medians.

The final rung is always the last that the recipe asks for, also where a lower rung happens to score above it: choosing
the rung by the score that is reported would make that score optimistic.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import CombineConfig, Competition, Recipe
from whaleid.data.reviews import read_links
from whaleid.ensemble.answers import FormAnswer, answer_by_identities
from whaleid.ensemble.burst_risk import Simple, burst_risk, kept_together, near_queries
from whaleid.ensemble.full_gallery import FARTHEST, estimate, gallery_sizes, halved
from whaleid.ensemble.intervals import rank_gain, weighted_map
from whaleid.ensemble.pair_answers import answer_by_pairs
from whaleid.ensemble.protocol import Protocol, read_protocol
from whaleid.ensemble.rankers.base import JointFeatures, RankerContext
from whaleid.ensemble.rankers.local import read_local
from whaleid.ensemble.rankers.registry import ranker_of, rankers_of
from whaleid.ensemble.rankers.second_level import BLEND, BlendRanker
from whaleid.ensemble.rankings import Ranking, Source, fit_limits, with_full_data
from whaleid.ensemble.results import BlendWorth, LadderResult, MemberWorth, Rung, blend_weights, write_result
from whaleid.ensemble.scoring import map_by_share, oof_ranks, oof_with_unknown, score_ranking
from whaleid.ensemble.simulation import with_simulated_unknowns
from whaleid.ensemble.stack_models import StackModels
from whaleid.evaluation.forms import get_form
from whaleid.utils.errors import WhaleidError
from whaleid.utils.progress import progress_bar


def combine(
    images: pd.DataFrame,
    folds: pd.DataFrame,
    sources: list[Source],
    recipe: Recipe,
    competition: Competition,
    out: Path,
    local: Path | None = None,
    stack_models: StackModels | None = None,
    weights_folder: Path | None = None,
    bursts: np.ndarray | None = None,
    worth: bool = True,
) -> LadderResult:
    """Rank with every ranker and score; write `oof.parquet`, `test.parquet` and `ladder.json`.

    Parameters
    ----------
    images, folds : DataFrame
        images.parquet and folds.csv.
    sources : list of Source
        Each with a folder of features for every fold that is used.
    recipe : Recipe
    competition : Competition
    out : Path
        Folder of the files.
    local : Path, optional
        Folder of the keypoints' descriptors, where the recipe has `combine.local_matching`.
    stack_models : StackModels, optional
        What ranks the test set where it was trained on another machine.
    weights_folder : Path, optional
        Of a network that matches keypoints, default WEIGHTS_DIR.
    bursts : int array, shape (n,), optional
        Burst of each row of images (`data/bursts.py`): how far they may flatter is told.
    worth : bool
        What each member is worth to the blend is told.

    Raises
    ------
    WhaleidError
        Where the sources' folds differ, or features do not fit the images.
    """
    protocol = protocol_of(images, folds, competition, sources)
    rank = partial(rank_all, sources, images, seed=recipe.seed, local=local, weights_folder=weights_folder)
    given = rank(protocol=protocol, config=recipe.combine)
    simulated, rankings = with_simulated_unknowns(protocol, given)
    result = evaluate_ladder(simulated, rankings, recipe.combine, recipe.seed, stack_models)
    if recipe.combine.full_gallery:
        result = with_full_gallery(protocol, given, result, recipe, rank)
    if bursts is not None:
        result = with_burst_risk(protocol, simulated, result, bursts, recipe, rank)
    result = replace(result, full=tuple(source.name for source in sources if source.full is not None))
    if worth:
        result = replace(result, worth=blend_worth(simulated, rankings, recipe.combine, result, recipe.seed))
    result = replace(result, answer=_answer(protocol, simulated, result, sources, images, recipe, competition, local))
    write_result(result, simulated, out)
    return result


def _answer(
    protocol: Protocol,
    simulated: Protocol,
    result: LadderResult,
    sources: list[Source],
    images: pd.DataFrame,
    recipe: Recipe,
    competition: Competition,
    descriptors: Path | None,
) -> FormAnswer | None:
    """The answer in the competition's form; None where the last rung's guesses are the answer.

    simulated: the protocol with simulated unknown queries.
    """
    form = get_form(competition.answer.form)
    if form.NEEDS == "guesses":
        return None
    if form.NEEDS == "pairs":
        return answer_by_pairs(
            form, protocol, sources, images, recipe, competition, descriptors, read_links(competition)
        )
    assert result.final_ranking is not None and result.blend_ranking is not None
    rankings = result.final_ranking, result.blend_ranking
    return answer_by_identities(form, simulated, *rankings, images, competition, recipe.seed)


def protocol_of(images: pd.DataFrame, folds: pd.DataFrame, competition: Competition, sources: list[Source]) -> Protocol:
    """The protocol of the folds that the sources have features of."""
    full = any(source.full is not None for source in sources)
    return read_protocol(images, folds, competition, common_folds(sources), full)


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
                    f"source '{source.name}': {folder}: no such folder; run the features stage, or correct the path"
                )
    if not numbers:
        raise WhaleidError(f"source '{names[0]}': no folds; extract its features first")
    return numbers


# ------------------------------------------------------------------------------------------------------ ranking


def rank_all(
    sources: list[Source],
    images: pd.DataFrame,
    protocol: Protocol,
    config: CombineConfig,
    seed: int,
    local: Path | None = None,
    settings: dict[str, str] | None = None,
    weights_folder: Path | None = None,
) -> list[Ranking]:
    """The rankings below the blend: of each source, of all sources together, of local matching.

    Where some source has a full-data model, each ranking has the test set once for every fold and once for the
    full-data models; one that they have no part in has the mean of its folds.

    Parameters
    ----------
    settings : dict of str to str, optional
        Re-ranking method to setting, where these were chosen before.
    sources, images, protocol, config, seed, local, weights_folder
        As in `combine`.
    """
    if (config.local_matching is None) != (local is None):
        raise WhaleidError("combine.local_matching and the folder of descriptors go together; give both or neither")
    unknown_names = sorted(set(config.concat.weights) - {source.name for source in sources})
    if unknown_names:
        raise WhaleidError(
            f"combine.concat.weights: '{unknown_names[0]}' is no source; sources: "
            f"{', '.join(source.name for source in sources)}"
        )
    steps = len(sources) + sum(ranker.is_on(config) for level in ("joint", "local") for ranker in rankers_of(level))
    with progress_bar("ranking", total=steps) as bar:
        context = RankerContext(
            protocol,
            config,
            seed,
            images=images,
            descriptors=local,
            weights_folder=weights_folder,
            settings=settings,
            report=lambda note: bar.advance(0, note=note),
        )
        for source in sources:
            context = context.added(rank_source(source, context))
            bar.advance(note=source.name)
        context = context.added(rank_jointly(sources, context, bar.advance))
        context = context.added(rank_locally(context, bar.advance))
    return [with_full_data(ranking, protocol, context.keep) for ranking in context.rankings]


def rank_source(source: Source, context: RankerContext) -> list[Ranking]:
    """The rankings of one source alone."""
    context = replace(context, source=source)
    rankers = [ranker for ranker in rankers_of("source") if ranker.is_on(context.config)]
    return [ranking for ranker in rankers for ranking in ranker.rank(context)]


def rank_jointly(
    sources: list[Source], context: RankerContext, advance: Callable[[], None] = lambda: None
) -> list[Ranking]:
    """The rankings of all sources together. advance: called after each ranker."""
    rankings: list[Ranking] = []
    joint = JointFeatures(sources, context.images, context.protocol, context.config, context.seed)
    with closing(joint):
        context = replace(context, joint=joint, rankings=())
        for ranker in rankers_of("joint"):
            if ranker.is_on(context.config):
                rankings += ranker.rank(context.added(rankings))
                advance()
    return rankings


def rank_locally(context: RankerContext, advance: Callable[[], None] = lambda: None) -> list[Ranking]:
    """The rankings of local matching. advance: called after each ranker."""
    rankers = [ranker for ranker in rankers_of("local") if ranker.is_on(context.config)]
    rankings: list[Ranking] = []
    if context.descriptors is not None:
        context = replace(context, local=read_local(context))
    for ranker in rankers:
        rankings += ranker.rank(context.added(rankings))
        advance()
    return rankings


# ------------------------------------------------------------------------------------------------------ scoring


def evaluate_ladder(
    protocol: Protocol,
    rankings: list[Ranking],
    config: CombineConfig,
    seed: int = 0,
    stack_models: StackModels | None = None,
) -> LadderResult:
    """Rank with the rankers of the second level, and score every ranking out of fold.

    Parameters
    ----------
    protocol : Protocol
    rankings : list of Ranking
        As from `rank_all`.
    config : CombineConfig
    seed : int
    stack_models : StackModels, optional
        As in `combine`.
    """
    context = RankerContext(protocol, config, seed, tuple(rankings), stack_models=stack_models)
    rankers = [ranker for ranker in rankers_of("second") if ranker.is_on(config)]
    with progress_bar("blend and stack", total=len(rankers)) as bar:
        for ranker in rankers:
            context = context.added(ranker.rank(context))
            bar.advance(note=ranker.kind)
    rungs = [score_ranking(protocol, ranking, config, seed) for ranking in context.rankings]
    best = max((rung for rung in rungs if _is_single(rung)), key=lambda rung: rung.score.map)
    (blend,) = context.of_kind(BLEND)
    assert blend.fitted is not None
    stacks = context.of_kind("stack")
    weights = protocol.weights(protocol.places)
    finished: list[Rung] = []
    for rung, ranking in zip(rungs, context.rankings, strict=True):
        weight, by_fold = blend_weights(rung.name, blend.fitted, protocol)
        below = None
        if finished and not _is_single(rung):
            below = rank_gain(protocol, rung.rank, finished[-1].rank, seed)
        gain = None if rung is best else rank_gain(protocol, rung.rank, best.rank, seed)
        rung = replace(rung, gain=gain, below=below, weight=weight, weights=by_fold)
        finished.append(_with_setting(rung, ranking, protocol))
    return LadderResult(
        rungs=tuple(finished),
        best_single=best.name,
        queries=sum(len(part.rows) - part.simulated for part in protocol.parts),
        simulated=sum(part.simulated for part in protocol.parts),
        share=protocol.share,
        unanswerable=int((weights == 0).sum()) if protocol.unknown is None else 0,
        k=protocol.k,
        test_images=protocol.test_names,
        stacks=stacks[0].fitted if stacks else None,
        shares=map_by_share(protocol, context.rankings[-1]),
        final_ranking=context.rankings[-1],
        blend_ranking=blend,
    )


def with_full_gallery(
    protocol: Protocol,
    rankings: list[Ranking],
    result: LadderResult,
    recipe: Recipe,
    rank: Callable[..., list[Ranking]],
) -> LadderResult:
    """The result with the score of every rung with every labelled image in the gallery, estimated (`full_gallery.py`).

    Unchanged with one fold alone, whose score is optimistic, with an index by a faiss string, and where galleries
    cannot be halved.

    Parameters
    ----------
    protocol, rankings : Protocol, list of Ranking
        Without simulated unknown queries.
    result : LadderResult
        Their ladder.
    recipe : Recipe
    rank : callable (protocol, config) -> rankings
        `rank_all` of the same sources.
    """
    half = halved(protocol, recipe.seed)
    sizes = gallery_sizes(protocol, half)
    exact = recipe.combine.knn.index in ("auto", "exact")  # faiss may not build another of half as many images
    if not protocol.crossfitted or sizes.reach > FARTHEST or not exact:
        return result
    config = recipe.combine.model_copy(update={"classifier": None})  # its answers would be the same
    again = {one.name: one for one in rank(protocol=half, config=config)}
    smaller = [again.get(one.name, replace(one, test=())) for one in rankings]
    simulated, smaller = with_simulated_unknowns(half, smaller)
    at_half = evaluate_ladder(simulated, smaller, recipe.combine, recipe.seed)
    weights = simulated.weights(simulated.places)
    rungs = []
    for rung, other in zip(result.rungs, at_half.rungs, strict=True):
        full = None
        if ranker_of(rung.kind).reads_gallery:
            full = estimate(rung.rank, other.rank, weights, result.k, sizes.reach, recipe.seed)
        rungs.append(replace(rung, full_gallery=full))
    return replace(result, rungs=tuple(rungs), gallery=sizes)


def with_burst_risk(
    protocol: Protocol,
    simulated: Protocol,
    result: LadderResult,
    bursts: np.ndarray,
    recipe: Recipe,
    rank: Callable[..., list[Ranking]],
) -> LadderResult:
    """The result with what bursts may flatter (`burst_risk.py`); unchanged where hardly a query has a neighbour.

    Parameters
    ----------
    protocol, simulated : Protocol
        Without and with simulated unknown queries; `result` is of the latter.
    bursts : int array
        Burst of each row of images.parquet.
    result, recipe, rank
        As in `with_full_gallery`.
    """
    risk = burst_risk(simulated, result.final.rank, near_queries(simulated, bursts))
    if risk is None:
        return result
    together = kept_together(protocol, bursts)
    if together is not None:
        plain = {"classifier": None, "rerank": None, "stack": None, "logits": 0, "local_matching": None}
        config = recipe.combine.model_copy(update=plain)
        (concat,) = (one for one in rank(protocol=together, config=config, local=None) if one.kind == "concat")
        apart, (concat,) = with_simulated_unknowns(together, [concat])
        own = next(rung for rung in result.rungs if rung.kind == "concat")
        score = score_ranking(apart, concat, config, recipe.seed).score
        risk = replace(risk, simple=Simple(own.name, own.score.map, score.map))
    return replace(result, bursts=risk)


def _is_single(rung: Rung) -> bool:
    return ranker_of(rung.kind).level == "source"


def _with_setting(rung: Rung, ranking: Ranking, protocol: Protocol) -> Rung:
    """The rung with the settings that were chosen, where its ranker chooses one by name."""
    if ranking.fitted is None or not isinstance(ranking.fitted.full, str):
        return rung
    by_fold = {part.fold: name for part, name in zip(protocol.parts, ranking.fitted.by_fold, strict=True)}
    return replace(rung, setting=ranking.fitted.full, settings=by_fold)


def blend_worth(
    protocol: Protocol, rankings: list[Ranking], config: CombineConfig, result: LadderResult, seed: int = 0
) -> BlendWorth:
    """What the blend is worth over its best member, and each member: the blend is fitted again without it.

    Without one network's class probabilities the next best network's may take their place (`combine.logits`).

    Parameters
    ----------
    protocol, rankings, config, seed
        As in `evaluate_ladder`.
    result : LadderResult
        Its result.
    """
    blend = result.rung(BLEND)
    members = [rung for rung in result.rungs if rung.weight is not None]
    rows = []
    for member in members:
        gain = None
        if len(members) > 1:
            others = tuple(one for one in rankings if one.name != member.name)
            (without,) = BlendRanker().rank(RankerContext(protocol, config, seed, others))
            lists = oof_with_unknown(protocol, without, fit_limits(protocol, without))
            gain = rank_gain(protocol, blend.rank, oof_ranks(protocol, lists), seed)
        rows.append(MemberWorth(member.name, weighted_map(protocol, member.rank), gain, member.weight == 0.0))
    best = max(rows, key=lambda row: row.map)
    gain = rank_gain(protocol, blend.rank, result.rung(best.name).rank, seed)
    return BlendWorth(weighted_map(protocol, blend.rank), best.name, gain, tuple(rows))
