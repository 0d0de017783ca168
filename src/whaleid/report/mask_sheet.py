"""A sheet of pictures with their masks, to look at before the masks are used."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from whaleid.data.decoding import decode
from whaleid.data.images import resize
from whaleid.data.masks import Mask, read_mask, resize_mask
from whaleid.report.thumbnails import fit_size
from whaleid.utils.files import atomic_path

PICTURES = 40
MOST_BYTES = 300_000
"""Of the sheet: its quality is lowered until it is no larger."""
_CELL, _COLUMNS, _GAP = (150, 112), 8, 4  # pixels
_DIMMED = 0.35  # brightness of what is outside of a mask
_OUTLINE = (255, 60, 60)  # RGB
_QUALITIES = (88, 75, 60, 45, 30, 15)


def mask_sheet(images: pd.DataFrame, root: Path, masks: list[Mask]) -> np.ndarray:
    """Pictures evenly spread over the table, dimmed outside of their masks, whose outlines are red.

    Parameters
    ----------
    images : DataFrame
        images.parquet; `path` is relative to `root`.
    root : Path
    masks : list of Mask
        One for each image.

    Returns
    -------
    uint8 array, shape (h, w, 3)
        RGB.
    """
    rows = np.unique(np.linspace(0, len(images) - 1, min(PICTURES, len(images))).round().astype(int))
    high, wide = -(-len(rows) // _COLUMNS) * (_CELL[1] + _GAP), _COLUMNS * (_CELL[0] + _GAP)
    sheet = np.full((high, wide, 3), 255, np.uint8)
    for place, row in enumerate(rows.tolist()):
        cell = _shown(root / images["path"].iloc[row], masks[row])
        top, left = place // _COLUMNS * (_CELL[1] + _GAP), place % _COLUMNS * (_CELL[0] + _GAP)
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet


def write_mask_sheet(images: pd.DataFrame, root: Path, masks: list[Mask], path: Path) -> None:
    """Write the sheet as a JPEG of at most MOST_BYTES."""
    sheet = Image.fromarray(mask_sheet(images, root, masks))
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        sheet.save(buffer, format="JPEG", quality=quality)
        if buffer.tell() <= MOST_BYTES:
            break
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _shown(path: Path, mask: Mask) -> np.ndarray:
    size = fit_size(np.array([0, 0, *mask.size], dtype=float), _CELL)
    picture, white = resize(decode(path), size), resize_mask(read_mask(mask), size)
    shown = np.where(white[..., None] > 0, picture, (_DIMMED * picture).astype(np.uint8))
    outlines, _ = cv2.findContours(white, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(shown), outlines, -1, _OUTLINE, 1)
