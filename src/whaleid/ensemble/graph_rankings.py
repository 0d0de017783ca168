"""Re-ranking of the sources side by side: every setting of every method, and which one the other folds choose.

Re-ranking often hurts, so it is off unless it helps: the plain list is among the settings, and wins where it is not
beaten. The setting used on a fold is chosen by the other folds' out-of-fold scores, the test set's by all of them.

Out of fold the graph holds the fold's training images, labelled, and its queries, unlabelled; for the test set every
labelled image and the test images. Queries so see one another's features, as test images do, and never a label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whaleid.config import KnnConfig, RerankConfig
from whaleid.ensemble.lists import concatenate_lists
from whaleid.ensemble.protocol import FoldPart, Protocol
from whaleid.ensemble.unknown import best_map, rank_stats
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.rerankers import Lists, every_setting, query_graph, widest_graph

OFF = "off"
_EQUAL = 1e-9  # scores that differ less are equal, and the earlier setting stays

Both = tuple[Candidates | None, Candidates | None]
"""Candidates out of fold (None where no fold is held out) and for the test images (None where there are none)."""


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
    widest = widest_graph(config)
    found: dict[tuple[str, str], Lists] = {}
    if len(part.rows):
        oof = query_graph(features, part.gallery, part.gallery_codes, part.training, part.rows, knn, keep, widest)
        found = dict(every_setting(oof, config))
    tests: dict[tuple[str, str], Lists] = {}
    if len(protocol.test_rows):
        labelled = np.union1d(part.training, part.rows)
        given = features, protocol.gallery, protocol.gallery_codes, labelled, protocol.test_rows
        tests = dict(every_setting(query_graph(*given, knn, keep, widest), config))

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
