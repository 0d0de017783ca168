"""Folders of tables whose rows are images: cut down to some images, or joined, whatever the tables mean.

Such a folder holds `rows.csv` (column `image`) and arrays. An array as long as rows.csv has a row an image. Where
there is `offsets.npy` (one longer), image i owns the rows offsets[i] to offsets[i + 1] of the arrays that are as
long as its last value. An array `<name>.npy` beside which `<name>.rows.csv` lies has rows of the images that this
one lists, and of no others. Anything else belongs to the folder as a whole. Features and keypoints are of this form,
and what later versions add to them will be; so nothing here knows their names.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.utils.errors import WhaleidError

ROWS, OFFSETS = "rows.csv", "offsets.npy"
_LIST = ".rows.csv"
_BLOCK = 1 << 26  # bytes copied at a time


@dataclass(frozen=True)
class _Part:
    """What is taken of a folder. images: str (n,). fewer: table -> the only images, str (m,), whose rows are taken."""

    folder: Path
    images: np.ndarray
    fewer: Mapping[str, np.ndarray]

    def is_listed(self, name: str) -> bool:
        """Whether a table has a list of images of its own, here or in what comes of it."""
        return name in self.fewer or (self.folder / _list_of(name)).is_file()

    def of_table(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Images that are taken of a table, str (m,), and their rows in it, int64 (m,)."""
        own = self.folder / _list_of(name)
        path = own if own.is_file() else self.folder / ROWS
        given = _names(path)
        images = self.fewer.get(name, self.images[np.isin(self.images, given)] if own.is_file() else self.images)
        return images, _find(path, given, images)


def keep_rows(
    folder: Path, out: Path, images: pd.Series, fewer: Mapping[str, pd.Series | np.ndarray] | None = None
) -> None:
    """Write to `out` what the folder holds of `images`, in their order; WhaleidError where one is not there.

    fewer: of these tables (`logits.npy`), where there are any, the rows of these images alone.
    """
    few = {name: np.asarray(some) for name, some in (fewer or {}).items() if (folder / name).is_file()}
    _write(out, [_Part(folder, images.to_numpy(), few)])


def join_rows(folders: list[Path], out: Path) -> None:
    """Write to `out` the rows of all folders, one after the other; whole files are the first one's."""
    _write(out, [_Part(folder, _names(folder / ROWS), {}) for folder in folders])


def _list_of(name: str) -> str:
    return f"{name.removesuffix('.npy')}{_LIST}"


def _find(path: Path, given: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Rows of the images in a list, int64 (n,)."""
    places = pd.Index(given).get_indexer(pd.Index(images))
    if (places < 0).any():
        missing = images[places < 0]
        raise WhaleidError(f"{path}: {len(missing)} images are missing, first '{missing[0]}'; make it again")
    return places


def _names(path: Path) -> np.ndarray:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)["image"].to_numpy()
    except (OSError, ValueError, KeyError) as error:
        raise WhaleidError(f"{path}: not readable ({error}); make the folder again") from error


def _write_names(path: Path, names: list[np.ndarray]) -> None:
    pd.DataFrame({"image": np.concatenate(names)}).to_csv(path, index=False)


def _write(out: Path, parts: list[_Part]) -> None:
    """Every file of the first part's folder, with the rows that are taken of all parts."""
    out.mkdir(parents=True, exist_ok=True)
    first = parts[0].folder
    lists = [_names(part.folder / ROWS) for part in parts]
    wanted = [_find(part.folder / ROWS, given, part.images) for part, given in zip(parts, lists, strict=True)]
    owned = [_load(part.folder / OFFSETS) if (first / OFFSETS).is_file() else None for part in parts]
    for path in sorted(item for item in first.iterdir() if item.is_file() and item.name not in (ROWS, OFFSETS)):
        if path.name.endswith(_LIST):
            continue
        if path.suffix != ".npy":
            shutil.copyfile(path, out / path.name)
            continue
        tables = [_load(part.folder / path.name) for part in parts]
        if any(part.is_listed(path.name) for part in parts):
            found = [part.of_table(path.name) for part in parts]
            places = [rows for _, rows in found]
            _write_names(out / _list_of(path.name), [images for images, _ in found])
        elif all(table.ndim and len(table) == len(given) for table, given in zip(tables, lists, strict=True)):
            places = wanted
        elif all(
            own is not None and table.ndim and len(table) == own[-1] for table, own in zip(tables, owned, strict=True)
        ):
            places = [_owned_rows(own, rows) for own, rows in zip(owned, wanted, strict=True) if own is not None]
        else:
            shutil.copyfile(path, out / path.name)
            continue
        _copy(out / path.name, tables, places)
    if owned[0] is not None:
        lengths = [np.diff(own)[rows] for own, rows in zip(owned, wanted, strict=True) if own is not None]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        np.save(out / OFFSETS, offsets.astype(owned[0].dtype))
    _write_names(out / ROWS, [part.images for part in parts])


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise WhaleidError(f"{path}: not a whole .npy file ({error}); make the folder again") from error


def _owned_rows(offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of the arrays that the images `rows` own, in that order, int64."""
    counts = np.diff(offsets)[rows]
    first = np.repeat(offsets[rows] - (np.cumsum(counts) - counts), counts)
    return first + np.arange(len(first))


def _copy(path: Path, tables: list[np.ndarray], places: list[np.ndarray]) -> None:
    """The chosen rows of the tables in one file, a block at a time."""
    like = tables[0]
    if any(table.shape[1:] != like.shape[1:] or table.dtype != like.dtype for table in tables):
        forms = ", ".join(f"{table.dtype} {table.shape}" for table in tables)
        raise WhaleidError(f"{path}: the parts are of different forms ({forms}); they are not of one training")
    step = max(1, _BLOCK // max(1, like.dtype.itemsize * int(np.prod(like.shape[1:]))))
    total = sum(len(rows) for rows in places)
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(like.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (total, *like.shape[1:])})
        for table, rows in zip(tables, places, strict=True):
            for start in range(0, len(rows), step):
                file.write(np.ascontiguousarray(table[rows[start : start + step]]).tobytes())
