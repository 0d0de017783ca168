"""Which pairs of images a person should look at first, where images are clustered.

Every merge of two clusters is a question: are they of one identity? It is in doubt where its likeness lies near the
threshold, and it matters as much as there are pairs of images in it. The pair that is shown is the likeliest one of
both clusters, which is the easiest to decide.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from whaleid.evaluation.agglomeration import Merges
from whaleid.evaluation.clusters import joined_pairs, merges_of
from whaleid.evaluation.form_input import ImagePairs


def doubtful_pairs(pairs: ImagePairs, fitted: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pair of images for every merge, the one whose decision is worth most first.

    Parameters
    ----------
    pairs : ImagePairs
        With the decisions so far: what follows from them is not asked again.
    fitted : dict
        As from `clusters.fit`.

    Returns
    -------
    int64 array, shape (m, 2)
        Places in `images`, or n + place in `gallery`.
    float64 array, shape (m,)
        P(same) of the pairs.
    float64 array, shape (m,)
        Worth, descending.
    """
    merges = merges_of(pairs, fitted["linkage"], fitted["anchors"])
    table = joined_pairs(pairs) if fitted["anchors"] else pairs.among
    merge = joined_by(merges, table.first, table.second)
    asked = np.flatnonzero(merge >= 0)
    order = asked[np.lexsort((-table.probability[asked], merge[asked]))]
    numbers, best = np.unique(merge[order], return_index=True)
    likeness, threshold = merges.likeness[numbers], fitted["threshold"]
    near = np.minimum(likeness, threshold) / np.maximum(likeness, threshold)
    worth = near * merged_pairs(merges)[numbers]
    chosen = np.argsort(-worth, kind="stable")
    rows = order[best[chosen]]
    return np.column_stack([table.first[rows], table.second[rows]]), table.probability[rows], worth[chosen]


def joined_by(merges: Merges, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number of the merge that brings both images of each pair together, int64 (p,).

    -1 where none does: they are of one cluster before the first merge, or never.
    """
    parent, when, _ = _forest(merges)
    one, other = merges.start[first], merges.start[second]
    found = np.full(len(first), -1, dtype=np.int64)
    left = np.flatnonzero(one != other)
    while len(left):
        one_first = when[one[left]] <= when[other[left]]
        last = np.minimum(when[one[left]], when[other[left]])
        joined = last < len(merges.likeness)
        left, one_first, last = left[joined], one_first[joined], last[joined]
        found[left] = last
        one[left] = np.where(one_first, parent[one[left]], one[left])
        other[left] = np.where(one_first, other[left], parent[other[left]])
        apart = one[left] != other[left]
        left = left[apart]
    never = merges.start[first] != merges.start[second]
    return np.where(never & (one != other), -1, found)


def merged_pairs(merges: Merges) -> np.ndarray:
    """Number of pairs of images that each merge brings together, int64 (m,)."""
    return _forest(merges)[2]


def _forest(merges: Merges) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The merges as a forest of clusters of low depth: a merge hangs the root of fewer images below the other.

    Returns
    -------
    parent, when : int64 arrays, shape (c,)
        Of each cluster before the first merge: what it hangs below, and by which merge; the number of merges for none.
    pairs : int64 array, shape (m,)
        Pairs of images that each merge brings together.
    """
    clusters = int(merges.start.max(initial=-1)) + 1
    parent, size = list(range(clusters)), np.bincount(merges.start, minlength=clusters).tolist()
    when, pairs = [len(merges.pairs)] * clusters, []

    def root(cluster: int) -> int:
        while parent[cluster] != cluster:
            cluster = parent[cluster]
        return cluster

    for number, (one, other) in enumerate(merges.pairs.tolist()):
        large, small = sorted((root(one), root(other)), key=lambda cluster: -size[cluster])
        pairs.append(size[large] * size[small])
        parent[small], when[small] = large, number
        size[large] += size[small]
    return np.array(parent, dtype=np.int64), np.array(when, dtype=np.int64), np.array(pairs, dtype=np.int64)
