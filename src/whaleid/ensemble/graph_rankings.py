"""Re-ranking of the sources side by side: every setting of every method, and which one the other folds choose.

Re-ranking often hurts, so it is off unless it helps: the plain list is among the settings, and wins where it is not
beaten. The setting used on a fold is chosen by the other folds' out-of-fold scores, the test set's by all of them.

Out of fold the graph holds the fold's training images, labelled, and its queries, unlabelled; for the test set every
labelled image and the test images. Queries so see one another's features, as test images do, and never a label.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from whaleid.config import KnnConfig, RerankConfig
from whaleid.ensemble.lists import concatenate_lists
from whaleid.ensemble.protocol import FoldPart, Protocol
from whaleid.ensemble.unknown import best_map, rank_stats
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.identities import nearest_identities
from whaleid.retrieval.rerankers.diffusion import columns_at_a_time, diffuse, from_rows
from whaleid.retrieval.rerankers.label_diffusion import spread_labels
from whaleid.retrieval.rerankers.expansion import augment, expand
from whaleid.retrieval.graph import Neighbours, find_neighbours, neighbour_graph, normalised
from whaleid.retrieval.identities import best_columns, identity_candidates
from whaleid.retrieval.index import search
from whaleid.retrieval.rerankers.reciprocal import jaccard, reciprocal_codes, reciprocal_scores

EXPANSION, AUGMENTATION, RECIPROCAL = "query expansion", "database augmentation", "k-reciprocal"
DIFFUSION, LABELS = "diffusion", "label diffusion"
OFF = "off"
_QUERIES = 128  # queries compared with the whole gallery at a time: 17 MB for 33,000 images
_EQUAL = 1e-9  # scores that differ less are equal, and the earlier setting stays

Both = tuple[Candidates | None, Candidates | None]
"""Candidates out of fold (None where no fold is held out) and for the test images (None where there are none)."""

Lists = tuple[np.ndarray, np.ndarray]
"""codes int64 (q, keep), -1 padded, and scores float32 (q, keep), descending, -inf padded."""


@dataclass(frozen=True)
class Setting:
    """Candidates of one setting of one method, for a fold's queries and for the test images under its models."""

    method: str
    name: str
    oof: Candidates | None
    """None for models that all labelled images taught: they have no queries out of fold."""
    test: Candidates | None


@dataclass(frozen=True)
class Choices:
    """Which setting is used where. by_fold: fold -> chosen on the other folds; tuned: on all, for the test set."""

    by_fold: dict[int, str]
    tuned: str


@dataclass(frozen=True)
class Chosen:
    """One method with its settings chosen.

    oof: one a fold, each by the setting chosen on the other folds. test: by the setting chosen on all folds.
    without: for each fold, the lists of **all** folds by the setting chosen without that fold; whatever is learnt for a
    fold is learnt from these. whole: the lists of all folds by the setting chosen on all.
    """

    method: str
    choices: Choices
    oof: tuple[Candidates, ...]
    test: tuple[Candidates, ...]
    without: tuple[tuple[Candidates, ...], ...]
    whole: tuple[Candidates, ...]


def rerank_part(
    features: np.ndarray, part: FoldPart, protocol: Protocol, config: RerankConfig, knn: KnnConfig, keep: int
) -> list[Setting]:
    """Every setting of every method asked for. features: float32 (n, d) of all images by this fold's models."""
    found: dict[tuple[str, str], Lists] = {}
    if len(part.rows):
        oof = _Asked(features, part.gallery, part.gallery_codes, part.training, part.rows)
        found = dict(_every_setting(oof, config, knn, keep))
    tests: dict[tuple[str, str], Lists] = {}
    if len(protocol.test_rows):
        labelled = np.union1d(part.training, part.rows)
        test = _Asked(features, protocol.gallery, protocol.gallery_codes, labelled, protocol.test_rows)
        tests = dict(_every_setting(test, config, knn, keep))

    def named(names: np.ndarray, lists: Lists | None) -> Candidates | None:
        return None if lists is None else Candidates(names, protocol.classes, *lists)

    return [
        Setting(*key, named(part.names, found.get(key)), named(protocol.test_names, tests.get(key)))
        for key in found or tests
    ]


