"""Small images cut to their boxes, for pages and notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from whaleid.data.images import prepare
from whaleid.utils.machine import cores
from whaleid.utils.progress import progress_bar

SIZE = (220, 180)
"""Largest width and height of a thumbnail, in pixels."""
MOST_BYTES = 16_000
"""Of a thumbnail: 8,000 of them take 128 MB at the very most, and photographs about a third of that."""
MARGIN = 0.05
"""Share of the box's sides that is shown around it."""
_QUALITIES = (80, 60, 40, 20, 1)  # the last one holds noise, which no photograph is, within the bound


def thumbnails(images: pd.DataFrame, rows: Iterable[int], root: Path) -> list[np.ndarray]:
    """Thumbnails of images: uint8 (h, w, 3), RGB.

    images: images.parquet, whose paths start from `root`. rows: its rows.
    """
    paths = images["path"].to_numpy()
    return [prepare(root / paths[row], box_of(images, row), MARGIN, fit_size(box_of(images, row))) for row in rows]


def write_thumbnails(images: pd.DataFrame, rows: Iterable[int], root: Path, folder: Path) -> None:
    """Write a thumbnail of each row as `<folder>/<row>.webp`, of at most MOST_BYTES."""
    folder.mkdir()
    names = sorted(rows)

    def write(row: int) -> None:
        (folder / f"{row}.webp").write_bytes(_webp(thumbnails(images, [row], root)[0]))

    with progress_bar("thumbnails", len(names), images=True) as bar, ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(write, names):  # OpenCV decodes and encodes outside of the interpreter's lock
            bar.advance()


def _webp(pixels: np.ndarray) -> bytes:
    """The picture as WebP of the highest quality that takes at most MOST_BYTES."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    for quality in _QUALITIES:
        content = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
        if len(content) <= MOST_BYTES:
            break
    return content


def fit_size(box: np.ndarray, largest: tuple[int, int] = SIZE) -> tuple[int, int]:
    """Width and height with the box's aspect, as large as `largest` allows. box: float (4,), x0, y0, x1, y1."""
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    scale = min(largest[0] / width, largest[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def box_of(images: pd.DataFrame, row: int) -> np.ndarray:
    """The box of a row of images.parquet: float (4,), x0, y0, x1, y1 in pixels."""
    return images[["x0", "y0", "x1", "y1"]].iloc[row].to_numpy(dtype=float)
