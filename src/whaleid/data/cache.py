"""The cache: every image cropped and resized once, in a form that training reads at memory speed.

    <folder>/cache.json      count, size, form, margin, digest of the images it was made from
    <folder>/pixels.npy      form raw: uint8 (n, height, width, 3), memory-mapped
    <folder>/pixels.bin      form jpeg: JPEGs of quality 95, one after the other
    <folder>/offsets.bin     form jpeg: int64 (n,), end of each JPEG

Row i is row i of images.parquet. Threads prepare the images and one writer appends them in the order of the table, so
the result does not depend on the number of threads, and the length of the file tells a restarted build where to
continue. An incomplete cache has another name.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from pandas import DataFrame

from whaleid.config import ImageConfig
from whaleid.data.boxes import CORNERS
from whaleid.data.competition import first_few
from whaleid.data.images import prepare
from whaleid.data.masks import Mask, prepare_mask, take_out
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest, file_digest, load_array, replace_path, require_space, write_json
from whaleid.utils.locks import locked
from whaleid.utils.machine import cores
from whaleid.utils.progress import progress_bar

FORMAT = 3  # raise it when the files or the decoding change, so that older caches are built again
QUALITY = 95  # JPEG; what it loses is far below what augmentation changes
JPEG_BYTES = 0.8  # bytes a pixel that are reserved; photographs take about 0.5, drawn texture more
CHUNK = 32  # images in one task
LISTED = 10  # broken images that an error names


# ------------------------------------------------------------------------------------------------------- reading


class ImageCache:
    """Read access to a complete cache (`open_cache`). Pickled as the name of its folder."""

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
        """Image of a row of images.parquet: uint8 (h, w, 3), RGB, a copy."""
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


class Inputs(Protocol):
    """What a network reads, by row of images.parquet: the cache of images or, for an adapter, a table of features."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        ...

    def __len__(self) -> int: ...

    def read_many(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows: images uint8 (n, h, w, 3), or features float32 (n, width)."""
        ...


def cache_name(config: ImageConfig, size: tuple[int, int]) -> str:
    """Name of the cache's folder, shared by experiments of one size, form and margin: `128x64-raw-m0.05`.

    `128x64-raw-m0.05-animal` where the background is removed.
    """
    name = f"{size[0]}x{size[1]}-{config.cache}-m{config.box_margin:g}"
    return f"{name}-animal" if config.needs_masks else name


def open_cache(folder: Path) -> ImageCache:
    """The cache in `folder`; WhaleidError if it is missing, incomplete, damaged or of another format."""
    content = _read_content(folder)
    if content is None:
        raise WhaleidError(f"{folder}: no complete cache of images here; build it first (whaleid train does)")
    if content.get("format") != FORMAT:
        raise WhaleidError(f"{folder}: a cache of another version of whaleid; remove this folder and run again")
    width, height = content["size"]
    try:
        if content["form"] == "raw":
            pixels, ends = load_array(folder / "pixels.npy"), None
            complete = pixels.shape == (content["count"], height, width, 3) and pixels.dtype == np.uint8
        else:
            ends = np.fromfile(folder / "offsets.bin", dtype=np.int64)
            pixels = np.memmap(folder / "pixels.bin", dtype=np.uint8, mode="r")
            complete = len(ends) == content["count"] and len(pixels) == ends[-1]
    except (OSError, ValueError) as error:
        raise WhaleidError(f"{folder}: damaged cache ({error}); remove this folder and run again") from error
    if not complete:
        raise WhaleidError(f"{folder}: damaged cache (pixels do not fit cache.json); remove this folder and run again")
    return ImageCache(folder, (width, height), pixels, ends)


# ------------------------------------------------------------------------------------------------------ building


@dataclass(frozen=True)
class Source:
    """One image to prepare: its file, its box in pixels (x0, y0, x1, y1), and its mask where its background goes."""

    path: Path
    box: np.ndarray
    mask: Mask | None = None


def build_cache(
    images: DataFrame,
    root: Path,
    folder: Path,
    size: tuple[int, int],
    config: ImageConfig,
    workers: int | None = None,
    masks: list[Mask] | None = None,
) -> None:
    """Write the cache of images, unless it is there and current. A killed build is continued.

    Parameters
    ----------
    images : DataFrame
        images.parquet.
    root : Path
        Folder that `images.path` is relative to.
    folder : Path
        Folder of the cache.
    size : (int, int)
        Width and height of the cached images.
    config : ImageConfig
        Form and margin.
    workers : int, optional
        Number of threads, by default one for each core.
    masks : list of Mask, optional
        One for each image, where `config` removes the background.

    Raises
    ------
    WhaleidError
        For broken images (all are counted, ten are named) and for a full disk; what was written is then removed.
    """
    if len(images) == 0:
        raise WhaleidError("the images table is empty: there is nothing to cache")
    boxes = images[CORNERS].to_numpy(dtype=float)
    if config.needs_masks and masks is None:
        raise WhaleidError("image.background: remove needs `masks` in the competition's YAML; whaleid masks makes some")
    used = masks if config.needs_masks and masks is not None else [None] * len(images)
    columns = zip(images["path"], boxes, used, strict=True)
    sources = [Source(root / path, box, mask) for path, box, mask in columns]
    content = _content(images, size, config, sources)
    partial_folder = folder.with_name(f".{folder.name}.partial")
    with locked(folder.with_name(f".{folder.name}.lock")):  # the second builder of a cache finds it complete
        if _read_content(folder) == content:
            return
        _start(partial_folder, content)
        try:
            _fill(sources, partial_folder, content, workers or cores())
        except WhaleidError:
            shutil.rmtree(partial_folder, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(partial_folder, ignore_errors=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise WhaleidError(
                f"{folder}: the disk is full ({error.strerror}); the incomplete cache is removed; "
                "free some space or choose another work folder with WORK="
            ) from error
        replace_path(partial_folder, folder)


def _content(images: DataFrame, size: tuple[int, int], config: ImageConfig, sources: list[Source]) -> dict[str, Any]:
    """Content of cache.json: settings, and a digest of the images' contents, boxes and masks."""
    masks = [file_digest(_there(source.mask)) for source in sources if source.mask is not None]
    return {
        "format": FORMAT,
        "count": len(images),
        "size": list(size),
        "form": config.cache,
        "margin": config.box_margin,
        "sources": digest(images[["path", "digest", *CORNERS]].to_numpy(dtype=object).tolist()),
        **({"masks": digest(masks)} if config.needs_masks else {}),
    }


def _there(mask: Mask) -> Path:
    if not mask.path.is_file():
        raise WhaleidError(f"{mask.path}: mask not found; image.background: remove needs one for every image")
    return mask.path


def _read_content(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "cache.json").read_text())
    except (OSError, ValueError):
        return None


