"""A learned order on top of all rankings: LambdaRank on trees (Burges, "From RankNet to LambdaRank to LambdaMART",
2010; Ke et al., "LightGBM", 2017), taught by out-of-fold candidates and used on none of those that taught it.

What orders the queries of fold f was taught by the other folds' queries alone, through features (calibrations, blend)
that the other folds alone had a part in. One identity has queries in many folds, though, and its gallery facts are
alike in all of them: a tree could learn "an identity with nine images of this spread was right" and find it again.
So identities are dealt into groups, and model (f, g), which orders the queries of group g, saw none of their identities
either. Its orders of the other folds' queries of group g are as honest, and it is by these that the number of trees
and the threshold of fold f are tuned. For the test set models (all folds, g) are averaged.

Trees begin at the blend's odds and correct them: where the number of trees that serves best is 0, the
stack *is* the blend's order, unknown placed by odds. Scores are log-odds against the unknown identity, so that
everything that is done with a threshold on other rankings is done with this one; where there is no unknown label, they
are log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from whaleid.config import StackConfig
from whaleid.ensemble.calibrate import Calibration, fit_calibration
from whaleid.ensemble.lambdarank import prepare_lesson, score_rows, train_rankers
from whaleid.ensemble.lists import concatenate_lists
from whaleid.ensemble.protocol import Protocol, Targets
from whaleid.ensemble.rankings import Ranking
from whaleid.ensemble.stack_features import Extras, Table, View, feature_table
from whaleid.ensemble.stack_models import StackModels
from whaleid.ensemble.unknown import Thresholds, map_at, map_without_unknown, rank_stats
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.identities import PADDING
from whaleid.utils.errors import WhaleidError
from whaleid.utils.progress import progress_bar

STACK = "stack"
_STAGES = 10  # numbers of trees that are compared, evenly spaced
_TINY = 1e-9  # values that differ less are equal; and what sums are kept above


@dataclass(frozen=True)
class StackInputs:
    """What the stack for one fold (or for the test set) may look at, beside the rankings.

    blend: the blended candidates of every fold, then of every fold's test lists, all by **one** blend that learnt
    from the teaching folds alone. limits: of each ranking and, last, of the blend; None without unknown label.
    """

    oof: tuple[Candidates, ...]
    test: tuple[Candidates, ...]
    limits: tuple[float | None, ...]


@dataclass(frozen=True)
class Stacked:
    """ranking: log-odds (see the head of this file). limits: score of unknown. importance: feature -> its share of
    the gain of all splits, of the models that order the test set. rounds: trees used, for each fold and, last, the test
    set. rows: candidates that those models were trained on. orders: what orders the test set.
    """

    ranking: Ranking
    limits: Thresholds
    importance: dict[str, float]
    rounds: tuple[int, ...]
    rows: int
    orders: StackModels


def deal_groups(protocol: Protocol, count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Group int64 (q,), in [0, count), of the queries of each fold: one for all queries of an identity.

    A query of unknown truth is an identity of its own.
    """
    rng = np.random.default_rng([seed, 7])
    of_identity = rng.permutation(len(protocol.classes)) % count
    groups = []
    for part in protocol.parts:
        alone = rng.permutation(len(part.truth)) % count
        groups.append(np.where(part.truth >= 0, of_identity[np.maximum(part.truth, 0)], alone))
    return tuple(groups)


def stack_rankings(
    protocol: Protocol,
    rankings: list[Ranking],
    materials: list[StackInputs],
    config: StackConfig,
    seed: int = 0,
    groups: tuple[np.ndarray, ...] | None = None,
    extras: tuple[tuple[Extras, ...], tuple[Extras, ...]] | None = None,
    optimistic: bool = False,
    orders: StackModels | None = None,
) -> Stacked:
    """The stack's ranking of every fold's queries and of the test set under every fold's models.

    materials: one a fold, in the protocol's order, then that of the test set. groups: as from `deal_groups`.
    extras: further features of each fold's queries, and of the test images under each fold's models.
    orders: what orders the test set where it was learnt elsewhere, from the same rankings; else it is learnt here.
    Raises WhaleidError where the rankings are not all of the folds' queries, or not those that `orders` learnt from.
    """
    _check(protocol, rankings)
    places = list(range(len(protocol.parts)))
    groups = deal_groups(protocol, config.groups, seed) if groups is None else groups
    oof: list[Candidates] = []
    limits: list[float | None] = []
    rounds = []
    with progress_bar("stacking", total=len(places) + 1) as bar:
        for place in places:
            one = _learn(
                protocol,
                _taught(rankings, place),
                materials[place],
                config,
                protocol.others(place),
                groups,
                extras,
                seed,
            )
            table = one.table(place, None if extras is None else extras[0][place])
            scores = _by_group(one, table, groups[place])
            oof.append(_lists(table, scores, rankings[0].oof[place], config.candidates))
            limits.append(one.orders.limit)
            rounds.append(one.orders.rounds)
            bar.advance()
        final = _learn(protocol, _taught(rankings, None), materials[-1], config, places, groups, extras, seed)
        if orders is not None:
            final = final.ordered_by(orders)
        test = []
        for place in range(len(materials[-1].test)):
            table = final.table(place, None if extras is None else extras[1][place], of_test=True)
            scores = final.orders.mean_score(table, config)
            test.append(_lists(table, scores, rankings[0].test[place], config.candidates))
        bar.advance()
    ranking = Ranking(STACK, "stack", tuple(oof), tuple(test), False, optimistic)
    tuned = Thresholds(limits, final.orders.limit)
    return Stacked(
        ranking=ranking,
        limits=tuned,
        importance=_importance(final.orders),
        rounds=(*rounds, final.orders.rounds),
        rows=final.rows,
        orders=final.orders,
    )


