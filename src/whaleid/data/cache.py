"""The cache: every image cropped and resized once, in a form that training reads at memory speed.

    <folder>/cache.json      what it holds: count, size, form, margin, digest of the files it was made from
    <folder>/pixels.npy      form raw: uint8 (n, height, width, 3), memory-mapped
    <folder>/pixels.bin      form jpeg: JPEGs of quality 95 one behind the other
    <folder>/offsets.bin     form jpeg: int64 (n,), where each JPEG ends

Row i is row i of images.parquet. Threads prepare the images (decoding runs outside of Python's lock), one
writer appends them in the order of the table. So the result does not depend on the number of threads, and the
length of the file says how far a killed build came: the next one carries on there. Until it is complete, the
cache has a name of its own beside its place.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from pandas import DataFrame

from whaleid.config import ImageConfig
from whaleid.data.images import prepare
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest, require_space, write_json
from whaleid.utils.progress import progress_bar

FORMAT = 2  # raise it when the files change, so that older caches are made again
QUALITY = 95  # JPEG; what it loses is far below what augmentation changes
CHUNK = 32  # images a task
NAMED = 10  # broken images named in an error
BOX = ["x0", "y0", "x1", "y1"]


# ------------------------------------------------------------------------------------------------- reading


class ImageCache:
    """Read access to a complete cache; `open_cache` makes it.

    It travels to other processes as its folder's name, never as its pixels.
    """

    def __init__(self, folder: Path, size: tuple[int, int], pixels: np.ndarray, ends: np.ndarray | None):
        self.folder = folder
        self.size = size  # (width, height)
        self._pixels = pixels
        self._ends = ends

    def __len__(self) -> int:
        return len(self._pixels if self._ends is None else self._ends)

    def __reduce__(self):
        return open_cache, (self.folder,)

    def read(self, row: int) -> np.ndarray:
        """Image of a row of images.parquet: uint8 (h, w, 3), RGB, the caller's own copy."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.folder}: row {row} is outside of the cache's {len(self)}")
        if self._ends is None:
            return np.array(self._pixels[row])
        start = 0 if row == 0 else int(self._ends[row - 1])
        image = cv2.imdecode(self._pixels[start : int(self._ends[row])], cv2.IMREAD_COLOR)
        if image is None:
            raise WhaleidError(f"{self.folder}: image of row {row} is damaged; remove this folder and run again")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def read_many(self, rows: np.ndarray) -> np.ndarray:
        """Images of many rows: uint8 (n, h, w, 3)."""
        width, height = self.size
        images = np.empty((len(rows), height, width, 3), dtype=np.uint8)
        for place, row in enumerate(rows):
            images[place] = self.read(int(row))
        return images


def cache_name(config: ImageConfig, size: tuple[int, int]) -> str:
    """Name of the cache's folder: experiments of one size, form and margin share it. 128x64-raw-m0.05"""
    return f"{size[0]}x{size[1]}-{config.cache}-m{config.box_margin:g}"


def open_cache(folder: Path) -> ImageCache:
    """The cache in `folder`; WhaleidError when it is missing, of another format, or not all there."""
    try:
        content = json.loads((folder / "cache.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise WhaleidError(
            f"{folder}: no complete cache of images here; build it first (whaleid train does)"
        ) from error
    if content.get("format") != FORMAT:
        raise WhaleidError(f"{folder}: a cache of another version of whaleid; remove this folder and run again")
    width, height = content["size"]
    try:
        if content["form"] == "raw":
            pixels, ends = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False), None
            whole = pixels.shape == (content["count"], height, width, 3) and pixels.dtype == np.uint8
        else:
            ends = np.fromfile(folder / "offsets.bin", dtype=np.int64)
            pixels = np.memmap(folder / "pixels.bin", dtype=np.uint8, mode="r")
            whole = len(ends) == content["count"] and len(pixels) == ends[-1]
    except (OSError, EOFError, ValueError) as error:
        raise WhaleidError(f"{folder}: damaged cache ({error}); remove this folder and run again") from error
    if not whole:
        raise WhaleidError(f"{folder}: damaged cache (pixels do not fit cache.json); remove this folder and run again")
    return ImageCache(folder, (width, height), pixels, ends)


# ------------------------------------------------------------------------------------------------ building


@dataclass(frozen=True)
class Source:
    """One image to prepare: its file and its box in pixels (x0, y0, x1, y1)."""

    path: Path
    box: np.ndarray


