"""The list of rankers, in the order of the ladder. A new ranker is one more entry."""

from __future__ import annotations

from whaleid.ensemble.rankers.base import Level, Ranker
from whaleid.ensemble.rankers.joint import ClassifierRanker, ConcatRanker
from whaleid.ensemble.rankers.local import VerificationRanker, VotesRanker
from whaleid.ensemble.rankers.match_scores import MatchScoreRanker
from whaleid.ensemble.rankers.pair_scores import PairScoreRanker
from whaleid.ensemble.rankers.rerank import RerankRanker
from whaleid.ensemble.rankers.second_level import BlendRanker, StackRanker
from whaleid.ensemble.rankers.single import KnnRanker, LogitsRanker, SiameseRanker
from whaleid.utils.errors import WhaleidError

RANKERS: list[Ranker] = [
    KnnRanker(),
    LogitsRanker(),
    SiameseRanker(),
    ConcatRanker(),
    RerankRanker(),
    ClassifierRanker(),
    VotesRanker(),
    VerificationRanker(),
    MatchScoreRanker(),
    PairScoreRanker(),
    BlendRanker(),
    StackRanker(),
]


def rankers_of(level: Level) -> list[Ranker]:
    """The rankers of one level."""
    return [ranker for ranker in RANKERS if ranker.level == level]


def ranker_of(kind: str) -> Ranker:
    """The ranker of a kind of ranking."""
    for ranker in RANKERS:
        if ranker.kind == kind:
            return ranker
    raise WhaleidError(f"ranking of kind '{kind}': no ranker of this kind in ensemble/rankers/registry.py")
