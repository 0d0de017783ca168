"""Compressed search: the nearest of up to tens of millions of descriptors, with 28 bytes of memory for each.

k-means assigns descriptors to lists, and product quantization (Jegou, Douze and Schmid, "Product quantization for
nearest neighbor search", 2011) keeps 16 bytes of each, which faiss compares in registers (Andre, Kermarrec and Le
Scouarnec, "Quicker ADC", 2019). The best are compared again by their descriptors, which stay on disk: distances are
exact, and only a neighbour can be missed.

All centres are whole numbers, so that every machine finds the same. They are fitted on the gallery's descriptors alone:
no other image can change even the k-th neighbour.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import faiss
import numpy as np

from whaleid.local_matching.keypoints import Described, chunks
from whaleid.local_matching.kmeans import integer_kmeans, kmeans_tree
from whaleid.retrieval.identities import PADDING
from whaleid.utils.machine import cores

LISTED = 256
"""Descriptors in a list."""
MOST_LISTS = 1 << 16
"""Of the gallery; more than 16 million descriptors make longer lists."""
PROBES = 32
"""Lists searched."""
BRANCHES = 8
"""Branches of the tree of centres that are looked into."""
COMPARED = 64
"""Descriptors compared exactly for each of a query's."""
TRAINING = 20
"""Descriptors for each list that k-means is fitted on."""
_PART, _BITS = 4, 4  # numbers of a descriptor that are one code together, and the bits of the code
_CODEBOOK = 1 << 16  # descriptors that the codes' centres are fitted on
_BLOCK = 32  # codes that faiss compares at a time
_PIECE = 1024  # a query's descriptors in the work of a thread: their candidates fit into its cache
_SEED = 0


@dataclass(frozen=True)
class CompressedIndex:
    """Descriptors of a gallery, compressed, and where they are whole.

    Attributes
    ----------
    index : faiss.IndexIVF
        Its numbers are rows of `vectors`.
    vectors : uint8 array, shape (N, d)
        Of all images, on disk.
    norms : float32 array, shape (N,)
        Squared lengths of the gallery's descriptors, 0 elsewhere.
    """

    index: faiss.IndexIVF
    vectors: np.ndarray
    norms: np.ndarray

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest descriptors that the codes find.

        Parameters
        ----------
        queries : float32 array, shape (m, d)
            Whole numbers in [0, 255].
        k : int

        Returns
        -------
        float32 array, shape (m, k)
            Squared distances, exact, ascending; inf where none was found.
        int64 array, shape (m, k)
            Rows of `vectors`, -1 padded.
        """
        _, found = self.index.search(queries, max(k, COMPARED))
        pieces = [slice(start, start + _PIECE) for start in range(0, len(queries), _PIECE)]
        with ThreadPoolExecutor(cores()) as pool:
            parts = list(pool.map(lambda piece: self._nearest(queries[piece], found[piece], k), pieces))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _nearest(self, queries: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of these candidates, int64 (m, n), ties by row."""
        rows = np.sort(found, axis=1)
        whole = np.take(self.vectors, np.maximum(rows, 0).ravel(), axis=0).astype(np.float32)
        product = np.matmul(whole.reshape(*rows.shape, -1), queries[:, :, None])[:, :, 0]
        lengths = np.einsum("md,md->m", queries, queries)[:, None]
        distance = np.where(rows == PADDING, np.inf, lengths + self.norms[rows] - 2 * product).astype(np.float32)
        best = np.argsort(distance, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distance, best, axis=1), np.take_along_axis(rows, best, axis=1)


def compressed_index(described: Described, gallery: np.ndarray) -> CompressedIndex:
    """The compressed index of these images' descriptors, at least 16. gallery: int64, rows of images.parquet."""
    places = described.places(gallery)
    lists = min(MOST_LISTS, max(1, len(places) // LISTED))
    index = _empty_index(_sample(described.vectors, places, max(TRAINING * lists, _CODEBOOK)), lists)
    norms = np.zeros(len(described.vectors), dtype=np.float32)
    for part in chunks(described.counts(gallery)):
        vectors, _ = described.take(gallery[part])
        rows = described.places(gallery[part])
        index.add_with_ids(vectors, rows)
        norms[rows] = np.einsum("md,md->m", vectors, vectors)
    return CompressedIndex(index, described.vectors, norms)


def _sample(vectors: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of these rows, drawn at random, float32."""
    drawn = np.random.default_rng(_SEED).choice(len(places), min(len(places), count), replace=False)
    return vectors[places[np.sort(drawn)]].astype(np.float32)


def _empty_index(sample: np.ndarray, lists: int) -> faiss.IndexIVF:
    """An index whose lists and codes are fitted on a sample, float32 (n, d)."""
    length = sample.shape[1]
    branches, centres = kmeans_tree(sample, lists)
    tree = faiss.IndexFlatL2(length)
    tree.add(branches)
    quantizer = faiss.IndexIVFFlat(tree, length, len(branches), faiss.METRIC_L2)
    quantizer.train(branches)
    quantizer.add(centres)
    quantizer.nprobe = min(BRANCHES, len(branches))
    index = faiss.IndexIVFPQFastScan(quantizer, length, len(centres), length // _PART, _BITS, faiss.METRIC_L2, _BLOCK)
    index.by_residual = False  # one table of distances for all lists
    few = sample[:: max(1, len(sample) // _CODEBOOK)]
    parts = np.split(few, length // _PART, axis=1)
    codebook = np.concatenate([integer_kmeans(np.ascontiguousarray(part), 1 << _BITS) for part in parts])
    faiss.copy_array_to_vector(codebook.ravel(), index.pq.centroids)
    index.is_trained = True
    index.nprobe = min(PROBES, len(centres))
    return index
