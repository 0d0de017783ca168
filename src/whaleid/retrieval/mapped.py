"""Exact search in a gallery that stays in its file: block by block, with the best of each query kept.

A gallery of 10 million images x 2048 is 41 GB in float16 and twice that in float32. Memory holds the queries, their
neighbours so far and one block, whatever the size of the gallery.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from whaleid.features.files import UnitTable
from whaleid.retrieval.index import check_search, nearest
from whaleid.utils.files import forget_pages

BLOCK_BYTES = 64 << 20
"""Bytes of a block in float32: little beside the libraries, and enough that a faiss call is worth it. Not tuned."""
LARGE = 1 << 30
"""Bytes of a file of embeddings above which they stay there; in memory, float16 takes twice as much."""


@dataclass(frozen=True)
class MappedGallery:
    """Images of a table whose rows are read when they are compared; indexed like an array (g, d) of unit rows.

    Attributes
    ----------
    table : UnitTable
        Checked when it was opened.
    chosen : int64 array, shape (g,)
        Images of the gallery.
    """

    table: UnitTable
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.table.shape[1]

    def take(self, rows: np.ndarray) -> MappedGallery:
        """The gallery of some of its rows, int or bool (m,)."""
        return MappedGallery(self.table, self.chosen[rows])

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Unit rows float32 (..., d) of rows of the gallery, int (...)."""
        images = self.chosen[rows]
        return self.table.rows(images.ravel()).reshape(*images.shape, -1)

    def blocks(self, step: int) -> Iterator[tuple[int, np.ndarray]]:
        """First row and unit rows float32 (at most step, d) of one block after the other, all in the same memory."""
        memory = np.empty((min(step, len(self)), self.shape[1]), np.float32)
        for start in range(0, len(self), step):
            yield start, self.table.rows(self.chosen[start : start + step], memory)
            self.forget_pages()

    def forget_pages(self) -> None:
        """Take what was read of the file out of memory, else a search of all rows ends with the whole file there."""
        forget_pages(self.table.table)


def search_mapped(
    queries: np.ndarray, gallery: np.ndarray | MappedGallery, neighbours: int, block: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The result of `index.search`, with one block of the gallery in memory at a time.

    Parameters
    ----------
    queries : float array, shape (q, d)
    gallery : MappedGallery or float array, shape (g, d), g >= 1
    neighbours : int
    block : int, optional
        Rows of a block; default: BLOCK_BYTES of them.

    Returns
    -------
    float32 and int64 arrays, shape (q, min(neighbours, g))
        Similarity, descending, and gallery rows; ties by ascending row.
    """
    check_search(queries, gallery[:1], neighbours, 1)
    step = block or max(1, BLOCK_BYTES // (4 * gallery.shape[1]))
    most = min(neighbours, len(gallery))
    similarity = np.empty((len(queries), 0), dtype=np.float32)
    rows = np.empty((len(queries), 0), dtype=np.int64)
    for start, rows_of_block in _blocks(gallery, step):
        found, found_rows = nearest(queries, rows_of_block, most)
        similarity, rows = _better(similarity, rows, found, found_rows + start, most)
    return similarity, rows


def _blocks(gallery: np.ndarray | MappedGallery, step: int) -> Iterator[tuple[int, np.ndarray]]:
    if isinstance(gallery, MappedGallery):
        return gallery.blocks(step)
    return ((start, gallery[start : start + step]) for start in range(0, len(gallery), step))


def _better(
    similarity: np.ndarray, rows: np.ndarray, found: np.ndarray, found_rows: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best of two lists of each query; the rows of the first are before those of the second, hence win ties."""
    both, both_rows = np.concatenate([similarity, found], axis=1), np.concatenate([rows, found_rows], axis=1)
    order = np.argsort(-both, axis=1, kind="stable")[:, :most]
    return np.take_along_axis(both, order, axis=1), np.take_along_axis(both_rows, order, axis=1)
