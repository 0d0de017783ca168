"""The CSV reader: every cell as text, and the row of the file that each record stands in.

Rows are numbered as an editor and a spreadsheet number them: the header is row 1, blank lines count. Cells stay
text, so that an identity `007` or `NA` remains what it is. pyarrow reads plain files, a million rows in a second;
files with quotes, blank lines or uneven rows are read by Python's csv module.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at run time)
from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from whaleid.utils.errors import WhaleidError


@dataclass(frozen=True)
class CsvTable:
    """A CSV file as text.

    Attributes
    ----------
    path : Path
    header : list of str
    columns : list of pyarrow string arrays, shape (n,)
        Cells, none of them null.
    rows : int64 array, shape (n,)
        Row of the file in which each record ends.
    uneven : dict
        Row -> number of cells, where that is not the header's. Missing cells are '', surplus ones are joined to the
        last column by spaces.
    """

    path: Path
    header: list[str]
    columns: list[Any]
    rows: np.ndarray
    uneven: dict[int, int]

    @property
    def images(self) -> Any:
        """The first column, which holds the images in a submission and in a solution."""
        return self.columns[0]

    def uneven_row(self, row: int) -> str:
        """What is wrong with an uneven row."""
        return f"row {row} has {self.uneven[row]} cells, the header has {len(self.header)}"


def read_csv(path: Path, allow_uneven: bool = False) -> CsvTable:
    """Read a CSV file with a header; blank lines are skipped.

    Parameters
    ----------
    path : Path
        File in UTF-8, with or without a byte order mark.
    allow_uneven : bool
        Whether rows may have more or fewer cells than the header; they are then listed in `uneven`.

    Raises
    ------
    WhaleidError
        If the file is missing, empty, not readable as CSV in UTF-8, or has an uneven row.
    """
    content = _content(path)
    try:
        header = re.split(rb"[\r\n]", content, maxsplit=1)[0].decode("utf-8-sig").split(",")
        table = None if b'"' in content or header == [""] else _read_fast(path, header, content)
        table = table or _read_exactly(path, content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise WhaleidError(f"{path}: not UTF-8 text; save the CSV as UTF-8") from error
    if table.uneven and not allow_uneven:
        row = next(iter(table.uneven))
        raise WhaleidError(f"{path}: {table.uneven_row(row)}; correct the row (quote a cell that holds a comma)")
    return table


def read_table(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """Some columns of a CSV file by name.

    Parameters
    ----------
    path : Path
    columns : iterable of str
        Names of the columns to read.

    Returns
    -------
    DataFrame of str, index `row`: int64, the row of the file
        The columns in the order given.

    Raises
    ------
    WhaleidError
        As `read_csv`, and if a column is missing (with the nearest name) or stands in the header twice.
    """
    columns = list(dict.fromkeys(columns))
    table = read_csv(path)
    _require_columns(path, table.header, columns)
    content = {name: table.columns[table.header.index(name)].to_pylist() for name in columns}
    return pd.DataFrame(content, index=pd.Index(table.rows, dtype="int64", name="row"))


def unpack_hint(path: Path) -> str:
    """What to do about a missing file or folder whose zip file is there; else ''."""
    archives = (path.with_name(f"{path.name}.zip"), path.with_suffix(".zip"))
    archive = next((item for item in archives if item.is_file()), None)
    return f"; unpack {archive.name} next to it" if archive else ""


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise WhaleidError(f"{path}: file not found{unpack_hint(path) or '; check the path'}") from None
    except OSError as error:
        raise WhaleidError(f"{path}: cannot be read ({error.strerror}); a CSV file is expected") from error
    if not content.strip():
        raise WhaleidError(f"{path}: the file is empty; a header and a row for each image are needed")
    return content


def _read_fast(path: Path, header: list[str], content: bytes) -> CsvTable | None:
    """The table by pyarrow; None where a row is uneven or blank, or pyarrow gives up."""
    names = [f"f{i}" for i in range(len(header))]  # names in the header may repeat
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(content),
            read_options=arrow_csv.ReadOptions(autogenerate_column_names=True),
            parse_options=arrow_csv.ParseOptions(ignore_empty_lines=False),
            convert_options=arrow_csv.ConvertOptions(column_types={name: pa.string() for name in names}),
        )
    except pa.ArrowInvalid:
        return None
    if len(table) < 2 or table.column_names != names:
        return None
    columns = [pa.concat_arrays(table[name].slice(1).chunks) for name in names]
    if pc.any(pc.equal(columns[0], "")).as_py():
        return None
    return CsvTable(path, header, columns, np.arange(2, len(table) + 1), {})


def _read_exactly(path: Path, text: str) -> CsvTable:
    """The table by Python: exact about rows, ten times as slow."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[list[str]] = []
    rows: list[int] = []
    uneven: dict[int, int] = {}
    try:
        header = next(reader)
        width = len(header)
        for record in reader:
            if not record:
                continue
            if len(record) != width:
                uneven[reader.line_num] = len(record)
                record = [*record[: width - 1], " ".join(record[width - 1 :])]
                record += [""] * (width - len(record))
            records.append(record)
            rows.append(reader.line_num)
    except csv.Error as error:
        raise WhaleidError(f"{path}: row {reader.line_num} is not readable as CSV: {error}") from error
    columns = [pa.array([record[i] for record in records], pa.string()) for i in range(width)]
    return CsvTable(path, header, columns, np.array(rows, dtype=np.int64), uneven)


def _require_columns(path: Path, header: list[str], columns: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise WhaleidError(f"{path}: column '{twice[0]}' stands in the header twice; rename one")
    for name in columns:
        if name in header:
            continue
        if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
            raise WhaleidError(f"{path}: columns are not separated by commas (header: {header[0]!r}); use commas")
        by_case = {column.lower(): column for column in header}
        guess = difflib.get_close_matches(name.lower(), by_case, n=1)
        hint = f"; did you mean '{by_case[guess[0]]}'?" if guess else ""
        raise WhaleidError(f"{path}: column '{name}' is missing{hint} (columns: {', '.join(header)})")
