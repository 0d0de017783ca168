"""Out-of-fold scores against leaderboard scores: does what is better here rank higher there?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from whaleid.evaluation.log import SubmissionRecord
from whaleid.utils.files import atomic_path

DPI = 110
FEWEST = 3
"""Submissions from which on the rank correlation is given."""
_BLUE, _ORANGE, _GREY = "#1f77a4", "#d95f02", "#8a979f"


def scored(records: list[SubmissionRecord], competition: str) -> list[SubmissionRecord]:
    """The competition's submissions that have both an out-of-fold score and a leaderboard score."""
    complete = [record for record in records if record.competition == competition and record.cv is not None]
    return [record for record in complete if record.public is not None or record.private is not None]


def gap_lines(records: list[SubmissionRecord]) -> list[str]:
    """For each leaderboard: the mean difference from the out-of-fold scores, and the rank correlation."""
    lines = []
    for board in ("public", "private"):
        cv, scores = _pairs(records, board)
        if not len(cv):
            continue
        spread = f" ± {np.std(scores - cv, ddof=1):.5f}" if len(cv) > 1 else ""
        order = f", rank correlation {rank_correlation(cv, scores):.2f}" if len(cv) >= FEWEST else ""
        lines.append(f"{board} - out of fold: {np.mean(scores - cv):+.5f}{spread} ({len(cv)} submissions{order})")
    return lines


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's coefficient of two float arrays (n,); NaN where one of them is constant."""
    from scipy.stats import rankdata

    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(left), rankdata(right))[0, 1])


def draw_cv_lb(records: list[SubmissionRecord], path: Path) -> None:
    """Draw leaderboard scores against out-of-fold scores with their intervals, as a PNG.

    records: as `scored` gives them, at least one. Dots: public; rings: private; dotted line: where both are equal.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    styles: dict[str, dict[str, Any]] = {
        "public": {"color": _BLUE},
        "private": {"color": _ORANGE, "markerfacecolor": "none"},
    }
    for board, style in styles.items():
        on_board = [record for record in records if getattr(record, board) is not None]
        cv, scores = _pairs(on_board, board)
        half = [record.cv_interval or 0.0 for record in on_board]
        if on_board:
            axes.errorbar(cv, scores, xerr=half, fmt="o", markersize=6, elinewidth=1.2, label=board, **style)
    for record in records:
        score = record.private if record.public is None else record.public
        assert record.cv is not None
        assert score is not None
        label = record.recipe.replace("$", r"\$")
        axes.annotate(label, (record.cv, score), (5, 4), textcoords="offset points", fontsize=7, color="#1c2730")
    low, high = axes.get_xlim()
    axes.axline((low, low), slope=1, color=_GREY, linestyle=":", linewidth=1.2, label="equal")
    axes.set_xlim(low, high)
    axes.set_xlabel("out of fold, 95 % interval")
    axes.set_ylabel("leaderboard")
    axes.set_title("\n".join(gap_lines(records)), fontsize=8, loc="left")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(color="#e6ecef")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


def _pairs(records: list[SubmissionRecord], board: str) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold and leaderboard scores of the submissions that have both, float (n,) each."""
    both = [(record.cv, getattr(record, board)) for record in records if getattr(record, board) is not None]
    table = np.array(both, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]
