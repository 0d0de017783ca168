"""Divide: partitions of the training images into clusters, as pure functions.

K-means or bisection, the repair of clusters that are too small to learn from, and the matching of new clusters
to those of before. Sanakoyeu et al., "Divide and Conquer the Embedding Space for Metric Learning" (CVPR 2019,
improved in TPAMI 2021); divide/training.py says when each is called.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import faiss
import numpy as np
from scipy.optimize import linear_sum_assignment

from whaleid.utils.errors import WhaleidError

POINTS = 4096
"""Rows a cluster that K-means looks at, drawn at random from more. faiss's own 256 serve indexes; the centre of a
cluster that is split off for training should not hang on so few."""


@dataclass(frozen=True)
class ClusterFacts:
    """What one cluster holds."""

    images: int
    identities: int
    single: int
    """Identities with one image in this cluster: they train as negatives, and as pairs of two views."""


def kmeans_partition(
    features: np.ndarray, clusters: int, seed: int, iterations: int = 20, start: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of every row and the clusters' centres, by faiss's K-means, on a GPU where faiss sees one.

    features: float32 (n, d), n >= clusters; rows of length 1 make it a clustering by angle.
    start: float32 (clusters, d), centres to begin from; None: drawn from the rows.
    Returns assignment int64 (n,) in 0..clusters-1 and centres float32 (clusters, d). The same seed and number of
    threads give the same result. Raises WhaleidError for too few rows and for NaN or infinity.
    """
    if len(features) < clusters:
        raise WhaleidError(f"head.clusters={clusters}, but there are only {len(features)} images to divide")
    features = np.ascontiguousarray(features, dtype=np.float32)
    require_finite(features)
    kmeans = faiss.Kmeans(
        features.shape[1],
        clusters,
        niter=iterations,
        seed=seed % 2**31,
        gpu=_has_gpu(),
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS,
    )
    kmeans.train(features, init_centroids=start)
    assert kmeans.index is not None
    _, nearest = kmeans.index.search(features, 1)
    return nearest[:, 0].astype(np.int64), np.asarray(kmeans.centroids, dtype=np.float32)


def bisect(features: np.ndarray, assignment: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Every cluster c cut in two by K-means, as 2c and 2c + 1.

    features: float32 (n, d). assignment: int64 (n,) in 0..clusters-1, no cluster of less than 2 rows.
    Returns int64 (n,) in 0..2 * clusters - 1.
    """
    halves = np.empty_like(assignment)
    for cluster in range(clusters):
        inside = np.flatnonzero(assignment == cluster)
        side, _ = kmeans_partition(features[inside], 2, seed + cluster)
        halves[inside] = 2 * cluster + side
    return halves


def renew(features: np.ndarray, assignment: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """K-means begun at the centres of the clusters as they are, in today's features: int64 (n,)."""
    start = np.stack([features[assignment == cluster].mean(axis=0) for cluster in range(clusters)])
    fresh, _ = kmeans_partition(features, clusters, seed, start=start.astype(np.float32))
    return match(assignment, fresh, clusters)


def match(old: np.ndarray, new: np.ndarray, clusters: int) -> np.ndarray:
    """`new` with its clusters renamed so that as many images as possible stay with the learner they had.

    old, new: int64 (n,) in 0..clusters-1. The best one-to-one renaming by the Hungarian method: cell (o, c) of its
    table counts the images that were in old cluster o and are in new cluster c; where it joins them, new cluster c
    is called o. A renamed copy of `old` comes back as `old`.
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

    A cluster that has less takes the images nearest to its centre from clusters that can spare them.
    features: float32 (n, d); assignment, labels: int64 (n,). Returns assignment int64 (n,) and how many images were
    moved. Raises WhaleidError, naming the cluster, where that cannot be had.
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
    for cluster, facts in enumerate(cluster_facts(assignment, labels, clusters)):
        if facts.images < smallest:
            raise WhaleidError(
                f"cluster {cluster} of {clusters} is left with {facts.images} of {len(labels)}, and head.smallest asks "
                f"for {smallest}; take fewer head.clusters, or a lower head.smallest"
            )
        if facts.identities < 2:
            raise WhaleidError(
                f"cluster {cluster} of {clusters} is left with one identity ({facts.images} images): its learner has "
                "nothing to tell apart; take fewer head.clusters"
            )


def cluster_facts(assignment: np.ndarray, labels: np.ndarray, clusters: int) -> list[ClusterFacts]:
    """What each cluster holds. assignment, labels: int64 (n,)."""
    facts = []
    for cluster in range(clusters):
        _, counts = np.unique(labels[assignment == cluster], return_counts=True)
        facts.append(ClusterFacts(int(counts.sum()), len(counts), int((counts == 1).sum())))
    return facts


def pairs_together(assignment: np.ndarray, labels: np.ndarray) -> float:
    """Share of the pairs of images of one identity that are in one cluster, in [0, 1]; 1 where there is no pair."""

    def pairs(groups: np.ndarray) -> int:
        _, counts = np.unique(groups, axis=0, return_counts=True)
        return int((counts * (counts - 1) // 2).sum())

    whole = pairs(labels[:, None])
    return pairs(np.column_stack([assignment, labels])) / whole if whole else 1.0


def facts_for_log(assignment: np.ndarray, labels: np.ndarray, clusters: int) -> list[dict[str, Any]]:
    """`cluster_facts` as JSON values."""
    return [asdict(facts) for facts in cluster_facts(assignment, labels, clusters)]


def require_finite(features: np.ndarray) -> None:
    """Raise WhaleidError for NaN or infinity, naming the first row that holds any."""
    squared = np.einsum("ij,ij->i", features, features)  # one pass, and not finite where any value is not
    if not np.isfinite(squared).all():
        row = int(np.argmin(np.isfinite(squared)))
        raise WhaleidError(
            f"features to cluster: row {row} of {len(features)} holds NaN or infinity; the network has diverged or the "
            "image is broken: lower train.lr, and run `whaleid data check`"
        )


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


def _has_gpu() -> bool:
    """A build of faiss for CPUs lacks even the question."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
