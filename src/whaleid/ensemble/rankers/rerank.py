"""Re-ranking of the concatenation: every setting of every method, and which of them the other folds choose.

Re-ranking often hurts, so the plain list is among the settings, and stays where none is better. The setting used on a
fold is chosen by the other folds' out-of-fold scores, the test set's by all of them.

Out of fold the graph holds the fold's training images, labelled, and its queries, unlabelled; for the test set every
labelled image and the test images. Queries use one another's features, as test images do, and never a label.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from whaleid.config import CombineConfig
from whaleid.ensemble.cross_fitting import CrossFitted, OofLists, cross_fit
from whaleid.ensemble.lists import concatenate_lists
from whaleid.ensemble.protocol import Protocol, QuerySet
from whaleid.ensemble.rankers.base import Lists, Ranker, RankerContext, Without, no_lists, put_lists
from whaleid.ensemble.rankers.joint import joint_features
from whaleid.ensemble.rankings import Ranking
from whaleid.ensemble.simulation import simulated_protocol, with_simulated_lists
from whaleid.ensemble.unknown import best_map, rank_stats
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.rerankers import every_setting, query_graph, widest_graph

OFF = "off"
"""The setting that stands for the plain list."""
_EQUAL = 1e-9  # scores that differ less are equal, and the earlier setting stays

Setting = tuple[str, str]
"""Method and name of a setting."""
Tables = dict[str, tuple[list[Candidates], list[Candidates]]]
"""Name of a setting to its candidates, out of fold and of the test images, one a part."""


class RerankRanker(Ranker):
    """One ranking for each method that the recipe asks for, with the settings that the folds choose."""

    kind, level, blend = "rerank", "joint", "member"

    def is_on(self, config: CombineConfig) -> bool:
        return config.rerank is not None

    def rank(self, context: RankerContext) -> list[Ranking]:
        tables = rerank_tables(context)
        (plain,) = context.of_kind("concat")
        rankings = []
        for method in dict.fromkeys(method for method, _ in tables):
            settings: Tables = {OFF: (list(plain.oof), list(plain.test))}
            settings |= {name: found for (own, name), found in tables.items() if own == method}
            decided = None if context.settings is None else context.settings[method]
            lists = {name: with_simulated_lists(oof, context.protocol, False) for name, (oof, _) in settings.items()}
            chosen = choose_setting(simulated_protocol(context.protocol), lists, decided)
            without = tuple(tuple(settings[name][0]) for name in chosen.by_fold)
            oof, test = OofLists(without, tuple(settings[chosen.full][0])), tuple(settings[chosen.full][1])
            rankings.append(Ranking(method, self.kind, oof, test, False, fitted=chosen))
        return rankings

    def ablations(self, config: CombineConfig) -> Iterator[Without]:
        yield Without("re-ranking", config.model_copy(update={"rerank": None}), (self.kind,))


def rerank_tables(context: RankerContext) -> dict[Setting, tuple[list[Candidates], list[Candidates]]]:
    """Candidates by every setting of every method, out of fold and of the test images, one a part."""
    joint, tables = joint_features(context), {}
    for part in context.parts:
        context.report(f"re-ranking: {part.fold}")
        for which, query_set in enumerate(context.protocol.queries(part)):
            if query_set is not None:
                for setting, lists in _lists_by_setting(context, joint[part], query_set).items():
                    found = Candidates(query_set.names, context.protocol.classes, *lists)
                    tables.setdefault(setting, ([], []))[which].append(found)
    return tables


def _lists_by_setting(context: RankerContext, embeddings: np.ndarray, queries: QuerySet) -> dict[Setting, Lists]:
    """Lists of the queries by every setting, with graphs of images that may be compared."""
    config, tables = context.config, {}
    assert config.rerank is not None
    for places, piece in context.protocol.pieces(queries):
        if not len(piece.gallery):
            continue
        rows = piece.gallery, piece.gallery_codes, piece.labelled, piece.rows
        graph = query_graph(embeddings, *rows, config.knn, context.keep, widest_graph(config.rerank))
        for setting, lists in every_setting(graph, config.rerank):
            if setting not in tables:
                tables[setting] = no_lists(len(queries.rows), context.keep)
            put_lists(tables[setting], places, lists)
    return tables


def choose_setting(
    protocol: Protocol, lists: dict[str, list[Candidates]], decided: str | None = None
) -> CrossFitted[str]:
    """The setting with the largest MAP@k, cross-fitted; each setting with the best threshold of its own.

    Parameters
    ----------
    protocol : Protocol
    lists : dict of str to list of Candidates
        Setting to its candidates out of fold, one list a fold. Of equally good settings the first is taken.
    decided : str or None
        The setting, where it was chosen before; nothing is scored then.
    """

    def fit(place: int | None, training: list[int]) -> str:
        if decided is not None:
            return decided
        targets = protocol.targets(training)
        best, highest = OFF, -np.inf
        for name, of_fold in lists.items():
            joined = concatenate_lists([of_fold[other] for other in training])
            value = best_map(rank_stats(joined, targets.truth, targets.weights, targets.k), targets)[1]
            if value > highest + _EQUAL:
                best, highest = name, value
        return best

    return cross_fit(protocol, fit)
