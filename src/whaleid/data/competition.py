"""A competition's CSVs as one table of rows, checked against the image files that they name; no image is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from whaleid.config import Competition, Table
from whaleid.data.listing import image_files, image_path, read_listed
from whaleid.data.tables import unpack_hint
from whaleid.utils.errors import WhaleidError

LISTED = 5  # rows that a message names; the rest are counted
RESERVED = {"image", "path", "split", "identity", "width", "height", "phash", "digest", "group", "fold"}
RESERVED |= {"x0", "y0", "x1", "y1"}


@dataclass(frozen=True)
class Problem:
    """One kind of bad row.

    Attributes
    ----------
    kind : str
        empty, name, outside, missing, duplicate, contradictory, or both (in train and in test).
    message : str
        One line: file, rows, what to do.
    count : int
        Number of such rows.
    """

    kind: str
    message: str
    count: int


Checked = tuple[pd.DataFrame, list[Problem]]
"""Good rows, problems of the others."""


def read_rows(competition: Competition) -> pd.DataFrame:
    """Rows of the competition's train and test CSVs.

    Returns
    -------
    DataFrame
        Train rows, then test rows, each in the order of its file. Text columns: image (unique), path (relative to the
        root), split ('train' or 'test'), identity (null for test rows), and those of `extra` (null where a table
        lacks the column or the cell is empty). Values named by `rename_values` are replaced.

    Raises
    ------
    WhaleidError
        At the first kind of bad row.
    """
    rows, problems = inspect_rows(competition)
    if problems:
        more = len(problems) - 1
        kinds = f"{more} more kind{'s' * (more > 1)} of problem"
        also = f" (and {kinds}: whaleid data check lists all)" if more else ""
        raise WhaleidError(problems[0].message + also)
    return rows


def inspect_rows(competition: Competition) -> tuple[pd.DataFrame, list[Problem]]:
    """Good rows as `read_rows` returns them, and every kind of bad row.

    Raises
    ------
    WhaleidError
        Only if there is nothing to inspect: a CSV, a folder or a column is missing.
    """
    _require_root(competition)
    splits = {"train": competition.train, "test": competition.test}
    parts = [_split_rows(competition, split, table) for split, table in splits.items() if table is not None]
    rows = pd.concat([part for part, _ in parts], ignore_index=True)
    problems = [problem for _, found in parts for problem in found]
    rows = _renamed(rows, competition)
    rows, shared = _check_splits(rows, competition)
    return rows.drop(columns="row").reset_index(drop=True), problems + shared


def first_few(items: Iterable[str], limit: int = LISTED, separator: str = ", ") -> str:
    """The first few items, and how many more there are: `a, b, c and 7 more`."""
    items = list(items)
    more = f" and {len(items) - limit:,} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more


def _require_root(competition: Competition) -> None:
    if competition.root.is_dir():
        return
    fetch = f" (`whaleid data download` gets {competition.kaggle})" if competition.kaggle else ""
    what = f"put the data of '{competition.name}' there{fetch} or change root"
    raise WhaleidError(f"{competition.root}: folder not found; {what}")


# ---------------------------------------------------------------------------------------------- rows of one table


def _split_rows(competition: Competition, split: str, table: Table) -> Checked:
    """Good rows of one table (with their `row` in the file) and its problems."""
    _check_settings(table, split)
    path = competition.root / table.csv
    labels = [table.identity] if table.identity else []
    content = read_listed(competition.root, table, [*labels, *table.extra.values()])
    if content.empty:
        raise WhaleidError(f"{path}: lists no image; at least one row below the header is expected")
    rows = pd.DataFrame({"image": content[table.image]})
    rows["path"] = [image_path(table, file) for file in image_files(competition.root, table, content)]
    rows["split"] = split
    rows["identity"] = content[table.identity] if table.identity else content[table.image].where(content.index < 0)
    for name, column in table.extra.items():
        rows[name] = content[column].where(content[column] != "", None)
    rows["row"] = rows.index
    if split == "test" and competition.answer.pairs is not None:  # an image has a row for each of its pairs
        rows = rows.drop_duplicates("image")

    problems: list[Problem] = []
    for check in (_check_empty, _check_spaces, _check_repeats):
        rows, found = check(rows, path, table)
        problems += found
    rows, found = _check_files(rows, path, competition.root, table)
    return rows, problems + found


def _check_settings(table: Table, split: str) -> None:
    if split == "test" and table.identity is not None:
        raise WhaleidError(
            "test.identity is set, but only score and report may read identities of test images: "
            "name that file as `solution` and remove test.identity"
        )
    taken = sorted(RESERVED & set(table.extra))
    if taken:
        raise WhaleidError(f"{split}.extra.{taken[0]}: images.parquet has a column of that name; choose another")


def _check_empty(rows: pd.DataFrame, path: Path, table: Table) -> Checked:
    bad = pd.Series(False, index=rows.index)
    problems = []
    for name, column in (("image", table.image), ("identity", table.identity)):
        if column is None:
            continue
        blank = rows[name].str.strip() == ""
        if blank.any():
            where = first_few(f"row {row}" for row in rows.loc[blank, "row"])
            message = f"{path}: empty '{column}' in {where}; fill it in or remove the row"
            problems.append(Problem("empty", message, int(blank.sum())))
            bad |= blank
    return rows[~bad], problems


def _check_spaces(rows: pd.DataFrame, path: Path, table: Table) -> Checked:
    if table.identity is None:
        return rows, []
    spaced = rows["identity"].str.contains(r"\s", regex=True)
    if not spaced.any():
        return rows, []
    first = rows[spaced].iloc[0]
    message = (
        f"{path}: identity {first['identity']!r} in row {first['row']} has a space ({spaced.sum():,} such "
        "rows); a submission separates identities by spaces, so replace it, for example by _"
    )
    return rows[~spaced], [Problem("name", message, int(spaced.sum()))]


def _check_repeats(rows: pd.DataFrame, path: Path, table: Table) -> Checked:
    """Rows whose image stood in an earlier row: duplicate with the same identity, else contradictory."""
    again = rows["image"].duplicated()
    if not again.any():
        return rows, []
    repeats = rows[again]
    earlier = rows[~again].set_index("image").loc[repeats["image"]].set_axis(repeats.index)
    same = (repeats["identity"] == earlier["identity"]) | (repeats["identity"].isna() & earlier["identity"].isna())
    problems = []
    if (~same).any():
        both = zip(repeats[~same].itertuples(), earlier[~same].itertuples(), strict=True)
        clashes = first_few(
            f"{new.image} is '{old.identity}' in row {old.row} and '{new.identity}' in row {new.row}"
            for new, old in both
        )
        message = f"{path}: contradictory rows: {clashes}; keep the right one"
        problems.append(Problem("contradictory", message, int((~same).sum())))
    if same.any():
        both = zip(repeats[same].itertuples(), earlier[same].itertuples(), strict=True)
        copies = first_few(f"{new.image} in rows {old.row} and {new.row}" for new, old in both)
        message = f"{path}: duplicate row: {copies}; remove the repeats"
        problems.append(Problem("duplicate", message, int(same.sum())))
    return rows[~again], problems


def _check_files(rows: pd.DataFrame, path: Path, root: Path, table: Table) -> Checked:
    """Rows whose file lies outside the root (absolute, `..`, a link that leaves it) or is missing."""
    folder = root / table.images
    if not folder.is_dir():
        raise WhaleidError(f"{folder}: folder of images not found{unpack_hint(folder)}")
    inside = os.path.realpath(root)
    parents = pd.Series([os.path.dirname(item) for item in rows["path"]], index=rows.index, dtype=object)  # noqa: PTH120
    folders = {parent: root / parent for parent in pd.unique(parents)}
    away = {parent for parent, place in folders.items() if not _within(os.path.realpath(place), inside)}
    states: dict[str, str] = {}
    for parent, place in folders.items():
        if parent not in away:
            states.update(_file_states(place, parent, inside))
    state = pd.Series([states.get(item, "missing") for item in rows["path"]], index=rows.index, dtype=object)
    state[parents.isin(away) | rows["path"].str.startswith("../")] = "outside"

    problems = []
    outside, missing = state == "outside", state == "missing"
    if outside.any():
        which = first_few(f"row {row.row} ({row.image})" for row in rows[outside].itertuples())
        message = f"{path}: image lies outside of {root}: {which}; images must lie inside the competition's root"
        problems.append(Problem("outside", message, int(outside.sum())))
    if missing.any():
        which = first_few(f"{row.path} (row {row.row})" for row in rows[missing].itertuples())
        message = f"{path}: {missing.sum():,} of {len(rows):,} listed images are not in {root}: {which}"
        problems.append(Problem("missing", message, int(missing.sum())))
    return rows[state == "file"], problems


def _file_states(folder: Path, parent: str, inside: str) -> dict[str, str]:
    """State of every file of a folder by its path: 'file', or 'outside' for a link that leaves the root.

    One scan of the folder is much faster than one system call an image.
    """
    states = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{parent}/{entry.name}" if parent else entry.name
                if entry.is_symlink() and not _within(os.path.realpath(entry.path), inside):
                    states[path] = "outside"
                elif entry.is_file():
                    states[path] = "file"
    except (FileNotFoundError, NotADirectoryError):
        return {}  # its images are reported as missing
    return states


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


# -------------------------------------------------------------------------------------------- rows of both tables


def _renamed(rows: pd.DataFrame, competition: Competition) -> pd.DataFrame:
    """Rows with the values of `rename_values` replaced."""
    columns = [name for name in rows.columns if name not in ("image", "path", "split", "row")]
    for name, new_values in competition.rename_values.items():
        if name not in columns:
            raise WhaleidError(f"rename_values.{name}: no such column; choose one of {', '.join(columns)}")
        rows[name] = rows[name].replace(new_values)
    return rows


def _check_splits(rows: pd.DataFrame, competition: Competition) -> Checked:
    """Rows without the test rows whose image or file is in train, too."""
    train = rows[rows["split"] == "train"]
    test = rows["split"] == "test"
    shared = test & (rows["image"].isin(train["image"]) | rows["path"].isin(train["path"]))
    if not shared.any() or competition.test is None:
        return rows, []
    path = competition.root / competition.test.csv
    which = first_few(f"{row.image} (row {row.row})" for row in rows[shared].itertuples())
    message = (
        f"{path}: {shared.sum():,} images are in train and in test: {which}; remove each from one of the two tables"
    )
    return rows[~shared], [Problem("both", message, int(shared.sum()))]
