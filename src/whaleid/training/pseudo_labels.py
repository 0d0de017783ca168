"""Pseudo-labels: clusters of a network's own features, as pure functions.

Caron et al., "Deep Clustering for Unsupervised Learning of Visual Features" (ECCV 2018): features are whitened,
brought to length 1 and clustered, by K-means or by their appendix's power-iteration clustering; then every cluster
counts alike, whatever its size.
"""

from __future__ import annotations

import faiss
import numpy as np
from scipy.sparse import csr_array

from whaleid.config import DeepClusterHead
from whaleid.divide.clustering import kmeans_partition, require_finite
from whaleid.utils.errors import WhaleidError

NEIGHBOURS = 5  # of an image in the graph of power-iteration clustering, as published
MIXING = 1e-3  # alpha: what an iteration takes over from an image's neighbours, as published
ITERATIONS = 200  # the published code's; with this mixing, values spread over a few neighbours and no further

FLAT = 1e-6
"""Directions with less than this share of the largest variance are rounding errors: whitening would blow them up."""

PER_DIMENSION = 8
"""Images for each dimension, at the least: whitened in as many dimensions as images, all are equally far apart."""

_UNIFORM = 3  # stream of random numbers; data/samplers.py has 0 and 1, divide/sampler.py 2


def pseudo_labels(features: np.ndarray, config: DeepClusterHead, seed: int) -> np.ndarray:
    """Cluster of every image: int64 (n,) in 0..c-1, no cluster empty, c <= config.clusters.

    features: float32 (n, d). Raises WhaleidError for more clusters than images, and for NaN or infinity.
    """
    if config.clusters > len(features):
        raise WhaleidError(f"head.clusters={config.clusters}, but there are only {len(features)} images; take fewer")
    require_finite(features)
    white = unit_rows(whiten(features, min(config.dimensions, max(1, len(features) // PER_DIMENSION))))
    if config.clustering == "kmeans":
        assignment, _ = kmeans_partition(white, config.clusters, seed)
    else:
        assignment = merge_small(white, power_iteration_clusters(white), config.clusters)
    return np.unique(assignment, return_inverse=True)[1].astype(np.int64)


def whiten(features: np.ndarray, dimensions: int) -> np.ndarray:
    """PCA whitening: mean 0 and the identity as covariance. float (n, d) -> float32 (n, m), m <= dimensions.

    The directions of most variance are kept, and none that is flat (FLAT). All images alike: one column of zeros.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    variances, directions = variances[::-1][:dimensions], directions[:, ::-1][:, :dimensions]
    kept = variances > FLAT * max(variances[0], np.finfo(np.float32).tiny)
    if not kept.any():
        return np.zeros((len(features), 1), dtype=np.float32)
    return (centred @ (directions[:, kept] / np.sqrt(variances[kept]))).astype(np.float32)


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows brought to length 1; zero rows stay."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)


def power_iteration_clusters(features: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Clusters of the graph of nearest neighbours by power iteration (Lin & Cohen, 2010): int64 (n,), 0..c-1.

    features: float32 (n, d). In the form of the DeepCluster paper's appendix: an image is joined to its nearest
    `neighbours`, with weights w = exp(-distance ** 2 / sigma ** 2). From equal values v, each iteration mixes a
    little of (w + w^T) v into v, so that v becomes large where images lie close together. Then an image points to
    the neighbour with the largest w (v_neighbour - v_own); one whose neighbours are all lower is a summit. Clusters
    are the images that lead to one summit: their number follows from the data.
    sigma is the median distance to the neighbours. (The paper's 0.2 suits a million images, whose neighbours are
    near; among a few hundred it would leave every image alone.)
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
    own = near == np.arange(len(features))[:, None]
    own[~own.any(axis=1), -1] = True  # among equal rows the row itself may be missing: the last goes instead
    shape = (len(features), neighbours)
    return near[~own].reshape(shape), np.maximum(squared[~own].reshape(shape), 0).astype(np.float64)


def _summits(values: np.ndarray, near: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Number of the summit that each image leads to. values: (n,); near, weights: (n, k)."""
    rises = weights * (values[near] - values[:, None])
    best = rises.argmax(axis=1)[:, None]
    uphill = np.take_along_axis(rises, best, axis=1)[:, 0] > 0
    leads_to = np.where(uphill, np.take_along_axis(near, best, axis=1)[:, 0], np.arange(len(near)))
    while not np.array_equal(further := leads_to[leads_to], leads_to):  # values rise all the way: there are no circles
        leads_to = further
    return np.unique(leads_to, return_inverse=True)[1].astype(np.int64)


def merge_small(features: np.ndarray, assignment: np.ndarray, most: int) -> np.ndarray:
    """At most `most` clusters: images of the smallest others join the nearest centre of those that are kept.

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
    homeless = np.flatnonzero(merged < 0)
    distances = (centres**2).sum(axis=1) - 2 * features[homeless] @ centres.T
    merged[homeless] = distances.argmin(axis=1)
    return merged


def uniform_batches(labels: np.ndarray, batch: int, epoch: int, seed: int) -> list[np.ndarray]:
    """Plan of an epoch that draws equally many images from every cluster: int64 indices for each batch.

    labels: int64 (n,) in 0..c-1, n >= 2, no cluster empty. The epoch has n images in batches whose sizes differ by at
    most 1, none above `batch` (3 for an odd n in batches of 2); their number depends on n and batch alone. Clusters
    have n / c images each, or one more, drawn anew each epoch; a cluster that is smaller repeats its images, each as
    often as the others or once more. With one cluster the epoch is every image once.
    """
    generator = np.random.default_rng([seed % 2**64, epoch, _UNIFORM])
    count, clusters = len(labels), int(labels.max()) + 1
    shares = np.full(clusters, count // clusters)
    shares[generator.permutation(clusters)[: count % clusters]] += 1
    members = [np.flatnonzero(labels == cluster) for cluster in range(clusters)]
    drawn = [_draw(own, share, generator) for own, share in zip(members, shares, strict=True)]
    return np.array_split(generator.permutation(np.concatenate(drawn)), batches_of(count, batch))


def batches_of(images: int, batch: int) -> int:
    """Batches of an epoch of `images`, so that none has a single one."""
    return max(1, min(-(-images // batch), images // 2))


def _draw(members: np.ndarray, share: int, generator: np.random.Generator) -> np.ndarray:
    """`share` of the members, in rounds of all of them: none twice more than another."""
    rounds = [generator.permutation(members) for _ in range(-(-share // len(members)))]
    return np.concatenate([members[:0], *rounds])[:share]
