"""What is printed of the ladder and of the ablation: the tables and the lines below them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from whaleid.evaluation.metrics import MapScore

Figures = dict[str, Any]
"""A recipe's part of `metrics.json`: every figure that was printed, with the settings that gave it."""


def ladder_lines(figures: Figures, solution: dict[str, MapScore] | None = None) -> list[str]:
    """The ladder as a table, a row a rung; then notes, and what each member is worth to the blend.

    Parameters
    ----------
    figures : dict
        The recipe's part of `metrics.json`.
    solution : dict of str to MapScore, optional
        Score of each rung against the competition's solution.
    """
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
            f"also trained on all labelled images: {', '.join(ladder['full'])}; these models rank the test images "
            "beside the folds' models, and have no score out of fold of their own"
        )
    notes += [*share_lines(ladder), *gallery_lines(ladder), *burst_lines(ladder)]
    worth = ladder.get("worth")
    return [*table, *notes, *note_lines(ladder), *(worth_lines(worth) if worth else []), *round_lines(figures)]


def share_lines(ladder: dict[str, Any]) -> list[str]:
    """The share of unknown queries that was taken, and where it comes from; none without unknown label."""
    share = ladder.get("share")
    if share is None:
        return []
    taken = f"unknown queries weigh {share['weight']:.1%} out of fold"
    if share["low"] < share["high"]:
        between = f"{share['low']:.1%} and {share['high']:.1%}"
        taken += f", and thresholds are those that lose least between {between} (share {share['origin']})"
    else:
        taken += f" (share {share['origin']})"
    return [f"{taken}; {ladder['simulated']:,} of them are simulated: an image without its identity in the gallery"]


def gallery_lines(ladder: dict[str, Any]) -> list[str]:
    """What the scores with the full gallery stand on; none where there are none."""
    sizes = ladder.get("gallery")
    if sizes is None:
        return []
    return [
        f"full gallery: estimated from galleries with half of each identity's images, for a test set that shows "
        f"identities as often as the labelled images do; of a query's identity {sizes['half']:.1f} images, out of fold "
        f"{sizes['out_of_fold']:.1f}, in all {sizes['full']:.1f}"
    ]


def burst_lines(ladder: dict[str, Any]) -> list[str]:
    """How far bursts may flatter the last rung; none where there are none."""
    risk, k = ladder.get("bursts"), ladder["k"]
    if risk is None:
        return []
    lines = [
        f"bursts: {risk['queries']:,} of {ladder['queries']:,} queries seem to have a photograph of their encounter in "
        f"another fold: MAP@{k} {risk['near']:.3f}, all others {risk['others']:.3f}; out of fold may flatter by up to "
        f"{risk['flatter']:.3f} where the test set shows other encounters"
    ]
    if (simple := risk["simple"]) is not None:
        lines.append(
            f"with each burst on one side {simple['name']} scores {simple['together']:.3f} instead of "
            f"{simple['map']:.3f}; name a column of encounters as `group` to train that way too"
        )
    return lines


def full_gallery_line(ladder: dict[str, Any]) -> str | None:
    """The last rung's score with the full gallery; None where it was not estimated."""
    full = ladder["rungs"][-1].get("full_gallery")
    return None if full is None else f"MAP@{ladder['k']} (full gallery, estimated): {_full_gallery(full)}"


def note_lines(ladder: dict[str, Any]) -> list[str]:
    """Settings of re-ranking and trees of the stack: for the test set and, where they differ, for each fold."""
    parts = []
    for rung in ladder["rungs"]:
        if rung.get("setting") is not None:
            parts.append(f"{rung['name']} {_with_folds(rung['setting'], rung['settings'])}")
    if ladder.get("stack") is not None:
        *folds, final = ladder["stack"]["rounds"]
        parts.append(f"trees {_with_folds(final, dict(enumerate(folds)))}")
    return [f"chosen out of fold: {'; '.join(parts)}"] if parts else []


