"""A competition's CSVs as one table of rows, checked against the files that they name.

Nothing here opens a picture. The CSVs are read as text, so that an identity `007` or `NA` stays what it is,
and each row remembers its line of the file, so that an error can say where it is.
"""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from whaleid.config import Competition, Table
from whaleid.utils.errors import WhaleidError

NAMED = 5  # offenders that a message names before it goes on with a count
RESERVED = {"image", "path", "split", "identity", "width", "height", "phash", "digest", "group", "fold"}
RESERVED |= {"x0", "y0", "x1", "y1"}


@dataclass(frozen=True)
class Problem:
    """One kind of bad row: its name, the line for the user, and how many rows have it."""

    kind: str
    """empty, name, outside, missing, duplicate, contradictory or both (in train and in test)."""
    message: str
    count: int


def read_rows(competition: Competition) -> pd.DataFrame:
    """Rows of the competition's train and test CSVs: train first, each in the order of its file.

    Columns, all text: image (unique), path (relative to the root), split ('train' or 'test'), identity (null
    for test rows), then those of `extra` (null where a table does not have the column, or the cell is empty).
    Spelling mistakes named by `mend` are corrected. Raises WhaleidError at the first kind of bad row.
    """
    rows, problems = inspect_rows(competition)
    if problems:
        more = len(problems) - 1
        kinds = f"{more} more kind{'s' * (more > 1)} of problem"
        also = f" (and {kinds}: whaleid data check names all)" if more else ""
        raise WhaleidError(problems[0].message + also)
    return rows


def inspect_rows(competition: Competition) -> tuple[pd.DataFrame, list[Problem]]:
    """Good rows as `read_rows` gives them, and every kind of bad row.

    Raises WhaleidError only for what leaves nothing to inspect: a missing CSV, folder or column.
    """
    _require_root(competition)
    splits = {"train": competition.train, "test": competition.test}
    parts = [_split_rows(competition, split, table) for split, table in splits.items() if table is not None]
    rows = pd.concat([part for part, _ in parts], ignore_index=True)
    problems = [problem for _, found in parts for problem in found]
    rows = _mended(rows, competition)
    rows, shared = _without_shared(rows, competition)
    columns = [name for name in rows.columns if name != "line"]
    return rows[columns].reset_index(drop=True), problems + shared