def _start(folder: Path, content: dict[str, Any]) -> None:
    """A folder to append to: what a killed build of the same content left, else a new one."""
    if _read_content(folder) == content:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "cache.json", content)


def _fill(sources: list[Source], folder: Path, content: dict[str, Any], workers: int) -> None:
    """Append every image that is missing; broken ones are reported together."""
    width, height = content["size"]
    count = content["count"]
    raw = content["form"] == "raw"
    broken: list[str] = []
    with _RawFile(folder, count, width, height) if raw else _JpegFile(folder) as file:
        done = file.done
        bytes_per_pixel = 3 if raw else JPEG_BYTES
        require_space(folder, int((count - done) * width * height * bytes_per_pixel), "the cache of images")
        task = partial(_prepare_chunk, margin=content["margin"], size=(width, height), encode=not raw)
        chunks = [sources[start : start + CHUNK] for start in range(done, count, CHUNK)]
        with progress_bar("cache", count, start=done, images=True) as bar:
            for prepared in _in_order(task, chunks, workers):
                broken += [item for item in prepared if isinstance(item, str)]
                if not broken:
                    file.append([item for item in prepared if isinstance(item, bytes)])
                bar.advance(len(prepared))
    if broken:
        raise WhaleidError(f"{len(broken)} of {count} images cannot be used: {first_few(broken, LISTED, '; ')}")


def _prepare_chunk(chunk: list[Source], margin: float, size: tuple[int, int], encode: bool) -> list[bytes | str]:
    """Each image's bytes for the cache, or what is wrong with it."""
    prepared: list[bytes | str] = []
    for source in chunk:
        try:
            image = prepare(source.path, source.box, margin, size)
            if source.mask is not None:
                image = take_out(image, prepare_mask(source.mask, source.box, margin, size) == 0)
            prepared.append(_jpeg(image) if encode else image.tobytes())
        except WhaleidError as error:
            prepared.append(str(error))
    return prepared


def _jpeg(image: np.ndarray) -> bytes:
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return encoded.tobytes()


def _in_order(task, chunks: list[list[Source]], workers: int) -> Iterator[list[bytes | str]]:
    """Results of `task` on the chunks, in their order, with a bounded number of them in memory."""
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


class _RawFile:
    """pixels.npy, grown image by image: its length says how many are done."""

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


class _JpegFile:
    """pixels.bin and offsets.bin, grown chunk by chunk; pixels first, so that no offset lacks its pixels."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> _JpegFile:
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
