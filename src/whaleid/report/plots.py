"""Plots of the report, as PNG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whaleid.ensemble.protocol import FULL_DATA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from whaleid.evaluation.metrics import MapScore

DPI = 110
_BLUE, _ORANGE, _GREY = "#1f77a4", "#d95f02", "#8a979f"
_COLUMNS = 4
_BARS = 24
_LONGEST = 30  # characters of a name that fit over a small plot


def draw_ladder(rankers: list[dict[str, Any]], solution: dict[str, MapScore], path: Path) -> None:
    """Draw each ranker's out-of-fold MAP@k as a dot with its interval, and its solution score as a cross.

    rankers: the ladder's rows. solution: ranker -> score; may be empty.
    """
    figure = _figure(8.0, 0.9 + 0.27 * len(rankers))
    axes = figure.add_subplot()
    heights = np.arange(len(rankers))[::-1]
    for height, ranker in zip(heights, rankers, strict=True):
        color = _ORANGE if ranker["optimistic"] else _BLUE
        axes.plot([ranker["low"], ranker["high"]], [height, height], color=color, linewidth=2.5, alpha=0.45)
        axes.plot(ranker["map"], height, "o", color=color, markersize=6)
        if ranker["name"] in solution:
            axes.plot(solution[ranker["name"]].map, height, "x", color="#1c2730", markersize=6, markeredgewidth=1.6)
    axes.set_yticks(heights, [_plain(ranker["name"]) for ranker in rankers])
    axes.set_ylim(-0.7, len(rankers) - 0.3)
    axes.set_xlabel(f"MAP@{rankers[0]['k']}")
    axes.grid(axis="both", color="#e6ecef")
    _legend(axes, rankers, bool(solution))
    _save(figure, path)


def draw_scores(known: np.ndarray, unknown: np.ndarray, thresholds: list[float], tuned: float, path: Path) -> None:
    """Draw histograms of the best scores of known and of unknown queries, with the thresholds.

    known, unknown: float (n,), either may be empty. thresholds: of each fold; tuned: on all folds.
    """
    figure = _figure(8.0, 3.0)
    axes = figure.add_subplot()
    scores = np.concatenate([known, unknown])
    edges = np.linspace(scores.min(), max(scores.max(), scores.min() + 1e-6), 41)
    for values, color, name in ((known, _BLUE, "known"), (unknown, _ORANGE, "unknown")):
        if len(values):
            weights = np.full(len(values), 1.0 / len(values))
            axes.hist(values, edges, weights=weights, color=color, alpha=0.55, label=f"{name} ({len(values):,})")
    axes.set_xlim(edges[0], edges[-1])
    for threshold in thresholds:
        axes.axvline(np.clip(threshold, edges[0], edges[-1]), color=_GREY, linestyle=":", linewidth=1.2)
    axes.axvline(np.clip(tuned, edges[0], edges[-1]), color="#1c2730", label=f"threshold, all folds ({tuned:.3f})")
    axes.plot([], [], ":", color=_GREY, label="thresholds of the folds")
    axes.set_xlabel("best score of a query")
    axes.set_ylabel("share of the known, or unknown")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def draw_shares(shares: list[dict[str, float]], expected: dict[str, float], k: int, path: Path) -> None:
    """Draw out-of-fold MAP@k against the share of unknown queries.

    shares: `share`, `kept` (MAP@k with the thresholds in use) and `best` (with thresholds fitted to that share) of
    each point, at least one. expected: `low` and `high`, the shares between which the thresholds in use lose least, and
    `weight`, the share that the out-of-fold score is weighted to.
    """
    figure = _figure(8.0, 3.0)
    axes = figure.add_subplot()
    share, kept, best = (np.array([point[name] for point in shares]) for name in ("share", "kept", "best"))
    axes.fill_between(share, kept, best, where=best >= kept, interpolate=True, color=_ORANGE, alpha=0.15, linewidth=0)
    axes.plot(share, best, "o-", color=_BLUE, markersize=4, label="thresholds fitted to that share")
    axes.plot(share, kept, "o-", color=_ORANGE, markersize=4, label="thresholds in use")
    weight = expected["weight"]
    axes.axvline(weight, color=_GREY, linestyle=":", linewidth=1.4, label=f"share out of fold ({weight:.3f})")
    if expected["low"] < expected["high"]:
        for end in (expected["low"], expected["high"]):
            axes.axvline(end, color=_GREY, linestyle="--", linewidth=0.8)
        axes.plot([], [], "--", color=_GREY, linewidth=0.8, label="shares expected")
    axes.set_xlabel("share of unknown among the queries")
    axes.set_ylabel(f"MAP@{k}")
    axes.grid(color="#e6ecef")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def draw_importance(importance: dict[str, float], path: Path) -> None:
    """Draw the importance of the stack's features as horizontal bars, the largest on top.

    importance: feature -> share of the gain of all splits, at least one. The _BARS largest have a bar each, the others
    share one; features that no tree uses are left out.
    """
    largest = sorted(importance.items(), key=lambda item: -item[1])
    largest = [item for item in largest if item[1] > 0] or largest[:1]
    bars = largest[:_BARS]
    if len(largest) > _BARS:
        bars.append((f"{len(largest) - _BARS} more", sum(share for _, share in largest[_BARS:])))
    figure = _figure(8.0, 0.8 + 0.22 * len(bars))
    axes = figure.add_subplot()
    heights = np.arange(len(bars))[::-1]
    colors = [_BLUE] * min(len(bars), _BARS) + [_GREY]
    axes.barh(heights, [100 * share for _, share in bars], color=colors[: len(bars)], height=0.7)
    axes.set_yticks(heights, [_plain(name) for name, _ in bars], fontsize=8)
    axes.set_ylim(-0.7, len(bars) - 0.3)
    axes.set_xlabel("share of the gain of all splits, %")
    axes.grid(axis="x", color="#e6ecef")
    _save(figure, path)


def draw_losses(curves: dict[str, dict[int, list[tuple[int, float]]]], path: Path) -> None:
    """Draw the loss by epoch, a plot for each experiment and a line for each fold.

    curves: experiment -> fold -> points (epoch, loss).
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    columns = min(_COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    figure = _figure(max(2.6 * columns, 4.0), 2.1 * rows)
    for number, (name, folds) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        for fold, points in folds.items():
            epochs, losses = zip(*points, strict=True)
            marker = "o" if len(points) < 5 else ""
            axes.plot(epochs, losses, marker=marker, color=f"C{fold % 10}", linewidth=1.3, markersize=4)
        axes.set_title(_plain(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_xlim(0.5, max(points[-1][0] for points in folds.values()) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.grid(color="#e6ecef")
        if number + columns >= len(curves):
            axes.set_xlabel("epoch", fontsize=8)
        if number % columns == 0:
            axes.set_ylabel("loss", fontsize=8)
    lines = {fold: Line2D([], [], color=f"C{fold % 10}") for folds in curves.values() for fold in folds}
    names = ["all images" if fold == FULL_DATA else f"fold {fold}" for fold in sorted(lines)]
    handles = [lines[fold] for fold in sorted(lines)]
    figure.legend(handles, names, loc="outside upper center", ncols=10, fontsize=8, frameon=False)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, without a window system or global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _legend(axes: Any, rankers: list[dict[str, Any]], solution: bool) -> None:
    axes.plot([], [], "o-", color=_BLUE, label="out of fold, 95 % interval")
    if any(ranker["optimistic"] for ranker in rankers):
        axes.plot([], [], "o-", color=_ORANGE, label="optimistic")
    if solution:
        axes.plot([], [], "x", color="#1c2730", label="solution")
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def _plain(name: str) -> str:
    """A name that matplotlib does not take for a formula."""
    return name.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    """Write a plot as a PNG of 256 colours: a third of the bytes, and no visible difference."""
    from PIL import Image

    for axes in figure.axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.set_axisbelow(True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png")
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
