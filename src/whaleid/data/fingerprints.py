"""What is to be known of every picture before training, found by opening each once, in parallel.

JPEGs are decoded at 1/2, 1/4 or 1/8 of their size (libjpeg scales inside its transform), which is several
times faster than a full decode and reads the file to its end all the same: a truncated one does not pass.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from whaleid.data.digests import content_digest
from whaleid.utils.progress import progress_bar

THUMBNAIL = 16  # pixels: side of the small grey picture by which near-duplicates are confirmed
REDUCED = 128  # pixels: a JPEG is decoded at a scale that leaves its shorter side at least this long
CHUNK = 64  # images a task of a worker
WORTH_PROCESSES = 1000  # images: with fewer, starting processes takes longer than they save
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn the picture by a quarter


@dataclass(frozen=True)
class Fingerprints:
    """What was found of n pictures, in the order they were asked for. Rows of unreadable ones are zero."""

    size: np.ndarray
    """int32 (n, 2): width and height in pixels as the picture is seen (EXIF orientation honoured)."""
    phash: np.ndarray
    """uint64 (n,): perceptual hash, 8 x 8 signs of the low frequencies of a cosine transform."""
    thumbnail: np.ndarray
    """uint8 (n, THUMBNAIL ** 2): grey."""
    digest: np.ndarray
    """str U20 (n,): digest of the file's content."""
    problem: np.ndarray
    """object (n,): why a picture cannot be read; '' for a good one."""


def fingerprint_images(root: Path, paths: Sequence[str], workers: int | None = None) -> Fingerprints:
    """Open every picture once and say what it is; a picture that cannot be read is noted, not raised.

    paths: relative to `root`. workers: processes (default: all cores; 1 works in this process); any number
    gives the same result.
    """
    chunks = [list(paths[start : start + CHUNK]) for start in range(0, len(paths), CHUNK)]
    done: list[Fingerprints] = []
    with progress_bar("reading images", len(paths)) as bar:
        for part in _each_chunk(root, chunks, _processes(workers, len(paths))):
            done.append(part)
            bar.advance(len(part.problem))
    return _joined(done)


def hash_text(phash: np.ndarray) -> list[str]:
    """The hashes as 16 hexadecimal digits each, the form of the images table."""
    return [f"{value:016x}" for value in phash.tolist()]


def usable_cores() -> int:
    """Cores that this process may use, which in a container are often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processes(workers: int | None, images: int) -> int:
    if workers is None and images < WORTH_PROCESSES:
        return 1
    return max(1, min(workers or usable_cores(), -(-images // CHUNK)))


def _each_chunk(root: Path, chunks: list[list[str]], workers: int) -> Iterator[Fingerprints]:
    if workers == 1:
        yield from (_fingerprint_chunk(root, chunk) for chunk in chunks)
        return
    # Spawned, not forked: a fork of a process that has threads (torch, OpenCV) can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(_fingerprint_chunk, [root] * len(chunks), chunks)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fingerprint_chunk(root: Path, paths: list[str]) -> Fingerprints:
    found = _blank(len(paths))
    for row, path in enumerate(paths):
        try:
            data = (root / path).read_bytes()
            found.digest[row] = content_digest(data)
            found.size[row], found.phash[row], found.thumbnail[row] = _fingerprint(data)
        except Exception as error:  # damaged files make decoders raise nearly anything
            found.problem[row] = _reason(error, root / path)
    return found


def _fingerprint(data: bytes) -> tuple[tuple[int, int], int, np.ndarray]:
    """Size, perceptual hash and thumbnail of one file's bytes."""
    import imagehash  # a second to import, and only those who look at pictures need it

    with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as picture:
        warnings.simplefilter("ignore")  # large pictures and odd metadata are no trouble here
        size = _seen_size(picture)
        picture.draft(picture.mode, (REDUCED, REDUCED))
        picture.load()
        grey = ImageOps.exif_transpose(_grey(picture))
    small = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    bits = imagehash.phash(grey).hash.ravel()
    return size, int.from_bytes(np.packbits(bits).tobytes(), "big"), np.asarray(small).ravel()


def _seen_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    turned = picture.getexif().get(ORIENTATION, 1) >= 5 and picture.format != "TIFF"  # Pillow turns TIFF itself
    return (height, width) if turned else (width, height)


def _grey(picture: Image.Image) -> Image.Image:
    """The picture in 8-bit grey; deeper ones are scaled by their own range, which `convert` would clip."""
    if not picture.mode.startswith(("I", "F")):
        return picture.convert("L")
    values = np.asarray(picture, np.float64)
    low, high = values.min(), values.max()
    return Image.fromarray(((values - low) * (255 / max(high - low, 1))).astype(np.uint8))


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return "not found"
    if path.is_file() and path.stat().st_size == 0:
        return "0 bytes"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if "truncated" in str(error):
        return "truncated"
    return " ".join(str(error).split()) or type(error).__name__


def _blank(n: int) -> Fingerprints:
    return Fingerprints(
        size=np.zeros((n, 2), np.int32),
        phash=np.zeros(n, np.uint64),
        thumbnail=np.zeros((n, THUMBNAIL**2), np.uint8),
        digest=np.full(n, "", "U20"),
        problem=np.full(n, "", object),
    )


def _joined(parts: list[Fingerprints]) -> Fingerprints:
    if not parts:
        return _blank(0)
    names = ("size", "phash", "thumbnail", "digest", "problem")
    return Fingerprints(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
