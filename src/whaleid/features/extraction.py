"""Extraction: every image through a trained run (`extractor.py`) into a folder of features (`files.py`).

It goes batch by batch and resumes after being stopped at any moment.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from whaleid.features.files import FeatureRows
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest, file_digest, replace_path, require_space
from whaleid.utils.locks import locked
from whaleid.utils.progress import progress_bar

if TYPE_CHECKING:
    from whaleid.data.cache import Inputs
    from whaleid.features.extractor import Extractor

_AHEAD = 2  # batches of images read while the model is busy


def extract_features(
    run: Path, images: pd.DataFrame, cache: Inputs, out: Path, source: str, rows: slice | None = None
) -> None:
    """Embed images by a trained run and write a folder of features.

    Rows are appended to files in a working folder beside `out`, which replaces `out` when complete. Stopped at any
    moment, the same call resumes and ends with the same files.

    Parameters
    ----------
    run : Path
        Folder of the run (`runs/<experiment>/fold<k>`).
    images : DataFrame
        images.parquet.
    cache : Inputs
        Its images at the run's size; of an adapter, the features of its frozen network.
    out : Path
    source : str
        Title of the progress bar.
    rows : slice, optional
        Rows of a shard (`shards.py`); default: all.

    Raises
    ------
    WhaleidError
        For a cache that does not fit, an embedding of NaN or zeros, a full disk, and where another process is writing
        the same folder.
    """
    from whaleid.features.extractor import load_extractor  # torch takes seconds to import

    identities = images["identity"].dropna().astype(str).unique()
    extractor = load_extractor(run, identities, on_features=isinstance(cache, FeatureRows))
    _check_cache(cache, extractor, len(images), run)
    rows = rows or slice(0, len(images))
    names = images["image"].to_numpy()[rows]
    work = out.with_name(f".{out.name}.part")
    busy = f"another process is writing {out.name}; wait for that one"
    with locked(out.with_name(f".{out.name}.lock"), busy):  # two would mix their rows
        _prepare(work, digest(file_digest(run / "checkpoint.safetensors"), extractor.key(), names.tolist()))
        try:
            _embed(extractor, cache, names, rows.start, work, f"embed {source}")
            _finish(work, out, images["image"].iloc[rows], extractor.classes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise WhaleidError(f"{out}: the disk is full ({error.strerror}); free some space and run again") from error


def _check_cache(cache: Inputs, extractor: Extractor, images: int, run: Path) -> None:
    if tuple(cache.size) != tuple(extractor.size):
        raise WhaleidError(f"{run}: trained on images of {extractor.size}, but the cache holds {cache.size} pixels")
    if len(cache) != images:
        raise WhaleidError(f"cache: {len(cache)} images, but images.parquet has {images}; build it again")


def _prepare(work: Path, key: str) -> None:
    """A working folder for `key`: that of a stopped job of the same key, else an empty one."""
    note = work / "key.txt"
    if note.is_file() and note.read_text() == key:
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    note.write_text(key)


class _Table:
    """An .npy file (rows, width) that rows are appended to; its length says how many it has."""

    def __init__(self, path: Path, rows: int, width: int, kind: np.dtype):
        self.kind = kind
        self._bytes = width * kind.itemsize
        self._file = path.open("r+b" if path.exists() else "w+b")
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()
        self.done = max(0, path.stat().st_size - self._start) // self._bytes

    def cut(self, rows: int) -> None:
        """Keep the first `rows` rows."""
        self._file.truncate(self._start + rows * self._bytes)
        self._file.seek(0, os.SEEK_END)

    def append(self, values: np.ndarray) -> None:
        self._file.write(values.tobytes())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _embed(extractor: Extractor, cache: Inputs, names: np.ndarray, first: int, work: Path, title: str) -> None:
    """Append what is missing to the tables in `work`, batch by batch. first: row of the first name in the cache."""
    kind = np.dtype(np.float16 if extractor.half else np.float32)
    widths = {"embeddings": extractor.dim}
    if extractor.classes is not None:
        widths["logits"] = len(extractor.classes)
    with ExitStack() as stack:
        tables = [_Table(work / f"{name}.npy", len(names), width, kind) for name, width in widths.items()]
        for table in tables:
            stack.callback(table.close)
        done = min(table.done for table in tables) // extractor.batch * extractor.batch
        require_space(work, (len(names) - done) * sum(widths.values()) * kind.itemsize, "features")
        for table in tables:
            table.cut(done)
        bar = stack.enter_context(progress_bar(title, total=len(names), start=done, images=True))
        for part, batch in _batches(cache, first + done, first + len(names), extractor.batch):
            own = names[part.start - first : part.stop - first]
            rows = [_storable(values, kind, own, work.parent) for values in extractor.embed(batch)]
            for table, values in zip(tables, rows, strict=True):
                table.append(values)
            bar.advance(part.stop - part.start)


def _batches(cache: Inputs, start: int, end: int, batch: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of rows and their images uint8 (b, h, w, 3), in order, read by a thread while the model works.

    One thread suffices: decoding and copying release Python's lock. `start` is a multiple of `batch`, so that shards
    and resumed jobs have the same batches as one job that was never stopped.
    """
    parts = [slice(first, min(first + batch, end)) for first in range(start, end, batch)]
    waiting: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(max_workers=1) as reader:
        for number, part in enumerate(parts):
            for later in parts[number + len(waiting) : number + 1 + _AHEAD]:
                waiting.append(reader.submit(cache.read_many, np.arange(later.start, later.stop)))
            yield part, waiting.popleft().result()


def _storable(values: np.ndarray, kind: np.dtype, names: np.ndarray, place: Path) -> np.ndarray:
    """`values` in the type of the file. Raises WhaleidError for NaN (an embedding of zeros) and float16 overflow."""
    with np.errstate(over="ignore"):
        stored = values.astype(kind)
    good = np.isfinite(stored).all(axis=1)
    if not good.all():
        raise WhaleidError(
            f"{place}: the model gives NaN, infinity or all zeros for image '{names[int(np.argmin(good))]}'; "
            "train it again (train.precision=no), or set features.half=false if values exceed float16"
        )
    return stored


def _finish(work: Path, out: Path, names: pd.Series, classes: np.ndarray | None) -> None:
    """Add the names to the working folder and replace `out` by it."""
    names.rename("image").to_csv(work / "rows.csv", index=False)
    if classes is not None:
        (work / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    (work / "key.txt").unlink()
    replace_path(work, out)
