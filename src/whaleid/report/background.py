"""Animal or background? What the network recognises, with the queries that it knows by the background alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whaleid.data.masks import masks_of
from whaleid.pipeline.context import context_line
from whaleid.report.inputs import Results
from whaleid.report.mask_sheet import PICTURES, write_mask_sheet

WAYS = {
    "whole": "whole images",
    "animal": "the animal alone (background grey)",
    "background": "the background alone (animal grey)",
    "one side": "whole images, without the mirrored copy",
    "mirrored": "queries mirrored, the gallery not",
}
"""Way of looking (`features/context.py`) -> its name in the table."""


@dataclass(frozen=True)
class Offender:
    """A query that is right with the background alone. row, match: rows of images.parquet, its own and the nearest."""

    row: int
    match: int
    cosine: float
    animal: bool


def offenders(results: Results) -> list[Offender]:
    """The queries that are most right with the background alone; none where that was not measured."""
    place = {name: row for row, name in enumerate(results.images["image"].astype(str))}
    return [
        Offender(place[one["image"]], place[one["match"]], one["cosine"], one["animal"])
        for one in (results.figures.get("context") or {}).get("offenders", [])
        if one["image"] in place and one["match"] in place
    ]


def background_section(results: Results, folder: Path) -> dict[str, Any] | None:
    """Pictures with their masks, and what was measured with them; None where the competition has no masks."""
    competition, context = results.project.competition, results.figures.get("context")
    masks = masks_of(competition, results.images)
    if masks is None:
        return None
    write_mask_sheet(results.images, competition.root, masks, folder / "masks.jpg")
    return {
        "pictures": min(PICTURES, len(masks)),
        "line": None if context is None else context_line(context),
        "table": {} if context is None else context.get("table", {}),
        "ways": WAYS,
        "offenders": [_shown(one, results) for one in offenders(results)],
    }


def _shown(one: Offender, results: Results) -> dict[str, Any]:
    name, identity = results.images["image"], results.images["identity"]
    return {
        "row": one.row,
        "name": name.iloc[one.row],
        "identity": identity.iloc[one.row],
        "match": one.match,
        "match_name": name.iloc[one.match],
        "cosine": one.cosine,
        "animal": one.animal,
    }
