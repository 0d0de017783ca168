"""Boxes around the animals: read from a CSV or a detector's JSON, checked and matched to the images."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.competition import first_few
from whaleid.data.tables import read_csv, read_table
from whaleid.utils.errors import WhaleidError

CORNERS = ["x0", "y0", "x1", "y1"]
SIDES = ["x", "y", "w", "h"]
BBOX = "bbox"
SHARES_END = 1.001  # MegaDetector rounds x and w to four digits each, so that x + w may pass 1


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
    """Boxes of a CSV, of COCO's JSON, or of MegaDetector's.

    A CSV has the columns `image, x0, y0, x1, y1`, or `image, x, y, w, h`, or `image, bbox` with `[x, y, w, h]`; a row
    whose cells are empty has no box. Of MegaDetector's animals, the most confident one counts. See
    https://cocodataset.org/#format-data and https://lila.science/megadetector-output-format.

    Returns
    -------
    DataFrame, indexed by image
        x0, y0, x1, y1: float64, pixels of the upright image, or all of them shares of its sides; x1 and y1 exclusive.
        row: int, row of the CSV, or number of the box in the JSON, from 1.

    Raises
    ------
    WhaleidError
        For a missing file or column, a coordinate that is not a number, an image with two boxes.
    """
    boxes = _from_json(path) if is_json(path) else _from_csv(path)
    bad = np.logical_not(np.isfinite(boxes[CORNERS].to_numpy()).all(axis=1))
    if bad.any():
        raise WhaleidError(f"{path}: a corner is not a number in {_rows(boxes['row'][bad])}; x0, y0, x1, y1 are pixels")
    again = boxes.index.duplicated()
    if again.any():
        raise WhaleidError(
            f"{path}: an image has a second box in {_rows(boxes['row'][again])}; keep one for each image"
        )
    return boxes


def is_json(path: Path) -> bool:
    """Whether a file is JSON by its first character (a kernel's copy of the boxes keeps no suffix)."""
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"
    except OSError:
        return False  # the CSV reader says what is wrong


def _from_csv(path: Path) -> pd.DataFrame:
    header = read_csv(path).header
    columns = next((form for form in (CORNERS, SIDES, [BBOX]) if set(form) <= set(header)), CORNERS)
    content = read_table(path, ["image", *columns])
    cells = content[columns]
    if columns == [BBOX]:
        cells = pd.DataFrame([_four(text) for text in content[BBOX]], index=content.index)
    given = (cells != "").any(axis=1)
    corners = cells[given].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64, copy=True)
    if columns != CORNERS:
        corners[:, 2:] += corners[:, :2]
    boxes = pd.DataFrame(corners, columns=CORNERS, index=content["image"][given].to_numpy())
    return boxes.assign(row=content.index[given])


def _four(text: str) -> list[str]:
    """Cells of `[x, y, w, h]`; four marks that are no number where there are more or fewer."""
    cells = re.split(r"[,\s]+", text.strip(" []()"))
    if cells == [""]:
        return [""] * 4
    return cells if len(cells) == 4 else ["?"] * 4


def _from_json(path: Path) -> pd.DataFrame:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        found = _coco(content) if "annotations" in content else _megadetector(content)
        names, sides = [name for name, _ in found], np.array([box for _, box in found], dtype=np.float64)
        corners = sides.reshape(len(found), 4)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise WhaleidError(f"{path}: neither COCO's JSON nor MegaDetector's ({reason}); write a CSV") from error
    corners[:, 2:] += corners[:, :2]
    return pd.DataFrame(corners, columns=CORNERS, index=names).assign(row=np.arange(1, len(found) + 1))


def _coco(content: dict[str, Any]) -> list[tuple[str, list[float]]]:
    names = {image["id"]: image["file_name"] for image in content["images"]}
    return [(names[item["image_id"]], item["bbox"]) for item in content["annotations"]]


