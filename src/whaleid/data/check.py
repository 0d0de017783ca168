"""`whaleid data check`: what a competition's data holds, and everything that is wrong with it, in one report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.boxes import boxes_path, placed_boxes
from whaleid.data.competition import Problem, first_few, inspect_rows
from whaleid.data.duplicates import duplicate_components
from whaleid.data.fingerprints import Fingerprints, fingerprint_images
from whaleid.data.images_table import unreadable_line
from whaleid.data.masks import mask_problem, masks_of
from whaleid.utils.errors import WhaleidError

SIZES = {"1": (1, 1), "2-5": (2, 5), "6-10": (6, 10), "11-50": (11, 50), "51+": (51, None)}
"""Class sizes in the report: label -> least and greatest number of training images."""


@dataclass(frozen=True)
class DataReport:
    """Counts of a competition's data, in images unless stated otherwise.

    Attributes
    ----------
    train, test : int
        Images that are listed, present and readable.
    identities : int
        Named identities of the training data.
    singletons : int
        Identities with one image.
    unknown : int
        Training images with the unknown label.
    expected_share : float or None
        Share of unknown queries that the competition expects in the test set.
    class_sizes : dict
        Label of SIZES -> (identities, images).
    median_size : (int, int) or None
        Width and height in pixels.
    boxes, masks : int or None
        Images with a box, with a good mask; None where the competition has none.
    near_duplicates, duplicate_groups, largest_group : int
        Images that are a copy of another one; photographs with several copies, and the most copies of one.
    contradictory_copies : int
        Photographs whose training copies have different labels.
    across : int
        Test images with a copy in train.
    problems, notes : tuple of str
        Lines about what stops the pipeline, and about what is worth knowing.
    """

    name: str
    train: int = 0
    test: int = 0
    identities: int = 0
    singletons: int = 0
    unknown: int = 0
    unknown_label: str | None = None
    expected_share: float | None = None
    class_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    median_size: tuple[int, int] | None = None
    boxes: int | None = None
    masks: int | None = None
    missing: int = 0
    unreadable: int = 0
    duplicate_rows: int = 0
    contradictory_rows: int = 0
    near_duplicates: int = 0
    duplicate_groups: int = 0
    largest_group: int = 0
    contradictory_copies: int = 0
    across: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the pipeline can run on this data."""
        return not self.problems

    @property
    def unknown_share(self) -> float:
        """Share of training images with the unknown label."""
        return self.unknown / self.train if self.train else 0.0

    def lines(self) -> list[str]:
        """The report as lines of text."""
        facts = list(self._facts())
        width = max(len(label) for label, _ in facts)
        return [
            f"data of {self.name}",
            *(f"  {label:<{width}}  {value}" for label, value in facts),
            *(f"note: {note}" for note in self.notes),
            *(f"problem: {problem}" for problem in self.problems),
            "the data can be used" if self.ok else f"{len(self.problems)} to fix before the pipeline can run",
        ]

    def _facts(self) -> Iterator[tuple[str, str]]:
        images = self.train + self.test
        yield "images", f"{images:,} ({self.train:,} train, {self.test:,} test)"
        yield "identities", f"{self.identities:,}"
        yield "singletons", f"{self.singletons:,} identities with one image"
        for label, (identities, held) in self.class_sizes.items():
            if identities:
                yield f"  of {label}", f"{identities:,} identities, {held:,} images"
        yield "unknown", self._unknown()
        if self.median_size is not None:
            yield "median size", "{} x {} pixels".format(*self.median_size)
        for label, count in (("boxes", self.boxes), ("masks", self.masks)):
            if count is not None:
                yield label, f"{count:,} of {images:,} images"
        yield "missing", f"{self.missing:,}"
        yield "unreadable", f"{self.unreadable:,}"
        yield "duplicate rows", f"{self.duplicate_rows:,}"
        yield "contradictory rows", f"{self.contradictory_rows:,}"
        largest = f" (largest group {self.largest_group})" if self.duplicate_groups else ""
        yield "near-duplicates", f"{self.near_duplicates:,} copies of {self.duplicate_groups:,} photographs{largest}"
        yield "contradictory copies", f"{self.contradictory_copies:,} photographs with several labels"
        yield "copies across", f"{self.across:,} test images have a copy in train"

    def _unknown(self) -> str:
        if self.unknown_label is None:
            return "none: every query's identity is in the training data"
        expected = "as out of fold" if self.expected_share is None else f"{self.expected_share:.1%}"
        labelled = f"{self.unknown:,} train images '{self.unknown_label}' ({self.unknown_share:.1%})"
        return f"{labelled}; expected share of test queries: {expected}"


