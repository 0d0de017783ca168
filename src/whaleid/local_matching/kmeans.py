"""k-means of descriptors with whole-number centres, in one level or two."""

from __future__ import annotations

import faiss
import numpy as np

ROUNDS = 10
"""At most."""
_SEED = 0


def integer_kmeans(vectors: np.ndarray, count: int) -> np.ndarray:
    """k-means with whole-number centres, the same on every machine.

    Distances and sums are exact: every processor and every build of a library finds the same centres, while rounding
    errors would grow over ten rounds. A centre without vectors stays where it is.

    Parameters
    ----------
    vectors : float32 array, shape (n, d), n >= count
        Whole numbers in [0, 255].
    count : int

    Returns
    -------
    float32 array, shape (count, d)
    """
    centres = vectors[np.random.default_rng(_SEED).choice(len(vectors), count, replace=False)]
    for _ in range(ROUNDS):
        index = faiss.IndexFlatL2(vectors.shape[1])
        index.add(centres)
        assigned = index.search(vectors, 1)[1][:, 0]
        order = np.argsort(assigned, kind="stable")
        found, starts, counts = np.unique(assigned[order], return_index=True, return_counts=True)
        sums = np.add.reduceat(vectors[order], starts, axis=0, dtype=np.float64)
        moved = centres.copy()
        moved[found] = np.rint(sums / counts[:, None])
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def kmeans_tree(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means in two levels: about sqrt(count) branches, each with its share of the centres.

    It takes about sqrt(count) / 2 times less than `integer_kmeans`, and a search that looks into few branches too.

    Parameters
    ----------
    vectors, count
        As for `integer_kmeans`.

    Returns
    -------
    float32 arrays, shape (branches, d) and (about count, d)
        Centres of the branches, and all centres; every branch with a vector has one at least.
    """
    branches = integer_kmeans(vectors, max(1, round(count**0.5)))
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(branches)
    assigned = index.search(vectors, 1)[1][:, 0]
    centres = []
    for branch in np.unique(assigned):
        own = vectors[assigned == branch]
        centres.append(integer_kmeans(own, max(1, count * len(own) // len(vectors))))
    return branches, np.concatenate(centres)
