"""Folders of tables whose rows are images: cut down to some images, or joined, whatever the tables mean.

Such a folder holds `rows.csv` (column `image`) and arrays. An array as long as rows.csv has a row an image. Where
there is `offsets.npy` (one longer), image i owns the rows offsets[i] to offsets[i + 1] of the arrays that are as
long as its last value. Anything else belongs to the folder as a whole. Features and keypoints are of this form,
and what later versions add to them will be; so nothing here knows their names.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.errors import WhaleidError

ROWS, OFFSETS = "rows.csv", "offsets.npy"
_BLOCK = 1 << 26  # bytes copied at a time


def keep_rows(folder: Path, out: Path, images: pd.Series) -> None:
    """Write to `out` what the folder holds of `images`, in their order; WhaleidError where one is not there."""
    names = _names(folder)
    places = pd.Index(names).get_indexer(pd.Index(images))
    if (places < 0).any():
        missing = images.to_numpy()[places < 0]
        raise WhaleidError(f"{folder / ROWS}: {len(missing)} images are missing, first '{missing[0]}'; make it again")
    _write(out, [(folder, places)])
    images.rename("image").to_frame().to_csv(out / ROWS, index=False)


def join_rows(folders: list[Path], out: Path) -> None:
    """Write to `out` the rows of all folders, one after the other; whole files are the first one's."""
    _write(out, [(folder, np.arange(len(_names(folder)))) for folder in folders])
    names = pd.concat([pd.Series(_names(folder), name="image") for folder in folders])
    names.to_frame().to_csv(out / ROWS, index=False)


def _names(folder: Path) -> np.ndarray:
    try:
        return pd.read_csv(folder / ROWS, dtype=str, keep_default_na=False)["image"].to_numpy()
    except (OSError, ValueError, KeyError) as error:
        raise WhaleidError(f"{folder / ROWS}: not readable ({error}); make the folder again") from error


def _write(out: Path, parts: list[tuple[Path, np.ndarray]]) -> None:
    """Every file but rows.csv. parts: folders, each with the rows wanted of it, int64."""
    out.mkdir(parents=True, exist_ok=True)
    first = parts[0][0]
    counts = [len(_names(folder)) for folder, _ in parts]
    owned = [_load(folder / OFFSETS) if (first / OFFSETS).is_file() else None for folder, _ in parts]
    for path in sorted(item for item in first.iterdir() if item.is_file() and item.name not in (ROWS, OFFSETS)):
        if path.suffix != ".npy":
            shutil.copyfile(path, out / path.name)
            continue
        tables = [_load(folder / path.name) for folder, _ in parts]
        if all(table.ndim and len(table) == count for table, count in zip(tables, counts, strict=True)):
            places = [rows for _, rows in parts]
        elif all(
            own is not None and table.ndim and len(table) == own[-1] for table, own in zip(tables, owned, strict=True)
        ):
            places = [_owned_rows(own, rows) for own, (_, rows) in zip(owned, parts, strict=True) if own is not None]
        else:
            shutil.copyfile(path, out / path.name)
            continue
        _copy(out / path.name, tables, places)
    if owned[0] is not None:
        lengths = [np.diff(own)[rows] for own, (_, rows) in zip(owned, parts, strict=True) if own is not None]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        np.save(out / OFFSETS, offsets.astype(owned[0].dtype))


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
