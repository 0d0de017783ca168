"""Reading features: of our own runs (`extraction.py`) or of any other model, with the same checks.

A folder holds `embeddings.npy` (n, d), `rows.csv` (column `image`, same order) and, where the model is also a
classifier, `logits.npy` (n, c) with `classes.txt` (one identity a line). Where only some images have logits,
`logits.rows.csv` lists them (a Kaggle kernel carries only those it needs).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import forget_pages, load_array

_BLOCK = 4096  # rows read, checked or normalised at a time
_CACHED = 1 << 19  # bytes in float32 that are converted at a time: they stay in the cache until they are scaled
_TYPES = (np.float16, np.float32, np.float64)
SOME_LOGITS = "logits.rows.csv"


@dataclass(frozen=True)
class Features:
    """Features of one model.

    Attributes
    ----------
    embeddings : float32 array, shape (n, d)
        Unit rows.
    logits : float array, shape (n, c), or SomeRows or None
        Of the type on disk, finite.
    classes : str array, shape (c,), or None
        Identities of the logits' columns.
    """

    embeddings: np.ndarray
    logits: np.ndarray | SomeRows | None = None
    classes: np.ndarray | None = None


@dataclass(frozen=True)
class SomeRows:
    """A table with rows for only some images, indexed as if it had all.

    Attributes
    ----------
    table : float array, shape (m, c)
    place : int64 array, shape (n,)
        Row of each image, -1 where it has none.
    path : Path
        Named in errors.
    """

    table: np.ndarray
    place: np.ndarray
    path: Path

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.place), self.table.shape[1]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Rows float (q, c) of images int (q,). Raises WhaleidError where one has no row."""
        wanted = self.place[rows]
        if (wanted < 0).any():
            raise WhaleidError(
                f"{self.path}: has no row for {(wanted < 0).sum()} of the {len(wanted)} images that are needed"
            )
        return self.table[wanted]


