"""Several images with a line of text over each: a grid for notebooks and the documentation, or one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from whaleid.utils.errors import WhaleidError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

CELL = (1.9, 1.5)
"""Width and height of an image with its title, in inches."""
DPI = 70
"""A dozen photographs stay below 200 kB as a PNG."""
_FONT_SIZE = 7
_LINE = 26  # pixels of the line of text above an image of a column
_LONGEST = 28  # characters of a title's line that fit over an image
_COLOURS = {None: "black", True: "#2a7f3f", False: "#b3261e"}
_SIGNS = {None: "", True: "✓ ", False: "✗ "}  # so that the mark can be read without its colour


def draw_grid(
    pixels: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int = 6,
    right: Sequence[bool | None] | None = None,
) -> Figure:
    """Draw images row by row, each under its title.

    Parameters
    ----------
    pixels : sequence of uint8 arrays, shape (h, w, 3)
        RGB images of any sizes.
    titles : sequence of str
        One for each image; may hold line breaks.
    columns : int
        Images in a row of the grid.
    right : sequence of bool or None, optional
        True: green title with a tick; False: red title with a cross; None: neither.

    Raises
    ------
    WhaleidError
        If there is no image, or the numbers of images, titles and marks differ.
    """
    from matplotlib.figure import Figure

    marks = [None] * len(pixels) if right is None else list(right)
    if not len(pixels) == len(titles) == len(marks) or not len(pixels):
        raise WhaleidError(
            f"grid: {len(pixels)} images, {len(titles)} titles, {len(marks)} marks; one of each is needed"
        )
    lines = max(title.count("\n") for title in titles)
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(CELL[0] * columns, (CELL[1] + 0.13 * lines) * rows), dpi=DPI, layout="constrained")
    for number, (image, title, mark) in enumerate(zip(pixels, titles, marks, strict=True)):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(image)
        axes.set_axis_off()
        axes.set_title(_SIGNS[mark] + _shorten(title), fontsize=_FONT_SIZE, color=_COLOURS[mark])
    return figure


def draw_column(panels: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Draw images, uint8 (h, w, 3) in RGB, one below the other, each under its line of text."""
    from PIL import Image, ImageDraw, ImageFont

    width = max((panel.shape[1] for _, panel in panels), default=1)
    height = sum(panel.shape[0] + _LINE for _, panel in panels) or 1
    canvas = Image.new("RGB", (width, height), "white")
    pen, font, top = ImageDraw.Draw(canvas), ImageFont.load_default(16), 0
    for text, panel in panels:
        pen.text((6, top + 3), text, "black", font)
        canvas.paste(Image.fromarray(panel), (0, top + _LINE))
        top += _LINE + panel.shape[0]
    return canvas


def _shorten(title: str) -> str:
    """The title with long lines cut, and with dollar signs that matplotlib does not take for a formula."""
    lines = [line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…" for line in title.split("\n")]
    return "\n".join(lines).replace("$", r"\$")