def _check(protocol: Protocol, rankings: list[Ranking]) -> None:
    """Every ranking has the lists of every fold's queries in their order, and as many of the test images as another."""
    if not rankings:
        raise WhaleidError("stack: no rankings to learn from; give the recipe experiments or sources")
    for one in rankings:
        for part, lists in zip(protocol.parts, one.oof, strict=True):
            if len(lists) != len(part.names) or not np.array_equal(lists.queries, part.names):
                raise WhaleidError(
                    f"stack: ranking '{one.name}': fold {part.fold} has {len(lists)} queries that are not the fold's "
                    f"{len(part.names)} images in their order; make its candidates again"
                )
        wanted = len(protocol.answering) if len(protocol.test_rows) else 0
        if len(one.test) != wanted:
            raise WhaleidError(
                f"stack: ranking '{one.name}': {len(one.test)} lists of the test images, {wanted} are needed: one for "
                "each fold's models; make its candidates again"
            )


# ------------------------------------------------------------------------------------------------ learning


@dataclass(frozen=True)
class _Learnt:
    """StackModels, what they are of, and the number of rows that they were trained on."""

    protocol: Protocol
    rankings: list[Ranking]
    material: StackInputs
    config: StackConfig
    orders: StackModels
    rows: int

    def table(self, place: int, extras: Extras | None, of_test: bool = False) -> Table:
        """Features of a fold's queries, or of the test images under its models."""
        return _table(
            self.protocol,
            self.rankings,
            self.material,
            self.orders.calibrations,
            self.orders.limits,
            self.config,
            place,
            extras,
            of_test,
        )

    def ordered_by(self, orders: StackModels) -> _Learnt:
        """The same with orders that were learnt elsewhere."""
        if orders.names != self.orders.names:
            odd = sorted(set(orders.names) ^ set(self.orders.names))
            raise WhaleidError(f"stack: its orders were learnt from other rankings than these: {', '.join(odd[:3])}")
        return replace(self, orders=orders)


def _taught(rankings: list[Ranking], place: int | None) -> list[Ranking]:
    """The rankings with those out-of-fold lists whose settings fold `place` had no part in choosing."""
    return [replace(one, oof=one.taught(place)) for one in rankings]


def _learn(
    protocol: Protocol,
    rankings: list[Ranking],
    material: StackInputs,
    config: StackConfig,
    teachers: list[int],
    groups: tuple[np.ndarray, ...],
    extras: tuple[tuple[Extras, ...], tuple[Extras, ...]] | None,
    seed: int,
) -> _Learnt:
    """Teach the models of every group by the queries of the folds `teachers`."""
    truth, weights = protocol.truth(teachers), protocol.weights(teachers)
    members = [*[(one.oof, one.probability) for one in rankings], (material.oof, True)]
    calibrations = tuple(
        fit_calibration(concatenate_lists([lists[place] for place in teachers]), truth, weights, probability)
        for lists, probability in members
    )
    tables = [
        _table(
            protocol,
            rankings,
            material,
            calibrations,
            material.limits,
            config,
            place,
            None if extras is None else extras[0][place],
        )
        for place in teachers
    ]
    table = _below(tables)
    group = np.concatenate([groups[place] for place in teachers])
    targets = protocol.targets(teachers)
    lesson = prepare_lesson(table, truth, weights, config)
    models = tuple(train_rankers(lesson, group != held, protocol.k, config, seed) for held in range(config.groups))
    stages = [int(stage) for stage in np.unique(np.linspace(0, config.num_iterations, _STAGES + 1).astype(int))]
    paths = _paths(models, table, group, stages, config)
    lists = concatenate_lists([rankings[0].oof[place] for place in teachers])
    ordered = [_lists(table, path, lists, config.candidates) for path in paths]
    values = [_map(one, targets) for one in ordered]
    best = max(range(len(values)), key=lambda stage: (values[stage] > max(values) - _TINY, -stage))
    limit = 0.0 if targets.unknown else None
    orders = StackModels(table.names, models, stages[best], limit, calibrations, material.limits)
    return _Learnt(protocol, rankings, material, config, orders, len(table.query))


