"""What is printed of the ladder and of the ablation: the tables and the lines below them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from whaleid.ensemble.worth import worth_lines
from whaleid.evaluation.metrics import MapScore

Figures = dict[str, Any]
"""A recipe's part of `metrics.json`: every figure that was printed, with the settings that gave it."""


def ladder_lines(figures: dict[str, Any], solution: dict[str, MapScore] | None = None) -> list[str]:
    """The ladder as a table: every rung with its out-of-fold MAP@k, its gain over the best single, its weight; then
    what each member is worth to the blend.

    solution: score of each rung against the competition's solution, where it has one.
    """
    from whaleid.ensemble.results import note_lines

    ladder = figures["ladder"]
    rows = [_ladder_row(rung, ladder, solution) for rung in ladder["rungs"]]
    table = pd.DataFrame(rows).to_string(index=False).splitlines()
    notes = []
    if ladder["unanswerable"]:
        notes.append(
            f"{ladder['unanswerable']} of {ladder['queries']} out-of-fold queries are not scored: "
            "no other image of their identity is in the gallery, and the competition has no unknown label"
        )
    if ladder.get("full"):
        notes.append(
            f"trained on all labelled images too: {', '.join(ladder['full'])}; these answer the test images beside the "
            "folds' models, and out of fold they are worth what those are"
        )
    worth = ladder.get("worth")
    return [*table, *notes, *note_lines(ladder), *(worth_lines(worth) if worth else []), *round_lines(figures)]


def round_lines(figures: Figures) -> Iterator[str]:
    """What each round of pseudo-labels was worth, a line each; none where the recipe has no rounds."""
    for row in figures.get("rounds", [])[1:]:
        gain, said = row["gain"], f"round {row['round']} of pseudo-labels"
        if gain is None:
            yield f"{said}: no test image is sure enough; nothing to train"
            continue
        taught = ", ".join(f"{name} {count:,}" for name, count in row["labels"].items())
        score = f"MAP@{figures['ladder']['k']} (out of fold) {row['map']:.5f}"
        worth = f"{gain['gain']:+.5f} [{gain['low']:+.5f}, {gain['high']:+.5f}] over the round before"
        yield f"{said} ({taught}): {score}, {worth}: {'used' if row['used'] else 'no sure help, not used'}"


def _ladder_row(rung: dict[str, Any], ladder: dict[str, Any], solution: dict[str, MapScore] | None) -> dict[str, str]:
    k, gain = ladder["k"], rung["gain"]
    row = {
        "rung": rung["name"],
        f"MAP@{k} (out of fold)": f"{rung['map']:.5f} ± {(rung['high'] - rung['low']) / 2:.5f}",
        "gain": "best single" if gain is None else f"{gain['gain']:+.5f} [{gain['low']:+.4f}, {gain['high']:+.4f}]",
    }
    if solution:
        row[f"MAP@{k} (solution)"] = f"{solution[rung['name']].map:.5f}"
    weight = rung["weight"]
    row["weight"] = "" if weight is None else "dropped" if weight == 0 else f"{weight:.2f}"
    if any(other["optimistic"] for other in ladder["rungs"]):
        row["note"] = "optimistic" if rung["optimistic"] else ""
    return row


def ablation_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table as Markdown: a row a part that is off, and what the recipe loses without it."""
    k = rows[0]["k"]
    solved = any(row["solution"] is not None for row in rows)
    head = ["off", f"MAP@{k} out of fold", "change [95 %]", *([f"MAP@{k} solution"] if solved else [])]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        change = row["change"]
        told = "" if change is None else f"{change['gain']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]"
        cells = [row["off"], f"{row['map']:.4f} ± {(row['high'] - row['low']) / 2:.4f}", told]
        lines.append([*cells, *([f"{row['solution']:.4f}"] if solved else [])])
    return [f"| {' | '.join(line)} |" for line in lines]


def slice_lines(rung: dict[str, Any]) -> list[str]:
    parts = [f"{name} {part['map']:.3f} ({part['queries']:,})" for name, part in rung["slices"].items()]
    return ["out of fold by images of the identity: " + ", ".join(parts)] if parts else []
