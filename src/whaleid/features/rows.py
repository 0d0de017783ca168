"""Cut down or join folders of arrays with one row for each image, such as features and keypoints.

`rows.csv` (column `image`) names the rows. An array of that length has one row for each image. With `offsets.npy` (one
longer), image i has the rows offsets[i] to offsets[i + 1] of every array whose length is the last offset. An array
`<name>.npy` with a list `<name>.rows.csv` has rows of the images in that list only. Other files belong to the folder as
a whole and are copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import load_array

ROWS, OFFSETS = "rows.csv", "offsets.npy"
_OWN_ROWS = ".rows.csv"
_BLOCK = 1 << 26  # bytes copied at a time


def keep_rows(
    folder: Path, out: Path, images: pd.Series, fewer: Mapping[str, pd.Series | np.ndarray] | None = None
) -> None:
    """Write the rows of some images to another folder.

    Parameters
    ----------
    folder, out : Path
    images : Series of str
        The images to keep, in the order to write.
    fewer : mapping of str to Series of str, optional
        File name of an array -> the only images whose rows of it are kept; it then gets a list of its own.

    Raises
    ------
    WhaleidError
        If an image has no row in the folder.
    """
    few = {name: np.asarray(some) for name, some in (fewer or {}).items() if (folder / name).is_file()}
    _write(out, [_Part(folder, images.to_numpy(), few)])


def join_rows(folders: list[Path], out: Path) -> None:
    """Write the rows of all folders one after the other; files without rows are taken from the first folder."""
    _write(out, [_Part(folder, _read_names(folder / ROWS), {}) for folder in folders])


@dataclass(frozen=True)
class _Part:
    """What is taken of a folder: rows of `images`; of the arrays named in `fewer`, rows of those images only."""

    folder: Path
    images: np.ndarray
    fewer: Mapping[str, np.ndarray]

    @cached_property
    def names(self) -> np.ndarray:
        return _read_names(self.folder / ROWS)

    @cached_property
    def places(self) -> np.ndarray:
        """Rows of the images, int64 (n,)."""
        return _find(self.folder / ROWS, self.names, self.images)

    @cached_property
    def offsets(self) -> np.ndarray | None:
        return _load(self.folder / OFFSETS) if (self.folder / OFFSETS).is_file() else None

    def own_list(self, array: str) -> Path:
        return self.folder / f"{array.removesuffix('.npy')}{_OWN_ROWS}"

    def is_listed(self, array: str) -> bool:
        """Whether an array has a list of its own, here or in what is written."""
        return array in self.fewer or self.own_list(array).is_file()

    def listed_rows(self, array: str) -> tuple[np.ndarray, np.ndarray]:
        """Images that are taken of such an array, str (m,), and their rows in it, int64 (m,)."""
        path = self.own_list(array)
        names = _read_names(path) if path.is_file() else self.names
        wanted = self.images[np.isin(self.images, names)] if path.is_file() else self.images
        images = self.fewer.get(array, wanted)
        return images, _find(path if path.is_file() else self.folder / ROWS, names, images)

    def rows_of(self, table: np.ndarray) -> np.ndarray | None:
        """Rows that are taken of an array without a list, int64; None if it has no rows of images."""
        if table.ndim and len(table) == len(self.names):
            return self.places
        if table.ndim and self.offsets is not None and len(table) == self.offsets[-1]:
            counts = np.diff(self.offsets)[self.places]
            first = np.repeat(self.offsets[self.places] - (np.cumsum(counts) - counts), counts)
            return first + np.arange(len(first))
        return None


def _write(out: Path, parts: list[_Part]) -> None:
    """Every file of the first part's folder, with the rows that are taken of all parts."""
    out.mkdir(parents=True, exist_ok=True)
    first = parts[0]
    for path in sorted(item for item in first.folder.iterdir() if item.is_file() and item.name not in (ROWS, OFFSETS)):
        if path.suffix == ".npy":
            _write_array(out, path.name, parts)
        elif not path.name.endswith(_OWN_ROWS):
            shutil.copyfile(path, out / path.name)
    if first.offsets is not None:
        lengths = [np.diff(part.offsets)[part.places] for part in parts if part.offsets is not None]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        np.save(out / OFFSETS, offsets.astype(first.offsets.dtype))
    _write_names(out / ROWS, [part.images for part in parts])


def _write_array(out: Path, name: str, parts: list[_Part]) -> None:
    tables = [_load(part.folder / name) for part in parts]
    if any(part.is_listed(name) for part in parts):
        listed = [part.listed_rows(name) for part in parts]
        _write_names(out / parts[0].own_list(name).name, [images for images, _ in listed])
        _copy_rows(out / name, tables, [rows for _, rows in listed])
        return
    rows = [part.rows_of(table) for part, table in zip(parts, tables, strict=True)]
    if any(places is None for places in rows):
        shutil.copyfile(parts[0].folder / name, out / name)
    else:
        _copy_rows(out / name, tables, [places for places in rows if places is not None])


def _copy_rows(path: Path, tables: list[np.ndarray], places: list[np.ndarray]) -> None:
    """The chosen rows of all tables in one file, a block at a time."""
    like = tables[0]
    if any(table.shape[1:] != like.shape[1:] or table.dtype != like.dtype for table in tables):
        forms = ", ".join(f"{table.dtype} {table.shape}" for table in tables)
        raise WhaleidError(f"{path}: the parts have different shapes or types ({forms}); they are not of one training")
    step = max(1, _BLOCK // max(1, like.dtype.itemsize * int(np.prod(like.shape[1:]))))
    shape = (sum(len(rows) for rows in places), *like.shape[1:])
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(like.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for table, rows in zip(tables, places, strict=True):
            for start in range(0, len(rows), step):
                file.write(np.ascontiguousarray(table[rows[start : start + step]]).tobytes())


def _find(path: Path, names: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Rows of the images in a list, int64 (n,)."""
    places = pd.Index(names).get_indexer(pd.Index(images))
    if (places < 0).any():
        missing = images[places < 0]
        raise WhaleidError(f"{path}: {len(missing)} images are missing, first '{missing[0]}'; make the folder again")
    return places


def _read_names(path: Path) -> np.ndarray:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)["image"].to_numpy()
    except (OSError, ValueError, KeyError) as error:
        raise WhaleidError(f"{path}: not readable ({error}); make the folder again") from error


def _write_names(path: Path, names: list[np.ndarray]) -> None:
    pd.DataFrame({"image": np.concatenate(names)}).to_csv(path, index=False)


def _load(path: Path) -> np.ndarray:
    try:
        return load_array(path)
    except (OSError, ValueError) as error:
        raise WhaleidError(f"{path}: not a whole .npy file ({error}); make the folder again") from error