def choose_settings(
    protocol: Protocol,
    plain: list[Both],
    settings: list[list[Setting]],
    decided: dict[str, str] | None = None,
) -> list[Chosen]:
    """For each method and fold the setting with the largest MAP@k on the other folds; the plain list is one of them.

    plain: the lists without re-ranking, for each fold out of fold and for the test images. settings: `rerank_part` of
    each fold. Both may end with those of the whole, which has no say. Of equals the plain list stays, then the earlier
    setting. decided: method -> setting, where that was chosen before; nothing is scored then.
    """
    chosen = []
    for method in dict.fromkeys(setting.method for of_fold in settings for setting in of_fold):
        tables = {OFF: plain}
        for number, first in enumerate(settings[0]):
            if first.method == method:
                tables[first.name] = [(of_fold[number].oof, of_fold[number].test) for of_fold in settings]
        chosen.append(_chosen(protocol, method, tables, None if decided is None else decided[method]))
    return chosen


def _chosen(protocol: Protocol, method: str, tables: dict[str, list[Both]], decided: str | None) -> Chosen:
    places = list(range(len(protocol.parts)))
    oofs = {name: tuple(oof for oof, _ in lists if oof is not None) for name, lists in tables.items()}
    choice = [decided or _best(protocol, oofs, protocol.others(place)) for place in places]
    tuned = decided or _best(protocol, oofs, places)
    without = tuple(oofs[name] for name in choice)
    return Chosen(
        method=method,
        choices=Choices({part.fold: name for part, name in zip(protocol.parts, choice, strict=True)}, tuned),
        oof=tuple(without[place][place] for place in places),
        test=tuple(test for _, test in tables[tuned] if test is not None),
        without=without,
        whole=oofs[tuned],
    )


def _best(protocol: Protocol, tables: dict[str, tuple[Candidates, ...]], places: list[int]) -> str:
    """The setting with the largest MAP@k on these folds, each with the best threshold of its own."""
    targets = protocol.targets(places)
    best, highest = OFF, -np.inf
    for name, lists in tables.items():
        joined = concatenate_lists([lists[place] for place in places])
        value = best_map(rank_stats(joined, targets.truth, targets.weights, targets.k), targets)[1]
        if value > highest + _EQUAL:
            best, highest = name, value
    return best


# -------------------------------------------------------------------------------------------------- the methods


class _Asked:
    """One set of queries against one gallery, as the nodes of a graph: gallery, unlabelled images, queries."""

    def __init__(
        self, features: np.ndarray, gallery: np.ndarray, codes: np.ndarray, labelled: np.ndarray, queries: np.ndarray
    ):
        """features: float32 (n, d). gallery: int64 (g,), codes: int64 (g,). labelled: int64, the gallery and images
        known to be of none of its identities. queries: int64 (q,)."""
        strangers = np.setdiff1d(labelled, gallery)
        self.nodes = np.ascontiguousarray(features[np.concatenate([gallery, strangers, queries])], dtype=np.float32)
        self.codes = codes
        self.query_rows = np.arange(len(self.nodes) - len(queries), len(self.nodes))
        self.gallery = self.nodes[: len(gallery)]
        self.queries = self.nodes[self.query_rows]


Found = Iterator[tuple[tuple[str, str], Lists]]


def _every_setting(asked: _Asked, config: RerankConfig, knn: KnnConfig, keep: int) -> Found:
    """((method, setting), lists) of every setting of every method asked for."""
    if config.expansion is not None:
        yield from _by_expansion(asked, config, knn, keep)
    if config.augmentation is not None:
        yield from _by_augmentation(asked, config, knn, keep)
    wide = _widest(config)
    if not wide:
        return
    nearest = find_neighbours(asked.nodes, wide, knn.index)
    plain = nearest_identities(asked.queries, asked.gallery, asked.codes, knn, keep)
    if config.reciprocal is not None:
        yield from _by_reciprocal(asked, nearest, config, knn, keep)
    if config.diffusion is not None:
        yield from _by_diffusion(asked, nearest, plain, config, knn, keep)
    if config.labels is not None:
        yield from _by_labels(asked, nearest, plain, config, keep)


