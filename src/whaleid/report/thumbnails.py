"""Small images cut to their boxes, for pages and notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.data.images import prepare

SIZE = (220, 180)
"""Largest width and height of a thumbnail, in pixels: a PNG of it stays below 120 kB."""
MARGIN = 0.05
"""Share of the box's sides that is shown around it."""


def thumbnails(images: pd.DataFrame, rows: Iterable[int], root: Path) -> list[np.ndarray]:
    """Thumbnails of images: uint8 (h, w, 3), RGB.

    images: images.parquet, whose paths start from `root`. rows: its rows.
    """
    paths = images["path"].to_numpy()
    return [prepare(root / paths[row], box_of(images, row), MARGIN, fit_size(box_of(images, row))) for row in rows]


def write_thumbnails(images: pd.DataFrame, rows: Iterable[int], root: Path, folder: Path) -> None:
    """Write a thumbnail of each row as `<folder>/image-<row>.png`."""
    from PIL import Image

    for row in sorted(rows):
        Image.fromarray(thumbnails(images, [row], root)[0]).save(folder / f"image-{row}.png", optimize=True)


def fit_size(box: np.ndarray, largest: tuple[int, int] = SIZE) -> tuple[int, int]:
    """Width and height with the box's aspect, as large as `largest` allows. box: float (4,), x0, y0, x1, y1."""
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    scale = min(largest[0] / width, largest[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def box_of(images: pd.DataFrame, row: int) -> np.ndarray:
    """The box of a row of images.parquet: float (4,), x0, y0, x1, y1 in pixels."""
    return images[["x0", "y0", "x1", "y1"]].iloc[row].to_numpy(dtype=float)