def build_cache(
    images: DataFrame,
    root: Path,
    folder: Path,
    size: tuple[int, int],
    config: ImageConfig,
    workers: int | None = None,
) -> None:
    """Write the cache of all `images` to `folder`; nothing is done when it is there and current.

    images: images.parquet; `path` is relative to `root`. size: (width, height).
    workers: threads, default: as many as cores. A killed build is carried on.
    Raises WhaleidError for broken images (all of them counted, the first named, in one line) and for a disk
    that is or gets full (what was written is removed).
    """
    if len(images) == 0:
        raise WhaleidError("the images table is empty: there is nothing to cache")
    sources = _sources(images, root)
    content = _content(images, size, config)
    partial_folder = folder.with_name(f".{folder.name}.partial")
    with _alone(folder.parent):
        if _read_content(folder) == content:
            return
        _start(partial_folder, content)
        try:
            _fill(sources, partial_folder, content, workers or os.cpu_count() or 1)
        except OSError as error:
            shutil.rmtree(partial_folder, ignore_errors=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise WhaleidError(
                    f"{folder}: the disk is full ({error.strerror}); what was written of it is removed; "
                    "free some space or put the work elsewhere with WORK="
                ) from error
            raise
        except WhaleidError:
            shutil.rmtree(partial_folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        partial_folder.rename(folder)


def _sources(images: DataFrame, root: Path) -> list[Source]:
    boxes = images[BOX].to_numpy(dtype=float)
    return [Source(root / path, box) for path, box in zip(images["path"], boxes, strict=True)]


def _content(images: DataFrame, size: tuple[int, int], config: ImageConfig) -> dict[str, Any]:
    """What cache.json says: settings, and a digest of the contents of the files and of the boxes."""
    sources = images[["path", "digest", *BOX]].to_numpy(dtype=object)
    return {
        "format": FORMAT,
        "count": len(images),
        "size": list(size),
        "form": config.cache,
        "margin": config.box_margin,
        "sources": digest(sources.tolist()),
    }


def _read_content(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "cache.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One builder at a time in `folder`: two of one cache would mix their rows; the second finds it done."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when the process dies
        yield
    finally:
        os.close(lock)


def _start(folder: Path, content: dict[str, Any]) -> None:
    """A folder to append to: what a killed build of the same content left, else a new one."""
    if _read_content(folder) == content:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "cache.json", content)


def _fill(sources: list[Source], folder: Path, content: dict[str, Any], workers: int) -> None:
    """Append every image that is not there yet; collect the broken ones and name them together."""
    width, height = content["size"]
    count = content["count"]
    raw = content["form"] == "raw"
    broken: list[str] = []
    with _RawFile(folder, count, width, height) if raw else _PackedFile(folder) as file:
        done = file.done
        bytes_a_pixel = 3 if raw else 0.8  # JPEG of quality 95: a photograph takes about 0.5, drawn texture more
        require_space(folder, int((count - done) * width * height * bytes_a_pixel), "the cache of images")
        task = partial(_prepare_chunk, margin=content["margin"], size=(width, height), encode=not raw)
        chunks = [sources[start : start + CHUNK] for start in range(done, count, CHUNK)]
        with progress_bar("cache", count, start=done) as bar:
            for prepared in _in_order(task, chunks, workers):
                broken += [item for item in prepared if isinstance(item, str)]
                if not broken:
                    file.append([item for item in prepared if isinstance(item, bytes)])
                bar.advance(len(prepared))
    if broken:
        named = "; ".join(broken[:NAMED])
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise WhaleidError(f"{len(broken)} of {count} images cannot be used: {named}{more}")


def _prepare_chunk(chunk: list[Source], margin: float, size: tuple[int, int], encode: bool) -> list[bytes | str]:
    """Each image's bytes for the cache, or what is wrong with it."""
    prepared: list[bytes | str] = []
    for source in chunk:
        try:
            image = prepare(source.path, source.box, margin, size)
            prepared.append(_jpeg(image) if encode else image.tobytes())
        except WhaleidError as error:
            prepared.append(str(error))
    return prepared


def _jpeg(image: np.ndarray) -> bytes:
    _, packed = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return packed.tobytes()


def _in_order(task, chunks: list[list[Source]], workers: int) -> Iterator[list[bytes | str]]:
    """Results of `task` on the chunks, in their order, with a bounded number of them waiting in memory."""
    waiting: deque[Future[list[bytes | str]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(task, chunk))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Appender(Protocol):
    done: int

    def append(self, images: list[bytes]) -> None: ...


class _RawFile:
    """pixels.npy, grown image by image: its length says how many are there."""

    def __init__(self, folder: Path, count: int, width: int, height: int):
        self._path = folder / "pixels.npy"
        self._shape = (count, height, width, 3)
        self._image_bytes = height * width * 3

    def __enter__(self) -> _RawFile:
        self._file = self._path.open("r+b" if self._path.exists() else "w+b")
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": self._shape})
        header = self._file.tell()
        self.done = max(0, self._path.stat().st_size - header) // self._image_bytes
        self._file.seek(header + self.done * self._image_bytes)
        self._file.truncate()
        return self

    def append(self, images: list[bytes]) -> None:
        self._file.write(b"".join(images))
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _PackedFile:
    """pixels.bin and offsets.bin, grown chunk by chunk: pixels first: an offset never promises too much."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> _PackedFile:
        self._offsets = (self._folder / "offsets.bin").open("a+b")
        self._pixels = (self._folder / "pixels.bin").open("a+b")
        self._offsets.seek(0)
        ends = np.frombuffer(self._offsets.read()[: self._offsets.tell() // 8 * 8], dtype=np.int64)
        self.done = int(np.searchsorted(ends, self._pixels.seek(0, os.SEEK_END), side="right"))
        self._end = int(ends[self.done - 1]) if self.done else 0
        self._offsets.truncate(8 * self.done)
        self._pixels.truncate(self._end)
        return self

    def append(self, images: list[bytes]) -> None:
        ends = self._end + np.cumsum([len(image) for image in images], dtype=np.int64)
        self._pixels.write(b"".join(images))
        self._pixels.flush()
        self._offsets.write(ends.tobytes())
        self._offsets.flush()
        self._end = int(ends[-1])

    def __exit__(self, *_: object) -> None:
        self._pixels.close()
        self._offsets.close()
