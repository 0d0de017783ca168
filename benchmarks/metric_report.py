"""Output of the metric-learning benchmark: all figures as JSON, tables as Markdown, a plot of distances."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from metric_plan import BEFORE, Bench

from whaleid.evaluation.retrieval_metrics import RECALLS
from whaleid.utils.files import atomic_path, write_json

Results = dict[tuple[str, str, int], dict[str, Any]]
"""(data set, method, seed) -> what `metric_runs.measure` gave."""

_BLUE, _ORANGE = "#1f77a4", "#d95f02"
_DPI = 110


def write_reports(bench: Bench, results: Results, facts: dict[str, Any], machine: dict[str, Any], out: Path) -> str:
    """Write metric_learning.json and .md into `out`; returns the Markdown. facts: data set -> its numbers."""
    left_out = ("pairs", "settings")  # the histograms are drawn, and the settings are the bench's own
    runs = [{key: value for key, value in run.items() if key not in left_out} for run in results.values()]
    summary = {data: _summary(bench, results, data) for data in facts}
    content = {"machine": machine, "bench": bench.model_dump(mode="json"), "data": facts, "summary": summary}
    write_json(out / "metric_learning.json", {**content, "runs": runs})
    text = _markdown(bench, results, facts)
    with atomic_path(out / "metric_learning.md") as temporary:
        temporary.write_text(text)
    return text


# -------------------------------------------------------------------------------------------------- figures


def _columns() -> dict[str, Callable[[dict[str, Any]], float]]:
    """Name of each figure, and where it stands in a run's result; all are told in percent."""

    def recall(k: int) -> Callable[[dict[str, Any]], float]:
        return lambda run: 100 * _recall(run)[k]

    columns = {f"R@{k}": recall(k) for k in RECALLS}
    columns["MAP@R"] = lambda run: 100 * run["figures"]["map_at_r"]
    columns["NMI"] = lambda run: 100 * run["figures"]["nmi"]
    return columns


def _recall(run: dict[str, Any]) -> dict[int, float]:
    return {int(k): value for k, value in run["figures"]["recall"].items()}  # JSON makes its keys text


def _of_method(results: Results, data: str, method: str) -> dict[int, dict[str, Any]]:
    """Seed -> result, in the order of the seeds."""
    return {seed: results[key] for key in sorted(results, key=lambda key: key[2]) for seed in _seed(key, data, method)}


def _seed(key: tuple[str, str, int], data: str, method: str) -> list[int]:
    return [key[2]] if key[:2] == (data, method) else []


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds; no deviation of a single one."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired_difference(one: dict[int, float], other: dict[int, float]) -> tuple[float, float | None, int] | None:
    """Mean of one - other over the seeds that both have, its standard error, and how many they are."""
    differences = [value - other[seed] for seed, value in one.items() if seed in other]
    if not differences:
        return None
    mean, spread = mean_and_spread(differences)
    return mean, None if spread is None else spread / len(differences) ** 0.5, len(differences)


def _summary(bench: Bench, results: Results, data: str) -> dict[str, Any]:
    """Method -> figure -> mean and spread in percent."""
    summary = {}
    for method in [BEFORE, *bench.all_methods()]:
        runs = list(_of_method(results, data, method).values())
        if runs:
            figures = {name: mean_and_spread([read(run) for run in runs]) for name, read in _columns().items()}
            summary[method] = {
                name: {"mean": round(mean, 3), "spread": None if spread is None else round(spread, 3)}
                for name, (mean, spread) in figures.items()
            }
    return summary


# ------------------------------------------------------------------------------------------------- Markdown


def _markdown(bench: Bench, results: Results, facts: dict[str, Any]) -> str:
    parts = [_preface(bench)]
    for data in facts:
        parts += [_data_line(bench, data, facts[data], results), _table(bench, results, data)]
        compared = _comparison(bench, results, data)
        if compared:
            parts.append(compared)
    return "\n\n".join(parts) + "\n"


def _preface(bench: Bench) -> str:
    model, train = bench.settings["model"], bench.settings["train"]
    return (
        "# Heads compared on identities never seen in training\n\n"
        "Written by `python benchmarks/metric_learning.py`. Every run: "
        f"{model['backbone']} from {model['weights']} weights, embedding of {model['embedding']}, batches of "
        f"{train['batch']}, the same number of images seen. Each test image is a query against all the other test "
        "images; an image without a mate is no query, but stays in the gallery. Figures in percent: mean ± standard "
        f"deviation over the seeds. `{BEFORE}`: pooled features of the untrained backbone. Settings: "
        "`benchmarks/metric_learning.yaml`."
    )


