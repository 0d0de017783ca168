"""Shards: features of many images are extracted in parts, on any number of machines, and joined into one folder.

Every reader then sees the same files as for few images, memory-mapped.
"""

from __future__ import annotations

from pathlib import Path

from whaleid.features.rows import join_rows
from whaleid.utils.files import atomic_path

IMAGES = 10_000
"""Most images of a shard; as many are not cut. A few minutes of a GPU, so that little is lost where a node dies."""


def shard_slices(images: int, batch: int) -> list[slice]:
    """The rows of each shard, in order; one slice where all fit into one.

    Parameters
    ----------
    images : int
    batch : int
        Images at a time in extraction. A shard holds whole batches, which are then those of all images in one go: the
        features are equal to the bit.
    """
    size = max(batch, IMAGES // batch * batch) if images > IMAGES else max(1, images)
    return [slice(start, min(start + size, images)) for start in range(0, images, size)]


def join_shards(shards: list[Path], out: Path) -> None:
    """Write the rows of all shards, in this order, as one folder of features, whole or not at all."""
    with atomic_path(out) as temporary:
        join_rows(shards, temporary)