def read_table(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """The named columns of a CSV as text, indexed by the 1-based line of the file at which each row ends.

    Blank lines are passed over. Raises WhaleidError for a missing file, a missing column (with the nearest
    name), a row with another number of cells than the header, and text that is not UTF-8.
    """
    header, lines, records = _records(path)
    _require_columns(path, header, columns)
    for line, record in zip(lines, records, strict=True):
        if len(record) != len(header):
            raise WhaleidError(
                f"{path}: line {line} has {len(record)} cells, the header has {len(header)}; mend the row"
            )
    wanted = {name: header.index(name) for name in dict.fromkeys(columns)}
    content = {name: [record[place] for record in records] for name, place in wanted.items()}
    return pd.DataFrame(content, index=pd.Index(lines, dtype="int64", name="line"))


def named(items: Iterable[str], limit: int = NAMED) -> str:
    """The first few items, and how many more there are: `a, b, c and 7 more`."""
    items = list(items)
    more = f" and {len(items) - limit:,} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def _records(path: Path) -> tuple[list[str], list[int], list[list[str]]]:
    """Header of a CSV, the line at which each further record ends, and the records; blank lines left out."""
    lines: list[int] = []
    records: list[list[str]] = []
    try:
        file = path.open(newline="", encoding="utf-8-sig")
    except FileNotFoundError:
        raise WhaleidError(f"{path}: file not found{_unpack_hint(path)}") from None
    except OSError as error:
        raise WhaleidError(f"{path}: a readable CSV file is expected ({error.strerror})") from error
    with file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            for record in reader:
                if record:
                    lines.append(reader.line_num)
                    records.append(record)
        except UnicodeDecodeError as error:
            raise WhaleidError(f"{path}: not UTF-8 text; save the CSV as UTF-8") from error
        except csv.Error as error:
            raise WhaleidError(f"{path}: line {reader.line_num} is not readable as CSV: {error}") from error
    return header, lines, records


def _require_root(competition: Competition) -> None:
    if competition.root.is_dir():
        return
    fetch = f" (make data downloads {competition.kaggle})" if competition.kaggle else ""
    what = f"put the data of '{competition.name}' there{fetch} or change root"
    raise WhaleidError(f"{competition.root}: folder not found; {what}")


def _require_columns(path: Path, header: list[str], columns: Iterable[str]) -> None:
    if not header:
        raise WhaleidError(f"{path}: file is empty; a header line with column names is expected")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise WhaleidError(f"{path}: column '{twice[0]}' stands twice in the header; rename one")
    for name in columns:
        if name in header:
            continue
        if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
            raise WhaleidError(
                f"{path}: columns are not separated by commas (header: {header[0]!r}); save it with commas"
            )
        by_case = {column.lower(): column for column in header}
        guess = difflib.get_close_matches(name.lower(), by_case, n=1)
        hint = f"; did you mean '{by_case[guess[0]]}'?" if guess else ""
        raise WhaleidError(f"{path}: column '{name}' is missing{hint} (columns: {', '.join(header)})")


def _unpack_hint(path: Path) -> str:
    archive = next(
        (item for item in (path.with_name(f"{path.name}.zip"), path.with_suffix(".zip")) if item.is_file()),
        None,
    )
    return f"; unpack {archive.name} that lies beside it" if archive else ""


# ------------------------------------------------------------------------------------------- one table's rows


def _split_rows(competition: Competition, split: str, table: Table) -> tuple[pd.DataFrame, list[Problem]]:
    """One table's good rows (with their `line`) and its bad ones."""
    _check_settings(table, split)
    path = competition.root / table.csv
    labelled = [table.identity] if table.identity else []
    content = read_table(path, [table.image, *labelled, *table.extra.values()])
    if content.empty:
        raise WhaleidError(f"{path}: lists no image; at least one row below the header is expected")
    rows = pd.DataFrame({"image": content[table.image]})
    rows["path"] = [_joined(table, image) for image in rows["image"]]
    rows["split"] = split
    rows["identity"] = content[table.identity] if table.identity else content[table.image].where(content.index < 0)
    for name, column in table.extra.items():
        rows[name] = content[column].where(content[column] != "", None)
    rows["line"] = rows.index

    problems: list[Problem] = []
    for check in (_empty, _spaced, _repeated):
        rows, found = check(rows, path, table)
        problems += found
    rows, found = _absent(rows, path, competition.root, table)
    return rows, problems + found


def _check_settings(table: Table, split: str) -> None:
    if split == "test" and table.identity is not None:
        raise WhaleidError(
            "test.identity is set, but identities of test images are read by score and report alone: "
            "name that file as `solution` and remove test.identity"
        )
    taken = sorted(RESERVED & set(table.extra))
    if taken:
        raise WhaleidError(f"{split}.extra.{taken[0]}: images.parquet has a column of that name; choose another")


def _joined(table: Table, image: str) -> str:
    """Path of an image relative to the root, normalised; it may still evaluate_ladder out, which `_absent` refuses."""
    return os.path.normpath(os.path.join(table.images, image + table.suffix)).replace(os.sep, "/")  # noqa: PTH118


Checked = tuple[pd.DataFrame, list[Problem]]


def _empty(rows: pd.DataFrame, path: Path, table: Table) -> Checked:
    bad = pd.Series(False, index=rows.index)
    problems = []
    for name, column in (("image", table.image), ("identity", table.identity)):
        if column is None:
            continue
        blank = rows[name].str.strip() == ""
        if blank.any():
            where = named(f"line {line}" for line in rows.loc[blank, "line"])
            fix = "fill it in or remove the row"
            problems.append(Problem("empty", f"{path}: empty '{column}' in {where}; {fix}", int(blank.sum())))
            bad |= blank
    return rows[~bad], problems


def _spaced(rows: pd.DataFrame, path: Path, table: Table) -> Checked:
    if table.identity is None:
        return rows, []
    spaced = rows["identity"].str.contains(r"\s", regex=True)
    if not spaced.any():
        return rows, []
    first = rows[spaced].iloc[0]
    message = (
        f"{path}: identity {first['identity']!r} in line {first['line']} has a space ({spaced.sum():,} such "
        "rows); a submission separates identities by spaces, so use another sign"
    )
    return rows[~spaced], [Problem("name", message, int(spaced.sum()))]


def _repeated(rows: pd.DataFrame, path: Path, table: Table) -> Checked:
    """Rows whose image stood in an earlier row: duplicate with the same identity, else contradictory."""
    again = rows["image"].duplicated()
    if not again.any():
        return rows, []
    first = rows[~again].set_index("image")
    repeats = rows[again]
    earlier = first.loc[repeats["image"]].set_axis(repeats.index)
    same = (repeats["identity"] == earlier["identity"]) | (repeats["identity"].isna() & earlier["identity"].isna())
    problems = []
    if (~same).any():
        both = zip(repeats[~same].itertuples(), earlier[~same].itertuples(), strict=True)
        clashes = named(
            f"{row.image} is '{old.identity}' in line {old.line} and '{row.identity}' in line {row.line}"
            for row, old in both
        )
        message = f"{path}: contradictory rows: {clashes}; keep the right one"
        problems.append(Problem("contradictory", message, int((~same).sum())))
    if same.any():
        both = zip(repeats[same].itertuples(), earlier[same].itertuples(), strict=True)
        copies = named(f"{row.image} in lines {before.line} and {row.line}" for row, before in both)
        message = f"{path}: duplicate row: {copies}; remove the repeats"
        problems.append(Problem("duplicate", message, int(same.sum())))
    return rows[~again], problems


def _absent(rows: pd.DataFrame, path: Path, root: Path, table: Table) -> Checked:
    """Rows whose file lies outside the root (absolute, `..`, a link that leaves it) or is not there."""
    folder = root / table.images
    if not folder.is_dir():
        raise WhaleidError(f"{folder}: folder of images not found{_unpack_hint(folder)}")
    inside = os.path.realpath(root)
    parents = pd.Series([os.path.dirname(item) for item in rows["path"]], index=rows.index, dtype=object)  # noqa: PTH120
    folders = {parent: root / parent for parent in pd.unique(parents)}
    away = {parent for parent, place in folders.items() if not _within(os.path.realpath(place), inside)}
    states: dict[str, str] = {}
    for parent, place in folders.items():
        if parent not in away:
            states.update(_listing(place, parent, inside))
    state = pd.Series([states.get(item, "missing") for item in rows["path"]], index=rows.index, dtype=object)
    state[parents.isin(away) | rows["path"].str.startswith("../")] = "outside"

    problems = []
    outside, missing = state == "outside", state == "missing"
    if outside.any():
        which = named(f"line {row.line} ({row.image})" for row in rows[outside].itertuples())
        message = f"{path}: image lies outside of {root}: {which}; images must lie inside the competition's root"
        problems.append(Problem("outside", message, int(outside.sum())))
    if missing.any():
        which = named(f"{row.path} (line {row.line})" for row in rows[missing].itertuples())
        message = f"{path}: {missing.sum():,} of {len(rows):,} listed images are not in {root}: {which}"
        problems.append(Problem("missing", message, int(missing.sum())))
    return rows[state == "file"], problems


def _listing(folder: Path, parent: str, inside: str) -> dict[str, str]:
    """State of every file of one folder by its path: 'file', or 'outside' for a link that leaves the root.

    One scan of the folder instead of a question per image: 100,000 images take a fraction of a second.
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
        return {}  # its images are then missing, which is what the message says
    return states


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


# ---------------------------------------------------------------------------------------- both tables' rows


def _mended(rows: pd.DataFrame, competition: Competition) -> pd.DataFrame:
    """Rows with the data's known spelling mistakes corrected."""
    mendable = [name for name in rows.columns if name not in ("image", "path", "split", "line")]
    for name, spelling in competition.mend.items():
        if name not in mendable:
            raise WhaleidError(f"mend.{name}: no such column (mendable: {', '.join(mendable)})")
        rows[name] = rows[name].replace(spelling)
    return rows


def _without_shared(rows: pd.DataFrame, competition: Competition) -> Checked:
    """Rows without the test rows of images, or of files, that train holds too."""
    train = rows[rows["split"] == "train"]
    test = rows["split"] == "test"
    shared = test & (rows["image"].isin(train["image"]) | rows["path"].isin(train["path"]))
    if not shared.any() or competition.test is None:
        return rows, []
    path = competition.root / competition.test.csv
    which = named(f"{row.image} (line {row.line})" for row in rows[shared].itertuples())
    message = f"{path}: {shared.sum():,} images are in train and in test: {which}; an image has one row in all"
    return rows[~shared], [Problem("both", message, int(shared.sum()))]
