"""Photographs beside one another with a line of text over each: what notebooks show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from whaleid.data.images import prepare
from whaleid.report.pictures import MARGIN, view_size
from whaleid.utils.errors import WhaleidError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = (1.9, 1.5)
"""Inches of a picture with its line of text."""
DPI = 70
"""A dozen photographs stay under 200 kB as a PNG."""
_TEXT = 7  # points
_LONGEST = 28  # characters of a line that fit over a picture
_RIGHT, _WRONG = "#2a7f3f", "#b3261e"  # a mark is read without its colour too: see `_said`


def views(images: pd.DataFrame, rows: Iterable[int], root: Path) -> list[np.ndarray]:
    """Small pictures of images, cut to their boxes: uint8 (h, w, 3), RGB, as large as a page shows them.

    images: images.parquet. rows: int, of it. root: folder that its paths start from.
    """
    corners = images[["x0", "y0", "x1", "y1"]].to_numpy(dtype=float)
    paths = images["path"].to_numpy()
    return [prepare(root / paths[row], corners[row], MARGIN, view_size(corners[row])) for row in rows]


def draw_grid(
    pictures: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int = 6,
    right: Sequence[bool | None] | None = None,
) -> Figure:
    """A figure of pictures, row by row, each under its title.

    pictures: uint8 (h, w, 3), RGB, of any sizes. titles: one each; lines may be broken by a newline.
    right: True writes a title green with a tick, False red with a cross, None leaves it; None: all are left.
    Raises WhaleidError where there is no picture, or the numbers differ.
    """
    from matplotlib.figure import Figure

    marks = [None] * len(pictures) if right is None else list(right)
    if not len(pictures) == len(titles) == len(marks) or not len(pictures):
        raise WhaleidError(
            f"grid: {len(pictures)} pictures, {len(titles)} titles, {len(marks)} marks; one each is needed"
        )
    lines = max(title.count("\n") for title in titles)
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(CELL[0] * columns, (CELL[1] + 0.13 * lines) * rows), dpi=DPI, layout="constrained")
    for number, (picture, title, mark) in enumerate(zip(pictures, titles, marks, strict=True)):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(picture)
        axes.set_axis_off()
        axes.set_title(_said(title, mark), fontsize=_TEXT, color={None: "black", True: _RIGHT, False: _WRONG}[mark])
    return figure


def _said(title: str, mark: bool | None) -> str:
    """The title with its mark, no line too long, and nothing that matplotlib takes for a formula."""
    lines = [line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…" for line in title.split("\n")]
    sign = {None: "", True: "✓ ", False: "✗ "}[mark]
    return sign + "\n".join(lines).replace("$", r"\$")
