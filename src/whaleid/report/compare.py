"""`whaleid compare`: settings that differ, figures, paired differences and training curves, as text and as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from whaleid.config import Competition
from whaleid.ensemble.intervals import Gain, paired_answer_gain, paired_gain
from whaleid.evaluation.form_score import FormScore
from whaleid.evaluation.forms import get_form
from whaleid.evaluation.metrics import reciprocal_rank_at_k
from whaleid.pipeline.workspace import Workspace
from whaleid.report import charts
from whaleid.report.entries import Entry, Ranks, read_entries
from whaleid.report.page import templates
from whaleid.utils.files import atomic_path
from whaleid.utils.progress import duration

ABSENT = object()
"""Stands for a setting that one of the compared things does not have."""
_LONGEST = 40  # characters of a setting in the terminal


@dataclass(frozen=True)
class Difference:
    """Difference of two scores on the queries that both have. gain: of the second over the first."""

    gain: Gain
    queries: int


@dataclass(frozen=True)
class Comparison:
    """Several recipes, rankers or runs beside each other.

    Attributes
    ----------
    entries : tuple of Entry
        As they were named; the others are compared with the first.
    settings : dict
        Key that differs -> its value in each entry, ABSENT where it has none.
    differences : dict
        (i, j) -> difference in MAP@k of entry j from entry i, i < j; only where both are ranked and share queries.
    answers : dict
        The same in the competition's own metric, where both have answers that are scored by it.
    """

    entries: tuple[Entry, ...]
    settings: dict[str, list[Any]]
    differences: dict[tuple[int, int], Difference]
    answers: dict[tuple[int, int], Difference]

    @property
    def metrics(self) -> list[str]:
        """The competition's own metrics by which answers were scored; none where that is MAP@k."""
        return list(dict.fromkeys(entry.answer.metric for entry in self.entries if entry.answer is not None))


def compare_entries(names: list[str], competition: Competition, workspace: Workspace) -> Comparison:
    """Compare recipes, rankers and runs of a work folder; names as in `entries.read_entries`."""
    entries = tuple(read_entries(names, competition, workspace))
    pairs = [(i, j) for j in range(len(entries)) for i in range(j)]
    ranked = {(i, j): difference(entries[i].ranks, entries[j].ranks) for i, j in pairs}
    form = competition.answer.form
    answered = {(i, j): answer_difference(form, entries[i], entries[j]) for i, j in pairs}
    return Comparison(entries, _settings(entries), *(_found(one) for one in (ranked, answered)))


def _found(differences: dict[tuple[int, int], Difference | None]) -> dict[tuple[int, int], Difference]:
    return {pair: one for pair, one in differences.items() if one is not None}


def answer_difference(form: str, first: Entry, second: Entry, seed: int = 0) -> Difference | None:
    """Paired difference in the form's metric, second less first, on the rows of one name and one right answer.

    None where an entry has no answers by that metric, and where they share no row.
    """
    if first.outcomes is None or second.outcomes is None:
        return None
    tables = [outcomes.set_index(["row", "truth"]) for outcomes in (first.outcomes, second.outcomes)]
    common = tables[0].index.intersection(tables[1].index, sort=False)
    if not len(common):
        return None
    own, other = (table.loc[common].reset_index() for table in tables)
    return Difference(paired_answer_gain(get_form(form), own, other, seed), len(common))


def difference(first: Ranks | None, second: Ranks | None, seed: int = 0) -> Difference | None:
    """Paired difference of MAP@k, second less first; None where they share no scored query.

    Queries are those with one name and one right answer in both. They are weighted as among themselves.
    """
    if first is None or second is None:
        return None
    keys = [pd.MultiIndex.from_arrays([one.queries, one.truth]) for one in (first, second)]
    common = keys[0].intersection(keys[1], sort=False)
    own, other = (one.only(key.get_indexer(common)) for one, key in zip((first, second), keys, strict=True))
    if not len(common) or not (own.truth != "").any():
        return None
    scores = [reciprocal_rank_at_k(one.ranks, own.k) for one in (own, other)]
    weights = own.weights
    return Difference(paired_gain(scores[1] - scores[0], weights, seed), int((weights > 0).sum()))


# ------------------------------------------------------------------------------------------------------ settings


def differing(values: Sequence[Any]) -> dict[str, list[Any]]:
    """Dotted keys whose values differ, with the value of each; ABSENT where a mapping lacks the key.

    Mappings are compared key by key, so far as all are mappings; everything else as a whole.
    """
    if not all(isinstance(value, dict) for value in values):
        return {} if all(value == values[0] for value in values) else {"": list(values)}
    rows: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for value in values for key in value):
        for rest, found in differing([value.get(key, ABSENT) for value in values]).items():
            rows[f"{key}.{rest}" if rest else key] = found
    return rows


