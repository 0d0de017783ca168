"""The photographs that a user names: files and folders, as rows of an images table."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.competition import first_few
from whaleid.data.images_table import fingerprint_rows, images_table, unreadable_line
from whaleid.utils.errors import WhaleidError

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
"""Files of a folder that are taken as photographs; a file that is named itself may have any name."""
_HERE = Path()


def find_photographs(places: Sequence[Path]) -> list[Path]:
    """The photographs at some places, as the user would name them.

    Parameters
    ----------
    places : sequence of Path
        Files, and folders whose photographs are taken, sorted by name, those of their subfolders too.

    Raises
    ------
    WhaleidError
        For a place that is not there, a folder without photographs, a link that leads out of its folder.
    """
    found = [path for place in places for path in (_of_folder(place) if place.is_dir() else [_file(place)])]
    return list(dict.fromkeys(found))


def photograph_rows(
    photographs: Sequence[Path], competition: Competition, boxes: Path | None = None, skip_unreadable: bool = False
) -> pd.DataFrame:
    """Rows of an images table, of split "test", with absolute paths; `image` is the path as given.

    Parameters
    ----------
    photographs : sequence of Path
    competition : Competition
    boxes : Path, optional
        CSV of boxes around the animals, with the photographs' paths as given in its column `image`; None: the whole
        photographs.
    skip_unreadable : bool
        Leave out photographs that cannot be read, with a warning, instead of raising WhaleidError.
    """
    names = [str(path) for path in photographs]
    rows = pd.DataFrame({"image": names, "path": [os.path.abspath(name) for name in names]})  # noqa: PTH100 - no link is followed
    extra = [*competition.train.extra, *(competition.test.extra if competition.test is not None else {})]
    rows = rows.assign(split="test", **{name: pd.Series(None, rows.index, object) for name in ("identity", *extra)})
    alone = competition.model_copy(update={"boxes": None if boxes is None else str(boxes.absolute()), "group": None})
    found = fingerprint_rows(alone, rows)
    if not found.readable.all():
        line = unreadable_line(_HERE, rows, found)
        if not (skip_unreadable and found.readable.any()):
            raise WhaleidError(f"{line}; replace them, or leave them out with --skip-unreadable")
        print(f"warning: {line}; they are left out", file=sys.stderr)
        rows, found = rows[found.readable].reset_index(drop=True), found.subset(found.readable)
    return images_table(alone, rows, found)


def _file(place: Path) -> Path:
    if not place.is_file():
        raise WhaleidError(f"{place}: no such photograph or folder")
    return place


def _of_folder(folder: Path) -> list[Path]:
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not paths:
        raise WhaleidError(f"{folder}: no photograph in this folder (looked for {', '.join(SUFFIXES)})")
    root = folder.resolve()
    outside = np.array([not path.resolve().is_relative_to(root) for path in paths])
    if outside.any():
        which = first_few(str(paths[row]) for row in np.flatnonzero(outside))
        raise WhaleidError(f"{folder}: a link leads out of this folder: {which}; name its target itself")
    return paths