def _megadetector(content: dict[str, Any]) -> list[tuple[str, list[float]]]:
    categories = content.get("detection_categories", {"1": "animal"})
    found = []
    for image in content["images"]:
        detections = image.get("detections") or []  # null where the detector could not read the image
        animals = [item for item in detections if categories.get(item["category"]) == "animal"]
        if animals:
            found.append((image["file"], max(animals, key=lambda item: item["conf"])["bbox"]))
    return found


@dataclass(frozen=True)
class GivenBoxes:
    """The boxes of n images as their file gives them.

    Attributes
    ----------
    corners : float64 array, shape (n, 4)
        x0, y0, x1, y1; NaN where the file has no box.
    rows : float64 array, shape (n,)
        Row of the file; NaN where it has none.
    shares : bool
        Whether corners are shares of the images' sides instead of pixels.
    """

    corners: np.ndarray
    rows: np.ndarray
    shares: bool

    @property
    def given(self) -> np.ndarray:
        """Whether the file has a box, bool (n,)."""
        return np.isfinite(self.rows)

    def subset(self, part: slice) -> GivenBoxes:
        """The boxes of some of the images."""
        return GivenBoxes(self.corners[part], self.rows[part], self.shares)

    def placed(self, size: np.ndarray) -> np.ndarray:
        """Boxes in pixels, clipped to the images; the whole image where there is none. float64 (n, 4).

        size: int (n, 2), width and height of each.
        """
        limit = np.column_stack([size, size]).astype(np.float64)
        scale = limit if self.shares else 1.0
        return np.where(self.given[:, None], np.clip(self.corners * scale, 0, limit), whole_images(size))


def match_boxes(path: Path, images: pd.Series, files: pd.Series | None = None) -> GivenBoxes:
    """The box of every image.

    Parameters
    ----------
    path : Path
        Boxes, as `read_boxes` reads them. Where all lie in 0..1, they are shares of the images' sides.
    images : Series of str, shape (n,)
        Names of the images.
    files : Series of str, shape (n,), optional
        Paths of the images, by which a detector may call them instead.

    Raises
    ------
    WhaleidError
        As `read_boxes`, and where none belongs to an image.
    """
    boxes = read_boxes(path)
    names = images.to_numpy(object)
    if files is not None:
        names = np.where(images.isin(boxes.index), names, files.to_numpy(object))
    matched = boxes.reindex(names)
    found = GivenBoxes(matched[CORNERS].to_numpy(np.float64), matched["row"].to_numpy(np.float64), _are_shares(boxes))
    if len(boxes) and len(images) and not found.given.any():
        raise WhaleidError(f"{path}: none of its images ({boxes.index[0]}, ...) is in the competition; check the names")
    return found


def placed_boxes(
    path: Path, images: pd.Series, size: np.ndarray, files: pd.Series | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Box of every image, clipped to it.

    Parameters
    ----------
    path, images, files
        As `match_boxes`.
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
        As `match_boxes`, and where a box is empty or outside of its image.
    """
    found = match_boxes(path, images, files)
    placed = found.placed(size)
    empty = (placed[:, 2] <= placed[:, 0]) | (placed[:, 3] <= placed[:, 1])
    if empty.any():
        place = int(np.flatnonzero(empty)[0])
        corners = ", ".join(f"{value:g}" for value in found.corners[place])
        raise WhaleidError(
            f"{path}: box ({corners}) of {images.iloc[place]} in row {found.rows[place]:.0f} is empty or outside of "
            f"its image of {size[place, 0]} x {size[place, 1]} pixels ({empty.sum():,} such boxes); correct or remove "
            "the row"
        )
    return placed, found.given


def _are_shares(boxes: pd.DataFrame) -> bool:
    corners = boxes[CORNERS].to_numpy()
    return bool(((corners >= 0) & (corners <= SHARES_END)).all())


def _rows(rows: pd.Series) -> str:
    return first_few(f"row {row}" for row in rows)
