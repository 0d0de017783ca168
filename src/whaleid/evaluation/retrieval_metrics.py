"""Recall@k, MAP@R and NMI of embeddings, as papers on metric learning report them.

Every image of a test set is a query against all others; its identities are new to the model. An image whose identity
has no other image is no query, but stays in the gallery of the others and in NMI.

References
----------
Musgrave et al., "A Metric Learning Reality Check", 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from whaleid.utils.errors import WhaleidError

RECALLS = (1, 2, 4, 8)
"""Values of k of Recall@k, as in the papers."""

_EQUAL = 1e-6
"""Cosines this close are ties: float32 is no more exact. Ties count against the truth, so that a network that has
collapsed to one point does not score by the order of its rows."""
_CELLS = 1 << 24  # cosines held at once: 64 MB
_ITERATIONS = 20  # of K-means, as in pytorch-metric-learning's NMI


@dataclass(frozen=True)
class RetrievalScore:
    """Metrics of one set of embeddings, all in [0, 1].

    Attributes
    ----------
    recall : dict
        k -> share of queries with an image of their identity among the k nearest.
    map_at_r, nmi : float
    images, queries, identities : int
        Queries are images whose identity has another image.
    """

    recall: dict[int, float]
    map_at_r: float
    nmi: float
    images: int
    queries: int
    identities: int


def retrieval_score(
    embeddings: np.ndarray, labels: np.ndarray, ks: Sequence[int] = RECALLS, seed: int = 0
) -> RetrievalScore:
    """All metrics of embeddings.

    Parameters
    ----------
    embeddings : float array, shape (n, d)
        Unit rows.
    labels : int array, shape (n,)
    ks : sequence of int
        Values of k of Recall@k.
    seed : int
        Of K-means.

    Raises
    ------
    WhaleidError
        If the shapes do not match, an embedding holds NaN or infinity, or no two images share an identity.
    """
    recall, map_at_r, queries = recall_and_map(embeddings, labels, ks)
    nmi = clustering_nmi(embeddings, labels, seed)
    return RetrievalScore(recall, map_at_r, nmi, len(labels), queries, len(np.unique(labels)))


def recall_and_map(
    embeddings: np.ndarray, labels: np.ndarray, ks: Sequence[int] = RECALLS, cells: int = _CELLS
) -> tuple[dict[int, float], float, int]:
    """Recall@k for each of `ks`, MAP@R, and the number of queries.

    MAP@R of a query with R other images of its identity is 1 / R times the sum, over the ranks i <= R that hold one of
    them, of the precision among the first i. Parameters as in `retrieval_score`; cells: cosines held at once.
    """
    rows, codes = _checked(embeddings, labels)
    if not len(ks) or min(ks) < 1:
        raise WhaleidError(f"ks: {list(ks)}; ranks of at least 1 are needed")
    same = np.bincount(codes)[codes] - 1
    is_query = same > 0
    if not is_query.any():
        raise WhaleidError(f"labels: none of the {len(codes)} images has another of its identity: nothing to find")
    depth = min(max(*ks, int(same.max())), len(codes))  # wrong images beyond this rank change no metric
    first, precision = np.zeros(len(codes), dtype=np.int64), np.zeros(len(codes))
    for start, cosine in _blocks(rows, cells):
        for place, ranks in enumerate(_ranks_of_same(cosine, codes, start, depth)):
            if len(ranks):
                found = np.arange(1, len(ranks) + 1)
                first[start + place] = ranks[0]
                precision[start + place] = np.where(ranks <= len(ranks), found / ranks, 0.0).mean()
    recall = {int(k): float((first[is_query] <= k).mean()) for k in ks}
    return recall, float(precision[is_query].mean()), int(is_query.sum())


def clustering_nmi(embeddings: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """Normalised mutual information (arithmetic mean) of the labels and as many K-means clusters.

    Parameters as in `retrieval_score`.
    """
    import faiss
    from sklearn.metrics import normalized_mutual_info_score

    rows, codes = _checked(embeddings, labels)
    kmeans = faiss.Kmeans(
        rows.shape[1],
        int(codes.max()) + 1,
        niter=_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,  # faiss would warn below 39 images an identity, which is usual here
        max_points_per_centroid=len(rows),  # no subsampling
    )
    kmeans.train(rows)
    return float(normalized_mutual_info_score(codes, kmeans.assign(rows)[1]))


def pair_histogram(
    embeddings: np.ndarray, labels: np.ndarray, edges: np.ndarray, cells: int = _CELLS
) -> tuple[np.ndarray, np.ndarray]:
    """Histograms of the distances of all pairs.

    Parameters
    ----------
    embeddings : float array, shape (n, d)
        Unit rows.
    labels : int array, shape (n,)
    edges : float array, shape (bins + 1,)
        Ascending Euclidean distances, 0 to 2; distances outside are counted in the nearest bin.
    cells : int
        Cosines held at once.

    Returns
    -------
    same, different : int64 arrays, shape (bins,)
        Pairs of one identity, and of two; every pair counts once.
    """
    rows, codes = _checked(embeddings, labels)
    counts = np.zeros((2, len(edges) - 1), dtype=np.int64)
    columns = np.arange(len(codes))
    for start, cosine in _blocks(rows, cells):
        distance = np.sqrt(np.clip(2.0 - 2.0 * cosine, 0.0, 4.0))
        later = columns > np.arange(start, start + len(cosine))[:, None]
        same = codes[start : start + len(cosine), None] == codes
        for kind, pairs in enumerate((later & same, later & ~same)):
            inside = np.clip(distance[pairs], edges[0], edges[-1])
            counts[kind] += np.histogram(inside, edges)[0]
    return counts[0], counts[1]


def _blocks(rows: np.ndarray, cells: int) -> Iterator[tuple[int, np.ndarray]]:
    """Cosines of some rows with all others: number of the first row, float32 (b, n)."""
    step = max(1, cells // len(rows))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step] @ rows.T


def _ranks_of_same(cosine: np.ndarray, codes: np.ndarray, start: int, depth: int) -> Iterator[np.ndarray]:
    """For each row of `cosine`, ascending ranks of the other images of its identity, int64; capped above `depth`.

    cosine: float32 (b, n), changed in place. A rank is the position among these images plus the number of wrong images
    that are at least as near; only the `depth` nearest wrong ones are counted.
    """
    numbers = np.arange(start, start + len(cosine))
    same = codes[numbers, None] == codes
    right = []
    for place, number in enumerate(numbers):
        members = np.flatnonzero(same[place])
        right.append(np.sort(cosine[place, members[members != number]])[::-1])
    cosine[same] = -np.inf
    wrong = np.sort(np.partition(cosine, -depth, axis=1)[:, -depth:], axis=1)
    for near, others in zip(right, wrong, strict=True):
        nearer = len(others) - np.searchsorted(others, near - _EQUAL)
        yield np.arange(1, len(near) + 1) + nearer


def _checked(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as contiguous float32 and labels as codes 0 .. c - 1."""
    if embeddings.ndim != 2 or not np.issubdtype(embeddings.dtype, np.floating) or not len(embeddings):
        raise WhaleidError(f"embeddings: {embeddings.dtype} {embeddings.shape}; float (n, d) with n >= 1 is needed")
    if labels.shape != (len(embeddings),):
        raise WhaleidError(f"labels: shape {labels.shape}, but there are {len(embeddings)} embeddings")
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        raise WhaleidError(f"embeddings: row {int(np.argmin(finite))} holds NaN or infinity; embed that image again")
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    return rows, np.unique(labels, return_inverse=True)[1].reshape(-1)
