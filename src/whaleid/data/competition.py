"""A competition's CSVs as one table of rows, checked against the image files that they name; no image is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from whaleid.config import Competition, Table
from whaleid.config.competition import LABEL_SEPARATORS
from whaleid.data.listing import image_files, image_path, near_miss, read_listed
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
        lacks the column or the cell is empty). Values named by `rename_values` are replaced. An image is known by its
        file: `image` of a test image is its path where a labelled image has the same name (`listed_names`).

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
    _check_renamed(competition)
    splits = {"train": competition.train, "test": competition.test}
    parts = [_split_rows(competition, split, table) for split, table in splits.items() if table is not None]
    rows = pd.concat([part for part, _ in parts], ignore_index=True)
    problems = [problem for _, found in parts for problem in found]
    rows = _named_apart(rows)
    rows, shared = _check_splits(rows, competition)
    return rows.drop(columns="row").reset_index(drop=True), problems + shared


def listed_names(competition: Competition, images: Iterable[str]) -> list[str]:
    """Names by which the test table lists test images; `image` is the path where a labelled image has the same name."""
    assert competition.test is not None
    table, root = competition.test, competition.root
    listed = read_listed(root, table)
    names = set(listed[table.image])
    paths = (image_path(table, file) for file in image_files(root, table, listed))
    by_path = dict(zip(paths, listed[table.image], strict=True))
    return [image if image in names else by_path.get(image, image) for image in images]


def first_few(items: Iterable[str], limit: int = LISTED, separator: str = ", ") -> str:
    """The first few items, and how many more there are: `a, b, c and 7 more`."""
    items = list(items)
    more = f" and {len(items) - limit:,} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more


def _require_root(competition: Competition) -> None:
    root, csv = competition.root, competition.train.csv
    if root.is_dir():
        inner = () if (root / csv).is_file() else root.iterdir()
        holder = next((folder for folder in sorted(inner) if (folder / csv).is_file()), None)
        if holder is not None:
            raise WhaleidError(f"{root / csv}: file not found, but {holder} holds one; set root to that folder")
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
    rows["identity"] = content[table.image].where(content.index < 0)
    if table.identity:
        rows["identity"] = _renamed(content[table.identity], "identity", competition)
    for name, column in table.extra.items():
        renamed = _renamed(content[column], name, competition)
        rows[name] = renamed.where(renamed != "", None)
    rows["row"] = rows.index
    if split == "test" and competition.answer.pairs is not None:  # an image has a row for each of its pairs
        rows = rows.drop_duplicates("image")

    problems: list[Problem] = []
    for check in (_check_empty, _check_labels, _check_repeats):
        rows, found = check(rows, path, table)
        problems += found
    rows, found = _check_files(rows, path, competition, table)
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
            rename = ", or name it by rename_values: {identity: {'': LABEL}}" if name == "identity" else ""
            message = f"{path}: empty '{column}' in {where}; fill it in or remove the row{rename}"
            problems.append(Problem("empty", message, int(blank.sum())))
            bad |= blank
    return rows[~bad], problems


def _check_labels(rows: pd.DataFrame, path: Path, table: Table) -> Checked:
    """Rows whose identity a submission cannot carry."""
    if table.identity is None:
        return rows, []
    bad = rows["identity"].str.contains(LABEL_SEPARATORS, regex=True)
    if not bad.any():
        return rows, []
    first = rows[bad].iloc[0]
    message = (
        f"{path}: identity {first['identity']!r} in row {first['row']} holds a space, comma or semicolon "
        f"({bad.sum():,} such rows), which separate the guesses of a submission; replace it, for example by _, "
        "in the file or by rename_values"
    )
    return rows[~bad], [Problem("name", message, int(bad.sum()))]


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


def _check_files(rows: pd.DataFrame, path: Path, competition: Competition, table: Table) -> Checked:
    """Rows whose file lies outside the root (absolute, `..`, a link that leaves it) or is missing."""
    root, links = competition.root, competition.outside_links
    folder = root / table.images
    if not folder.is_dir():
        raise WhaleidError(f"{folder}: folder of images not found{unpack_hint(folder)}")
    inside = os.path.realpath(root)
    parents = pd.Series([os.path.dirname(item) for item in rows["path"]], index=rows.index, dtype=object)  # noqa: PTH120
    folders = {parent: root / parent for parent in pd.unique(parents)}
    away = {
        parent
        for parent, place in folders.items()
        if parent.startswith(("../", "/")) or not (links or _within(os.path.realpath(place), inside))
    }
    states: dict[str, str] = {}
    for parent, place in folders.items():
        if parent not in away:
            states.update(_file_states(place, parent, None if links else inside))
    state = pd.Series([states.get(item, "missing") for item in rows["path"]], index=rows.index, dtype=object)
    state[parents.isin(away) | rows["path"].str.startswith("../")] = "outside"

    problems = []
    outside, missing = state == "outside", state == "missing"
    if outside.any():
        which = first_few(f"row {row.row} ({row.image})" for row in rows[outside].itertuples())
        message = (
            f"{path}: image lies outside of {root}: {which}; move it there (outside_links: true allows links that "
            "lead out of the root)"
        )
        problems.append(Problem("outside", message, int(outside.sum())))
    if missing.any():
        which = first_few(f"{row.path} (row {row.row})" for row in rows[missing].itertuples())
        hint = near_miss(root, table, rows["path"][missing].tolist())
        message = f"{path}: {missing.sum():,} of {len(rows):,} listed images are not in {root}: {which}{hint}"
        problems.append(Problem("missing", message, int(missing.sum())))
    return rows[state == "file"], problems


def _file_states(folder: Path, parent: str, inside: str | None) -> dict[str, str]:
    """State of every file of a folder by its path: 'file', or 'outside' for a link that leaves the root `inside`.

    One scan of the folder is much faster than one system call an image.
    """
    states = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{parent}/{entry.name}" if parent else entry.name
                if inside is not None and entry.is_symlink() and not _within(os.path.realpath(entry.path), inside):
                    states[path] = "outside"
                elif entry.is_file():
                    states[path] = "file"
    except (FileNotFoundError, NotADirectoryError):
        return {}  # its images are reported as missing
    return states


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


# -------------------------------------------------------------------------------------------- rows of both tables


def _check_renamed(competition: Competition) -> None:
    tables = [table for table in (competition.train, competition.test) if table is not None]
    columns = ["identity", *dict.fromkeys(name for table in tables for name in table.extra)]
    for name in competition.rename_values:
        if name not in columns:
            raise WhaleidError(f"rename_values.{name}: no such column; choose one of {', '.join(columns)}")


def _renamed(values: pd.Series, name: str, competition: Competition) -> pd.Series:
    """Values of one column with those of `rename_values` replaced; white space alone is ''."""
    return values.where(values.str.strip() != "", "").replace(competition.rename_values.get(name, {}))


def _named_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in which a test image whose name is another file's in train goes by its path."""
    train = rows[rows["split"] == "train"]
    alike = (rows["split"] == "test") & rows["image"].isin(train["image"]) & ~rows["path"].isin(train["path"])
    return rows.assign(image=rows["image"].where(~alike, rows["path"]))


def _check_splits(rows: pd.DataFrame, competition: Competition) -> Checked:
    """Rows without the test rows whose image or file is in train, too."""
    train = rows[rows["split"] == "train"]
    test = rows["split"] == "test"
    shared = test & (rows["image"].duplicated() | rows["path"].isin(train["path"]))
    if not shared.any() or competition.test is None:
        return rows, []
    path = competition.root / competition.test.csv
    which = first_few(f"{row.image} (row {row.row})" for row in rows[shared].itertuples())
    message = (
        f"{path}: {shared.sum():,} images are in train and in test: {which}; remove each from one of the two tables"
    )
    return rows[~shared], [Problem("both", message, int(shared.sum()))]
