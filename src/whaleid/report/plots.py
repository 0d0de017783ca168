"""The ladder as a PNG, for notebooks; the report's page draws its own charts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from whaleid.evaluation.metrics import MapScore

DPI = 110
_BLUE, _ORANGE, _INK = "#1f77a4", "#d95f02", "#1c2730"


def draw_ladder(rankers: list[dict[str, Any]], solution: dict[str, MapScore], path: Path) -> None:
    """Draw each ranker's out-of-fold MAP@k as a dot with its interval, and its solution score as a cross.

    rankers: the ladder's rows. solution: ranker -> score; may be empty.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(8.0, 0.9 + 0.27 * len(rankers)), layout="constrained")  # inches
    axes = figure.add_subplot()
    heights = np.arange(len(rankers))[::-1]
    for height, ranker in zip(heights, rankers, strict=True):
        color = _ORANGE if ranker["optimistic"] else _BLUE
        axes.plot([ranker["low"], ranker["high"]], [height, height], color=color, linewidth=2.5, alpha=0.45)
        axes.plot(ranker["map"], height, "o", color=color, markersize=6)
        if ranker["name"] in solution:
            axes.plot(solution[ranker["name"]].map, height, "x", color=_INK, markersize=6, markeredgewidth=1.6)
    axes.set_yticks(heights, [ranker["name"].replace("$", r"\$") for ranker in rankers])  # a dollar starts a formula
    axes.set_ylim(-0.7, len(rankers) - 0.3)
    axes.set_xlabel(f"MAP@{rankers[0]['k']}")
    axes.grid(axis="both", color="#e6ecef")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    _legend(axes, any(ranker["optimistic"] for ranker in rankers), bool(solution))
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png")
    # 256 colours: a third of the bytes, and no visible difference
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _legend(axes: Axes, optimistic: bool, solution: bool) -> None:
    axes.plot([], [], "o-", color=_BLUE, label="out of fold, 95 % interval")
    if optimistic:
        axes.plot([], [], "o-", color=_ORANGE, label="optimistic")
    if solution:
        axes.plot([], [], "x", color=_INK, label="solution")
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