def worth_lines(worth: dict[str, Any]) -> list[str]:
    """The gain of the blend over its best member, then a line a member. worth: `BlendWorth` as plain types."""
    lines = [f"blend {worth['map']:.5f}: {_gain(worth['gain'])} over its best member, {worth['best']}"]
    for one in worth["members"]:
        gain = "" if one["gain"] is None else f", worth {_gain(one['gain'])} to the blend"
        dropped = " (dropped: it does not help)" if one["dropped"] else ""
        lines.append(f"  {one['name']} alone {one['map']:.5f}{gain}{dropped}")
    return lines


def round_lines(figures: Figures) -> Iterator[str]:
    """What each round of pseudo-labels was worth, a line a round; none where the recipe has no rounds."""
    for row in figures.get("rounds", [])[1:]:
        gain, title = row["gain"], f"round {row['round']} of pseudo-labels"
        if gain is None:
            yield f"{title}: no test image is confident enough; nothing to train"
            continue
        counts = ", ".join(f"{name} {count:,}" for name, count in row["labels"].items())
        score = f"MAP@{figures['ladder']['k']} (out of fold) {row['map']:.5f}"
        verdict = "used" if row["used"] else "not used, its interval reaches 0"
        yield f"{title} ({counts}): {score}, {_gain(gain)} over the round before: {verdict}"


def ablation_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The ablation as a Markdown table: a row a part that is left out, and the change against the whole recipe."""
    k = rows[0]["k"]
    solved = any(row["solution"] is not None for row in rows)
    head = ["off", f"MAP@{k} out of fold", "change [95 %]", *([f"MAP@{k} solution"] if solved else [])]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        change = "" if row["change"] is None else _gain(row["change"], digits=4)
        cells = [row["off"], f"{row['map']:.4f} ± {(row['high'] - row['low']) / 2:.4f}", change]
        lines.append([*cells, *([f"{row['solution']:.4f}"] if solved else [])])
    return [f"| {' | '.join(line)} |" for line in lines]


def slice_lines(rung: dict[str, Any]) -> list[str]:
    """The score by the number of the identity's images, in one line."""
    parts = [f"{name} {part['map']:.3f} ({part['queries']:,})" for name, part in rung["slices"].items()]
    lines = ["out of fold by images of the identity: " + ", ".join(parts)] if parts else []
    parts = [f"{name} {part['map']:.3f} ({part['queries']:,})" for name, part in rung.get("species", {}).items()]
    return lines + (["out of fold by species: " + ", ".join(parts)] if parts else [])


def _ladder_row(rung: dict[str, Any], ladder: dict[str, Any], solution: dict[str, MapScore] | None) -> dict[str, str]:
    k, gain = ladder["k"], rung["gain"]
    row = {
        "rung": rung["name"],
        f"MAP@{k} (out of fold)": f"{rung['map']:.5f} ± {(rung['high'] - rung['low']) / 2:.5f}",
        "gain": "best single" if gain is None else f"{gain['gain']:+.5f} [{gain['low']:+.4f}, {gain['high']:+.4f}]",
    }
    if ladder.get("gallery") is not None:
        full = rung["full_gallery"]
        row["full gallery"] = "" if full is None else _full_gallery(full)
    if solution:
        row[f"MAP@{k} (solution)"] = f"{solution[rung['name']].map:.5f}"
    weight = rung["weight"]
    row["weight"] = "" if weight is None else "dropped" if weight == 0 else f"{weight:.2f}"
    if any(other["optimistic"] for other in ladder["rungs"]):
        row["note"] = "optimistic" if rung["optimistic"] else ""
    return row


def _full_gallery(full: dict[str, float]) -> str:
    return f"{full['map']:.5f} ± {(full['high'] - full['low']) / 2:.5f}"


def _gain(gain: dict[str, float], digits: int = 5) -> str:
    mean, low, high = (f"{gain[key]:+.{digits}f}" for key in ("gain", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _with_folds(final: object, folds: dict[Any, Any]) -> str:
    return str(final) + ("" if set(folds.values()) <= {final} else f" (by fold: {', '.join(map(str, folds.values()))})")
