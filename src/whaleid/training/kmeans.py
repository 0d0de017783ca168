"""K-means of features by faiss."""

from __future__ import annotations

import faiss
import numpy as np

from whaleid.utils.errors import WhaleidError

POINTS = 4096
"""Rows a cluster that K-means uses, drawn at random from more. faiss's default of 256 is meant for indexes."""


def kmeans_partition(
    features: np.ndarray, clusters: int, seed: int, iterations: int = 20, start: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """K-means by faiss, on a GPU where faiss has one.

    Parameters
    ----------
    features : float32 array, shape (n, d)
        n >= clusters; unit rows make it a clustering by angle.
    clusters, seed, iterations : int
        The same seed and number of threads give the same result.
    start : float32 array, shape (clusters, d), optional
        Initial centres; without, they are drawn from the rows.

    Returns
    -------
    assignment : int64 array, shape (n,), 0..clusters-1
    centres : float32 array, shape (clusters, d)

    Raises
    ------
    WhaleidError
        For fewer rows than clusters, and for NaN or infinity.
    """
    if len(features) < clusters:
        raise WhaleidError(
            f"head.clusters={clusters}, but there are only {len(features)} images to cluster; use fewer clusters"
        )
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


def require_finite(features: np.ndarray) -> None:
    """Raise WhaleidError for NaN or infinity, naming the first row that holds any."""
    squared = np.einsum("ij,ij->i", features, features)  # one pass, and not finite where any value is not
    if not np.isfinite(squared).all():
        row = int(np.argmin(np.isfinite(squared)))
        raise WhaleidError(
            f"features to cluster: row {row} of {len(features)} holds NaN or infinity; the network has diverged or the "
            "image is broken: lower train.lr, and run `whaleid data check`"
        )


def _has_gpu() -> bool:
    """Whether faiss sees a GPU; a build for CPUs has no function to ask."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
