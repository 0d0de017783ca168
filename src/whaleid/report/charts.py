"""The report's charts as plain data: series of points that the page's script draws in the reader's light or dark."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from whaleid.ensemble.protocol import FULL_DATA
from whaleid.evaluation.log import SubmissionRecord

Chart = dict[str, Any]
"""`x`, `y`: names of the axes. `series`: `name`, `kind`, `points` of each. `marks`: vertical lines, `x` and `name`."""
Kind = Literal["line", "dashed", "dots", "area"]

_BINS = 40  # of a histogram
_CALIBRATION_BINS = 10


def series(name: str, points: Iterable[Iterable[Any]], kind: Kind = "line") -> dict[str, Any]:
    """One series. points: (x, y) each, or (x, y, low, high) of a dot with its interval, and perhaps a label."""
    return {"name": name, "kind": kind, "points": [[_plain(value) for value in point] for point in points]}


def score_chart(known: np.ndarray, unknown: np.ndarray, tuned: float) -> Chart:
    """Histograms of the best scores of known and of unknown queries.

    known, unknown: float (n,), one of them not empty. tuned: the threshold fitted on all folds.
    """
    scores = np.concatenate([known, unknown])
    edges = np.linspace(scores.min(), max(scores.max(), scores.min() + 1e-6), _BINS + 1)
    shown = []
    for name, values in (("known", known), ("unknown", unknown)):
        if len(values):
            shares = np.histogram(values, edges)[0] / len(values)
            shown.append(series(f"{name} ({len(values):,})", _steps(edges, shares), "area"))
    mark = {"x": float(np.clip(tuned, edges[0], edges[-1])), "name": f"threshold of all folds ({tuned:.3f})"}
    return {"x": "best score of a query", "y": "share of the queries", "series": shown, "marks": [mark]}


def share_chart(shares: list[dict[str, float]], expected: dict[str, float], k: int) -> Chart:
    """MAP@k out of fold against the share of unknown queries.

    shares: `share`, `kept` (thresholds in use) and `best` (fitted to that share) of each point. expected: `weight`, the
    share that the score out of fold is weighted to.
    """
    shown = [
        series("thresholds fitted to that share", ((point["share"], point["best"]) for point in shares)),
        series("thresholds in use", ((point["share"], point["kept"]) for point in shares)),
    ]
    mark = {"x": expected["weight"], "name": f"share out of fold ({expected['weight']:.3f})"}
    return {"x": "share of unknown among the queries", "y": f"MAP@{k}", "series": shown, "marks": [mark]}


def loss_chart(folds: dict[int, list[tuple[int, float]]]) -> Chart:
    """Mean loss by epoch. folds: fold -> points (epoch, loss)."""
    names = {fold: "all images" if fold == FULL_DATA else f"fold {fold}" for fold in sorted(folds)}
    return {"x": "epoch", "y": "loss", "series": [series(names[fold], folds[fold]) for fold in names], "marks": []}


def size_chart(rows: list[dict[str, Any]]) -> Chart:
    """Accuracy by number of gallery images. rows: of `identities.accuracy_by_size`."""
    points = [(row["size"], row["accuracy"], row["low"], row["high"]) for row in rows]
    return {
        "x": f"gallery images of the true identity ({points[-1][0]}: as many or more)",
        "y": "right first guesses",
        "series": [series("accuracy, 95 % interval", points, "dots")],
        "marks": [],
    }


def calibration_chart(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> Chart:
    """Share of right identities against the best score, in bins of equally many queries.

    Parameters
    ----------
    confidence : float array, shape (n,)
        Best score of an identity.
    right : bool array, shape (n,)
        Whether that identity is the true one.
    weights : float array, shape (n,)
        Of the queries, not all 0.
    """
    used = weights > 0
    order = np.argsort(confidence[used], kind="stable")
    bins = [part for part in np.array_split(order, _CALIBRATION_BINS) if len(part)]
    columns = [values[used] for values in (confidence, right, weights)]
    points = [[np.average(values[part], weights=columns[2][part]) for values in columns[:2]] for part in bins]
    shown = [series("queries out of fold", points, "dots")]
    if confidence[used].min() >= 0 and confidence[used].max() <= 1:
        shown.append(series("a calibrated probability", [(0, 0), (1, 1)], "dashed"))
    return {"x": "best score of an identity", "y": "share that is right", "series": shown, "marks": []}


def leaderboard_chart(records: list[SubmissionRecord]) -> Chart:
    """Leaderboard scores against out-of-fold scores. records: as from `cv_lb.scored`, at least one."""
    shown = []
    for board in ("public", "private"):
        points = [(one.cv, getattr(one, board), None, None, one.recipe) for one in records]
        points = [point for point in points if point[1] is not None]
        if points:
            shown.append(series(board, points, "dots"))
    values = [value for item in shown for point in item["points"] for value in point[:2]]
    shown.append(series("equal", [(min(values), min(values)), (max(values), max(values))], "dashed"))
    return {"x": "out of fold", "y": "leaderboard", "series": shown, "marks": []}


def _steps(edges: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Corners of a histogram's outline, float (2 n, 2)."""
    return np.column_stack([np.repeat(edges, 2)[1:-1], np.repeat(heights, 2)])


def _plain(value: Any) -> Any:
    """A number of six digits, enough for a chart."""
    return float(f"{value:.6g}") if isinstance(value, int | float | np.number) else value
