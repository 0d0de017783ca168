"""DeepCluster (Caron et al., "Deep Clustering for Unsupervised Learning of Visual Features", ECCV 2018).

Features are whitened, normalised and clustered, by K-means or by power-iteration clustering as in the paper's appendix;
the clusters are the labels of the next epochs, in which every cluster counts alike, whatever its size.
"""

from __future__ import annotations

from typing import Any, cast

import faiss
import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.metrics import normalized_mutual_info_score

from whaleid.config import DeepClusterHead
from whaleid.models.heads.deepcluster import ClusterClassifier
from whaleid.training.epochs import UnlabelledPlanner
from whaleid.training.extract_features import unit_rows
from whaleid.training.kmeans import kmeans_partition, require_finite
from whaleid.training.seeds import mix, seed_everything
from whaleid.training.session import Session, from_main_process
from whaleid.utils.errors import WhaleidError

NEIGHBOURS = 5
"""Of an image in the graph of power-iteration clustering, as published."""
MIXING = 1e-3
"""alpha: share that an iteration takes from an image's neighbours, as published."""
ITERATIONS = 200
"""As in the published code; with this mixing, values spread over few neighbours."""

FLAT = 1e-6
"""Directions with less than this share of the largest variance are rounding errors, which whitening would amplify."""

PER_DIMENSION = 8
"""Images for each dimension, at least: whitened in as many dimensions as images, all are equally far apart."""

PSEUDO_LABELS = "pseudo_labels"
"""Name in `Session.planner_state` of the items' clusters, int64 (n,)."""


class DeepClusterPlanner(UnlabelledPlanner):
    """Clusters the images every `head.every` epochs, and draws equally many images from every cluster."""

    def labels(self, session: Session) -> np.ndarray:
        found = session.planner_state.get(PSEUDO_LABELS)
        return self.items.labels if found is None else found.cpu().numpy()

    def prepare(self, session: Session) -> dict[str, Any] | None:
        """Cluster the items anew and start the classifier anew, where it is due."""
        settings, epoch = cast(DeepClusterHead, self.experiment.head), session.progress.epoch
        if epoch % settings.every:
            return None
        features = self.extract(session, "embedding")
        seed = mix(session.seed, "clusters", epoch)
        before, labels = self.labels(session), self.items.labels
        if session.accelerator.is_main_process:
            labels = pseudo_labels(features, settings, seed)
        labels = from_main_process(session.accelerator, labels)
        session.planner_state = {PSEUDO_LABELS: torch.from_numpy(labels)}
        sizes = np.bincount(labels)
        start_classifier(session, len(sizes), seed)
        return {
            "kind": "clusters",
            "found": len(sizes),
            "smallest": int(sizes.min()),
            "largest": int(sizes.max()),
            "agreement": round(float(normalized_mutual_info_score(before, labels)), 5),  # with the clusters before
        }


def start_classifier(session: Session, found: int, seed: int) -> None:
    """A new classifier, without the old one's moments in the optimizer and its average."""
    head = cast(ClusterClassifier, session.module.head)
    seed_everything(seed)
    head.start_anew(found)
    for parameter in head.parameters():
        session.optimizer.state.pop(parameter, None)
    session.restart_average([f"head.{name}" for name, _ in head.named_parameters()])


