"""Sampler: batches of an epoch in which every batch comes from one cluster.

Every item occurs, whatever the sizes of the clusters; no batch is larger than the setting; the epoch has as many
images as one without clusters. The published code drops an identity with one image in its cluster; here it stays, as a
negative, and where there is room as a pair of two augmented views.
"""

from __future__ import annotations

import heapq

import numpy as np

from whaleid.config import SamplerConfig
from whaleid.data.samplers import EpochPlan, epoch_batches
from whaleid.utils.errors import WhaleidError

_CLUSTERS = 2  # stream of random numbers; data/samplers.py has 0 and 1


def divided_length(labels: np.ndarray, config: SamplerConfig, batch: int, clusters: int) -> tuple[int, int]:
    """Batches and images of a divided epoch, whatever its clusters will be.

    It has as many images as an epoch without clusters, in as many batches, or in the ceil(n / batch) + clusters - 1
    that clusters of the most awkward sizes need.
    """
    full = epoch_batches(labels, config, batch, 0, 0)
    least = -(-len(labels) // batch) + clusters - 1
    return max(len(full), least), sum(len(chosen) for chosen in full)


def cluster_batches(
    labels: np.ndarray, assignment: np.ndarray, clusters: int, config: SamplerConfig, batch: int, epoch: int, seed: int
) -> EpochPlan:
    """Plan of one divided epoch.

    With the balanced sampler, items come in groups of up to `config.images` of an identity; free places first make
    pairs of lone images, then fill groups up. Clusters take turns at random, in proportion to their images.

    Parameters
    ----------
    labels, assignment : int64 arrays, shape (n,)
        Identity and cluster (0..clusters-1) of each item.
    clusters : int
    config : SamplerConfig
    batch, epoch, seed : int

    Returns
    -------
    EpochPlan
        Batches of items of one cluster; `parts` are their clusters.
    """
    length, images = divided_length(labels, config, batch, clusters)
    size = config.images if config.name == "balanced" else 1
    generator = np.random.default_rng([seed % 2**64, epoch, _CLUSTERS])
    members = [np.flatnonzero(assignment == cluster) for cluster in range(clusters)]
    shares = _shares(np.array([len(items) for items in members]), length, images, batch)
    planned: list[tuple[np.ndarray, int]] = []
    for cluster, (items, (batches, places)) in enumerate(zip(members, shares, strict=True)):
        if len(items) < 2:
            raise WhaleidError(f"cluster {cluster} has {len(items)} images; a batch needs 2: use fewer head.clusters")
        groups = _grouped(items, labels[items], size, places, generator)
        planned += [(chosen, cluster) for chosen in _into_batches(groups, batches, batch)]
    order = generator.permutation(len(planned))
    return EpochPlan([planned[place][0] for place in order], [planned[place][1] for place in order])


def _shares(sizes: np.ndarray, length: int, images: int, batch: int) -> list[tuple[int, int]]:
    """Batches and places of each cluster: places in proportion to its size, room for every item of it.

    Spare batches go, one after the other, to the cluster with the fullest batches.
    """
    batches = -(-sizes // batch)
    places = sizes + (images - sizes.sum()) * sizes // max(1, sizes.sum())
    for _ in range(length - int(batches.sum())):
        fullest = np.where(sizes >= 2 * (batches + 1), places / batches, 0.0)  # no batch of a single image
        batches[np.argmax(fullest)] += 1
    return [(int(b), int(min(p, b * batch))) for b, p in zip(batches, places, strict=True)]


def _grouped(
    items: np.ndarray, labels: np.ndarray, size: int, places: int, generator: np.random.Generator
) -> list[tuple[int, list[int]]]:
    """The items as groups (label, up to `size` items of it), with at most `places` items in all.

    Free places repeat items: lone images first, so that they have a pair, then the other short groups, each with
    images that it does not have where its identity has more.
    """
    groups: list[tuple[int, list[int]]] = []
    items_of: dict[int, list[int]] = {}
    for label in generator.permutation(np.unique(labels)):
        shuffled = items_of[int(label)] = generator.permutation(items[labels == label]).tolist()
        groups += [(int(label), shuffled[start : start + size]) for start in range(0, len(shuffled), size)]
    free = places - len(items)
    for wanted in dict.fromkeys((min(2, size), size)):
        for label, group in groups:
            lacking = min(wanted - len(group), free)
            if lacking > 0:
                others = [item for item in items_of[label] if item not in group] or group
                group += np.resize(others, lacking).tolist()
                free -= lacking
    return groups


def _into_batches(groups: list[tuple[int, list[int]]], batches: int, batch: int) -> list[np.ndarray]:
    """The groups in batches of at most `batch` items, evenly filled, two groups of an identity apart if possible.

    Largest groups first, each into the emptiest batch; one that no longer fits is cut in two.
    """
    heap = [(0, number) for number in range(batches)]
    inside: list[set[int]] = [set() for _ in range(batches)]
    chosen: list[list[int]] = [[] for _ in range(batches)]
    waiting = sorted(groups, key=lambda group: -len(group[1]))
    for label, group in waiting:
        left = group
        while left:
            used, number = _emptiest(heap, inside, label, len(left), batch)
            taken, left = left[: batch - used], left[batch - used :]
            chosen[number] += taken
            inside[number].add(label)
            heapq.heappush(heap, (used + len(taken), number))
    _fill_poor(chosen)
    return [np.array(items, dtype=np.int64) for items in chosen]


def _fill_poor(batches: list[list[int]]) -> None:
    """Fill batches of fewer than two items, which batch normalisation cannot take, with half of the fullest batch's
    items, or where that has few itself, with some of them a second time."""
    for poor in batches:
        if len(poor) >= 2:
            continue
        fullest = max(batches, key=len)
        half = len(fullest) // 2
        if half >= 2:
            poor += fullest[half:]
            del fullest[half:]
        else:
            poor += fullest[: 2 - len(poor)]


def _emptiest(
    heap: list[tuple[int, int]], inside: list[set[int]], label: int, size: int, batch: int
) -> tuple[int, int]:
    """Pop the emptiest batch without `label` that the group fits into, else the emptiest of all."""
    passed = []
    while heap and label in inside[heap[0][1]]:
        passed.append(heapq.heappop(heap))
    found = heap[0] if heap and heap[0][0] + size <= batch else None
    if found is not None:
        heapq.heappop(heap)
    for entry in passed:
        heapq.heappush(heap, entry)
    return found if found is not None else heapq.heappop(heap)
