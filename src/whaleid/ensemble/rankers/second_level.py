"""Rankers of rankings: the blend of all members, and the stack on top of all rankings and the blend."""

from __future__ import annotations

from collections.abc import Iterator

from whaleid.config import CombineConfig
from whaleid.ensemble.blend import Blend, Member, apply_blend, best_members, fit_blend
from whaleid.ensemble.cross_fitting import CrossFitted, OofLists, cross_fit
from whaleid.ensemble.rankers.base import Ranker, RankerContext, Without
from whaleid.ensemble.rankings import Ranking
from whaleid.ensemble.stack import stack_rankings
from whaleid.retrieval.candidates import Candidates

BLEND, STACK = "blend", "stack"


class BlendRanker(Ranker):
    """Weighted sum of the members' calibrated probabilities, the weights cross-fitted.

    `Ranking.fitted` are the blends.
    """

    kind, level = BLEND, "second"

    def rank(self, context: RankerContext) -> list[Ranking]:
        protocol, rankings = context.protocol, context.rankings
        blends = fit_blends(context)

        def blended(place: int | None, blend: Blend) -> tuple[Candidates, ...]:
            lists = [{one.name: one.lists.without(place)[other] for one in rankings} for other in protocol.places]
            return tuple(apply_blend(blend, given, context.keep) for given in lists)

        lists = OofLists(
            tuple(blended(place, blend) for place, blend in enumerate(blends.by_fold)), blended(None, blends.full)
        )
        test = tuple(
            apply_blend(blends.full, {one.name: one.test[place] for one in rankings}, context.keep)
            for place in range(len(rankings[0].test))
        )
        return [Ranking(BLEND, self.kind, lists, test, True, fitted=blends)]


class StackRanker(Ranker):
    """LambdaRank over the candidates of all rankings and the blend. `Ranking.fitted` are the fitted stacks."""

    kind, level = STACK, "second"

    def is_on(self, config: CombineConfig) -> bool:
        return config.stack is not None

    def rank(self, context: RankerContext) -> list[Ranking]:
        assert context.config.stack is not None
        (blend,) = context.of_kind(BLEND)
        below = [one for one in context.rankings if one is not blend]
        return [
            stack_rankings(
                context.protocol, below, blend, context.config.stack, context.seed, models=context.stack_models
            )
        ]

    def ablations(self, config: CombineConfig) -> Iterator[Without]:
        yield Without("stack", config.model_copy(update={"stack": None}))


def fit_blends(context: RankerContext) -> CrossFitted[Blend]:
    """The blend of the rankings of the context, cross-fitted: with each fold, which class probabilities take part.

    The registry says which rankings are members (`Ranker.blend`).
    """
    from whaleid.ensemble.rankers.registry import ranker_of

    protocol, rankings = context.protocol, context.rankings

    def fit(place: int | None, training: list[int]) -> Blend:
        targets = protocol.targets(training)

        def members(part: str) -> list[Member]:
            chosen = [ranking for ranking in rankings if ranker_of(ranking.kind).blend == part]
            return [Member(one.name, one.lists.training(place, training), one.probability) for one in chosen]

        return fit_blend([*members("member"), *best_members(members("best"), targets, context.config.logits)], targets)

    return cross_fit(protocol, fit)