@dataclass(frozen=True)
class UnitTable:
    """Checked embeddings that stay in their file: rows are read when needed.

    Attributes
    ----------
    table : float array, shape (m, d)
        Memory-mapped.
    place : int64 array, shape (n,)
        Row of each image.
    scale : float64 array, shape (n,)
        1 / length of each image's embedding.
    """

    table: np.ndarray
    place: np.ndarray
    scale: np.ndarray

    def __len__(self) -> int:
        return len(self.place)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.table.shape[1]

    def stored(self, selection: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows as in the file, float (m, d), and 1 / their lengths, float64 (m,), of images int (m,)."""
        return self.table[self.place[selection]], self.scale[selection]

    def rows(self, selection: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Unit rows float32 (m, d) of images int (m,).

        Written to the first m rows of `out`, float32 (at least m, d), where it is given: memory that was written before
        costs no page faults, which take as long as the conversion itself.
        """
        unit = np.empty((len(selection), self.table.shape[1]), np.float32) if out is None else out[: len(selection)]
        step = max(1, _CACHED // (4 * self.table.shape[1]))
        for start in range(0, len(selection), step):
            part = slice(start, start + step)
            _write_unit(*self.stored(selection[part]), unit[part])
        return unit


@dataclass(frozen=True)
class FeatureRows:
    """Features of a frozen network as the input of an adapter, in the place of a cache of images."""

    table: UnitTable

    def __len__(self) -> int:
        return len(self.table)

    @property
    def size(self) -> tuple[int, int]:
        """Width of a row, and 1."""
        return self.table.shape[1], 1

    def read_many(self, rows: np.ndarray) -> np.ndarray:
        """Unit rows float32 (m, width) of images int (m,)."""
        return self.table.rows(rows)


def _write_unit(block: np.ndarray, scale: np.ndarray, unit: np.ndarray) -> None:
    """Rows float (m, d), scaled by float64 (m,), into float32 (m, d)."""
    if block.dtype != np.float16:
        unit[:] = block * scale[:, None]
        return
    import torch  # converts and scales float16 four times as fast as numpy (0.4 ns a number instead of 1.8, one core)

    # no length of such a row, and no inverse of one, is too much for float32
    factors = torch.from_numpy(scale[:, None].astype(np.float32))
    torch.from_numpy(unit).copy_(torch.from_numpy(np.ascontiguousarray(block))).mul_(factors)


def open_embeddings(folder: Path, images: pd.DataFrame) -> UnitTable:
    """The embeddings of `read_features`, with the same checks in one pass over the file, but not held in memory."""
    names = images["image"].to_numpy()
    path = folder / "embeddings.npy"
    place = _places(folder / "rows.csv", names)
    table = _open_table(path, len(place))
    scale = np.empty(len(place))
    for start in range(0, len(place), _BLOCK):
        part = slice(start, start + _BLOCK)
        scale[part] = 1 / _lengths(path, table[place[part]], names[part])
        forget_pages(table)
    return UnitTable(table, place, scale)


def read_features(folder: Path, images: pd.DataFrame, rows: np.ndarray | None = None, logits: bool = True) -> Features:
    """Read and check a folder of features, in the order of images.parquet.

    Parameters
    ----------
    folder : Path
        Embeddings may be float16, 32 or 64 of any length, in any order.
    images : DataFrame
        The whole table, column `image`.
    rows : int array, shape (m,), or None
        Only these rows of the table, in this order.
    logits : bool
        Read logits where there are any; in the table's order, they stay on disk, memory-mapped.

    Raises
    ------
    WhaleidError
        Naming the file and the image: images missing, not in the table or listed twice, shapes that do not fit, NaN, a
        zero embedding.
    """
    names = images["image"].to_numpy()
    place = _places(folder / "rows.csv", names)
    wanted = place if rows is None else place[rows]
    wanted_names = names if rows is None else names[rows]
    table = _open_table(folder / "embeddings.npy", len(place))
    embeddings = _unit_rows(folder / "embeddings.npy", table, wanted, wanted_names)
    found = read_logits(folder, images, rows) if logits else None
    return Features(embeddings) if found is None else Features(embeddings, *found)


def read_logits(
    folder: Path, images: pd.DataFrame, rows: np.ndarray | None = None
) -> tuple[np.ndarray | SomeRows, np.ndarray] | None:
    """Logits and the classes of their columns, as in `read_features`; None where the folder has none."""
    if not has_logits(folder):
        return None
    names = images["image"].to_numpy()
    if (folder / SOME_LOGITS).is_file():
        some = _read_some(folder, names)
        classes = _read_classes(folder / "classes.txt", some.shape[1])
        return (some if rows is None else replace(some, place=some.place[rows])), classes
    place = _places(folder / "rows.csv", names)
    wanted = place if rows is None else place[rows]
    scores = _open_table(folder / "logits.npy", len(place))
    classes = _read_classes(folder / "classes.txt", scores.shape[1])
    in_order = len(wanted) == len(scores) and np.array_equal(wanted, np.arange(len(scores)))
    chosen = scores if in_order else scores[wanted]
    _check_finite(folder / "logits.npy", chosen, names if rows is None else names[rows])
    return chosen, classes


def _read_some(folder: Path, names: np.ndarray) -> SomeRows:
    """Logits of the images in `logits.rows.csv`. names: str (n,), of images.parquet."""
    place = _places(folder / SOME_LOGITS, names, whole=False)
    present = np.flatnonzero(place >= 0)
    path = folder / "logits.npy"
    table = _open_table(path, len(present), SOME_LOGITS)
    _check_finite(path, table, names[present[np.argsort(place[present])]])
    return SomeRows(table, place, path)


def _places(path: Path, names: np.ndarray, whole: bool = True) -> np.ndarray:
    """Row of the features for each image of the table, int64 (n,). whole: every image must have one; else -1."""
    given = _read_rows(path)
    index = pd.Index(given)
    if not index.is_unique:
        twice = index[index.duplicated()]
        raise WhaleidError(f"{path}: image '{twice[0]}' is listed twice ({len(twice)} repeats); list each once")
    place = index.get_indexer(pd.Index(names))
    missing = names[place < 0]
    if len(missing) and whole:
        count = f"{len(missing)} of {len(names)}"
        raise WhaleidError(f"{path}: {count} images are missing, first '{missing[0]}'; embed them too")
    if len(given) > len(names) - len(missing):
        foreign = index.difference(pd.Index(names), sort=False)
        raise WhaleidError(
            f"{path}: {len(foreign)} images are not in images.parquet, first '{foreign[0]}'; remove them"
        )
    return place.astype(np.int64)


def _read_rows(path: Path) -> np.ndarray:
    """The column `image` of rows.csv, str (n,)."""
    _require(path)
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise WhaleidError(f"{path}: not readable as CSV: {' '.join(str(error).split())}") from error
    if "image" not in rows.columns:
        raise WhaleidError(f"{path}: column 'image' is missing; found: {', '.join(map(str, rows.columns))}")
    return rows["image"].to_numpy()


def _open_table(path: Path, expected: int, listing: str = "rows.csv") -> np.ndarray:
    """An .npy of floats (expected, d), memory-mapped. listing: the file that lists its images."""
    _require(path)
    try:
        table = load_array(path)
    except (ValueError, OSError) as error:
        raise WhaleidError(f"{path}: not a complete .npy file of numbers: {error}") from error
    if table.ndim != 2 or table.shape[1] < 1 or table.dtype not in _TYPES:
        raise WhaleidError(f"{path}: {table.dtype} {table.shape}; float16, 32 or 64 of shape (n, d) is needed")
    if len(table) != expected:
        raise WhaleidError(f"{path}: {len(table)} rows, but {listing} lists {expected} images; both need the same")
    return table


def _unit_rows(path: Path, table: np.ndarray, rows: np.ndarray, names: np.ndarray) -> np.ndarray:
    """`table[rows]` as unit rows, float32. Raises WhaleidError for a zero or NaN row, naming its image."""
    unit = np.empty((len(rows), table.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        block = table[rows[part]].astype(np.float64)
        unit[part] = block / _lengths(path, block, names[part])[:, None]
    return unit


def _lengths(path: Path, block: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Length of each row, float64 (b,). Raises WhaleidError for a zero or NaN row, naming its image."""
    _check_finite(path, block, names)
    with np.errstate(over="ignore"):
        length = np.linalg.norm(block.astype(np.float64, copy=False), axis=1)
    usable = (length > 0) & np.isfinite(length)
    if not usable.all():
        name = names[int(np.argmin(usable))]
        raise WhaleidError(
            f"{path}: the embedding of '{name}' is all zeros, or too large to have a length; embed that image again"
        )
    return length


def _check_finite(path: Path, table: np.ndarray, names: np.ndarray) -> None:
    for start in range(0, len(table), _BLOCK):
        finite = np.isfinite(table[start : start + _BLOCK]).all(axis=1)
        if not finite.all():
            name = names[start + int(np.argmin(finite))]
            raise WhaleidError(f"{path}: the row of '{name}' holds NaN or infinity; embed that image again")


def has_logits(folder: Path) -> bool:
    """Whether there are logits. Raises WhaleidError where one of the two files is missing."""
    there = [(folder / name).is_file() for name in ("logits.npy", "classes.txt")]
    if any(there) and not all(there):
        raise WhaleidError(f"{folder}: logits.npy and classes.txt go together; add the other or remove this one")
    return all(there)


def _read_classes(path: Path, expected: int) -> np.ndarray:
    """The identities, str (c,)."""
    try:
        classes = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise WhaleidError(f"{path}: not readable as UTF-8: {error}") from error
    if len(classes) != expected or len(set(classes)) < len(classes) or "" in classes:
        raise WhaleidError(
            f"{path}: {len(set(classes) - {''})} distinct identities, but logits.npy has {expected} columns"
        )
    return np.array(classes)


def _require(path: Path) -> None:
    if not path.is_file():
        raise WhaleidError(f"{path}: not found; a folder of features holds embeddings.npy and rows.csv")
