"""The stack: LambdaRank over the candidates of all rankings, fitted on out-of-fold candidates.

What ranks the queries of fold f is trained on the other folds' queries alone, with features (calibrations, blend) that
were fitted on the other folds alone. One identity has queries in many folds, though, and what the gallery holds of it
is alike in all of them: a tree could learn "an identity with nine images of this spread was right" and recognise it.
So identities are split into groups, and model (f, g), which ranks the queries of group g, is not trained on their
identities either. Its rankings of the other folds' queries of group g are as honest, and the number of trees of fold
f is chosen by these. For the test set the models (all folds, g) are averaged.

Boosting starts at the blend's odds and corrects them: where the best number of trees is 0, the stack *is* the blend's
order. It orders identities only: where there is an unknown label, the candidates in the stack's order have the blend's
probabilities, by which the unknown identity is placed; where there is none, they have log-probabilities of their own.

References
----------
Burges, "From RankNet to LambdaRank to LambdaMART", 2010. Ke et al., "LightGBM", 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whaleid.config import StackConfig
from whaleid.ensemble.calibrate import Calibration, fit_calibration
from whaleid.ensemble.cross_fitting import CrossFitted, OofLists, cross_fit
from whaleid.ensemble.embedding_features import EmbeddingTable
from whaleid.ensemble.lambdarank import score_rows, train_models, training_table
from whaleid.ensemble.protocol import Protocol, Targets
from whaleid.ensemble.rankings import Ranking
from whaleid.ensemble.stack_features import Table, View, feature_table
from whaleid.ensemble.stack_models import StackModels
from whaleid.ensemble.unknown import best_map, fit_threshold, rank_stats
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.identities import PADDING
from whaleid.utils.errors import WhaleidError

_STAGES = 10  # numbers of trees that are compared, evenly spaced
_TINY = 1e-9  # values that differ less are equal; and what sums are kept above


@dataclass(frozen=True)
class Stack:
    """A fitted stack. rows: number of candidates that its models were trained on."""

    models: StackModels
    rows: int


def split_identities(protocol: Protocol, count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Group of the queries of each fold: one for all queries of an identity.

    A query of unknown truth is an identity of its own; a simulated one stays with its image's identity.

    Returns
    -------
    tuple of int64 arrays, shape (q,)
        One a fold, values in [0, count).
    """
    rng = np.random.default_rng([seed, 7])
    of_identity = rng.permutation(len(protocol.classes)) % count
    groups = []
    for part in protocol.parts:
        image_place = np.arange(len(part.truth)) if part.image_place is None else part.image_place
        truth = part.truth[: image_place.max(initial=-1) + 1]
        alone = rng.permutation(len(truth)) % count
        groups.append(np.where(truth >= 0, of_identity[np.maximum(truth, 0)], alone)[image_place])
    return tuple(groups)


def stack_rankings(
    protocol: Protocol,
    rankings: list[Ranking],
    blend: Ranking,
    config: StackConfig,
    seed: int = 0,
    groups: tuple[np.ndarray, ...] | None = None,
    models: StackModels | None = None,
) -> Ranking:
    """The stack's ranking of every fold's queries, and of the test set under every part's models.

    Parameters
    ----------
    protocol : Protocol
    rankings : list of Ranking
        All rankings below the blend. The first with embedding features gives these to the stack.
    blend : Ranking
    config : StackConfig
    seed : int
    groups : tuple of int64 arrays, optional
        As from `split_identities`.
    models : StackModels, optional
        What ranks the test set where it was trained elsewhere, with the same rankings; else it is trained here.

    Returns
    -------
    Ranking
        `fitted` is a CrossFitted of Stack. Nothing may be fitted on its lists: they are those that are scored.

    Raises
    ------
    WhaleidError
        Where the rankings are not all of the folds' queries, or not those that `models` were trained with.
    """
    _check(protocol, rankings)
    groups = split_identities(protocol, config.groups, seed) if groups is None else groups
    inputs = _Inputs(protocol, [*rankings, blend], config, seed, groups)
    stacks = cross_fit(protocol, inputs.fit)
    if models is not None:
        stacks = CrossFitted(stacks.by_fold, _replaced(stacks.full, models))
    lists = OofLists.same(tuple(inputs.rank(stacks.by_fold[place], place) for place in protocol.places))
    test = tuple(inputs.rank_test(stacks.full, number) for number in range(len(blend.test)))
    limits = CrossFitted(tuple(stack.models.limit for stack in stacks.by_fold), stacks.full.models.limit)
    return Ranking("stack", "stack", lists, test, False, thresholds=limits, fitted=stacks)


