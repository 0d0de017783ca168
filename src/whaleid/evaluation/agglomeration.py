"""Agglomerative clustering of images on sparse pair probabilities, under constraints.

The two clusters that are most alike are merged, again and again, unless a constraint forbids it. Likeness is the mean
probability over all pairs of their images (average linkage; a pair that is not listed counts 0), or the largest one
(single linkage: a union-find over pairs by falling probability). Neither rises when clusters are merged, so that one
run gives the clusters of every threshold. Memory and time are those of the listed pairs, not of all.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from whaleid.evaluation.form_input import PairTable, no_links
from whaleid.utils.errors import WhaleidError

Linkage = Literal["average", "single"]
NO_LABEL = -1
FLOOR = 0.05
"""Probability below which a pair is taken for 0: the lowest threshold that is tried. Most pairs lie below it."""


@dataclass(frozen=True)
class Constraints:
    """What is known of some images.

    Attributes
    ----------
    labels : int64 array, shape (n,)
        Identity of each image, -1 where it is not known. Images of one label are one cluster, of two labels never.
    must_link, cannot_link : int64 arrays, shape (m, 2)
        Pairs of places that are, and that are not, of one identity.
    """

    labels: np.ndarray
    must_link: np.ndarray = field(default_factory=no_links)
    cannot_link: np.ndarray = field(default_factory=no_links)


@dataclass(frozen=True)
class Merges:
    """The merges of one run, by falling likeness.

    Attributes
    ----------
    start : int64 array, shape (n,)
        Cluster of each image before the first merge.
    pairs : int64 array, shape (m, 2)
        The merged clusters, as numbers of `start`.
    likeness : float64 array, shape (m,)
    """

    start: np.ndarray
    pairs: np.ndarray
    likeness: np.ndarray

    def clusters(self, threshold: float) -> np.ndarray:
        """Cluster of each image, int64 (n,), by the merges whose likeness is at least the threshold."""
        merged = self.pairs[self.likeness >= threshold]
        return _components(merged, int(self.start.max(initial=-1)) + 1)[self.start]


def agglomerate(pairs: PairTable, constraints: Constraints, names: np.ndarray, linkage: Linkage) -> Merges:
    """Merge clusters for as long as any two are alike at all.

    Parameters
    ----------
    pairs : PairTable
        Both places are among the n images of the constraints.
    constraints : Constraints
    names : str array, shape (n,)
        Of the images, for messages.
    linkage : {"average", "single"}

    Raises
    ------
    WhaleidError
        Where constraints contradict one another; it names the images of the first contradiction.
    """
    start = _start(constraints, names)
    clusters = _Clusters.of(pairs, start, constraints, linkage)
    heap = [
        (-clusters.likeness(one, other), one, other)
        for one, links in enumerate(clusters.links)
        for other in links
        if one < other
    ]
    heapq.heapify(heap)
    merged, values = [], []
    while heap:
        value, one, other = heapq.heappop(heap)
        if other not in clusters.links[one] or clusters.barred(one, other):
            continue
        likeness = clusters.likeness(one, other)
        if likeness < -value:  # it has fallen since it was put there
            heapq.heappush(heap, (-likeness, one, other))
            continue
        merged.append((one, other))
        values.append(likeness)
        kept, changed = clusters.merge(one, other)
        for cluster in changed:
            heapq.heappush(heap, (-clusters.likeness(kept, cluster), min(kept, cluster), max(kept, cluster)))
    return Merges(start, np.array(merged, dtype=np.int64).reshape(-1, 2), np.array(values))


@dataclass
class _Clusters:
    """The clusters between merges.

    links: of each cluster, the others that it shares pairs with -> sum (or largest) of their probabilities; empty where
    it was merged into another. apart: clusters that it must not be merged with.
    """

    linkage: Linkage
    sizes: list[int]
    links: list[dict[int, float]]
    labels: list[int]
    apart: list[set[int]]

    @classmethod
    def of(cls, pairs: PairTable, start: np.ndarray, constraints: Constraints, linkage: Linkage) -> _Clusters:
        """Before the first merge."""
        count = int(start.max(initial=-1)) + 1
        labels = np.full(count, NO_LABEL)
        np.maximum.at(labels, start, constraints.labels)
        links: list[dict[int, float]] = [{} for _ in range(count)]
        ends = np.sort(np.column_stack([start[pairs.first], start[pairs.second]]), axis=1)
        used = (pairs.probability >= FLOOR) & (ends[:, 0] != ends[:, 1])
        keys, code = np.unique(ends[used][:, 0] * count + ends[used][:, 1], return_inverse=True)
        values = np.zeros(len(keys))
        (np.add if linkage == "average" else np.maximum).at(values, code, pairs.probability[used])
        for key, value in zip(keys.tolist(), values.tolist(), strict=True):
            one, other = divmod(key, count)
            links[one][other] = links[other][one] = value
        apart: list[set[int]] = [set() for _ in range(count)]
        for one, other in start[constraints.cannot_link].tolist():
            apart[one].add(other)
            apart[other].add(one)
        return cls(linkage, np.bincount(start, minlength=count).tolist(), links, labels.tolist(), apart)

    def likeness(self, one: int, other: int) -> float:
        value = self.links[one][other]
        return value if self.linkage == "single" else value / (self.sizes[one] * self.sizes[other])

    def barred(self, one: int, other: int) -> bool:
        """Whether a constraint forbids to merge the two."""
        labels = self.labels[one], self.labels[other]
        return other in self.apart[one] or (NO_LABEL not in labels and labels[0] != labels[1])

    def merge(self, one: int, other: int) -> tuple[int, list[int]]:
        """Merge two clusters; returns the one that is left, and those whose likeness to it may have risen."""
        kept, gone = (one, other) if len(self.links[one]) >= len(self.links[other]) else (other, one)
        del self.links[kept][gone], self.links[gone][kept]
        changed = list(self.links[gone])
        for cluster, value in self.links[gone].items():
            before = self.links[kept].get(cluster, 0.0)
            joined = before + value if self.linkage == "average" else max(before, value)
            self.links[kept][cluster] = self.links[cluster][kept] = joined
            del self.links[cluster][gone]
        for cluster in self.apart[gone]:
            self.apart[cluster].discard(gone)
            self.apart[cluster].add(kept)
        self.apart[kept] |= self.apart[gone]
        self.links[gone], self.apart[gone] = {}, set()
        self.sizes[kept] += self.sizes[gone]
        self.labels[kept] = max(self.labels[kept], self.labels[gone])
        return kept, changed


# -------------------------------------------------------------------------------------------------- constraints


def _start(constraints: Constraints, names: np.ndarray) -> np.ndarray:
    """Cluster of each image by labels and must-links alone, int64 (n,)."""
    labels = constraints.labels
    labelled = np.flatnonzero(labels != NO_LABEL)
    _, first, code = np.unique(labels[labelled], return_index=True, return_inverse=True)
    of_labels = np.column_stack([labelled, labelled[first][code]])
    start = _components(np.concatenate([of_labels, constraints.must_link]), len(labels))
    _require_one_label(start, labels, names)
    inside = np.flatnonzero(np.equal(*start[constraints.cannot_link].T))
    if len(inside):
        one, other = names[constraints.cannot_link[inside[0]]]
        raise WhaleidError(
            f"clusters: images {one} and {other} cannot be of one identity, but labels or must-links join them "
            f"({len(inside)} such pair(s)); correct the decisions"
        )
    return start


def _require_one_label(start: np.ndarray, labels: np.ndarray, names: np.ndarray) -> None:
    """Raise WhaleidError if must-links join two labels."""
    labelled = np.flatnonzero(labels != NO_LABEL)
    order = labelled[np.lexsort((labels[labelled], start[labelled]))]
    clash = np.flatnonzero((start[order][1:] == start[order][:-1]) & (labels[order][1:] != labels[order][:-1]))
    if len(clash):
        one, other = names[order[clash[0]]], names[order[clash[0] + 1]]
        raise WhaleidError(
            f"clusters: must-links join images {one} and {other}, whose labels differ ({len(clash)} such pair(s)); "
            "correct the decisions"
        )


def _components(pairs: np.ndarray, count: int) -> np.ndarray:
    """Connected component of each of `count` nodes, int64 (count,)."""
    graph = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)