def _settings(entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """Of recipes, and of experiments: by name, or all by one where each entry has one alone."""
    parts = {"": [entry.settings or ABSENT for entry in entries]}
    if all(len(entry.experiments) == 1 for entry in entries):
        parts["experiment."] = [next(iter(entry.experiments.values())) for entry in entries]
    else:
        for name in dict.fromkeys(name for entry in entries for name in entry.experiments):
            parts[f"{name}."] = [entry.experiments.get(name, ABSENT) for entry in entries]
    return {f"{part}{key}": row for part, values in parts.items() for key, row in _differing_part(values).items()}


def _differing_part(values: list[Any]) -> dict[str, list[Any]]:
    """As `differing`, among those that are not ABSENT."""
    having = [place for place, value in enumerate(values) if value is not ABSENT]
    rows = {}
    for key, found in differing([values[place] for place in having]).items():
        placed = dict(zip(having, found, strict=True))
        rows[key] = [placed.get(place, ABSENT) for place in range(len(values))]
    return rows


def setting_text(value: Any) -> str:
    """A setting as it stands in a YAML file, on one line; empty where there is none."""
    if value is ABSENT:
        return ""
    if isinstance(value, list):
        return ", ".join(setting_text(one) for one in value) or "[]"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------------------------------------------------- text


def comparison_lines(found: Comparison) -> list[str]:
    """The comparison for a terminal: figures, the best first, then the settings that differ."""
    first = found.entries[0].name
    rows = [_figures_row(place, found) for place in range(len(found.entries))]
    order = sorted(range(len(rows)), key=lambda place: _order(found.entries[place]))
    table = pd.DataFrame([rows[place] for place in order]).to_string(index=False)
    lines = [*table.splitlines(), f"differences from {first}, on the queries that both have; intervals are 95 %", ""]
    if not found.settings:
        return [*lines, "no setting differs"]
    cells = {
        entry.name: [_cut(setting_text(values[place])) for values in found.settings.values()]
        for place, entry in enumerate(found.entries)
    }
    return [*lines, *pd.DataFrame({"setting": list(found.settings), **cells}).to_string(index=False).splitlines()]


def _figures_row(place: int, found: Comparison) -> dict[str, str]:
    entry, gain, answer = found.entries[place], found.differences.get((0, place)), found.answers.get((0, place))
    score, own = entry.score, {}
    for metric in found.metrics:
        own |= {f"{metric} (out of fold)": _interval(answer_in(entry, metric))}
        own |= {f"difference in {metric}": str(answer.gain) if answer and answer_in(entry, metric) else ""}
    return {
        "": entry.name,
        **own,
        "MAP (out of fold)": "not ranked" if score is None else f"{score.map:.5f} [{score.low:.4f}, {score.high:.4f}]",
        "difference": "" if gain is None else str(gain.gain),
        "queries": "" if entry.ranks is None else f"{entry.ranks.images:,}",
        "runs": str(len(entry.runs)),
        "training": duration(entry.seconds),
        "images/s": "" if entry.rate is None else f"{entry.rate:.0f}",
    }


def answer_in(entry: Entry, metric: str) -> FormScore | None:
    """The score of an entry's answers by a metric; None where it has none by that."""
    return entry.answer if entry.answer is not None and entry.answer.metric == metric else None


def _interval(score: FormScore | None) -> str:
    return "" if score is None else f"{score.value:.5f} [{score.low:.4f}, {score.high:.4f}]"


def _order(entry: Entry) -> tuple[float, float]:
    """What the best of the entries has the least of: by the competition's metric, then by MAP@k."""
    answer = -1.0 if entry.answer is None else entry.answer.value
    return -answer, 1.0 if entry.score is None else -entry.score.map


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


# ---------------------------------------------------------------------------------------------------------- page


def write_comparison(found: Comparison, competition: Competition, path: Path) -> None:
    """Write the page, one file that needs nothing else."""
    page = templates().get_template("compare.html.j2")
    content = page.render(
        competition=competition.name,
        k=competition.k,
        metrics=found.metrics,
        entries=[_page_row(place, found) for place in range(len(found.entries))],
        settings={key: [setting_text(value) for value in values] for key, values in found.settings.items()},
        pairs=_pair_tables(found, competition.k),
        charts=_charts(found.entries),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _page_row(place: int, found: Comparison) -> dict[str, Any]:
    entry, gain, answer = found.entries[place], found.differences.get((0, place)), found.answers.get((0, place))
    scores = [answer_in(entry, metric) for metric in found.metrics]
    return {
        "name": entry.name,
        "answers": [(score, None if score is None else answer) for score in scores],
        "score": entry.score,
        "queries": 0 if entry.ranks is None else entry.ranks.images,
        "gain": gain,
        "runs": len(entry.runs),
        "seconds": entry.seconds,
        "training": duration(entry.seconds),
        "rate": entry.rate,
    }


def _pair_tables(found: Comparison, k: int) -> dict[str, list[list[Gain | None]]]:
    """Metric -> difference of the entry of each row from that of each column."""
    places = range(len(found.entries))
    tables = {f"MAP@{k}": found.differences}
    if found.answers:
        tables = {" or ".join(found.metrics): found.answers, **tables}
    return {name: [[_pair(i, j, gains) for j in places] for i in places] for name, gains in tables.items()}


def _pair(i: int, j: int, differences: dict[tuple[int, int], Difference]) -> Gain | None:
    """Difference of entry i from entry j."""
    if (j, i) in differences:
        return differences[j, i].gain
    if (i, j) not in differences:
        return None
    gain = differences[i, j].gain
    return Gain(-gain.gain, -gain.high, -gain.low)


def _charts(entries: Sequence[Entry]) -> dict[str, charts.Chart]:
    """Training curves over one another, a chart for each head: losses of different heads cannot be compared."""
    shown: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        for head, curves in entry.curves.items():
            for name, points in curves.items():
                title = entry.name if len(curves) == 1 else f"{entry.name}: {name}"
                shown.setdefault(head, []).append(charts.series(title, points))
    return {f"loss {head}": {"x": "epoch", "y": "loss", "series": lines, "marks": []} for head, lines in shown.items()}
