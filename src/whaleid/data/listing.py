"""The rows of a competition's CSV that belong to one of its tables, and the files of their images."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from whaleid.config import Table
from whaleid.config.competition import FIELD
from whaleid.data.tables import read_table
from whaleid.utils.errors import WhaleidError


def read_listed(root: Path, table: Table, columns: Iterable[str] = ()) -> pd.DataFrame:
    """Rows of a table: those of its CSV that `where` chooses.

    Parameters
    ----------
    root : Path
        Folder of the competition.
    table : Table
    columns : iterable of str
        Columns to read besides those that name the image and its file.

    Returns
    -------
    DataFrame of str, index `row`: int64, the row of the file

    Raises
    ------
    WhaleidError
        As `read_table`, and where `where` chooses no row.
    """
    path = root / table.csv
    content = read_table(path, [table.image, *file_columns(table), *table.where, *columns])
    for column, value in table.where.items():
        values = [value] if isinstance(value, str) else value
        chosen = content[content[column].isin(values)]
        if chosen.empty and not content.empty:
            found = ", ".join(sorted(content[column].unique())[:5])
            raise WhaleidError(f"{path}: no row has {column} {' or '.join(values)}; its values are {found}")
        content = chosen
    return content


def file_columns(table: Table) -> list[str]:
    """Columns that the pattern of the image files names."""
    return [column for column, _ in FIELD.findall(table.file or "")]


def image_files(root: Path, table: Table, rows: pd.DataFrame) -> list[str]:
    """File of each image within the table's folder, in the order of `rows` (from `read_listed`).

    Raises
    ------
    WhaleidError
        If a value is shorter than the pattern's place in it.
    """
    if table.file is None:
        return [image + table.suffix for image in rows[table.image]]
    pattern, columns = table.file, file_columns(table)
    records = zip(rows.index, rows[columns].to_numpy().tolist(), strict=True)
    return [_filled(pattern, dict(zip(columns, values, strict=True)), root / table.csv, row) for row, values in records]


def image_path(table: Table, file: str) -> str:
    """Path of an image relative to the root, normalised; it may lead out of the root, which `read_rows` refuses."""
    return os.path.normpath(os.path.join(table.images, file)).replace(os.sep, "/")  # noqa: PTH118


def near_miss(root: Path, table: Table, missing: list[str]) -> str:
    """What files that are there say about missing ones: `; a.JPG is there`, or ''.

    missing: paths relative to the root.
    """
    folder = root / table.images
    found = [path.relative_to(root).as_posix() for path in folder.rglob("*") if path.is_file()]
    there = {_plain(path): path for path in found}
    first = missing[0]
    alike = [path for path in missing if _plain(path) in there]
    if alike:
        return (
            f"; {len(alike):,} of them differ in case, slashes or the form of their accents alone: "
            f"{there[_plain(alike[0])]} is there for {alike[0]}"
        )
    suffixed = next((path for path in found if path.rpartition(".")[0] == first), None)
    if suffixed is not None:
        return f"; {suffixed} is there: set suffix to {suffixed[len(first) :]}"
    inner = "/" + first.removeprefix(f"{image_path(table, '')}/")
    deeper = next((path for path in found if path.endswith(inner)), None)
    return "" if deeper is None else f"; {deeper} is there: set images to {deeper.removesuffix(inner)}"


def _plain(path: str) -> str:
    """A path without what differs between file systems."""
    return unicodedata.normalize("NFC", path.replace("\\", "/")).casefold()


def _filled(pattern: str, values: dict[str, str], path: Path, row: int) -> str:
    def value(match: re.Match[str]) -> str:
        column, place = match.groups()
        text = values[column]
        if not place:
            return text
        if int(place) >= len(text):
            raise WhaleidError(f"{path}: '{column}' in row {row} is {text!r}, too short for {match[0]} of `file`")
        return text[int(place)]

    return FIELD.sub(value, pattern)