def importance(models: StackModels) -> dict[str, float]:
    """Share of each feature in the gain of all splits of all models, largest first."""
    total = np.zeros(len(models.names))
    for model in (model for seeds in models.models for model in seeds):
        total += model.feature_importance("gain", iteration=models.trees or None)
    share = total / max(total.sum(), _TINY)
    return {models.names[place]: float(share[place]) for place in np.argsort(-share, kind="stable")}


def _replaced(stack: Stack, models: StackModels) -> Stack:
    if models.names != stack.models.names:
        odd = sorted(set(models.names) ^ set(stack.models.names))
        raise WhaleidError(f"stack: its models were trained with other rankings than these: {', '.join(odd[:3])}")
    return Stack(models, stack.rows)


def _check(protocol: Protocol, rankings: list[Ranking]) -> None:
    """Every ranking has the lists of every fold's queries in their order, and as many of the test images as another."""
    if not rankings:
        raise WhaleidError("stack: no rankings to train on; give the recipe experiments or sources")
    for one in rankings:
        for part, lists in zip(protocol.parts, one.oof, strict=True):
            if len(lists) != len(part.names) or not np.array_equal(lists.queries, part.names):
                raise WhaleidError(
                    f"stack: ranking '{one.name}': fold {part.fold} has {len(lists)} queries that are not the fold's "
                    f"{len(part.names)} images in their order; make its candidates again"
                )
        wanted = len(protocol.test_parts) if len(protocol.test_rows) else 0
        if len(one.test) != wanted:
            raise WhaleidError(
                f"stack: ranking '{one.name}': {len(one.test)} lists of the test images, {wanted} are needed: one for "
                "each fold's models; make its candidates again"
            )


class _Inputs:
    """What every stack of a recipe is fitted on and applied to. rankings: the blend is the last."""

    def __init__(
        self,
        protocol: Protocol,
        rankings: list[Ranking],
        config: StackConfig,
        seed: int,
        groups: tuple[np.ndarray, ...],
    ) -> None:
        self.protocol, self.rankings, self.config, self.seed, self.groups = protocol, rankings, config, seed, groups
        self.features = next((one.embedding_features for one in rankings if one.embedding_features is not None), None)

    # ------------------------------------------------------------------------------------------------ fitting

    def fit(self, place: int | None, training: list[int]) -> Stack:
        """The stack for the fold at `place` (None: the test set), fitted on the folds `training`."""
        protocol, config = self.protocol, self.config
        targets = protocol.targets(training)
        calibrations = tuple(
            fit_calibration(one.lists.training(place, training), targets.truth, targets.weights, one.probability)
            for one in self.rankings
        )
        tables = [self._table(place, calibrations, other) for other in training]
        table = _concatenate_tables(tables)
        group = np.concatenate([self.groups[other] for other in training])
        data = training_table(table, targets.truth, targets.weights, config)
        held_out = [group != held for held in range(config.groups)]
        models = tuple(train_models(data, chosen, protocol.k, config, self.seed) for chosen in held_out)
        numbers = [int(number) for number in np.unique(np.linspace(0, config.num_iterations, _STAGES + 1).astype(int))]
        scores = _scores_by_trees(models, table, group, numbers, config)
        blend = self.rankings[-1].lists.training(place, training)
        values = [_best_map(self._candidates(table, one, blend), targets) for one in scores]
        best = max(range(len(values)), key=lambda stage: (values[stage] > max(values) - _TINY, -stage))
        limit = fit_threshold(self._candidates(table, scores[best], blend), targets)
        return Stack(StackModels(table.names, models, numbers[best], calibrations, limit), len(table.query))

    # ----------------------------------------------------------------------------------------------- applying

    def rank(self, stack: Stack, place: int) -> Candidates:
        """A fold's queries, each by the models that were not trained on its group."""
        table = self._table(place, stack.models.calibrations, place)
        of_row = self.groups[place][table.query]
        scores = np.empty(len(table.query))
        for group in range(len(stack.models.models)):
            rows = np.flatnonzero(of_row == group)
            scores[rows] = stack.models.score(group, table, rows, self.config)
        return self._candidates(table, scores, self.rankings[-1].oof[place])

    def rank_test(self, stack: Stack, number: int) -> Candidates:
        """The test images under one part's models, by the mean of all groups' models."""
        lists = [one.test[number] for one in self.rankings]
        embeddings = None if self.features is None else self.features.test[number]
        codes = self.protocol.gallery_codes
        table = self._features(lists, codes, stack.models.calibrations, embeddings)
        return self._candidates(table, stack.models.mean_score(table, self.config), lists[-1])

    def _candidates(self, table: Table, scores: np.ndarray, blend: Candidates) -> Candidates:
        """Candidates of the table's identities in the order of their scores. blend: of the same queries."""
        lists = _candidates(table, scores, blend, self.config.candidates)
        return lists if self.protocol.unknown is None else _with_scores_of(blend, lists)

    def _table(self, place: int | None, calibrations: tuple[Calibration, ...], other: int) -> Table:
        """Features of the queries of the fold at `other`, from the lists for the fold at `place`."""
        lists = [one.lists.without(place)[other] for one in self.rankings]
        embeddings = None if self.features is None else self.features.oof[other]
        return self._features(lists, self.protocol.parts[other].gallery_codes, calibrations, embeddings)

    def _features(
        self,
        lists: list[Candidates],
        gallery_codes: np.ndarray,
        calibrations: tuple[Calibration, ...],
        embeddings: EmbeddingTable | None,
    ) -> Table:
        names = [one.name for one in self.rankings]
        views = [View(*each) for each in zip(names, lists, calibrations, strict=True)]
        sizes = np.bincount(gallery_codes, minlength=len(self.protocol.classes))
        return feature_table(views, sizes, self.protocol.k, self.config, embeddings)


