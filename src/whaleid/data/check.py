"""`whaleid data check`: what a competition's data holds, and everything that is wrong with it, at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.boxes import boxes_path, placed_boxes
from whaleid.data.competition import Problem, first_few, inspect_rows
from whaleid.data.duplicates import duplicate_components
from whaleid.data.fingerprints import Fingerprints, fingerprint_images
from whaleid.data.images_table import readable, unreadable_line
from whaleid.data.masks import mask_problem, masks_of
from whaleid.utils.errors import WhaleidError

SIZES = {"1": (1, 1), "2-5": (2, 5), "6-10": (6, 10), "11-50": (11, 50), "51+": (51, None)}
"""Class sizes as they are counted: label -> least and greatest number of training images."""


@dataclass(frozen=True)
class DataReport:
    """Counts of a competition's data; all of images unless said otherwise."""

    name: str
    train: int = 0
    """Images that are listed, present and readable; so of `test`."""
    test: int = 0
    identities: int = 0
    """Named identities of the training data."""
    singletons: int = 0
    """Identities with one image."""
    unknown: int = 0
    """Training images with the unknown label."""
    unknown_label: str | None = None
    expected_share: float | None = None
    """Share of unknown queries that the competition expects in the test set."""
    class_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Identity size -> (identities, images)."""
    median_size: tuple[int, int] | None = None
    """Median width and height in pixels."""
    boxes: int | None = None
    """Images with a box; None where the competition names no boxes."""
    masks: int | None = None
    """Images with a mask that can be used; None where the competition names no masks."""
    missing: int = 0
    unreadable: int = 0
    duplicate_rows: int = 0
    contradictory_rows: int = 0
    near_duplicates: int = 0
    """Images that are a copy of another one."""
    duplicate_groups: int = 0
    """Photographs that there are several copies of."""
    largest_group: int = 0
    contradictory_copies: int = 0
    """Photographs whose training copies have different labels."""
    across: int = 0
    """Test images of which a copy is in train."""
    problems: tuple[str, ...] = ()
    """Lines of what stops the pipeline."""
    notes: tuple[str, ...] = ()
    """Lines of what is worth knowing."""

    @property
    def ok(self) -> bool:
        """Whether the pipeline can run on this data as it is."""
        return not self.problems

    @property
    def unknown_share(self) -> float:
        """Share of training images with the unknown label."""
        return self.unknown / self.train if self.train else 0.0

    def lines(self) -> list[str]:
        """The report as lines to print."""
        facts = [(label, value) for label, value in self._facts() if value is not None]
        width = max(len(label) for label, _ in facts)
        return [
            f"data of {self.name}",
            *(f"  {label:<{width}}  {value}" for label, value in facts),
            *(f"note: {note}" for note in self.notes),
            *(f"problem: {problem}" for problem in self.problems),
            "the data is fit to run on" if self.ok else f"{len(self.problems)} to mend before the pipeline can run",
        ]

    def _facts(self) -> list[tuple[str, str | None]]:
        boxes = None if self.boxes is None else f"{self.boxes:,} of {self._images:,} images"
        masks = None if self.masks is None else f"{self.masks:,} of {self._images:,} images"
        size = None if self.median_size is None else "{} x {} pixels".format(*self.median_size)
        copies = f"{self.near_duplicates:,} copies of {self.duplicate_groups:,} photographs"
        largest = f" (largest group {self.largest_group})" if self.duplicate_groups else ""
        return [
            ("images", f"{self._images:,} ({self.train:,} train, {self.test:,} test)"),
            ("identities", f"{self.identities:,}"),
            ("singletons", f"{self.singletons:,} identities with one image"),
            *self._sizes(),
            ("unknown", self._unknown()),
            ("median size", size),
            ("boxes", boxes),
            ("masks", masks),
            ("missing", f"{self.missing:,}"),
            ("unreadable", f"{self.unreadable:,}"),
            ("duplicate rows", f"{self.duplicate_rows:,}"),
            ("contradictory rows", f"{self.contradictory_rows:,}"),
            ("near-duplicates", copies + largest),
            ("contradictory copies", f"{self.contradictory_copies:,} photographs under several labels"),
            ("copies across", f"{self.across:,} test images have a copy in train"),
        ]

    def _sizes(self) -> list[tuple[str, str]]:
        return [
            (f"  of {label}", f"{identities:,} identities, {images:,} images")
            for label, (identities, images) in self.class_sizes.items()
            if identities
        ]

    @property
    def _images(self) -> int:
        return self.train + self.test

    def _unknown(self) -> str:
        if self.unknown_label is None:
            return "none: every query's identity is in the training data"
        expected = "as out of fold" if self.expected_share is None else f"{self.expected_share:.1%}"
        labelled = f"{self.unknown:,} train images '{self.unknown_label}' ({self.unknown_share:.1%})"
        return f"{labelled}; expected of test queries: {expected}"


def check_data(competition: Competition, workers: int | None = None) -> DataReport:
    """Read everything that the pipeline would read and report it; bad data is collected, never raised."""
    try:
        rows, problems = inspect_rows(competition)
    except WhaleidError as error:
        return DataReport(competition.name, unknown_label=competition.unknown, problems=(str(error),))
    found = fingerprint_images(competition.root, rows["path"].tolist(), workers)
    good = found.problem == ""
    lines = [problem.message for problem in problems] + _unreadable_lines(competition, rows, found)
    rows, kept = rows[good].reset_index(drop=True), readable(found)
    boxes, box_lines, box_notes = _boxes(competition, rows, kept)
    masks, mask_lines = _masks(competition, rows, kept)
    copies, copy_notes = _copies(rows, kept)
    return DataReport(
        name=competition.name,
        expected_share=competition.unknown_share,
        median_size=_median_size(kept),
        boxes=boxes,
        masks=masks,
        missing=_count(problems, "missing"),
        unreadable=int((~good).sum()),
        duplicate_rows=_count(problems, "duplicate"),
        contradictory_rows=_count(problems, "contradictory"),
        problems=tuple(lines + box_lines + mask_lines + _solution_lines(competition)),
        notes=tuple(box_notes + copy_notes),
        **_labels(rows, competition.unknown),
        **copies,
    )


def _labels(rows: pd.DataFrame, unknown: str | None) -> dict:
    train = rows[rows["split"] == "train"]
    named_images = train[train["identity"] != unknown] if unknown is not None else train
    sizes = named_images["identity"].value_counts()
    return {
        "train": len(train),
        "test": len(rows) - len(train),
        "identities": len(sizes),
        "singletons": int((sizes == 1).sum()),
        "unknown": len(train) - len(named_images),
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


def _unreadable_lines(competition: Competition, rows: pd.DataFrame, found: Fingerprints) -> list[str]:
    return [unreadable_line(competition.root, rows, found)] if (found.problem != "").any() else []


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
    without = [f"{path}: {(~given).sum():,} images have no box; all of the image is used"] if not given.all() else []
    return int(given.sum()), [], without


def _masks(competition: Competition, rows: pd.DataFrame, found: Fingerprints) -> tuple[int | None, list[str]]:
    """Number of images with a mask that can be used, and a line on the others."""
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
    """Whether the solution is there; what it says is for `score` and `report` alone."""
    if competition.solution is None or (competition.root / competition.solution).is_file():
        return []
    return [f"{competition.root / competition.solution}: solution not found; put it there or set solution to null"]


def _copies(rows: pd.DataFrame, found: Fingerprints) -> tuple[dict, list[str]]:
    """Counts of near-duplicates for the report, and a line on each kind that wants a look."""
    table = rows.assign(photograph=duplicate_components(found))
    sizes = table.groupby("photograph").size()
    table = table[table["photograph"].isin(sizes.index[sizes > 1])]
    train, test = table[table["split"] == "train"], table[table["split"] == "test"]
    labels = train.groupby("photograph")["identity"].nunique()
    torn = train[train["photograph"].isin(labels.index[labels > 1])]
    across = test[test["photograph"].isin(train["photograph"])]
    counts = {
        "near_duplicates": len(table) - table["photograph"].nunique(),
        "duplicate_groups": table["photograph"].nunique(),
        "largest_group": int(sizes.max()) if len(table) else 0,
        "contradictory_copies": torn["photograph"].nunique(),
        "across": len(across),
    }
    notes = []
    if len(torn):
        notes.append(f"one photograph under several labels: {_torn(torn)}")
    if len(across):
        notes.append(f"test images with a copy in train: {first_few(across['image'])}")
    return counts, notes


def _torn(rows: pd.DataFrame) -> str:
    groups: Iterable[pd.DataFrame] = (group for _, group in rows.groupby("photograph"))
    return first_few(" = ".join(f"{row.image} ({row.identity})" for row in group.itertuples()) for group in groups)


def _count(problems: list[Problem], kind: str) -> int:
    return sum(problem.count for problem in problems if problem.kind == kind)
