"""The images table `images.parquet`: one row for each image, with everything that later stages need to know of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import Competition, Table
from whaleid.data.boxes import CORNERS, boxes_path, match_boxes, placed_boxes, read_boxes, whole_images
from whaleid.data.competition import RESERVED, first_few
from whaleid.data.digests import file_digests
from whaleid.data.duplicates import connected, duplicate_components
from whaleid.data.fingerprints import Fingerprints, fingerprint_images, hash_text
from whaleid.data.listing import image_files, image_path, read_listed
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest, file_digest

FORMAT = 3  # raise it when the table is built differently, so that older tables are built again
LISTED = 10  # unreadable images that a message names


def build_images(
    competition: Competition, rows: pd.DataFrame, skip_unreadable: bool = False, workers: int | None = None
) -> pd.DataFrame:
    """The images table of a competition.

    Parameters
    ----------
    competition : Competition
    rows : DataFrame
        From `read_rows`.
    skip_unreadable : bool
        Leave out images that cannot be read, with a warning, instead of raising WhaleidError.
    workers : int, optional
        Number of processes, by default one for each core.

    Returns
    -------
    DataFrame
        As `images_table`.
    """
    found = fingerprint_rows(competition, rows, workers)
    if not found.readable.all():
        rows, found = _without_unreadable(competition, rows, found, skip_unreadable)
    return images_table(competition, rows, found)


def fingerprint_rows(competition: Competition, rows: pd.DataFrame, workers: int | None = None) -> Fingerprints:
    """Fingerprints of the images of `rows`, inside their boxes where the competition has any."""
    given = None
    if competition.boxes is not None:
        given = match_boxes(boxes_path(competition), rows["image"], rows["path"])
    return fingerprint_images(competition.root, rows["path"].tolist(), workers, given)


def images_table(competition: Competition, rows: pd.DataFrame, found: Fingerprints) -> pd.DataFrame:
    """The images table of readable images.

    Returns
    -------
    DataFrame
        image, path, split, identity : str, as in `rows`.
        width, height : int32, pixels of the upright image.
        x0, y0, x1, y1 : float64, pixels, box within the image; the whole image where there is no box.
        phash : str, 16 hexadecimal digits.
        digest : str, of the file's content.
        group : str, first image (by name) of the images that must share a fold: copies of a photograph, equal values
        of `competition.group`. Test images never connect labelled ones.
        Last, the columns of `extra`.
    """
    boxes = whole_images(found.size)
    if competition.boxes is not None:
        boxes, _ = placed_boxes(boxes_path(competition), rows["image"], found.size, rows["path"])
    images = rows[["image", "path", "split", "identity"]].reset_index(drop=True)
    images["width"], images["height"] = found.size[:, 0], found.size[:, 1]
    images[CORNERS] = boxes
    images["phash"] = hash_text(found.phash)
    images["digest"] = found.digest
    encounter = rows[competition.group] if competition.group else None
    photographs = duplicate_components(found, competition.find_copies)
    images["group"] = group_names(rows["image"], photographs, encounter)
    labelled = (rows["split"] == "train").to_numpy()
    if not labelled.all():
        alone = duplicate_components(found.subset(labelled), competition.find_copies)
        images["group"] = _labelled_apart(images, labelled, alone, encounter)
    extras = [name for name in rows.columns if name not in RESERVED]
    return images.join(rows[extras].reset_index(drop=True))


def group_names(images: pd.Series, photographs: np.ndarray, encounter: pd.Series | None) -> np.ndarray:
    """Group of each image: the first image, by name, of those that are connected.

    Parameters
    ----------
    images : Series of str, shape (n,)
    photographs : int array, shape (n,)
        Equal for copies of one photograph.
    encounter : Series of str, shape (n,), optional
        Equal values connect images; null for none.

    Returns
    -------
    object array, shape (n,)
    """
    component = photographs if encounter is None else _with_encounters(photographs, encounter)
    return pd.Series(images.to_numpy(object)).groupby(component).transform("min").to_numpy(object)


def _with_encounters(photographs: np.ndarray, encounter: pd.Series) -> np.ndarray:
    """Components of the images when those of one encounter are connected, too: int (n,)."""
    known = np.flatnonzero(encounter.notna().to_numpy())
    codes = pd.factorize(encounter.iloc[known])[0] + photographs.max(initial=-1) + 1
    n = int(max(photographs.max(initial=-1), codes.max(initial=-1))) + 1
    return connected(n, np.column_stack([photographs[known], codes]))[photographs]


def _labelled_apart(
    images: pd.DataFrame, labelled: np.ndarray, photographs: np.ndarray, encounter: pd.Series | None
) -> np.ndarray:
    """Groups in which no test image connects labelled ones, so that the folds are the same for every test set.

    images: with the `group` of all images. labelled: bool (n,). photographs: int, of each labelled image.
    Returns object (n,). A test image stays in the group of the first labelled image that it is grouped with.
    """
    known = None if encounter is None else encounter[labelled].reset_index(drop=True)
    alone = group_names(images["image"][labelled].reset_index(drop=True), photographs, known)
    group = images["group"].to_numpy(object).copy()
    first = pd.Series(alone).groupby(group[labelled]).min()
    group = np.array(pd.Series(group).map(first).fillna(pd.Series(group)), dtype=object)
    group[labelled] = alone
    return group


def unreadable_line(root: Path, rows: pd.DataFrame, found: Fingerprints) -> str:
    """How many images cannot be read, and the first ten with the reason of each."""
    bad = np.flatnonzero(~found.readable)
    which = first_few((f"{rows['path'].iloc[row]} ({found.problem[row]})" for row in bad), LISTED)
    return f"{root}: {len(bad):,} of {len(rows):,} images cannot be read: {which}"


def _without_unreadable(
    competition: Competition, rows: pd.DataFrame, found: Fingerprints, skip: bool
) -> tuple[pd.DataFrame, Fingerprints]:
    line = unreadable_line(competition.root, rows, found)
    if not skip:
        raise WhaleidError(f"{line}; replace them, or leave them out with --skip-unreadable")
    if not found.readable.any():
        raise WhaleidError(f"{line}; no image is left")
    tests = int((rows["split"][~found.readable] == "test").sum())
    note = f" ({tests:,} of them need guesses in the submission)" if tests else ""
    print(f"warning: {line}; they are left out{note}", file=sys.stderr)
    return rows[found.readable].reset_index(drop=True), found.subset(found.readable)


# ----------------------------------------------------------------------------------------------------------- keys


def images_key(competition: Competition, digests: Path | None = None) -> str:
    """Short key of everything that the images table depends on: CSVs, boxes, settings, and content of the images.

    It depends neither on times nor on the root's place: a copy of the data is the same data.

    Parameters
    ----------
    competition : Competition
    digests : Path, optional
        Table of known digests, so that unchanged images are not read again (`file_digests`).
    """
    settings = _settings(competition, {"train", "test", "boxes", "rename_values", "group", "find_copies"})
    tables = [table for table in (competition.train, competition.test) if table is not None]
    files = [table.csv for table in tables] + ([competition.boxes] if competition.boxes else [])
    content = [file_digest(_existing(competition.root / file)) for file in files]
    return digest(FORMAT, settings, content, [_images_digest(competition.root, table, digests) for table in tables])


def labelled_key(competition: Competition, digests: Path | None = None) -> str:
    """Short key of everything that the labelled rows of the images table depend on, hence folds and training.

    As `images_key`, without the test images: another test set, with its boxes, leaves it unchanged.
    """
    settings = _settings(competition, {"train", "rename_values", "group", "find_copies"})
    content = file_digest(_existing(competition.root / competition.train.csv))
    images = _images_digest(competition.root, competition.train, digests)
    boxes = None if competition.boxes is None else _boxes_digest(competition)
    return digest("labelled", FORMAT, settings, content, images, boxes)


def _settings(competition: Competition, keys: set[str]) -> dict[str, Any]:
    """Settings that a key holds; `file` and `where` only where they are set, so that keys from before them hold."""
    settings = competition.model_dump(include=keys)
    for name in keys & {"train", "test"}:
        if settings[name] is not None:
            settings[name] = {k: v for k, v in settings[name].items() if v or k not in ("file", "where")}
    return settings


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise WhaleidError(f"{path}: file not found; check the path in the competition's YAML")
    return path


def _boxes_digest(competition: Competition) -> str:
    """Key of the labelled images' boxes."""
    listed = read_listed(competition.root, competition.train)
    files = image_files(competition.root, competition.train, listed)
    names = {*listed[competition.train.image], *(image_path(competition.train, file) for file in files)}
    boxes = read_boxes(_existing(competition.root / str(competition.boxes)))
    labelled = boxes.loc[boxes.index.isin(names), CORNERS]
    return digest(sorted(labelled.reset_index().to_numpy().tolist()))


def _images_digest(root: Path, table: Table, digests: Path | None) -> str:
    """Key of the names and contents of the images that a table lists."""
    names = sorted({os.path.normpath(name) for name in image_files(root, table, read_listed(root, table))})
    return digest(list(zip(names, file_digests([root / table.images / name for name in names], digests), strict=True)))