def _paths(
    models: tuple[tuple[object, ...], ...], table: Table, group: np.ndarray, stages: list[int], config: StackConfig
) -> list[np.ndarray]:
    """For each number of trees the score float64 (r,) of every row by the models that did not see its identity."""
    of_row = group[table.query]
    paths = [table.start.copy() for _ in stages]
    for held, seeds in enumerate(models):
        rows = np.flatnonzero(of_row == held)
        values, grown, first = table.values[rows], np.zeros(len(rows)), 0
        for stage, path in zip(stages, paths, strict=True):
            grown += score_rows(seeds, values, stage, config, first)
            path[rows] += grown
            first = stage
    return paths


def _map(lists: Candidates, targets: Targets) -> float:
    """MAP@k of the queries; the unknown identity has a log-odds of 0."""
    stats = rank_stats(lists, targets.truth, targets.weights, targets.k)
    return map_at(stats, 0.0, targets.k) if targets.unknown else map_without_unknown(stats, targets.k)


# -------------------------------------------------------------------------------------------------- tables


def _table(
    protocol: Protocol,
    rankings: list[Ranking],
    material: StackInputs,
    calibrations: tuple[Calibration, ...],
    limits: tuple[float | None, ...],
    config: StackConfig,
    place: int,
    extras: Extras | None = None,
    of_test: bool = False,
) -> Table:
    """Features of a fold's queries, or of the test images under the fold's models."""
    blended = material.test[place] if of_test else material.oof[place]
    lists = [*((one.test if of_test else one.oof)[place] for one in rankings), blended]
    names = [*(one.name for one in rankings), "blend"]
    views = [View(*each) for each in zip(names, lists, calibrations, limits, strict=True)]
    codes = protocol.gallery_codes if of_test else protocol.parts[place].gallery_codes
    sizes = np.bincount(codes, minlength=len(protocol.classes))
    return feature_table(views, sizes, protocol.k, protocol.unknown is not None, config, extras)


def _below(tables: list[Table]) -> Table:
    """Tables of different queries, one below the other."""
    starts = np.cumsum([0, *(table.queries for table in tables)])
    return Table(
        tables[0].names,
        np.concatenate([table.query + start for table, start in zip(tables, starts, strict=False)]),
        np.concatenate([table.codes for table in tables]),
        np.concatenate([table.values for table in tables]),
        np.concatenate([table.start for table in tables]),
        int(starts[-1]),
    )


def _by_group(learnt: _Learnt, table: Table, groups: np.ndarray) -> np.ndarray:
    """Score float64 (r,) of every row by the models of its query's group."""
    of_row = groups[table.query]
    scores = np.empty(len(table.query))
    for group in range(len(learnt.orders.models)):
        rows = np.flatnonzero(of_row == group)
        scores[rows] = learnt.orders.score(group, table, rows, learnt.config)
    return scores


def _lists(table: Table, scores: np.ndarray, like: Candidates, width: int) -> Candidates:
    """Candidates of the table's identities, best first: log-odds against unknown, or log-probabilities without it.

    like: candidates of the same queries in their order, for names and classes. width: of the lists.
    """
    is_unknown = table.codes == len(like.classes)
    if is_unknown.any():
        base = np.zeros(table.queries)
        base[table.query[is_unknown]] = scores[is_unknown]
    else:
        top = np.full(table.queries, -np.inf)
        np.maximum.at(top, table.query, scores)
        top = np.where(np.isfinite(top), top, 0.0)
        total = np.bincount(table.query, np.exp(scores - top[table.query]), table.queries)
        base = top + np.log(np.maximum(total, _TINY))
    keep = ~is_unknown
    query, codes = table.query[keep], table.codes[keep]
    value = (scores[keep] - base[query]).astype(np.float32)
    order = np.lexsort((-value, query))  # stable: of equal scores the one nearer to the front of the rankings
    query, codes, value = query[order], codes[order], value[order]
    count = np.bincount(query, minlength=table.queries)
    place = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count)
    out = np.full((table.queries, width), PADDING, dtype=np.int64)
    filled = np.full(out.shape, -np.inf, dtype=np.float32)
    out[query, place], filled[query, place] = codes, value
    return Candidates(like.queries, like.classes, out, filled)


def _importance(orders: StackModels) -> dict[str, float]:
    """Feature -> share of the gain of all splits of all models, largest first."""
    total = np.zeros(len(orders.names))
    for model in (model for seeds in orders.models for model in seeds):
        total += model.feature_importance("gain", iteration=orders.rounds or None)
    share = total / max(total.sum(), _TINY)
    return {orders.names[place]: float(share[place]) for place in np.argsort(-share, kind="stable")}
