"""Submission files of every form: a row for each row of the sample submission, in its order, checked before it is kept.

What the cells must hold is the form's business.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at run time)
from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from whaleid.data.tables import CsvTable, read_table
from whaleid.evaluation.tables import (
    blank,
    difference,
    not_in,
    read_answers,
    require_distinct,
    require_images,
)
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

ANSWER = "answer.csv"
"""File beside the candidates: each row of the test set and its cell."""
OUTCOMES = "outcomes.parquet"
"""File beside the candidates: what the score out of fold of the form's answers is made of (`Form.outcomes`)."""
DOUBTS = "doubts.csv"
"""File beside the candidates: pairs of images that are worth a person's look, in the form clusters."""
_LISTED = 10  # problems of one kind that are listed


def write_cells(
    path: Path,
    cells: Mapping[str, str],
    sample: Path,
    check: Callable[[Path], list[str]],
) -> None:
    """Write a submission with the header and row order of the sample; nothing is written unless it is valid.

    Parameters
    ----------
    path : Path
        File to write.
    cells : mapping of str to str
        First column (the image, or the row's id) -> answer, for each row of the sample.
    sample : Path
        Sample submission.
    check : callable (path) -> list of str
        Everything that is wrong with a file, one line each.

    Raises
    ------
    WhaleidError
        For a sample of other columns, rows that are missing or surplus, and whatever `check` reports.
    """
    template = read_answers(sample)
    if len(template.header) != 2:
        header = ",".join(template.header)
        raise WhaleidError(f"{sample}: the header is {header}; an image column and a label column are expected")
    order = template.images.to_pylist()
    missing = [image for image in order if image not in cells]
    extra = sorted(cells.keys() - set(order))
    if missing or extra:
        raise WhaleidError(f"{path}: not written: {difference(missing, extra, sample)}")
    with atomic_path(path) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(template.header)
            writer.writerows((image, cells[image]) for image in order)
        problems = check(temporary)
        if problems:
            raise WhaleidError(f"{path}: not written: {'; '.join(problems)}")


def write_answer_file(path: Path, cells: Mapping[str, str]) -> None:
    """Keep the cells in a CSV with the columns `row` and `answer`."""
    with atomic_path(path) as temporary:
        pd.DataFrame({"row": list(cells), "answer": list(cells.values())}).to_csv(temporary, index=False)


def read_answer_file(path: Path) -> dict[str, str]:
    """The cells that `write_answer_file` kept."""
    table = read_table(path, ["row", "answer"])
    return dict(zip(table["row"], table["answer"], strict=True))


def file_problems(path: Path, sample: Path) -> tuple[CsvTable | None, list[str]]:
    """The submission's table (None where it cannot be read), and what is wrong with its header and first column.

    Raises WhaleidError if the sample cannot be read.
    """
    template = read_answers(sample)
    require_images(template)
    require_distinct(template)
    try:
        table = read_answers(path, allow_uneven=True)
    except WhaleidError as error:
        return None, [str(error)]
    problems = []
    if table.header != template.header:
        found, wanted = ",".join(table.header), ",".join(template.header)
        problems.append(f"row 1: the header is {found}; the sample's is {wanted}")
    problems += listed(list(table.uneven), table.uneven_row)
    return table, problems + _image_problems(table, template)


def cell_problems(path: Path, sample: Path, is_valid: Callable[[str], bool], wrong: str) -> list[str]:
    """As `file_problems`, and the rows whose cell is not valid. wrong: what is said of such a cell."""
    table, problems = file_problems(path, sample)
    if table is None:
        return problems
    cells = table.columns[1].to_pylist()
    found = [row for row, cell in enumerate(cells) if not is_valid(cell)]
    return problems + listed(found, lambda row: f"row {table.rows[row]} ({table.images[row]}): {cells[row]!r} {wrong}")


def listed(items: Sequence[Any] | np.ndarray, describe: Callable[[Any], str]) -> list[str]:
    """One line for each of the first problems of a kind, and one that counts the others."""
    lines = [describe(item) for item in items[:_LISTED]]
    if len(items) > _LISTED:
        lines.append(f"... and {len(items) - _LISTED} more like the last")
    return lines


def is_finite(cell: str) -> bool:
    """Whether a cell is a finite number, as programs write it: `1_000` is none, nor are digits of other scripts."""
    try:
        return cell.isascii() and "_" not in cell and math.isfinite(float(cell))
    except ValueError:
        return False


def _image_problems(table: CsvTable, template: CsvTable) -> list[str]:
    """Images that are empty, repeated, missing, not in the sample, or in another order."""
    empty = blank(table.images)
    problems = listed(table.rows[empty], lambda row: f"row {row}: the image is empty")
    encoded = table.images.dictionary_encode()
    places = encoded.indices.to_numpy()
    first = np.unique(places, return_index=True)[1]
    again = np.flatnonzero((first[places] != np.arange(len(places))) & ~empty)
    names = table.images
    problems += listed(
        again,
        lambda i: f"row {table.rows[i]}: image {names[i]} is already in row {table.rows[first[places[i]]]}",
    )
    absent = np.flatnonzero(not_in(template.images, table.images))
    problems += listed(absent, lambda i: f"image {template.images[i]} of the sample has no row")
    foreign = np.flatnonzero(not_in(names, template.images) & ~empty)
    problems += listed(foreign, lambda i: f"row {table.rows[i]}: image {names[i]} is not in the sample")
    if len(names) == len(template.images) and not len(absent) and not names.equals(template.images):
        i = int(np.argmin(pc.equal(names, template.images).to_numpy(zero_copy_only=False)))
        problems.append(
            f"row {table.rows[i]}: not in the sample's order: image {names[i]} instead of {template.images[i]}"
        )
    return problems