def _data_line(bench: Bench, data: str, facts: dict[str, int], results: Results) -> str:
    image = bench.data[data].image
    absent = sum(not _of_method(results, data, method) for method in bench.all_methods())
    missing = f" Not run yet: {absent} of the {len(bench.all_methods())} methods." if absent else ""
    size = f"{image['width']} x {image['height']}" if image.get("width") else f"{image['pixels']:,} pixels"
    return (
        f"## {data}\n\n{facts['train_images']:,} training images of {facts['train_identities']} identities, "
        f"{facts['test_images']:,} test images of {facts['test_identities']} others, {size}; "
        f"{bench.data[data].images_seen:,} images seen.{missing}"
    )


def _table(bench: Bench, results: Results, data: str) -> str:
    columns = _columns()
    rows = [["method", *columns, "seeds", "training, s"]]
    for method in [BEFORE, *bench.all_methods()]:
        runs = list(_of_method(results, data, method).values())
        if not runs:
            continue
        cells = [_plus_minus(*mean_and_spread([read(run) for run in runs])) for read in columns.values()]
        trained = [run["train_seconds"] for run in runs if "train_seconds" in run]
        seconds = f"{statistics.fmean(trained):.0f}" if trained else "0"
        rows.append([method, *cells, "" if method == BEFORE else str(len(runs)), seconds])
    return _rows(rows)


def _comparison(bench: Bench, results: Results, data: str) -> str:
    """Each method of the grids minus its baseline, paired by seed; empty where there is none."""
    names = [name for name in _columns() if name in ("R@1", "MAP@R", "NMI")]
    rows = [[f"minus `{bench.baseline}`", *names, "seeds"]]
    for method in bench.all_methods():
        if method in bench.methods:
            continue
        found = [_difference(bench, results, data, method, name) for name in names]
        pairs = [pair for pair in found if pair is not None]
        if pairs:
            rows.append([method, *(_plus_minus(mean, error, "+") for mean, error, _ in pairs), str(pairs[0][2])])
    if len(rows) == 1:
        return ""
    return "Differences in points, paired by seed: mean ± standard error.\n\n" + _rows(rows)


def _difference(
    bench: Bench, results: Results, data: str, method: str, name: str
) -> tuple[float, float | None, int] | None:
    read = _columns()[name]
    one, other = (
        {seed: read(run) for seed, run in _of_method(results, data, which).items()}
        for which in (method, bench.baseline)
    )
    return paired_difference(one, other)


def _plus_minus(mean: float, spread: float | None, sign: str = "") -> str:
    return f"{round(mean, 1) + 0.0:{sign}.1f}" + ("" if spread is None else f" ± {spread:.1f}")


def _rows(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]])


# -------------------------------------------------------------------------------------------------- picture


def draw_distances(bench: Bench, results: Results, path: Path) -> bool:
    """Distances of test pairs before training (above) and after (below), a column a data set; False: nothing to draw.

    After: the method of the grids with the best mean MAP@R, or the baseline where none was run; all seeds together.
    """
    from matplotlib.figure import Figure

    columns = [(data, _best(bench, results, data)) for data in bench.data if (data, BEFORE, 0) in results]
    drawn = [(data, method) for data, method in columns if method is not None]
    if not drawn:
        return False
    figure = Figure(figsize=(0.5 + 3.9 * len(drawn), 4.6), layout="constrained")
    for column, (data, method) in enumerate(drawn, start=1):
        for row, name in enumerate((BEFORE, method)):
            axes = figure.add_subplot(2, len(drawn), row * len(drawn) + column)
            _draw_pairs(axes, [run["pairs"] for run in _of_method(results, data, name).values()])
            when = "before: ImageNet features" if row == 0 else f"after: {name}"
            axes.set_title(f"{data}, {when}", fontsize=9)
            if row == 1:
                axes.set_xlabel("distance of two test images")
            if row == 0 and column == 1:
                axes.legend(frameon=False, fontsize=8, loc="upper left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")
    return True


def _best(bench: Bench, results: Results, data: str) -> str | None:
    """The method whose distances are drawn."""
    read = _columns()["MAP@R"]
    means = {}
    for method in [name for name in bench.all_methods() if name not in bench.methods]:
        runs = list(_of_method(results, data, method).values())
        if runs:
            means[method] = statistics.fmean(read(run) for run in runs)
    if means:
        return max(means, key=lambda method: means[method])
    return bench.baseline if _of_method(results, data, bench.baseline) else None


def _draw_pairs(axes: Any, pairs: list[dict[str, list[float]]]) -> None:
    """Shares of the pairs of one identity and of two by their distance, summed over runs."""
    edges = np.array(pairs[0]["edges"])
    for kind, color, name in (("same", _BLUE, "one identity"), ("different", _ORANGE, "two identities")):
        counts = np.sum([item[kind] for item in pairs], axis=0)
        axes.stairs(counts / max(1, counts.sum()), edges, fill=True, color=color, alpha=0.5, label=name)
    axes.set_xlim(edges[0], 1.7)  # beyond lies nearly nothing: unrelated unit vectors are sqrt(2) apart
    axes.set_yticks([])
    axes.tick_params(labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