def check_data(competition: Competition, workers: int | None = None) -> DataReport:
    """Read everything that the pipeline would read; problems are collected, never raised.

    workers: processes that read images, by default one for each core.
    """
    try:
        rows, problems = inspect_rows(competition)
    except WhaleidError as error:
        return DataReport(competition.name, unknown_label=competition.unknown, problems=(str(error),))
    found = fingerprint_images(competition.root, rows["path"].tolist(), workers)
    lines = [problem.message for problem in problems]
    if not found.readable.all():
        lines.append(unreadable_line(competition.root, rows, found))
    unreadable = int((~found.readable).sum())
    rows, found = rows[found.readable].reset_index(drop=True), found.subset(found.readable)
    boxes, box_lines, box_notes = _boxes(competition, rows, found)
    masks, mask_lines = _masks(competition, rows, found)
    copies, copy_notes = _copies(rows, found)
    return DataReport(
        name=competition.name,
        expected_share=competition.unknown_share,
        median_size=_median_size(found),
        boxes=boxes,
        masks=masks,
        missing=_count(problems, "missing"),
        unreadable=unreadable,
        duplicate_rows=_count(problems, "duplicate"),
        contradictory_rows=_count(problems, "contradictory"),
        problems=tuple(lines + box_lines + mask_lines + _solution_lines(competition)),
        notes=tuple(box_notes + copy_notes),
        **_labels(rows, competition.unknown),
        **copies,
    )


def _count(problems: list[Problem], kind: str) -> int:
    return sum(problem.count for problem in problems if problem.kind == kind)


def _labels(rows: pd.DataFrame, unknown: str | None) -> dict[str, Any]:
    train = rows[rows["split"] == "train"]
    known = train[train["identity"] != unknown] if unknown is not None else train
    sizes = known["identity"].value_counts()
    return {
        "train": len(train),
        "test": len(rows) - len(train),
        "identities": len(sizes),
        "singletons": int((sizes == 1).sum()),
        "unknown": len(train) - len(known),
        "unknown_label": unknown,
        "class_sizes": _class_sizes(sizes.to_numpy()),
    }


def _class_sizes(sizes: np.ndarray) -> dict[str, tuple[int, int]]:
    table = {}
    for label, (least, greatest) in SIZES.items():
        held = sizes[(sizes >= least) & (sizes <= (greatest or sizes.max(initial=0)))]
        table[label] = (len(held), int(held.sum()))
    return table


def _median_size(found: Fingerprints) -> tuple[int, int] | None:
    if not len(found.size):
        return None
    width, height = np.median(found.size, axis=0)
    return int(width), int(height)


def _boxes(
    competition: Competition, rows: pd.DataFrame, found: Fingerprints
) -> tuple[int | None, list[str], list[str]]:
    """Number of images with a box, problems, notes."""
    if competition.boxes is None:
        return None, [], []
    try:
        path = boxes_path(competition)
        _, given = placed_boxes(path, rows["image"], found.size)
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


def _copies(rows: pd.DataFrame, found: Fingerprints) -> tuple[dict[str, Any], list[str]]:
    """Counts of near-duplicates, and notes on those that deserve a look."""
    table = rows.assign(photograph=duplicate_components(found))
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
        copies = (" = ".join(f"{row.image} ({row.identity})" for row in group.itertuples()) for group in groups)
        notes.append(f"one photograph with several labels: {first_few(copies)}")
    if len(across):
        notes.append(f"test images with a copy in train: {first_few(across['image'])}")
    return counts, notes