def _widest(config: RerankConfig) -> int:
    """Neighbours that the widest graph needs; 0 where no method needs one."""
    most = [0]
    if config.reciprocal is not None:
        most += [*config.reciprocal.k1, *config.reciprocal.k2]
    for given in (config.diffusion, config.labels):
        most += given.neighbours if given is not None else []
    return max(most)


def _by_expansion(asked: _Asked, config: RerankConfig, knn: KnnConfig, keep: int) -> Found:
    assert config.expansion is not None
    similarity, rows = search(asked.queries, asked.gallery, max(config.expansion.neighbours))
    for count, alpha in product(config.expansion.neighbours, config.expansion.alpha):
        queries = expand(asked.queries, asked.gallery, similarity[:, :count], rows[:, :count], alpha)
        name = f"{count} neighbours, alpha {alpha:g}"
        yield (EXPANSION, name), nearest_identities(queries, asked.gallery, asked.codes, knn, keep)


def _by_augmentation(asked: _Asked, config: RerankConfig, knn: KnnConfig, keep: int) -> Found:
    assert config.augmentation is not None
    nearest = find_neighbours(asked.gallery, max(config.augmentation.neighbours), knn.index)
    for count, alpha in product(config.augmentation.neighbours, config.augmentation.alpha):
        gallery = augment(asked.gallery, nearest.first(count), alpha)
        name = f"{count} neighbours, alpha {alpha:g}"
        yield (AUGMENTATION, name), nearest_identities(asked.queries, gallery, asked.codes, knn, keep)


def _by_reciprocal(asked: _Asked, nearest: Neighbours, config: RerankConfig, knn: KnnConfig, keep: int) -> Found:
    assert config.reciprocal is not None
    given = config.reciprocal
    for k1, k2 in product(given.k1, given.k2):
        codes = reciprocal_codes(asked.nodes, nearest, k1, k2)
        queries, lists = codes[asked.query_rows], codes[: len(asked.gallery)].tocsc()
        parts: list[list[Lists]] = [[] for _ in given.lambda_value]
        for start in range(0, len(asked.queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            alike = jaccard(queries[part], lists)
            cosine = asked.queries[part] @ asked.gallery.T
            for own, found in zip(given.lambda_value, parts, strict=True):
                found.append(_identities(reciprocal_scores(alike, cosine, own), asked.codes, knn, keep))
        for own, found in zip(given.lambda_value, parts, strict=True):
            yield (RECIPROCAL, f"k1 {k1}, k2 {k2}, lambda {own:g}"), _joined(found)


def _by_diffusion(
    asked: _Asked, nearest: Neighbours, plain: Lists, config: RerankConfig, knn: KnnConfig, keep: int
) -> Found:
    assert config.diffusion is not None
    given, count = config.diffusion, len(asked.nodes)
    step = columns_at_a_time(count)
    for neighbours, gamma, mutual in product(given.neighbours, given.gamma, given.mutual):
        smooth = normalised(neighbour_graph(nearest.first(neighbours), gamma, mutual))
        for alpha in given.alpha:
            found = []
            for start in range(0, len(asked.query_rows), step):
                sources = from_rows(count, asked.query_rows[start : start + step])
                reached = diffuse(smooth, sources, alpha, given.iterations, given.tolerance)[: len(asked.gallery)]
                found.append(_identities(np.maximum(reached.T, 0.0), asked.codes, knn, keep))
            name = f"{_graph_name(neighbours, gamma, mutual)}, alpha {alpha:g}"
            yield (DIFFUSION, name), filled(_joined(found), plain)


def _by_labels(asked: _Asked, nearest: Neighbours, plain: Lists, config: RerankConfig, keep: int) -> Found:
    assert config.labels is not None
    given, labelled = config.labels, np.arange(len(asked.gallery))
    for neighbours, gamma, mutual in product(given.neighbours, given.gamma, given.mutual):
        smooth = normalised(neighbour_graph(nearest.first(neighbours), gamma, mutual))
        for alpha in given.alpha:
            found = spread_labels(
                smooth, labelled, asked.codes, asked.query_rows, given.steps, alpha, keep, given.balance
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