def pseudo_labels(features: np.ndarray, config: DeepClusterHead, seed: int) -> np.ndarray:
    """Cluster of every image.

    Parameters
    ----------
    features : float32 array, shape (n, d)
    config : DeepClusterHead
    seed : int

    Returns
    -------
    int64 array, shape (n,), 0..c-1
        No cluster is empty; c <= config.clusters.

    Raises
    ------
    WhaleidError
        For more clusters than images, and for NaN or infinity.
    """
    if config.clusters > len(features):
        raise WhaleidError(f"head.clusters={config.clusters}, but there are only {len(features)} images; use fewer")
    require_finite(features)
    white = unit_rows(whiten(features, min(config.dimensions, max(1, len(features) // PER_DIMENSION))))
    if config.clustering == "kmeans":
        assignment, _ = kmeans_partition(white, config.clusters, seed)
    else:
        assignment = merge_small(white, power_iteration_clusters(white), config.clusters)
    return np.unique(assignment, return_inverse=True)[1].astype(np.int64)


def whiten(features: np.ndarray, dimensions: int) -> np.ndarray:
    """PCA whitening: mean 0 and the identity as covariance. float (n, d) -> float32 (n, m), m <= dimensions.

    The directions of largest variance are kept, without those below FLAT. Equal images give one column of zeros.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    variances, directions = variances[::-1][:dimensions], directions[:, ::-1][:, :dimensions]
    kept = variances > FLAT * max(variances[0], np.finfo(np.float32).tiny)
    if not kept.any():
        return np.zeros((len(features), 1), dtype=np.float32)
    return (centred @ (directions[:, kept] / np.sqrt(variances[kept]))).astype(np.float32)


def power_iteration_clusters(features: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Clusters of the graph of nearest neighbours by power iteration (Lin & Cohen, 2010): int64 (n,), 0..c-1.

    features: float32 (n, d). As in the DeepCluster paper's appendix: an image is joined to its nearest `neighbours`,
    with weights w = exp(-distance ** 2 / sigma ** 2). From equal values v, each iteration mixes a little of (w + w^T)
    v into v, so that v becomes large where images lie close together. Then an image points to the neighbour j with the
    largest w (v_j - v); one whose neighbours are all lower is a summit. Clusters are the images that lead to one
    summit: their number follows from the data. sigma is the median distance to the neighbours; the paper's 0.2 suits a
    million images.
    """
    count = len(features)
    near, squared = _nearest(features, min(neighbours, count - 1))
    scale = np.median(squared)
    weights = np.exp(-squared / scale) if scale > 0 else np.ones_like(squared)
    rows = np.repeat(np.arange(count), near.shape[1])
    graph = csr_array((weights.ravel(), (rows, near.ravel())), shape=(count, count))
    both = graph + graph.T
    values = np.full(count, 1.0 / count)
    for _ in range(ITERATIONS):
        values = MIXING * (both @ values) + (1 - MIXING) * values
        values /= values.sum()
    return _summits(values, near, weights)


def _nearest(features: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's nearest other rows: int64 (n, k), and squared distances float64 (n, k)."""
    features = np.ascontiguousarray(features, dtype=np.float32)
    index = faiss.IndexFlatL2(features.shape[1])
    index.add(features)  # pyright: ignore[reportCallIssue]
    squared, near = index.search(features, neighbours + 1)  # pyright: ignore[reportCallIssue]
    itself = near == np.arange(len(features))[:, None]
    itself[~itself.any(axis=1), -1] = True  # among equal rows the row itself may be missing: drop the last instead
    shape = (len(features), neighbours)
    return near[~itself].reshape(shape), np.maximum(squared[~itself].reshape(shape), 0).astype(np.float64)


def _summits(values: np.ndarray, near: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Number of the summit that each image leads to. values: (n,); near, weights: (n, k)."""
    rises = weights * (values[near] - values[:, None])
    best = rises.argmax(axis=1)[:, None]
    uphill = np.take_along_axis(rises, best, axis=1)[:, 0] > 0
    leads_to = np.where(uphill, np.take_along_axis(near, best, axis=1)[:, 0], np.arange(len(near)))
    while not np.array_equal(further := leads_to[leads_to], leads_to):  # values rise along the way: no cycles
        leads_to = further
    return np.unique(leads_to, return_inverse=True)[1].astype(np.int64)


def merge_small(features: np.ndarray, assignment: np.ndarray, most: int) -> np.ndarray:
    """At most `most` clusters: the largest are kept, and images of the others join the nearest centre.

    features: float32 (n, d). assignment: int64 (n,) in 0..c-1, no cluster empty. Returns int64 (n,) in 0..m-1.
    """
    sizes = np.bincount(assignment)
    if len(sizes) <= most:
        return assignment
    kept = np.sort(np.argsort(-sizes, kind="stable")[:most])
    centres = np.stack([features[assignment == cluster].mean(axis=0) for cluster in kept])
    name = np.full(len(sizes), -1, dtype=np.int64)
    name[kept] = np.arange(most)
    merged = name[assignment]
    left = np.flatnonzero(merged < 0)
    distances = (centres**2).sum(axis=1) - 2 * features[left] @ centres.T
    merged[left] = distances.argmin(axis=1)
    return merged
