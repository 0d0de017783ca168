"""Boxes of the animals: a CSV of pixel rectangles, checked and brought to the rows of the images table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.data.competition import named, read_table
from whaleid.utils.errors import WhaleidError

CORNERS = ["x0", "y0", "x1", "y1"]


def whole_images(size: np.ndarray) -> np.ndarray:
    """Boxes that hold all of each image, float64 (n, 4): 0, 0, width, height. size: int (n, 2)."""
    return np.column_stack([np.zeros_like(size), size]).astype(np.float64)


def read_boxes(path: Path) -> pd.DataFrame:
    """Boxes `x0, y0, x1, y1` (float64, pixels of the original picture as it is seen), indexed by image.

    x1 and y1 are exclusive: a whole image is 0, 0, width, height. Column `line` is the line of the file.
    Raises WhaleidError for a missing file or column, a coordinate that is not a number, an image named twice.
    """
    content = read_table(path, ["image", *CORNERS])
    boxes = content[CORNERS].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    bad = np.logical_not(np.isfinite(boxes.to_numpy()).all(axis=1))
    if bad.any():
        raise WhaleidError(f"{path}: a corner is not a number in {_lines(boxes.index[bad])}; x0, y0, x1, y1 are pixels")
    again = content["image"].duplicated()
    if again.any():
        raise WhaleidError(f"{path}: an image has a second box in {_lines(boxes.index[again])}; keep one an image")
    return boxes.assign(line=boxes.index).set_index(content["image"].to_numpy())


def placed_boxes(path: Path, images: pd.Series, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Box of every image, clipped to it, and whether the image has a row in the file.

    images: names (n,). size: int (n, 2), width and height. Returns float64 (n, 4) and bool (n,); an image
    without a row has the whole image. Raises WhaleidError where a box is empty, or does not meet its image.
    """
    boxes = read_boxes(path)
    here = boxes.reindex(images.to_numpy())
    given = here["line"].notna().to_numpy()
    if len(boxes) and len(images) and not given.any():
        raise WhaleidError(f"{path}: none of its images ({boxes.index[0]}, ...) is in the competition; check the names")
    limit = np.column_stack([size, size]).astype(np.float64)
    placed = np.where(given[:, None], np.clip(here[CORNERS].to_numpy(), 0, limit), whole_images(size))
    empty = (placed[:, 2] <= placed[:, 0]) | (placed[:, 3] <= placed[:, 1])
    if empty.any():
        row = int(np.flatnonzero(empty)[0])
        corners = ", ".join(f"{value:g}" for value in here.iloc[row][CORNERS])
        line = int(here.iloc[row]["line"])
        raise WhaleidError(
            f"{path}: box ({corners}) of {images.iloc[row]} in line {line} is empty or outside of its image "
            f"of {size[row, 0]} x {size[row, 1]} pixels ({empty.sum():,} such boxes); mend or remove the row"
        )
    return placed, given


def _lines(lines: pd.Index) -> str:
    return named(f"line {line}" for line in lines)
