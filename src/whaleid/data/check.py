"""`whaleid data check`: what a competition's data holds, and everything that is wrong with it, in one report."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.boxes import boxes_path, placed_boxes
from whaleid.data.bursts import across, burst_line, find_bursts
from whaleid.data.competition import Problem, first_few, inspect_rows
from whaleid.data.duplicates import duplicate_components
from whaleid.data.fingerprints import Fingerprints, fingerprint_images
from whaleid.data.images_table import fingerprint_rows, images_table, unreadable_line
from whaleid.data.masks import mask_problem, masks_of
from whaleid.utils.errors import WhaleidError

SIZES = {"1": (1, 1), "2-5": (2, 5), "6-10": (6, 10), "11-50": (11, 50), "51+": (51, math.inf)}
"""Class sizes in the report: label -> least and greatest number of training images."""


@dataclass(frozen=True)
class DataReport:
    """What a competition's data holds.

    Attributes
    ----------
    name : str
        Of the competition.
    counts : dict
        In images unless stated otherwise: train, test (listed, present and readable); identities, singletons (numbers
        of named identities, and of those with one image); unknown (training images with the unknown label);
        class_sizes (label of SIZES -> identities, images); missing, unreadable, duplicate_rows, contradictory_rows;
        near_duplicates (copies of another image), duplicate_groups (photographs with copies), largest_group,
        contradictory_copies (photographs whose training copies have different labels), across (test images with a
        copy in train); boxes, masks (None where the competition has none). Empty if nothing can be read.
    facts : tuple of (str, str)
        Label and value for each line of the report.
    problems, notes : tuple of str
        Lines about what stops the pipeline, and about what is worth knowing.
    """

    name: str
    counts: dict[str, Any] = field(default_factory=dict)
    facts: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    images: pd.DataFrame | None = field(default=None, compare=False, repr=False)
    """The images table of what is good, None where there is none."""

    @property
    def ok(self) -> bool:
        """Whether the pipeline can run on this data."""
        return not self.problems

    def lines(self) -> list[str]:
        """The report as lines of text."""
        width = max((len(label) for label, _ in self.facts), default=0)
        return [
            f"data of {self.name}",
            *(f"  {label:<{width}}  {value}" for label, value in self.facts),
            *(f"note: {note}" for note in self.notes),
            *(f"problem: {problem}" for problem in self.problems),
            "the data can be used" if self.ok else f"{len(self.problems)} to fix before the pipeline can run",
        ]


def check_data(competition: Competition, workers: int | None = None) -> DataReport:
    """Read everything that the pipeline would read; problems are collected, never raised.

    workers: processes that read images, by default one for each core.
    """
    try:
        rows, problems = inspect_rows(competition)
    except WhaleidError as error:
        return DataReport(competition.name, problems=(str(error),))
    lines = [problem.message for problem in problems]
    found = _fingerprints(competition, rows, workers)
    if not found.readable.all():
        lines.append(unreadable_line(competition.root, rows, found))
    unreadable = int((~found.readable).sum())
    rows, found = rows[found.readable].reset_index(drop=True), found.subset(found.readable)
    boxes, box_lines, box_notes = _boxes(competition, rows, found)
    masks, mask_lines = _masks(competition, rows, found)
    copies, copy_notes = _copies(rows, duplicate_components(found, competition.find_copies))
    counts = {
        **_labels(rows, competition.unknown),
        "boxes": boxes,
        "masks": masks,
        "missing": _count(problems, "missing"),
        "unreadable": unreadable,
        "duplicate_rows": _count(problems, "duplicate"),
        "contradictory_rows": _count(problems, "contradictory"),
        **copies,
    }
    images = None if rows.empty or box_lines else images_table(competition, rows, found)
    bursts = [] if images is None else _bursts(competition, images, found)
    learning = [] if problems else _learning_lines(competition, rows)  # else good rows may be too few
    return DataReport(
        competition.name,
        counts,
        tuple(_facts(competition, counts, found)),
        tuple(lines + learning + box_lines + mask_lines + _solution_lines(competition)),
        tuple(_alike_labels(rows, competition.unknown) + box_notes + copy_notes + bursts),
        images,
    )


def _fingerprints(competition: Competition, rows: pd.DataFrame, workers: int | None) -> Fingerprints:
    """Of all images; whole where the boxes cannot be read, which `_boxes` reports."""
    try:
        return fingerprint_rows(competition, rows, workers)
    except WhaleidError:
        return fingerprint_images(competition.root, rows["path"].tolist(), workers)


def _facts(competition: Competition, counts: dict[str, Any], found: Fingerprints) -> Iterator[tuple[str, str]]:
    images = counts["train"] + counts["test"]
    yield "images", f"{images:,} ({counts['train']:,} train, {counts['test']:,} test)"
    yield "identities", f"{counts['identities']:,}"
    yield "singletons", f"{counts['singletons']:,} identities with one image"
    for label, (identities, held) in counts["class_sizes"].items():
        if identities:
            yield f"  of {label}", f"{identities:,} identities, {held:,} images"
    yield "unknown", _unknown(competition, counts)
    if len(found.size):
        yield "median size", "{:.0f} x {:.0f} pixels".format(*np.floor(np.median(found.size, axis=0)))
    for kind in ("boxes", "masks"):
        if counts[kind] is not None:
            yield kind, f"{counts[kind]:,} of {images:,} images"
    for kind in ("missing", "unreadable", "duplicate_rows", "contradictory_rows"):
        yield kind.replace("_", " "), f"{counts[kind]:,}"
    largest = f" (largest group {counts['largest_group']})" if counts["duplicate_groups"] else ""
    yield (
        "near-duplicates",
        f"{counts['near_duplicates']:,} copies of {counts['duplicate_groups']:,} photographs{largest}",
    )
    yield "contradictory copies", f"{counts['contradictory_copies']:,} photographs with several labels"
    yield "copies across", f"{counts['across']:,} test images have a copy in train"


def _unknown(competition: Competition, counts: dict[str, Any]) -> str:
    if competition.unknown is None:
        return "none: every query's identity is in the training data"
    share = counts["unknown"] / max(counts["train"], 1)
    expected = "not known" if competition.unknown_share is None else f"{competition.unknown_share:.1%}"
    labelled = f"{counts['unknown']:,} train images '{competition.unknown}' ({share:.1%})"
    return f"{labelled}; expected share of test queries: {expected}"


def _count(problems: list[Problem], kind: str) -> int:
    return sum(problem.count for problem in problems if problem.kind == kind)


def _labels(rows: pd.DataFrame, unknown: str | None) -> dict[str, Any]:
    train = rows[rows["split"] == "train"]
    known = train[train["identity"] != unknown] if unknown is not None else train
    sizes = known["identity"].value_counts().to_numpy()
    classes = {label: sizes[(sizes >= least) & (sizes <= greatest)] for label, (least, greatest) in SIZES.items()}
    return {
        "train": len(train),
        "test": len(rows) - len(train),
        "identities": len(sizes),
        "singletons": int((sizes == 1).sum()),
        "unknown": len(train) - len(known),
        "class_sizes": {label: (len(held), int(held.sum())) for label, held in classes.items()},
    }


def _learning_lines(competition: Competition, rows: pd.DataFrame) -> list[str]:
    """A line where there is nothing to learn, or nothing to score, for any recipe."""
    identities = rows["identity"].dropna()
    sizes = identities[identities != competition.unknown].value_counts()
    path = competition.root / competition.train.csv
    where = f"{path}: column '{competition.train.identity}' holds"
    if len(sizes) < 2:
        return [f"{where} {len(sizes)} identities: nothing to tell apart; label images of at least 2"]
    if sizes.max() < 2 and competition.unknown is None:
        return [f"{where} no identity with 2 images: nothing can be scored; label more images"]
    return []


def _alike_labels(rows: pd.DataFrame, unknown: str | None) -> list[str]:
    """A note on labels that differ in nothing but case, the form of accents, or `-` for `_`."""
    labels = sorted(set(rows["identity"].dropna().tolist() + ([] if unknown is None else [unknown])))
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(unicodedata.normalize("NFKC", label).casefold().replace("-", "_"), []).append(label)
    twins = [" and ".join(group) for group in alike.values() if len(group) > 1]
    return [f"labels that look alike: {first_few(twins)}; join them by rename_values if they are one"] if twins else []


def _boxes(
    competition: Competition, rows: pd.DataFrame, found: Fingerprints
) -> tuple[int | None, list[str], list[str]]:
    """Number of images with a box, problems, notes."""
    if competition.boxes is None:
        return None, [], []
    try:
        path = boxes_path(competition)
        _, given = placed_boxes(path, rows["image"], found.size, rows["path"])
    except WhaleidError as error:
        return 0, [str(error)], []
    notes = [] if given.all() else [f"{path}: {(~given).sum():,} images have no box; all of the image is used"]
    return int(given.sum()), [], notes


def _masks(competition: Competition, rows: pd.DataFrame, found: Fingerprints) -> tuple[int | None, list[str]]:
    """Number of images with a good mask, and a line about the others."""
    images = rows[["split", "path"]].assign(width=found.size[:, 0], height=found.size[:, 1])
    try:
        masks = masks_of(competition, images)
    except WhaleidError as error:
        return 0, [str(error)]
    if masks is None:
        return None, []
    wrong = [line for line in map(mask_problem, masks) if line]
    more = f" (and {len(wrong) - 1:,} more such masks)" if len(wrong) > 1 else ""
    return len(masks) - len(wrong), [wrong[0] + more] if wrong else []


def _solution_lines(competition: Competition) -> list[str]:
    """A line if the solution is missing; its content is for `score` and `report` only."""
    if competition.solution is None or (competition.root / competition.solution).is_file():
        return []
    return [f"{competition.root / competition.solution}: solution not found; put it there or set solution to null"]


def _bursts(competition: Competition, images: pd.DataFrame, found: Fingerprints) -> list[str]:
    """A note on photographs of one encounter that nothing keeps in one fold."""
    labelled = np.flatnonzero(images["split"] == "train")
    rows = images.iloc[labelled].reset_index(drop=True)
    pairs = find_bursts(rows, found.colours[labelled], competition.unknown)
    line = burst_line(rows["image"].to_numpy(), across(pairs, rows["group"].to_numpy()), len(rows))
    return [] if line is None else [line]


def _copies(rows: pd.DataFrame, photographs: np.ndarray) -> tuple[dict[str, Any], list[str]]:
    """Counts of near-duplicates, and notes on those that deserve a look. photographs: int (n,), of each image."""
    table = rows.assign(photograph=photographs)
    sizes = table.groupby("photograph").size()
    table = table[table["photograph"].isin(sizes.index[sizes > 1])]
    train, test = table[table["split"] == "train"], table[table["split"] == "test"]
    labels = train.groupby("photograph")["identity"].nunique()
    contradictory = train[train["photograph"].isin(labels.index[labels > 1])]
    across = test[test["photograph"].isin(train["photograph"])]
    counts = {
        "near_duplicates": len(table) - table["photograph"].nunique(),
        "duplicate_groups": table["photograph"].nunique(),
        "largest_group": int(sizes.max()) if len(table) else 0,
        "contradictory_copies": contradictory["photograph"].nunique(),
        "across": len(across),
    }
    notes = []
    if len(contradictory):
        groups = (group for _, group in contradictory.groupby("photograph"))
        copies = (
            first_few((f"{row.image} ({row.identity})" for row in group.itertuples()), separator=" = ")
            for group in groups
        )
        notes.append(
            f"one photograph with several labels: {first_few(copies)}; correct the labels, or, where different animals "
            "stand before one background, give boxes or set find_copies to false"
        )
    if len(across):
        notes.append(f"test images with a copy in train: {first_few(across['image'])}")
    return counts, notes
