"""One rung of the ladder: a ranking's thresholds, guesses, and score out of fold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from whaleid.config import CombineConfig
from whaleid.ensemble.cross_fitting import CrossFitted
from whaleid.ensemble.lists import average
from whaleid.ensemble.protocol import Protocol
from whaleid.ensemble.rankings import Limits, Ranking, fit_limits, fit_thresholds
from whaleid.ensemble.results import Rung, SpeciesThreshold, UnknownSummary
from whaleid.ensemble.unknown import ShareMap, share_curve, share_threshold, with_unknown
from whaleid.evaluation.metrics import rank_of_truth, reciprocal_rank_at_k, score_ranks, score_slices, size_slices
from whaleid.retrieval.candidates import Candidates


def score_ranking(protocol: Protocol, ranking: Ranking, config: CombineConfig, seed: int) -> Rung:
    """Thresholds, guesses and out-of-fold score of a ranking; the ladder adds gains and weights."""
    fitted = fit_limits(protocol, ranking)
    keep = max(config.candidates, protocol.k)
    test = average(ranking.test, keep) if ranking.test else None
    summary = _unknown_summary(protocol, ranking, fitted, test)
    limits_of_test = None if summary is None else _used(protocol, summary)
    oof = oof_with_unknown(protocol, ranking, fitted)
    rank = oof_ranks(protocol, oof)
    weights = protocol.weights(protocol.places)
    scored = weights > 0 if protocol.unknown is None else np.ones(len(weights), dtype=bool)
    sizes = np.concatenate([part.sizes for part in protocol.parts])
    slices = size_slices(sizes, protocol.truth(protocol.places) < 0)
    species = np.concatenate([protocol.species(part.rows) for part in protocol.parts])[scored]
    return Rung(
        name=ranking.name,
        kind=ranking.kind,
        source=ranking.source,
        score=score_ranks(rank[scored], protocol.k, weights[scored], slices[scored], seed=seed),
        rank=rank,
        optimistic=not protocol.crossfitted,
        thresholds=summary,
        oof=oof,
        test=None if test is None else with_unknown(test, limits_of_test, protocol.unknown),
        species=score_slices(reciprocal_rank_at_k(rank[scored], protocol.k), weights[scored], species)
        if species.any()
        else {},
    )


def oof_with_unknown(protocol: Protocol, ranking: Ranking, limits: Limits) -> tuple[Candidates, ...]:
    """Candidates of each fold with the unknown identity placed by that fold's thresholds."""
    limit = oof_limits(protocol, limits)
    return tuple(with_unknown(lists, own, protocol.unknown) for lists, own in zip(ranking.oof, limit, strict=True))


def oof_limits(protocol: Protocol, limits: Limits) -> list[np.ndarray | None]:
    """Threshold of every query of each fold."""
    return [limits.of(place, protocol.species(part.rows)) for place, part in enumerate(protocol.parts)]


def oof_ranks(protocol: Protocol, oof: tuple[Candidates, ...]) -> np.ndarray:
    """Rank of the truth among the first k guesses of every query; the truth of an unknown query is `unknown`."""
    ranks = []
    for part, lists in zip(protocol.parts, oof, strict=True):
        truth = part.truth
        if protocol.unknown is not None:
            truth = np.where(truth < 0, len(protocol.classes), truth)
        ranks.append(rank_of_truth(lists.codes[:, : protocol.k], truth))
    return np.concatenate(ranks)


def map_by_share(protocol: Protocol, ranking: Ranking) -> tuple[ShareMap, ...]:
    """What the ranking would score if other shares of the queries were unknown.

    Empty without unknown label, and where each species has its threshold.
    """
    if protocol.unknown is None or protocol.species(protocol.parts[0].rows).any():
        return ()
    thresholds = fit_thresholds(protocol, ranking).by_fold
    folds = [
        (lists, part.truth, threshold)
        for lists, part, threshold in zip(ranking.oof, protocol.parts, thresholds, strict=True)
    ]
    return tuple(share_curve(folds, [protocol.training_folds(place) for place in protocol.places], protocol.k))


def _unknown_summary(
    protocol: Protocol,
    ranking: Ranking,
    limits: Limits,
    test: Candidates | None,
) -> UnknownSummary | None:
    """None where there is no unknown label. test: averaged over the folds."""
    thresholds = limits.overall
    tuned = thresholds.full
    if protocol.unknown is None or tuned is None:
        return None
    first = np.concatenate([lists.scores[:, 0] for lists in ranking.oof])
    first_of_test = np.empty(0, np.float32) if test is None else test.scores[:, 0]
    used = tuned if test is None else _after_averaging(ranking.test, first_of_test, tuned)
    weights = protocol.weights(protocol.places)
    limit = np.concatenate([own for own in oof_limits(protocol, limits) if own is not None])
    summary = UnknownSummary(
        used=used,
        tuned=tuned,
        by_fold=_by_fold(protocol, thresholds),
        species={
            name: SpeciesThreshold(
                _used_by(protocol, ranking, name, first_of_test, own.full, used), _by_fold(protocol, own)
            )
            for name, own in limits.by_species.items()
        },
        oof_first=float(weights @ (first < limit) / weights.sum()),
        test_first=None,
        oof_median=float(np.median(first)),
        test_median=None if test is None else float(np.median(first_of_test)),
    )
    if test is None:
        return summary
    return replace(summary, test_first=float((first_of_test < _used(protocol, summary)).mean()))


def _by_fold(protocol: Protocol, thresholds: CrossFitted[float | None]) -> dict[int, float | None]:
    return {part.fold: value for part, value in zip(protocol.parts, thresholds.by_fold, strict=True)}


def _used(protocol: Protocol, summary: UnknownSummary) -> np.ndarray:
    """Threshold of each test image, float32 (n,)."""
    species = protocol.species(protocol.test_rows)
    own = {name: one.used for name, one in summary.species.items()}
    return np.array([own.get(name, summary.used) for name in species], dtype=np.float32)


def _used_by(
    protocol: Protocol, ranking: Ranking, name: str, first: np.ndarray, tuned: float | None, otherwise: float
) -> float:
    """Threshold of the test images of a species; that of all where it has none of its own, or no test image."""
    rows = (protocol.species(protocol.test_rows) == name) & np.isfinite(first)  # an empty list says nothing
    if tuned is None or not rows.any():
        return otherwise if tuned is None else tuned
    lists = tuple(Candidates(one.queries[rows], one.classes, one.codes[rows], one.scores[rows]) for one in ranking.test)
    return _after_averaging(lists, first[rows], tuned)


def _after_averaging(lists: tuple[Candidates, ...], first: np.ndarray, tuned: float) -> float:
    """The threshold on averaged scores that puts unknown first as often as the folds' models do one by one.

    The best score of an average is lower than the average of best scores: models agree on the truth and err each in
    its own way. A threshold fitted on one model's scores would call far too many averaged queries unknown.
    first: float32 (n,), best averaged scores.
    """
    if len(lists) == 1:
        return tuned
    limit = np.float32(tuned)
    return share_threshold(first, float(np.mean([(given.scores[:, 0] < limit).mean() for given in lists])))
