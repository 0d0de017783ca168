"""Re-ranking of the concatenation: every setting of every method, and which of them the other folds choose.

Re-ranking often hurts, so the plain list is among the settings, and stays where none is better. The setting used on a
fold is chosen by the other folds' out-of-fold scores, the test set's by all of them.

Out of fold the graph holds the fold's training images, labelled, and its queries, unlabelled; for the test set every
labelled image and the test images. Queries use one another's features, as test images do, and never a label.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from whaleid.config import CombineConfig, KnnConfig, RerankConfig
from whaleid.ensemble.cross_fitting import CrossFitted, OofLists, cross_fit
from whaleid.ensemble.lists import concatenate_lists
from whaleid.ensemble.protocol import Protocol, QuerySet
from whaleid.ensemble.rankers.base import Lists, Ranker, RankerContext, Without
from whaleid.ensemble.rankers.joint import joint_features
from whaleid.ensemble.rankings import Ranking
from whaleid.ensemble.unknown import best_map, rank_stats
from whaleid.retrieval.candidates import Candidates, nearest_identities
from whaleid.retrieval.diffusion import columns_at_a_time, diffuse, from_rows, spread_labels
from whaleid.retrieval.expansion import augment, expand
from whaleid.retrieval.graph import Neighbours, find_neighbours, neighbour_graph, normalised
from whaleid.retrieval.identities import best_columns, identity_candidates
from whaleid.retrieval.index import search
from whaleid.retrieval.reciprocal import jaccard, reciprocal_codes, reciprocal_scores

EXPANSION, AUGMENTATION, RECIPROCAL = "query expansion", "database augmentation", "k-reciprocal"
DIFFUSION, LABELS = "diffusion", "label diffusion"
OFF = "off"
"""The setting that stands for the plain list."""
_QUERIES = 128  # queries compared with the whole gallery at a time: 17 MB for 33,000 images
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
            chosen = choose_setting(context.protocol, {name: oof for name, (oof, _) in settings.items()}, decided)
            without = tuple(tuple(settings[name][0]) for name in chosen.by_fold)
            lists, test = OofLists(without, tuple(settings[chosen.full][0])), tuple(settings[chosen.full][1])
            rankings.append(Ranking(method, self.kind, lists, test, False, plain.optimistic, fitted=chosen))
        return rankings

    def ablations(self, config: CombineConfig) -> Iterator[Without]:
        yield Without("re-ranking", config.model_copy(update={"rerank": None}), (self.kind,))


def rerank_tables(context: RankerContext) -> dict[Setting, tuple[list[Candidates], list[Candidates]]]:
    """Candidates by every setting of every method, out of fold and of the test images, one a part."""
    joint, config, tables = joint_features(context), context.config, {}
    assert config.rerank is not None
    for part in context.parts:
        context.report(f"re-ranking: {part.fold}")
        for which, query_set in enumerate(context.protocol.queries(part)):
            if query_set is not None:
                for setting, lists in every_setting(joint[part], query_set, config.rerank, config.knn, context.keep):
                    found = Candidates(query_set.names, context.protocol.classes, *lists)
                    tables.setdefault(setting, ([], []))[which].append(found)
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


# -------------------------------------------------------------------------------------------------- the methods


class _Graph:
    """A query set as the nodes of a graph: gallery, labelled images of other identities, queries."""

    def __init__(self, embeddings: np.ndarray, query_set: QuerySet):
        """embeddings: float32 (n, d), unit rows, of all images."""
        gallery, queries = query_set.gallery, query_set.rows
        strangers = np.setdiff1d(query_set.labelled, gallery)
        rows = np.concatenate([gallery, strangers, queries])
        self.nodes = np.ascontiguousarray(embeddings[rows], dtype=np.float32)
        self.codes = query_set.gallery_codes
        self.query_rows = np.arange(len(self.nodes) - len(queries), len(self.nodes))
        self.gallery = self.nodes[: len(gallery)]
        self.queries = self.nodes[self.query_rows]


Found = Iterator[tuple[Setting, Lists]]


def every_setting(
    embeddings: np.ndarray, query_set: QuerySet, config: RerankConfig, knn: KnnConfig, keep: int
) -> Found:
    """Candidates of a query set by every setting of every method that the recipe asks for.

    Parameters
    ----------
    embeddings : float32 array, shape (n, d)
        Unit rows, of all images.
    query_set : QuerySet
    config : RerankConfig
    knn : KnnConfig
    keep : int
        Width of the lists.

    Yields
    ------
    ((method, setting), (codes, scores))
    """
    graph = _Graph(embeddings, query_set)
    if config.expansion is not None:
        yield from _by_expansion(graph, config, knn, keep)
    if config.augmentation is not None:
        yield from _by_augmentation(graph, config, knn, keep)
    wide = _widest(config)
    if not wide:
        return
    nearest = find_neighbours(graph.nodes, wide, knn.index)
    plain = nearest_identities(graph.queries, graph.gallery, graph.codes, knn, keep)
    if config.reciprocal is not None:
        yield from _by_reciprocal(graph, nearest, config, knn, keep)
    if config.diffusion is not None:
        yield from _by_diffusion(graph, nearest, plain, config, knn, keep)
    if config.labels is not None:
        yield from _by_labels(graph, nearest, plain, config, keep)


def _widest(config: RerankConfig) -> int:
    """Neighbours that the widest graph needs; 0 where no method needs one."""
    most = [0]
    if config.reciprocal is not None:
        most += [*config.reciprocal.k1, *config.reciprocal.k2]
    for given in (config.diffusion, config.labels):
        most += given.neighbours if given is not None else []
    return max(most)


def _by_expansion(graph: _Graph, config: RerankConfig, knn: KnnConfig, keep: int) -> Found:
    assert config.expansion is not None
    similarity, rows = search(graph.queries, graph.gallery, max(config.expansion.neighbours))
    for count, alpha in product(config.expansion.neighbours, config.expansion.alpha):
        queries = expand(graph.queries, graph.gallery, similarity[:, :count], rows[:, :count], alpha)
        name = f"{count} neighbours, alpha {alpha:g}"
        yield (EXPANSION, name), nearest_identities(queries, graph.gallery, graph.codes, knn, keep)


def _by_augmentation(graph: _Graph, config: RerankConfig, knn: KnnConfig, keep: int) -> Found:
    assert config.augmentation is not None
    nearest = find_neighbours(graph.gallery, max(config.augmentation.neighbours), knn.index)
    for count, alpha in product(config.augmentation.neighbours, config.augmentation.alpha):
        gallery = augment(graph.gallery, nearest.first(count), alpha)
        name = f"{count} neighbours, alpha {alpha:g}"
        yield (AUGMENTATION, name), nearest_identities(graph.queries, gallery, graph.codes, knn, keep)


def _by_reciprocal(graph: _Graph, nearest: Neighbours, config: RerankConfig, knn: KnnConfig, keep: int) -> Found:
    assert config.reciprocal is not None
    given = config.reciprocal
    for k1, k2 in product(given.k1, given.k2):
        codes = reciprocal_codes(graph.nodes, nearest, k1, k2)
        queries, lists = codes[graph.query_rows], codes[: len(graph.gallery)].tocsc()
        parts: list[list[Lists]] = [[] for _ in given.lambda_value]
        for start in range(0, len(graph.queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            alike = jaccard(queries[part], lists)
            cosine = graph.queries[part] @ graph.gallery.T
            for value, found in zip(given.lambda_value, parts, strict=True):
                found.append(_identities(reciprocal_scores(alike, cosine, value), graph.codes, knn, keep))
        for value, found in zip(given.lambda_value, parts, strict=True):
            yield (RECIPROCAL, f"k1 {k1}, k2 {k2}, lambda {value:g}"), _joined(found)


def _by_diffusion(
    graph: _Graph, nearest: Neighbours, plain: Lists, config: RerankConfig, knn: KnnConfig, keep: int
) -> Found:
    assert config.diffusion is not None
    given, count = config.diffusion, len(graph.nodes)
    step = columns_at_a_time(count)
    for neighbours, gamma, mutual in product(given.neighbours, given.gamma, given.mutual):
        smooth = normalised(neighbour_graph(nearest.first(neighbours), gamma, mutual))
        for alpha in given.alpha:
            found = []
            for start in range(0, len(graph.query_rows), step):
                sources = from_rows(count, graph.query_rows[start : start + step])
                reached = diffuse(smooth, sources, alpha, given.iterations, given.tolerance)[: len(graph.gallery)]
                found.append(_identities(np.maximum(reached.T, 0.0), graph.codes, knn, keep))
            name = f"{_graph_name(neighbours, gamma, mutual)}, alpha {alpha:g}"
            yield (DIFFUSION, name), filled(_joined(found), plain)


def _by_labels(graph: _Graph, nearest: Neighbours, plain: Lists, config: RerankConfig, keep: int) -> Found:
    assert config.labels is not None
    given, labelled = config.labels, np.arange(len(graph.gallery))
    for neighbours, gamma, mutual in product(given.neighbours, given.gamma, given.mutual):
        smooth = normalised(neighbour_graph(nearest.first(neighbours), gamma, mutual))
        for alpha in given.alpha:
            found = spread_labels(
                smooth, labelled, graph.codes, graph.query_rows, given.steps, alpha, keep, given.balance
            )
            for steps, lists in found.items():
                name = f"{_graph_name(neighbours, gamma, mutual)}, alpha {alpha:g}, {steps} steps"
                yield (LABELS, name), filled(lists, plain)


def _graph_name(neighbours: int, gamma: float, mutual: bool) -> str:
    return f"{neighbours} {'mutual ' if mutual else ''}neighbours, gamma {gamma:g}"


def _identities(scores: np.ndarray, codes: np.ndarray, knn: KnnConfig, keep: int) -> Lists:
    """Identities of a block of queries by the scores of all gallery images, float32 (b, g).

    The best `knn.neighbours` images are looked at, then twice as many for those that are short of identities.
    """
    out = np.full((len(scores), keep), -1, np.int64), np.full((len(scores), keep), -np.inf, np.float32)
    short = np.arange(len(scores))
    neighbours, reachable = max(knn.neighbours, keep), min(keep, len(np.unique(codes)))
    while len(short):
        best, rows = best_columns(scores[short], neighbours)
        out[0][short], out[1][short] = identity_candidates(best, rows, codes, knn, keep)
        short = short[(out[0][short] >= 0).sum(axis=1) < reachable]
        neighbours *= 2
    return out


def _joined(parts: list[Lists]) -> Lists:
    return np.concatenate([codes for codes, _ in parts]), np.concatenate([scores for _, scores in parts])


def filled(lists: Lists, plain: Lists) -> Lists:
    """Lists whose scores at or below 0 name nobody, filled up with the names of the plain lists, in their order.

    What is filled in has score 0: nothing of the graph speaks for it, and a guess costs nothing.
    """
    keep = lists[0].shape[1]
    reached = np.where(lists[1] > 0, lists[0], -1)
    named = (plain[0][:, :, None] == reached[:, None, :]).any(axis=2) & (plain[0] >= 0)
    codes = np.concatenate([reached, np.where(named, -1, plain[0])], axis=1)
    scores = np.concatenate([np.where(reached >= 0, lists[1], -np.inf), np.where(named, -np.inf, 0.0)], axis=1)
    scores[codes < 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
    return np.take_along_axis(codes, order, axis=1), np.take_along_axis(scores, order, axis=1).astype(np.float32)
