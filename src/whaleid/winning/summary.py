"""A model summary as winners are asked for, drafted from the run's own figures: what was not measured is said to be so.

Every number comes from `metrics.json`, `ablation.json`, the images table or the log of submissions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from whaleid.scoring.log import SubmissionRecord
from whaleid.times import STAGES
from whaleid.workspace import source_of

NOT_MEASURED = "not measured"
SIMPLE = 0.90
"""Share of the final score that a simple model must reach: the guidelines ask for 90 to 95 %."""


@dataclass(frozen=True)
class Facts:
    """What a summary is drafted from.

    figures: the recipe's part of metrics.json. ablation: rows of ablation.json, None where there is none of this
    answer. images: images.parquet, None where it is not there. unknown: the competition's unknown label.
    submission: the answer's row of the log, None where it has none.
    """

    figures: dict[str, Any]
    ablation: list[dict[str, Any]] | None
    images: pd.DataFrame | None
    unknown: str | None
    submission: SubmissionRecord | None

    @property
    def ladder(self) -> dict[str, Any]:
        return self.figures["ladder"]

    @property
    def final(self) -> dict[str, Any]:
        return self.ladder["rungs"][-1]

    @property
    def times(self) -> list[dict[str, Any]]:
        """Lines of `StageTime`; none where the figures are of a version that measured none."""
        return self.figures.get("times") or []


def summary_text(facts: Facts) -> str:
    """The model summary as Markdown."""
    title = f"# Model summary: {facts.figures['competition']}, recipe {facts.figures['recipe']}"
    draft = (
        "Drafted by `make winning-docs` from the run's own figures. To be added by hand: who the team is, what was "
        "tried and left out, what surprised."
    )
    parts = [
        [title, "", draft],
        ["## Scores", "", *score_lines(facts)],
        ["## Data", "", *data_lines(facts)],
        ["## Networks", "", *network_lines(facts)],
        ["## Ensemble", "", *ensemble_lines(facts)],
        ["## What every part is worth", "", *ablation_part(facts)],
        ["## A simple model", "", *simple_lines(facts)],
        ["## Execution times", "", *time_lines(facts.times)],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def score_lines(facts: Facts) -> list[str]:
    k, final, log = facts.ladder["k"], facts.final, facts.submission
    honest = "; optimistic: something was chosen by the fold's own score" if final["optimistic"] else ""
    rows = [
        ("out of fold", f"{_interval(final)} ({facts.ladder['queries']:,} queries{honest})"),
        ("solution", _number(log and log.solution)),
        ("public leaderboard", _number(log and log.public)),
        ("private leaderboard", _number(log and log.private)),
        ("commit", facts.figures["commit"] or "not known"),
    ]
    return table(["", f"MAP@{k}"], rows)


def data_lines(facts: Facts) -> list[str]:
    images = facts.images
    if images is None:
        return [f"images: {NOT_MEASURED} (images.parquet is not in the work folder)"]
    train = images[images["split"] == "train"]
    known = train["identity"][train["identity"] != facts.unknown].value_counts()
    counts = [
        ("labelled images", len(train)),
        ("of them without an identity", len(train) - int(known.sum())),
        ("identities", len(known)),
        ("identities with one image", int((known == 1).sum())),
        ("test images", int((images["split"] == "test").sum())),
        ("folds", facts.figures["settings"]["recipe"]["folds"]),
    ]
    return table(["", "count"], [(name, f"{count:,}") for name, count in counts])


def network_lines(facts: Facts) -> list[str]:
    """A row a network: what it is, how it was trained, what it took and reached alone."""
    head = ["experiment", "backbone", "head", "pixels", "images seen a run", "runs", "hours", "best alone"]
    rows = []
    for item in facts.figures["settings"]["experiments"]:
        runs = [run for name, run in facts.figures["runs"].items() if name.rpartition("/")[0] == item["name"]]
        done = [run for run in runs if run is not None]
        seen = f"{sum(run['images'] for run in done) / len(done):,.0f}" if done else NOT_MEASURED
        image = item["image"]
        size = f"{image['width']} x {image['height']}" if image["width"] and image["height"] else f"{image['pixels']:,}"
        alone = [rung for rung in facts.ladder["rungs"] if _is_of(rung["name"], item["name"])]
        rows.append(
            [
                item["name"],
                item["model"]["backbone"],
                item["head"]["name"],
                size,
                seen,
                f"{len(runs)}",
                _hours([run["seconds"] for run in done]) if len(done) == len(runs) else NOT_MEASURED,
                f"{max(rung['map'] for rung in alone):.5f}" if alone else NOT_MEASURED,
            ]
        )
    pretraining = facts.figures["settings"].get("pretraining")
    first = [] if pretraining is None else [f"Backbones start from the pretraining `{pretraining['name']}`.", ""]
    return [*first, *table(head, rows)] if rows else ["none of its own: the recipe combines features of others"]


def ensemble_lines(facts: Facts) -> list[str]:
    """The ladder: every rung with its score, its gain over the best single network, its weight in the blend."""
    rows = []
    for rung in facts.ladder["rungs"]:
        gain, weight = rung["gain"], rung["weight"]
        told = "best single" if gain is None else f"{gain['gain']:+.5f} [{gain['low']:+.5f}, {gain['high']:+.5f}]"
        rows.append([rung["name"], rung["kind"], _interval(rung), told, "" if weight is None else f"{weight:.2f}"])
    head = ["rung", "kind", f"MAP@{facts.ladder['k']} out of fold", "gain over the best single [95 %]", "weight"]
    note = f"The last rung, `{facts.ladder['final']}`, is the answer. Every query was scored by what never saw it."
    return [*table(head, rows), "", note]


def ablation_part(facts: Facts) -> list[str]:
    if facts.ablation is None:
        return [f"{NOT_MEASURED}; `make ablation` does it from the saved features"]
    from whaleid.ladder_text import ablation_lines

    return ablation_lines(facts.ablation)


def simple_lines(facts: Facts) -> list[str]:
    """The quickest single network that reaches SIMPLE of the final score, else how far the best gets."""
    final = facts.final["map"]
    names = [item["name"] for item in facts.figures["settings"]["experiments"]]
    singles = [(rung, name) for rung in facts.ladder["rungs"] for name in names if _is_of(rung["name"], name)]
    if not singles or not final:
        return [f"{NOT_MEASURED}: the recipe has no network of its own"]
    enough = [single for single in singles if single[0]["map"] >= SIMPLE * final]
    rung, name = min(
        enough or [max(singles, key=lambda single: single[0]["map"])],
        key=lambda single: (_seconds_of(single[1], facts.times) or float("inf"), -single[0]["map"]),
    )
    seconds = _seconds_of(name, facts.times)
    took = NOT_MEASURED if seconds is None else f"{_clock(seconds)} of training and features, all folds together"
    share = f"{100 * rung['map'] / final:.1f} % of the whole ensemble's {final:.5f}"
    verdict = [] if enough else ["", f"No single network reaches {100 * SIMPLE:.0f} %: this is the best."]
    return [f"`{rung['name']}` alone: {rung['map']:.5f} out of fold, {share}. Time: {took}.", *verdict]


def time_lines(times: Sequence[dict[str, Any]]) -> list[str]:
    """A row a stage: its outputs, their seconds together, the machines. Every stage is named, measured or not."""
    rows = []
    for stage in STAGES:
        lines = [line for line in times if line["stage"] == stage]
        known = [line["seconds"] for line in lines if line["seconds"] is not None]
        total = _clock(sum(known)) if known and len(known) == len(lines) else NOT_MEASURED
        machines = list(dict.fromkeys(line["machine"] for line in lines if line["machine"]))
        rows.append([stage, f"{len(lines)}", total, "; ".join(machines) or NOT_MEASURED])
    note = (
        "Times are on the clock, summed over a stage's outputs; outputs that were made at once shared the machine. "
        "A stage that was ended and carried on counts its last go alone, but for training, which counts all."
    )
    return [*table(["stage", "outputs", "time", "machine"], rows), "", note]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def _is_of(rung: str, experiment: str) -> bool:
    """Whether a rung is one network's: its embeddings, its class probabilities, its second look."""
    return rung == experiment or rung.startswith(f"{experiment} ")


def _seconds_of(experiment: str, times: Sequence[dict[str, Any]]) -> float | None:
    """Seconds of an experiment's training and features; None where some were not measured."""
    own = [line for line in times if line["stage"] in ("train", "features")]
    own = [line for line in own if source_of(line["what"].rpartition("/")[0]) == experiment]
    known = [line["seconds"] for line in own if line["seconds"] is not None]
    return sum(known) if known and len(known) == len(own) else None


def _interval(rung: dict[str, Any]) -> str:
    return f"{rung['map']:.5f} ± {(rung['high'] - rung['low']) / 2:.5f}"


def _number(score: float | None) -> str:
    return NOT_MEASURED if score is None else f"{score:.5f}"


def _hours(seconds: Sequence[float | None]) -> str:
    known = [one for one in seconds if one is not None]
    return f"{sum(known) / 3600:.2f}" if known and len(known) == len(seconds) else NOT_MEASURED


def _clock(seconds: float) -> str:
    """A time to read: `12.3 s`, `4 min 05 s`, `3 h 07 min`."""
    if seconds < 0.05:
        return "under 0.1 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
