"""The images table: one row an image, with all that later stages ask of it without opening it again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import Competition, Table
from whaleid.data.boxes import CORNERS, placed_boxes, whole_images
from whaleid.data.competition import RESERVED, named, read_table
from whaleid.data.digests import file_digests
from whaleid.data.duplicates import duplicate_components
from whaleid.data.fingerprints import Fingerprints, fingerprint_images, hash_text
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest, file_digest

FORMAT = 3  # raise it when the table's making changes, so that older tables are made again
NAMED_UNREADABLE = 10


def build_images(
    competition: Competition, rows: pd.DataFrame, skip_unreadable: bool = False, workers: int | None = None
) -> pd.DataFrame:
    """The images table (`images.parquet`) of the rows that `read_rows` gave.

    Adds to `image, path, split, identity`: width, height (int32, pixels as seen); x0, y0, x1, y1 (float64,
    pixels, within the image; the whole image where no box is given); phash (16 hexadecimal digits); digest (of the
    file's content); group
    (images that must share a fold: copies of one photograph, and equal values of `competition.group`; named
    by the alphabetically first labelled image of the group; test images join no labelled ones). The columns
    of `extra` come last.

    skip_unreadable: leave out images that cannot be read, with a warning, instead of raising the WhaleidError
    that names them. workers: processes (default: all cores).
    """
    if competition.boxes is not None:
        require_boxes(competition)  # before minutes of reading pictures
    found = fingerprint_images(competition.root, rows["path"].tolist(), workers)
    unreadable = found.problem != ""
    if unreadable.any():
        rows, found = _without_unreadable(competition, rows, found, skip_unreadable)
    return images_table(competition, rows, found)


def images_table(competition: Competition, rows: pd.DataFrame, found: Fingerprints) -> pd.DataFrame:
    """The table of rows whose fingerprints are known, all of them readable."""
    boxes = whole_images(found.size)
    if competition.boxes is not None:
        boxes, _ = placed_boxes(require_boxes(competition), rows["image"], found.size)
    images = rows[["image", "path", "split", "identity"]].reset_index(drop=True)
    images["width"], images["height"] = found.size[:, 0], found.size[:, 1]
    images[CORNERS] = boxes
    images["phash"] = hash_text(found.phash)
    images["digest"] = found.digest
    encounter = rows[competition.group] if competition.group else None
    images["group"] = group_names(rows["image"], duplicate_components(found), encounter)
    labelled = (rows["split"] == "train").to_numpy()
    if not labelled.all():
        images["group"] = _apart_from_test(images, labelled, subset(found, labelled), encounter)
    extras = [name for name in rows.columns if name not in RESERVED]
    return images.join(rows[extras].reset_index(drop=True))


def group_names(images: pd.Series, photographs: np.ndarray, encounter: pd.Series | None) -> np.ndarray:
    """Group of each image, object (n,): the alphabetically first image of its group, whatever the row order.

    images: names (n,). photographs: int (n,), equal for copies of one photograph. encounter: text (n,) whose
    equal values share a group too, null where an image has none.
    """
    component = photographs if encounter is None else _merged(photographs, encounter)
    names = images.to_numpy(object)
    first = pd.Series(names).groupby(component).transform("min")
    return first.to_numpy(object)


def _apart_from_test(
    images: pd.DataFrame, labelled: np.ndarray, found: Fingerprints, encounter: pd.Series | None
) -> np.ndarray:
    """The groups when no test image joins two labelled ones, so that the folds are the same for every test set.

    images: with the `group` of all of them. labelled: bool (n,). found: fingerprints of the labelled ones.
    Returns object (n,). A test image keeps to the group of the first labelled image that it is grouped with.
    """
    met = None if encounter is None else encounter[labelled].reset_index(drop=True)
    own = group_names(images["image"][labelled].reset_index(drop=True), duplicate_components(found), met)
    group = images["group"].to_numpy(object).copy()
    of_joined = pd.Series(own).groupby(group[labelled]).min()
    group = np.array(pd.Series(group).map(of_joined).fillna(pd.Series(group)), dtype=object)
    group[labelled] = own
    return group


def images_key(competition: Competition, digests: Path | None = None) -> str:
    """Short key of everything that the images table depends on: CSVs, boxes, settings, and content of the images.

    Not of times nor of the root's place: a copy of the data is the same data.

    Parameters
    ----------
    competition : Competition
    digests : Path, optional
        Table of known digests, so that unchanged images are not read again (`file_digests`).
    """
    settings = competition.model_dump(include={"train", "test", "boxes", "mend", "group"})
    tables = [table for table in (competition.train, competition.test) if table is not None]
    files = [table.csv for table in tables] + ([competition.boxes] if competition.boxes else [])
    content = [file_digest(_existing(competition.root / file)) for file in files]
    return digest(FORMAT, settings, content, [_images_digest(competition.root, table, digests) for table in tables])


def labelled_key(competition: Competition, digests: Path | None = None) -> str:
    """Short key of everything that the labelled rows of the images table depend on, hence folds and training.

    As `images_key`, without the test images: another test set, with its boxes, leaves it unchanged.
    """
    settings = competition.model_dump(include={"train", "mend", "group"})
    content = file_digest(_existing(competition.root / competition.train.csv))
    images = _images_digest(competition.root, competition.train, digests)
    boxes = None if competition.boxes is None else _boxes_digest(competition)
    return digest("labelled", FORMAT, settings, content, images, boxes)


def require_boxes(competition: Competition) -> Path:
    """Path of the competition's boxes; raises WhaleidError when the file is not there."""
    path = competition.root / str(competition.boxes)
    if not path.is_file():
        raise WhaleidError(f"{path}: boxes file not found; put it there or set boxes to null in '{competition.name}'")
    return path


def unreadable_line(root: Path, rows: pd.DataFrame, found: Fingerprints) -> str:
    """The images that cannot be read: how many, and the first ten by name with the reason of each."""
    bad = np.flatnonzero(found.problem != "")
    which = named((f"{rows['path'].iloc[row]} ({found.problem[row]})" for row in bad), NAMED_UNREADABLE)
    return f"{root}: {len(bad):,} of {len(rows):,} images cannot be read: {which}"


def readable(found: Fingerprints) -> Fingerprints:
    """The fingerprints of the images that can be read."""
    return subset(found, found.problem == "")


def subset(found: Fingerprints, kept: np.ndarray) -> Fingerprints:
    """The fingerprints of some images. kept: bool (n,)."""
    return Fingerprints(*(values[kept] for values in vars(found).values()))


def _without_unreadable(
    competition: Competition, rows: pd.DataFrame, found: Fingerprints, skip: bool
) -> tuple[pd.DataFrame, Fingerprints]:
    bad = found.problem != ""
    line = unreadable_line(competition.root, rows, found)
    if not skip:
        raise WhaleidError(f"{line}; replace them, or leave them out with --skip-unreadable")
    if bad.all():
        raise WhaleidError(f"{line}; none is left")
    tests = int((rows["split"][bad] == "test").sum())
    note = f" ({tests:,} of them to be answered in the submission)" if tests else ""
    print(f"warning: {line}; they are left out{note}", file=sys.stderr)
    return rows[~bad].reset_index(drop=True), readable(found)


def _merged(photographs: np.ndarray, encounter: pd.Series) -> np.ndarray:
    """Components when images of one encounter are joined too: int (n,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    met = np.flatnonzero(encounter.notna().to_numpy())
    codes = pd.factorize(encounter.iloc[met])[0] + photographs.max(initial=-1) + 1
    n = int(max(photographs.max(initial=-1), codes.max(initial=-1))) + 1
    graph = coo_array((np.ones(len(met), bool), (photographs[met], codes)), shape=(n, n))
    return connected_components(graph, directed=False)[1][photographs]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise WhaleidError(f"{path}: file not found")
    return path


def _boxes_digest(competition: Competition) -> str:
    """Key of the labelled images' lines in the file of boxes, in the order of their names."""
    listed = read_table(competition.root / competition.train.csv, [competition.train.image])
    boxes = read_table(_existing(competition.root / str(competition.boxes)), ["image", *CORNERS])
    own = boxes[boxes["image"].isin(listed[competition.train.image])]
    return digest(sorted(own.to_numpy().tolist()))


def _images_digest(root: Path, table: Table, digests: Path | None) -> str:
    """Key of the names and contents of the images that a table lists."""
    listed = read_table(root / table.csv, [table.image])[table.image]
    names = sorted({os.path.normpath(name + table.suffix) for name in listed})
    return digest(list(zip(names, file_digests([root / table.images / name for name in names], digests), strict=True)))
