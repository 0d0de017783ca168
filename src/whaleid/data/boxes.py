"""Boxes around the animals: a CSV of pixel rectangles, checked and matched to the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.competition import first_few
from whaleid.data.tables import read_table
from whaleid.utils.errors import WhaleidError

CORNERS = ["x0", "y0", "x1", "y1"]


def boxes_path(competition: Competition) -> Path:
    """Path of the competition's boxes; WhaleidError if the file is missing."""
    path = competition.root / str(competition.boxes)
    if not path.is_file():
        raise WhaleidError(f"{path}: boxes file not found; put it there or set boxes to null in '{competition.name}'")
    return path


def whole_images(size: np.ndarray) -> np.ndarray:
    """Boxes around all of each image, float64 (n, 4): 0, 0, width, height. size: int (n, 2)."""
    return np.column_stack([np.zeros_like(size), size]).astype(np.float64)


def read_boxes(path: Path) -> pd.DataFrame:
    """Boxes of a CSV with the columns `image, x0, y0, x1, y1`.

    Returns
    -------
    DataFrame, indexed by image
        x0, y0, x1, y1: float64, pixels of the upright image, x1 and y1 exclusive. row: int, row of the file.

    Raises
    ------
    WhaleidError
        For a missing file or column, a coordinate that is not a number, an image with two boxes.
    """
    content = read_table(path, ["image", *CORNERS])
    boxes = content[CORNERS].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    bad = np.logical_not(np.isfinite(boxes.to_numpy()).all(axis=1))
    if bad.any():
        raise WhaleidError(f"{path}: a corner is not a number in {_rows(boxes.index[bad])}; x0, y0, x1, y1 are pixels")
    again = content["image"].duplicated()
    if again.any():
        raise WhaleidError(f"{path}: an image has a second box in {_rows(boxes.index[again])}; keep one for each image")
    return boxes.assign(row=boxes.index).set_index(content["image"].to_numpy())


def placed_boxes(path: Path, images: pd.Series, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Box of every image, clipped to it.

    Parameters
    ----------
    path : Path
        CSV of boxes.
    images : Series of str, shape (n,)
        Names of the images.
    size : int array, shape (n, 2)
        Width and height of each.

    Returns
    -------
    boxes : float64 array, shape (n, 4)
        The whole image where the file has no box.
    given : bool array, shape (n,)
        Whether the file has a box.

    Raises
    ------
    WhaleidError
        As `read_boxes`, and where a box is empty or outside of its image.
    """
    boxes = read_boxes(path)
    matched = boxes.reindex(images.to_numpy())
    given = matched["row"].notna().to_numpy()
    if len(boxes) and len(images) and not given.any():
        raise WhaleidError(f"{path}: none of its images ({boxes.index[0]}, ...) is in the competition; check the names")
    limit = np.column_stack([size, size]).astype(np.float64)
    placed = np.where(given[:, None], np.clip(matched[CORNERS].to_numpy(), 0, limit), whole_images(size))
    empty = (placed[:, 2] <= placed[:, 0]) | (placed[:, 3] <= placed[:, 1])
    if empty.any():
        place = int(np.flatnonzero(empty)[0])
        corners = ", ".join(f"{value:g}" for value in matched.iloc[place][CORNERS])
        row = int(matched.iloc[place]["row"])
        raise WhaleidError(
            f"{path}: box ({corners}) of {images.iloc[place]} in row {row} is empty or outside of its image "
            f"of {size[place, 0]} x {size[place, 1]} pixels ({empty.sum():,} such boxes); correct or remove the row"
        )
    return placed, given


def _rows(rows: pd.Index) -> str:
    return first_few(f"row {row}" for row in rows)
