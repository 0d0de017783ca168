"""CSV files of images and labels as arrow text columns, for every form of an answer.

Rows are numbered as an editor and a spreadsheet number them: the header is row 1, blank lines count. Columns
stay arrow arrays from file to codes, so that a million rows take a second or two; only a file with an odd row
is read again by Python's csv module, which knows the number of each row.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at run time)
from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from whaleid.evaluation.metrics import PADDING
from whaleid.utils.errors import WhaleidError

_NAMED = 3  # images that an error names
_LISTED = 10  # rows that an error names
_MAX_CODES = 1 << 29  # 2 GB: a row that holds a whole list of identities by mistake stops here


@dataclass(frozen=True)
class Table:
    """A CSV as text, its first column the images.

    columns: arrow string arrays (n,), none null. rows: int (n,), the number of each row in the file.
    ragged: rows with more or fewer cells than the header; surplus cells are joined to the last column.
    """

    path: Path
    header: list[str]
    columns: list[Any]
    rows: np.ndarray
    ragged: list[int]

    @property
    def images(self) -> Any:
        return self.columns[0]


# ---------------------------------------------------------------------------------------------------- reading


def read_table(path: Path, lenient: bool = False) -> Table:
    """A CSV with a header, two columns or more and one row or more.

    lenient: ragged rows pass, and are noted; else they are an error, as all other faults are.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), None)
        if header is None:
            raise WhaleidError(f"{path}: the file is empty; a header and a row for each image are needed")
        if len(header) < 2:
            found = header[0] if header else "a blank line"
            raise WhaleidError(f"{path}: row 1: one column only ({found}); give the image, a comma, the labels")
        table = _read_fast(path, header) or _read_slowly(path, header)
    except FileNotFoundError as error:
        raise WhaleidError(f"{path}: there is no such file; check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WhaleidError(f"{path}: cannot be read as a CSV in UTF-8: {error}") from error
    if not len(table.rows):
        raise WhaleidError(f"{path}: a header and no rows; give a row for each image")
    if table.ragged and not lenient:
        raise WhaleidError(
            f"{path}: row {table.ragged[0]}: not {len(header)} cells, as in the header; join labels by spaces"
        )
    return table


def _read_fast(path: Path, header: list[str]) -> Table | None:
    """The table by arrow's threads; None where a row is ragged or blank, or arrow gives up."""
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "skip"

    names = [f"f{i}" for i in range(len(header))]  # arrow's own: names in the header may repeat
    try:
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(autogenerate_column_names=True),
            parse_options=arrow_csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=note),
            convert_options=arrow_csv.ConvertOptions(column_types={name: pa.string() for name in names}),
        )
    except pa.ArrowInvalid:
        return None
    if ragged or len(table) < 2 or len(table.column_names) != len(header):
        return None
    columns = [pa.concat_arrays(table[name].slice(1).chunks) for name in names]
    if pc.any(pc.equal(columns[0], "")).as_py():
        return None
    return Table(path, header, columns, np.arange(2, len(table) + 1), [])


def _read_slowly(path: Path, header: list[str]) -> Table:
    """The table by Python, row by row: exact about rows, ten times as slow."""
    width = len(header)
    cells: list[list[str]] = []
    rows: list[int] = []
    ragged: list[int] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if number == 1 or not row:
                continue
            if len(row) != width:
                ragged.append(number)
                row = [*row[: width - 1], " ".join(row[width - 1 :])]
                row += [""] * (width - len(row))
            cells.append(row)
            rows.append(number)
    columns = [pa.array([row[i] for row in cells], pa.string()) for i in range(width)]
    return Table(path, header, columns, np.array(rows, dtype=np.int64), ragged)


# ----------------------------------------------------------------------------------------------------- labels


def joined(columns: list[Any]) -> Any:
    """One column of labels out of several."""
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, " ")


def encode(table: Table, cells: Any) -> tuple[np.ndarray, Any]:
    """Labels joined by white space, as codes.

    cells: arrow strings (n,), of `table`. Returns int32 (n, m), each row's codes first and PADDING after
    them, and the labels they stand for, arrow strings (c,).
    """
    split = pc.ascii_split_whitespace(cells)
    flat, count = split.flatten(), pc.list_value_length(split).to_numpy()
    full = pc.not_equal(flat, "")  # splitting leaves "" for an empty cell, and for white space at both ends
    if not pc.all(full).as_py():
        row = np.repeat(np.arange(len(cells)), count)[full.to_numpy(zero_copy_only=False)]
        flat, count = flat.filter(full), np.bincount(row, minlength=len(cells))
    encoded = flat.dictionary_encode()
    width = int(count.max())
    if width * len(cells) > _MAX_CODES:
        at = table.rows[count.argmax()]
        raise WhaleidError(f"{table.path}: row {at}: {width} guesses, too many to hold for {len(cells)} rows")
    codes = np.full((len(cells), width), PADDING, dtype=np.int32)
    codes[np.arange(width) < count[:, None]] = encoded.indices.to_numpy()  # row after row, each from its start
    return codes, encoded.dictionary


def blank(cells: Any) -> np.ndarray:
    """bool (n,): nothing in the cell, or white space alone."""
    return pc.equal(pc.ascii_trim_whitespace(cells), "").to_numpy(zero_copy_only=False)


def not_in(values: Any, others: Any) -> np.ndarray:
    """bool (n,): which of the arrow strings `values` are not among `others`."""
    return pc.invert(pc.is_in(values, value_set=others)).to_numpy(zero_copy_only=False)


# --------------------------------------------------------------------------------------------- what must hold


def require_images(table: Table) -> None:
    """Every row names an image."""
    empty = blank(table.images)
    if empty.any():
        raise WhaleidError(f"{table.path}: row {table.rows[empty.argmax()]}: the image is empty; fill it in")


def require_distinct(table: Table) -> None:
    """Every image has one row."""
    encoded = table.images.dictionary_encode()
    surplus = len(table.images) - len(encoded.dictionary)
    if not surplus:
        return
    places = encoded.indices.to_numpy()
    name = int(np.argmax(np.bincount(places) > 1))
    rows = table.rows[places == name]
    shown = ", ".join(str(row) for row in rows[:_LISTED]) + (", ..." if len(rows) > _LISTED else "")
    raise WhaleidError(
        f"{table.path}: image {encoded.dictionary[name]} is in rows {shown} ({surplus} surplus row(s)); "
        "keep one row for each image"
    )


def require_same_images(answers: Table, truths: Table) -> None:
    """Both tables hold the same images, whatever their order."""
    missing = truths.images.filter(pa.array(not_in(truths.images, answers.images))).to_pylist()
    extra = answers.images.filter(pa.array(not_in(answers.images, truths.images))).to_pylist()
    if missing or extra:
        raise WhaleidError(f"{answers.path}: {difference(missing, extra, truths.path)}")


def difference(missing: list[str], extra: list[str], other: Path) -> str:
    """`2 image(s) of <other> have no row (a, b); 1 image(s) are not in <other> (c)`."""

    def named(images: list[str]) -> str:
        return ", ".join(images[:_NAMED]) + (", ..." if len(images) > _NAMED else "")

    parts = [f"{len(missing)} image(s) of {other} have no row ({named(missing)})"] if missing else []
    parts += [f"{len(extra)} image(s) are not in {other} ({named(extra)})"] if extra else []
    return "; ".join(parts)
