"""Clustering: partitions of the training images, as pure functions.

K-means, the cutting of clusters, the repair of those that are too small to learn from, and the matching of new clusters
to the learners of those before. `schedule.py` says when each is called.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from whaleid.training.kmeans import kmeans_partition
from whaleid.utils.errors import WhaleidError


def split(features: np.ndarray, assignment: np.ndarray, clusters: int, parts: int, seed: int) -> np.ndarray:
    """Every cluster c cut into `parts` by K-means, as parts * c, parts * c + 1, ...

    features: float32 (n, d). assignment: int64 (n,) in 0..clusters-1, no cluster of less than `parts` rows.
    Returns int64 (n,) in 0..parts * clusters - 1.
    """
    pieces = np.empty_like(assignment)
    for cluster in range(clusters):
        inside = np.flatnonzero(assignment == cluster)
        piece, _ = kmeans_partition(features[inside], parts, seed + cluster)
        pieces[inside] = parts * cluster + piece
    return pieces


def recluster(features: np.ndarray, assignment: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """K-means in new features, started at the means of the clusters so far and matched to them: int64 (n,)."""
    start = np.stack([features[assignment == cluster].mean(axis=0) for cluster in range(clusters)])
    fresh, _ = kmeans_partition(features, clusters, seed, start=start.astype(np.float32))
    return match(assignment, fresh, clusters)


def match(old: np.ndarray, new: np.ndarray, clusters: int) -> np.ndarray:
    """`new` with its clusters renamed so that as many images as possible stay with the learner they had.

    old, new: int64 (n,) in 0..clusters-1. The Hungarian method finds the best one-to-one renaming: cell (o, c) of its
    table counts the images of old cluster o in new cluster c.
    """
    shared = np.zeros((clusters, clusters), dtype=np.int64)
    np.add.at(shared, (old, new), 1)
    olds, news = linear_sum_assignment(shared, maximize=True)
    name = np.empty(clusters, dtype=np.int64)
    name[news] = olds
    return name[new]


def repair(
    features: np.ndarray, assignment: np.ndarray, labels: np.ndarray, clusters: int, smallest: int
) -> tuple[np.ndarray, int]:
    """A partition in which every cluster has at least `smallest` images, of at least 2 identities.

    A smaller cluster takes the images nearest to its centre from clusters that can spare them.

    Parameters
    ----------
    features : float32 array, shape (n, d)
    assignment, labels : int64 arrays, shape (n,)
    clusters, smallest : int

    Returns
    -------
    assignment : int64 array, shape (n,)
    moved : int
        Images that changed cluster.

    Raises
    ------
    WhaleidError
        Where there is no such partition; the message names the cluster.
    """
    assignment = assignment.copy()
    counts = np.zeros((clusters, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(counts, (assignment, labels), 1)
    sizes = counts.sum(axis=1)
    moved = 0
    for cluster in np.argsort(sizes, kind="stable"):
        if _is_fit(counts[cluster], smallest):
            continue
        for image in _by_distance(features, assignment, cluster):
            donor, label = int(assignment[image]), int(labels[image])
            if donor == cluster or (sizes[cluster] >= smallest and counts[cluster, label]):
                continue
            if sizes[donor] <= smallest or _last_but_one(counts[donor], label):
                continue
            assignment[image] = cluster
            for table in (counts[:, label], sizes):
                table[donor] -= 1
                table[cluster] += 1
            moved += 1
            if _is_fit(counts[cluster], smallest):
                break
    require_learnable(assignment, labels, clusters, smallest)
    return assignment, moved


def require_learnable(assignment: np.ndarray, labels: np.ndarray, clusters: int, smallest: int) -> None:
    """Raise WhaleidError for a cluster of too few images, or of one identity: nothing to tell apart."""
    for cluster, counts in enumerate(cluster_counts(assignment, labels, clusters)):
        if counts["images"] < smallest:
            raise WhaleidError(
                f"cluster {cluster} of {clusters} is left with {counts['images']} of {len(labels)}, and needs "
                f"{smallest}; use fewer head.clusters"
            )
        if counts["identities"] < 2:
            raise WhaleidError(
                f"cluster {cluster} of {clusters} is left with one identity ({counts['images']} images): its learner "
                "has nothing to tell apart; use fewer head.clusters"
            )


def cluster_counts(assignment: np.ndarray, labels: np.ndarray, clusters: int) -> list[dict[str, int]]:
    """Images of each cluster, its identities, and how many of those are `single`: they have one image in it.

    assignment, labels: int64 (n,). An identity with one image in its cluster is trained as a negative, and as a pair of
    two views.
    """
    counts = []
    for cluster in range(clusters):
        _, each = np.unique(labels[assignment == cluster], return_counts=True)
        counts.append({"images": int(each.sum()), "identities": len(each), "single": int((each == 1).sum())})
    return counts


def share_of_pairs_together(assignment: np.ndarray, labels: np.ndarray) -> float:
    """Share of the pairs of images of one identity that are in one cluster, in [0, 1]; 1 where there is no pair."""

    def pairs(groups: np.ndarray) -> int:
        _, counts = np.unique(groups, axis=0, return_counts=True)
        return int((counts * (counts - 1) // 2).sum())

    every = pairs(labels[:, None])
    return pairs(np.column_stack([assignment, labels])) / every if every else 1.0


def _is_fit(counts: np.ndarray, smallest: int) -> bool:
    return int(counts.sum()) >= smallest and int(np.count_nonzero(counts)) >= 2


def _last_but_one(counts: np.ndarray, label: int) -> bool:
    """Whether a cluster with these class counts would keep less than 2 classes without one image of `label`."""
    return int(counts[label]) == 1 and int(np.count_nonzero(counts)) <= 2


def _by_distance(features: np.ndarray, assignment: np.ndarray, cluster: int) -> np.ndarray:
    """All images, the nearest to the cluster's centre first (an empty cluster begins anywhere)."""
    inside = assignment == cluster
    centre = features[inside].mean(axis=0) if inside.any() else features[0]
    return np.argsort(((features - centre) ** 2).sum(axis=1), kind="stable")
