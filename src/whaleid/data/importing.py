"""A competition's YAML from data as it lies there: a CSV, or a folder for each identity."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from whaleid.config import Competition
from whaleid.data.competition import first_few, inspect_rows
from whaleid.data.listing import read_listed
from whaleid.data.tables import read_csv
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

IMAGE_COLUMNS = ("image_id", "image", "filename", "file_name", "file", "id")
IDENTITY_COLUMNS = ("identity", "individual_id", "individual", "ground_truth", "hotel_id", "landmark_id", "id", "name")
TRAIN_VALUES, TEST_VALUES = ("train", "database", "gallery"), ("test", "query")
TABLES = ("metadata.csv", "train.csv")
QUERIES = ("sample_submission.csv", "test.csv")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Imported:
    """What was written, and what was understood, a line each."""

    yaml: Path
    lines: list[str]


def import_data(source: Path, output: Path, overwrite: bool = False) -> Imported:
    """Write the YAML of a competition whose data lies in `source`.

    Parameters
    ----------
    source : Path
        A CSV of images; or a folder that holds `metadata.csv` or `train.csv`; or one with a folder for each identity,
        whose tables are then written into it as `train.csv` (and `test.csv` where there are `train/` and `test/`).
    output : Path
        YAML to write; its name becomes that of the competition.
    overwrite : bool
        Whether files that exist may be replaced.

    Raises
    ------
    WhaleidError
        If nothing is understood, or a file exists and `overwrite` is false.
    """
    _require_free(output, overwrite)
    source = source.resolve()
    if source.is_file():
        root, tables, lines = source.parent, _csv_tables(source), []
    elif source.is_dir():
        table = next((source / name for name in TABLES if (source / name).is_file()), None)
        root = source
        tables, lines = (_csv_tables(table), []) if table else _folder_tables(source, overwrite)
    else:
        raise WhaleidError(f"{source}: neither a folder nor a file; check the path")
    content = {"name": output.stem, "root": os.path.relpath(root, output.resolve().parent), **tables, "unknown": None}
    competition = _validated(content, root, output)
    rows, problems = inspect_rows(competition)
    with atomic_path(output) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    train = rows[rows["split"] == "train"]
    lines += [
        f"{competition.train.csv}: {len(train):,} labelled images of {train['identity'].nunique():,} identities "
        f"(column {competition.train.identity}), {len(rows) - len(train):,} queries",
        "unknown: none; name the label of new identities in the YAML, if the test set has any",
        *(f"problem: {problem.message}" for problem in problems),
    ]
    return Imported(output, lines)


def _require_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise WhaleidError(f"{path}: exists; choose another name, or replace it with --overwrite")


def _validated(content: dict[str, Any], root: Path, output: Path) -> Competition:
    try:
        return Competition.model_validate({**content, "root": root})
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise WhaleidError(f"{output}: what was understood is no competition ({reason}); write it by hand") from error


# ------------------------------------------------------------------------------------------------------- from a CSV


def _csv_tables(path: Path) -> dict[str, Any]:
    """Tables and submission of a CSV, and of the list of test images beside it."""
    header = read_csv(path).header
    image = _column(path, header, IMAGE_COLUMNS, "images")
    identity = _column(path, [name for name in header if name != image], IDENTITY_COLUMNS, "identities")
    file = {"file": "{path}"} if "path" in header else {}
    train: dict[str, Any] = {"csv": path.name, "images": ".", "image": image, **file}
    where, queries = _splits(path, header)
    train = _with_images(path.parent, {**train, **where})
    tables: dict[str, Any] = {"train": {**train, "identity": identity}}
    submission = {"image": image, "identities": identity}
    listed = next((path.parent / name for name in QUERIES if (path.parent / name).is_file()), None)
    if queries:
        tables["test"] = {**train, **queries}
    elif listed is not None and listed != path:
        names = read_csv(listed).header
        column = image if image in names else _column(listed, names, IMAGE_COLUMNS, "images")
        tables["test"] = _with_images(path.parent, {"csv": listed.name, "images": ".", "image": column})
        if len(names) == 2 and listed.name == QUERIES[0]:
            submission = {"image": names[0], "identities": names[1]}
    return {**tables, "submission": submission}


def _column(path: Path, header: list[str], known: tuple[str, ...], what: str) -> str:
    by_case = {name.lower(): name for name in reversed(header)}
    found = next((by_case[name] for name in known if name in by_case), None)
    if found is None:
        raise WhaleidError(
            f"{path}: no column of {what} among {', '.join(header)} (known: {', '.join(known)}); "
            "rename one, or write the YAML by hand"
        )
    return found


def _splits(path: Path, header: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`where` of the labelled images and of the queries; empty without a column `split`."""
    if "split" not in header:
        return {}, {}
    values = set(read_csv(path).columns[header.index("split")].to_pylist())
    train, test = (sorted(values & set(known)) for known in (TRAIN_VALUES, TEST_VALUES))
    if not train:
        known = ", ".join(TRAIN_VALUES)
        raise WhaleidError(
            f"{path}: column 'split' holds {first_few(sorted(values))} and none of {known}; "
            "choose the rows by `where` in a YAML of your own"
        )
    queries = {"where": {"split": test}} if test else {}
    return {"where": {"split": train}}, queries


