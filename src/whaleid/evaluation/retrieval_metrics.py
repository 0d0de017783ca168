"""How well embeddings order images by identity: the figures that papers on metric learning print.

Every image of a test set is a query against all the others (identities are new to the model): Recall@k, MAP@R
(Musgrave et al., *A Metric Learning Reality Check*, 2020) and NMI. An image whose identity has no other image
cannot be answered: it is no query for recall and MAP@R, but it stays in the gallery of the others, and in NMI.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from whaleid.utils.errors import WhaleidError

RECALLS = (1, 2, 4, 8)
"""Ranks at which recall is told, as in the papers."""

_EQUAL = 1e-6
"""Cosines this close are equal: a float32 sum of some hundred products is not more exact than that. Ties count
against the truth, so that a network that has collapsed to one point does not score by the order of its rows."""
_CELLS = 1 << 24  # cosines held at a time: 64 MB
_ITERATIONS = 20  # of K-means, as pytorch-metric-learning takes for its NMI


@dataclass(frozen=True)
class RetrievalScore:
    """Figures of one set of embeddings, all in [0, 1]."""

    recall: dict[int, float]
    """k -> share of the queries with an image of their identity among the k nearest."""
    map_at_r: float
    nmi: float
    images: int
    queries: int
    """Images whose identity has another image."""
    identities: int


def retrieval_score(
    embeddings: np.ndarray, labels: np.ndarray, ks: Sequence[int] = RECALLS, seed: int = 0
) -> RetrievalScore:
    """All figures of embeddings float (n, d), unit rows, with labels int (n,). seed: of K-means.

    Raises WhaleidError for shapes that do not fit, NaN or infinity, and where no image has a mate.
    """
    recall, map_at_r, queries = recall_and_map(embeddings, labels, ks)
    return RetrievalScore(
        recall=recall,
        map_at_r=map_at_r,
        nmi=clustering_nmi(embeddings, labels, seed),
        images=len(labels),
        queries=queries,
        identities=len(np.unique(labels)),
    )


def recall_and_map(
    embeddings: np.ndarray, labels: np.ndarray, ks: Sequence[int] = RECALLS, cells: int = _CELLS
) -> tuple[dict[int, float], float, int]:
    """Recall@k for each of `ks`, MAP@R, and the number of queries.

    embeddings: float (n, d), unit rows. labels: int (n,). cells: cosines held at a time.
    MAP@R of a query with R other images of its identity: 1 / R x the sum, over the ranks i <= R that hold one
    of them, of the precision among the first i.
    """
    rows, codes = _checked(embeddings, labels)
    if not len(ks) or min(ks) < 1:
        raise WhaleidError(f"ks: {list(ks)}; ranks of at least 1 are needed")
    mates = np.bincount(codes)[codes] - 1
    queries = int((mates > 0).sum())
    if not queries:
        raise WhaleidError(f"labels: none of the {len(codes)} images has another of its identity: nothing to find")
    depth = min(max(*ks, int(mates.max())), len(codes))  # wrong images beyond this place change no figure
    first, precision = np.zeros(len(codes), dtype=np.int64), np.zeros(len(codes))
    for start, cosine in _blocks(rows, cells):
        for place, ranks in enumerate(_ranks_of_mates(cosine, codes, start, depth)):
            if len(ranks):
                found = np.arange(1, len(ranks) + 1)
                first[start + place] = ranks[0]
                precision[start + place] = np.where(ranks <= len(ranks), found / ranks, 0.0).mean()
    asked = mates > 0
    recall = {int(k): float((first[asked] <= k).mean()) for k in ks}
    return recall, float(precision[asked].mean()), queries


def clustering_nmi(embeddings: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """Normalised mutual information of the labels and of K-means clusters, as many as there are labels.

    embeddings: float (n, d), unit rows. labels: int (n,). faiss does the clustering on all rows, scikit-learn
    the information (arithmetic mean of the entropies).
    """
    import faiss
    from sklearn.metrics import normalized_mutual_info_score

    rows, codes = _checked(embeddings, labels)
    clusters = int(codes.max()) + 1
    kmeans = faiss.Kmeans(
        rows.shape[1],
        clusters,
        niter=_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,  # faiss would warn below 39 images an identity, which is the rule here
        max_points_per_centroid=len(rows),  # no sampling
    )
    kmeans.train(rows)
    return float(normalized_mutual_info_score(codes, kmeans.assign(rows)[1]))


def pair_histogram(
    embeddings: np.ndarray, labels: np.ndarray, edges: np.ndarray, cells: int = _CELLS
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of all pairs, counted: int64 (bins,) of pairs of one identity, and of two.

    embeddings: float (n, d), unit rows. labels: int (n,). edges: float (bins + 1,), ascending, of the Euclidean
    distance, 0 to 2; a distance outside falls into the bin next to it. Every pair counts once.
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
    """Cosines of some rows at a time with all: the first row's number, float32 (b, n)."""
    step = max(1, cells // len(rows))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step] @ rows.T


def _ranks_of_mates(cosine: np.ndarray, codes: np.ndarray, start: int, depth: int) -> Iterator[np.ndarray]:
    """For each row of `cosine` the ranks of its identity's other images, int64, ascending; capped above `depth`.

    cosine: float32 (b, n), changed here. A mate's rank is its place among the mates plus the number of wrong
    images that are as near as it or nearer; of those the `depth` nearest are looked at.
    """
    numbers = np.arange(start, start + len(cosine))
    same = codes[numbers, None] == codes
    mates = []
    for place, number in enumerate(numbers):
        members = np.flatnonzero(same[place])
        mates.append(np.sort(cosine[place, members[members != number]])[::-1])
    cosine[same] = -np.inf
    wrong = np.sort(np.partition(cosine, -depth, axis=1)[:, -depth:], axis=1)
    for near, others in zip(mates, wrong, strict=True):
        nearer = len(others) - np.searchsorted(others, near - _EQUAL)
        yield np.arange(1, len(near) + 1) + nearer


def _checked(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as contiguous float32 and labels as codes 0..c-1."""
    if embeddings.ndim != 2 or not np.issubdtype(embeddings.dtype, np.floating) or not len(embeddings):
        raise WhaleidError(f"embeddings: {embeddings.dtype} {embeddings.shape}; float (n, d) with n >= 1 is needed")
    if labels.shape != (len(embeddings),):
        raise WhaleidError(f"labels: shape {labels.shape}, but there are {len(embeddings)} embeddings")
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        raise WhaleidError(f"embeddings: row {int(np.argmin(finite))} holds NaN or infinity; embed that image again")
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    return rows, np.unique(labels, return_inverse=True)[1].reshape(-1)