def _scores_by_trees(
    models: tuple[tuple[object, ...], ...], table: Table, group: np.ndarray, numbers: list[int], config: StackConfig
) -> list[np.ndarray]:
    """For each number of trees the score float64 (r,) of every row by the models not trained on its group."""
    of_row = group[table.query]
    scores = [table.start.copy() for _ in numbers]
    for held, seeds in enumerate(models):
        rows = np.flatnonzero(of_row == held)
        values, grown, first = table.values[rows], np.zeros(len(rows)), 0
        for number, score in zip(numbers, scores, strict=True):
            grown += score_rows(seeds, values, number, config, first)
            score[rows] += grown
            first = number
    return scores


def _best_map(lists: Candidates, targets: Targets) -> float:
    return best_map(rank_stats(lists, targets.truth, targets.weights, targets.k), targets)[1]


def _concatenate_tables(tables: list[Table]) -> Table:
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


def _candidates(table: Table, scores: np.ndarray, like: Candidates, width: int) -> Candidates:
    """Candidates of the table's identities, best first, with log-probabilities.

    like: candidates of the same queries in their order, for names and classes. width: of the lists.
    """
    top = np.full(table.queries, -np.inf)
    np.maximum.at(top, table.query, scores)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.bincount(table.query, np.exp(scores - top[table.query]), table.queries)
    base = top + np.log(np.maximum(total, _TINY))
    query, codes = table.query, table.codes
    value = (scores - base[query]).astype(np.float32)
    order = np.lexsort((-value, query))  # stable: of equal scores the one nearer to the front of the rankings
    query, codes, value = query[order], codes[order], value[order]
    count = np.bincount(query, minlength=table.queries)
    place = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count)
    out = np.full((table.queries, width), PADDING, dtype=np.int64)
    filled = np.full(out.shape, -np.inf, dtype=np.float32)
    out[query, place], filled[query, place] = codes, value
    return Candidates(like.queries, like.classes, out, filled)


def _with_scores_of(blend: Candidates, lists: Candidates) -> Candidates:
    """The lists with the blend's scores, the n-th best candidate with the n-th best score."""
    width = min(blend.codes.shape[1], lists.codes.shape[1])
    listed = (lists.codes[:, :width] >= 0) & (blend.codes[:, :width] >= 0)
    codes = np.where(listed, lists.codes[:, :width], PADDING)
    return Candidates(lists.queries, lists.classes, codes, np.where(listed, blend.scores[:, :width], -np.inf))