def _with_images(root: Path, table: dict[str, Any]) -> dict[str, Any]:
    """The table with the folder and suffix under which its first image is found."""
    probe = Competition.model_validate({"name": "probe", "root": root, "train": {**table, "identity": table["image"]}})
    rows = read_listed(root, probe.train)
    if rows.empty:
        raise WhaleidError(f"{root / table['csv']}: lists no image; at least one row below the header is expected")
    first = rows.iloc[0]["path" if "file" in table else table["image"]]
    folders = [".", *sorted(item.name for item in root.iterdir() if item.is_dir())]
    endings = ("",) if "file" in table else ("", *SUFFIXES)
    for folder in folders:
        for ending in endings:
            if first and (root / folder / f"{first}{ending}").is_file():
                return {**table, "images": folder, **({"suffix": ending} if ending else {})}
    raise WhaleidError(f"{root / table['csv']}: image {first} is neither in {root} nor in a folder of it; put it there")


# --------------------------------------------------------------------------------------------------- from a folder


def _folder_tables(root: Path, overwrite: bool) -> tuple[dict[str, Any], list[str]]:
    """Tables of a folder for each identity, which are written as CSVs, and what was understood."""
    labelled = root / "train" if (root / "train").is_dir() else root
    queries = root / "test" if labelled != root and (root / "test").is_dir() else None
    rows = [
        (file.relative_to(labelled).as_posix(), re.sub(r"\s+", "_", folder.name))
        for folder in _folders(labelled)
        for file in _images(folder)
    ]
    if not rows:
        raise WhaleidError(f"{labelled}: no CSV and no folder of images for each identity; give the path of a CSV")
    _require_distinct(labelled)
    written: dict[Path, list[tuple[str, ...]]] = {root / "train.csv": [("Image", "Id"), *rows]}
    tables: dict[str, Any] = {"train": _table("train.csv", labelled, root) | {"identity": "Id"}}
    if queries is not None:
        names = [(file.relative_to(queries).as_posix(),) for file in _images(queries)]
        written[root / "test.csv"] = [("Image",), *names]
        tables["test"] = _table("test.csv", queries, root)
    for path in written:
        _require_free(path, overwrite)
    for path, content in written.items():
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(content)
    lines = [f"{labelled}: a folder for each identity", *(f"wrote {path}" for path in written)]
    return {**tables, "submission": {"image": "Image", "identities": "Id"}}, lines


def _require_distinct(folder: Path) -> None:
    """A submission separates identities by spaces, so that spaces become `_`."""
    seen: dict[str, str] = {}
    for item in _folders(folder):
        name = re.sub(r"\s+", "_", item.name)
        if seen.setdefault(name, item.name) != item.name:
            raise WhaleidError(f"{folder}: '{seen[name]}' and '{item.name}' would both be identity {name}; rename one")


def _table(name: str, folder: Path, root: Path) -> dict[str, Any]:
    return {"csv": name, "images": folder.relative_to(root).as_posix(), "image": "Image"}


def _folders(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
