"""One rung of the ladder: a ranking's thresholds, guesses, and score out of fold."""

from __future__ import annotations

import numpy as np

from whaleid.config import CombineConfig
from whaleid.ensemble.lists import average
from whaleid.ensemble.protocol import Protocol
from whaleid.ensemble.rankings import Ranking
from whaleid.ensemble.results import Rung, UnknownSummary
from whaleid.ensemble.unknown import Thresholds, best_map, rank_stats, share_threshold, with_unknown
from whaleid.evaluation.metrics import rank_of_truth, score_ranks, size_slices
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError


def rung_of(protocol: Protocol, ranking: Ranking, limits: Thresholds, config: CombineConfig, seed: int) -> Rung:
    """UnknownSummary, guesses and out-of-fold score of one ranking; the gains are added by `compare`."""
    places = list(range(len(protocol.parts)))
    keep = max(config.candidates, protocol.k)
    test = average(ranking.test, keep) if ranking.test else None
    thresholds = _thresholds(protocol, ranking, limits, config, test)
    oof = [
        with_unknown(lists, threshold, protocol.unknown)
        for lists, threshold in zip(ranking.oof, limits.by_fold, strict=True)
    ]
    answer = None if test is None else with_unknown(test, thresholds and thresholds.used, protocol.unknown)
    rank = np.concatenate([place_of_truth(lists, protocol, place) for place, lists in enumerate(oof)])
    weights = protocol.weights(places)
    asked = weights > 0 if protocol.unknown is None else np.ones(len(weights), dtype=bool)
    sizes = np.concatenate([part.sizes for part in protocol.parts])
    slices = size_slices(sizes, protocol.truth(places) < 0)
    return Rung(
        name=ranking.name,
        kind=ranking.kind,
        score=score_ranks(rank[asked], protocol.k, weights[asked], slices[asked], seed=seed),
        rank=rank,
        optimistic=ranking.optimistic or not protocol.crossfitted,
        thresholds=thresholds,
        oof=tuple(oof),
        test=answer,
        setting=None if ranking.chosen is None else ranking.chosen.choices.tuned,
        settings=None if ranking.chosen is None else ranking.chosen.choices.by_fold,
    )


def threshold_of(protocol: Protocol, lists: Candidates, places: list[int]) -> float | None:
    """Best threshold of the queries of these folds; None where there is no unknown label."""
    targets = protocol.targets(places)
    return best_map(rank_stats(lists, targets.truth, targets.weights, targets.k), targets)[0]


def _thresholds(
    protocol: Protocol,
    ranking: Ranking,
    limits: Thresholds,
    config: CombineConfig,
    test: Candidates | None,
) -> UnknownSummary | None:
    """What the rung knows of the unknown identity; None where there is no unknown label."""
    tuned = limits.tuned
    if protocol.unknown is None or tuned is None:
        return None
    places = list(range(len(protocol.parts)))
    first = np.concatenate([lists.scores[:, 0] for lists in ranking.oof])
    first_of_test = np.empty(0, np.float32) if test is None else test.scores[:, 0]
    share = None
    if test is not None and protocol.share is not None:
        share = share_threshold(first_of_test, protocol.share)
    if config.unknown == "share" and share is None:
        raise WhaleidError(
            "combine.unknown: share needs test images and the competition's unknown_share; give them, or take threshold"
        )
    matched = tuned if test is None else _after_averaging(ranking.test, first_of_test, tuned)
    used = share if config.unknown == "share" and share is not None else matched
    weights = protocol.weights(places)
    limit = np.concatenate(
        [np.full(len(lists), value) for lists, value in zip(ranking.oof, limits.by_fold, strict=True)]
    )
    return UnknownSummary(
        used=used,
        tuned=tuned,
        matched=matched,
        by_share=share,
        by_fold={part.fold: value for part, value in zip(protocol.parts, limits.by_fold, strict=True)},
        oof_first=float(weights @ (first < limit) / weights.sum()),
        test_first=None if test is None else float((first_of_test < used).mean()),
        oof_median=float(np.median(first)),
        test_median=None if test is None else float(np.median(first_of_test)),
    )


def _after_averaging(lists: tuple[Candidates, ...], first: np.ndarray, tuned: float) -> float:
    """The threshold on averaged scores that puts `unknown` first as often as the folds' models do one by one.

    The best score of an average is lower than the average of best scores: models agree on the truth and err
    each in its own way. A threshold tuned on one model's scores would call far too many averaged queries
    unknown. first: float32 (n,), best averaged scores.
    """
    if len(lists) == 1:
        return tuned
    limit = np.float32(tuned)
    return share_threshold(first, float(np.mean([(given.scores[:, 0] < limit).mean() for given in lists])))


def place_of_truth(lists: Candidates, protocol: Protocol, place: int) -> np.ndarray:
    """Place of the truth among the first k guesses; the truth of an unknown query is the label `unknown`."""
    truth = protocol.parts[place].truth
    if protocol.unknown is not None:
        truth = np.where(truth < 0, len(protocol.classes), truth)
    return rank_of_truth(lists.codes[:, : protocol.k], truth)
