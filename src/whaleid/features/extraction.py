"""Every image through a trained run, into a folder of features (`features.py`): batch by batch, kill it when you like.

How an image becomes an embedding is in `views.py`; torch is loaded there, when the first image is asked for.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest, file_digest, require_space
from whaleid.utils.progress import progress_bar

if TYPE_CHECKING:
    from whaleid.data.cache import ImageCache
    from whaleid.features.views import Views

_AHEAD = 2  # batches of images read while the model is busy


def embed_run(run: Path, images: pd.DataFrame, cache: ImageCache, out: Path, source: str) -> None:
    """Embed every image by a trained run and write its folder of features to `out`.

    run: folder of the run (`runs/<experiment>/fold<k>`). images: images.parquet; cache: its images at the
    run's size. source: shown before the progress bar.
    Rows are appended to files in a working folder beside `out`, which takes its place when whole. Killed at
    any moment, the same call goes on where it stood and ends with the same files.
    Raises WhaleidError for a cache that does not fit, an embedding of NaN or zeros, a disk too small, and
    where another process is at the same folder.
    """
    from whaleid.features.views import load_views  # torch: seconds that those who only read need not wait

    views = load_views(run, images["identity"].dropna().astype(str).unique())
    _check_cache(cache, views, len(images), run)
    names = images["image"].to_numpy()
    work = out.with_name(f".{out.name}.part")
    with _alone(out.with_name(f".{out.name}.lock"), out):
        _prepare(work, digest(file_digest(run / "checkpoint.safetensors"), views.key(), names.tolist()))
        try:
            _embed(views, cache, names, work, f"embed {source}")
            _finish(work, out, images["image"], views.classes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise WhaleidError(f"{out}: the disk is full ({error.strerror}); free some space and run again") from error


def _check_cache(cache: ImageCache, views: Views, images: int, run: Path) -> None:
    if tuple(cache.size) != tuple(views.size):
        raise WhaleidError(f"{run}: trained on images of {views.size}, but the cache holds {cache.size} pixels")
    if len(cache) != images:
        raise WhaleidError(f"cache: {len(cache)} images, but images.parquet has {images}; build it again")


@contextmanager
def _alone(lock: Path, out: Path) -> Iterator[None]:
    """Two writers would mix their rows: the second is refused. The system lets go when a process dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WhaleidError(f"{out}: another process is writing it; wait for that one") from error
        yield
        lock.unlink(missing_ok=True)


def _prepare(work: Path, key: str) -> None:
    """A working folder for `key`: what a killed job of the same key left, else an empty one."""
    note = work / "key.txt"
    if note.is_file() and note.read_text() == key:
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    note.write_text(key)


class _Table:
    """An .npy (rows, width) that grows at its end: its length says how many rows stand."""

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


def _embed(views: Views, cache: ImageCache, names: np.ndarray, work: Path, title: str) -> None:
    """Bring the tables in `work` to their full length, batch by batch, from where they stand."""
    kind = np.dtype(np.float16 if views.half else np.float32)
    widths = {"embeddings": views.dim} | ({} if views.classes is None else {"logits": len(views.classes)})
    with ExitStack() as stack:
        tables = [_Table(work / f"{name}.npy", len(names), width, kind) for name, width in widths.items()]
        for table in tables:
            stack.callback(table.close)
        done = min(table.done for table in tables) // views.batch * views.batch
        require_space(work, (len(names) - done) * sum(widths.values()) * kind.itemsize, "features")
        for table in tables:
            table.cut(done)
        began = time.monotonic()
        bar = stack.enter_context(progress_bar(title, total=len(names), start=done))
        for part, pictures in _batches(cache, done, len(names), views.batch):
            found = [_storable(values, kind, names[part], work.parent) for values in views.embed(pictures)]
            for table, values in zip(tables, found, strict=True):
                table.append(values)
            speed = (part.stop - done) / max(time.monotonic() - began, 1e-9)
            bar.advance(part.stop - part.start, f"{speed:.0f} images/s")


def _batches(cache: ImageCache, start: int, end: int, batch: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of rows and their images uint8 (b, h, w, 3), in order, read by a thread while the model works.

    A thread is enough: decoding and copying leave Python's lock alone. `start` is a multiple of `batch`, so a
    resumed job sees the very batches of one that ran through.
    """
    parts = [slice(first, min(first + batch, end)) for first in range(start, end, batch)]
    waiting: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(max_workers=1) as reader:
        for number, part in enumerate(parts):
            for later in parts[number + len(waiting) : number + 1 + _AHEAD]:
                waiting.append(reader.submit(cache.read_many, np.arange(later.start, later.stop)))
            yield part, waiting.popleft().result()


def _storable(values: np.ndarray, kind: np.dtype, names: np.ndarray, place: Path) -> np.ndarray:
    """`values` in the type of the disk; NaN (zeros have no direction) or too much for float16 is refused."""
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
    """Add the names to the working folder and let it take the place of `out`."""
    names.rename("image").to_csv(work / "rows.csv", index=False)
    if classes is not None:
        (work / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    (work / "key.txt").unlink()
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)
