"""Size, perceptual hash, thumbnail and colours of every image, in one parallel pass over the files.

JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, which is several times faster than a full decode and still reads
the file to its end, so that a truncated one is noticed.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from whaleid.data.boxes import GivenBoxes
from whaleid.data.decoding import decode_content
from whaleid.data.digests import content_digest
from whaleid.data.images import crop_box, reduction
from whaleid.utils.machine import cores
from whaleid.utils.progress import progress_bar

THUMBNAIL = 16  # pixels: side of the grey thumbnail that confirms near-duplicates
REDUCED = (64, 64)  # pixels: a JPEG is decoded at a scale that leaves its box at least twice as large
COLOURS = 6, 8, 8  # steps of lightness and of the two colours of CIE Lab
COLOUR_SIDE = 64  # pixels: side of what the colours are counted in
CHUNK = 64  # images in one task of a worker
WORTH_PROCESSES = 1000  # images: with fewer, starting processes takes longer than they save

Chunk = tuple[list[str], GivenBoxes | None]
"""Paths of some images, and their boxes."""


@dataclass(frozen=True)
class Fingerprints:
    """Facts about n images; zero for images that cannot be read.

    Attributes
    ----------
    size : int32 array, shape (n, 2)
        Width and height in pixels of the upright image.
    phash : uint64 array, shape (n,)
        Perceptual hash of what the box holds: 8 x 8 signs of the low frequencies of a cosine transform.
    thumbnail : uint8 array, shape (n, THUMBNAIL ** 2)
        Grey levels of what the box holds.
    colours : uint8 array, shape (n, product of COLOURS)
        Square roots of the shares of the colours of what the box holds, of 255: their dot products compare two images.
    digest : str array, shape (n,)
        Digest of the file's content.
    problem : object array, shape (n,)
        Why an image cannot be read; '' for a good one.
    """

    size: np.ndarray
    phash: np.ndarray
    thumbnail: np.ndarray
    colours: np.ndarray
    digest: np.ndarray
    problem: np.ndarray

    @property
    def readable(self) -> np.ndarray:
        """Whether each image can be read, bool (n,)."""
        return self.problem == ""

    def subset(self, kept: np.ndarray) -> Fingerprints:
        """Fingerprints of some of the images. kept: bool (n,)."""
        return Fingerprints(*(values[kept] for values in vars(self).values()))


def fingerprint_images(
    root: Path, paths: Sequence[str], workers: int | None = None, boxes: GivenBoxes | None = None
) -> Fingerprints:
    """Fingerprints of image files; an image that cannot be read is noted, not raised.

    Parameters
    ----------
    root : Path
    paths : sequence of str, length n
        Relative to `root`.
    workers : int, optional
        Number of processes, by default one for each core; 1 works in this process. The result is always the same.
    boxes : GivenBoxes, optional
        The animals: a camera that stands still shows different ones before one background.
    """
    parts = [slice(start, start + CHUNK) for start in range(0, len(paths), CHUNK)]
    chunks = [(list(paths[part]), None if boxes is None else boxes.subset(part)) for part in parts]
    done: list[Fingerprints] = []
    with progress_bar("reading images", len(paths), images=True) as bar:
        for part in _each_chunk(root, chunks, _processes(workers, len(paths))):
            done.append(part)
            bar.advance(len(part.problem))
    columns = zip(*(vars(part).values() for part in [_empty(0), *done]), strict=True)
    return Fingerprints(*(np.concatenate(parts) for parts in columns))


def hash_text(phash: np.ndarray) -> list[str]:
    """Hashes as 16 hexadecimal digits, the form of images.parquet."""
    return [f"{value:016x}" for value in phash.tolist()]


def _processes(workers: int | None, images: int) -> int:
    if workers is None and images < WORTH_PROCESSES:
        return 1
    return max(1, min(workers or cores(), -(-images // CHUNK)))


def _each_chunk(root: Path, chunks: list[Chunk], workers: int) -> Iterator[Fingerprints]:
    if workers == 1:
        yield from (_fingerprint_chunk(root, *chunk) for chunk in chunks)
        return
    # spawn: a fork of a process that has threads (torch, OpenCV) can hang
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(_fingerprint_chunk, [root] * len(chunks), *zip(*chunks, strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fingerprint_chunk(root: Path, paths: list[str], boxes: GivenBoxes | None) -> Fingerprints:
    found = _empty(len(paths))
    for row, path in enumerate(paths):
        try:
            content = (root / path).read_bytes()
            found.digest[row] = content_digest(content)
            given = None if boxes is None else boxes.subset(slice(row, row + 1))
            found.size[row], found.phash[row], found.thumbnail[row], found.colours[row] = _fingerprint(content, given)
        except FileNotFoundError:
            found.problem[row] = "not found"
        except OSError as error:
            found.problem[row] = str(error.strerror)
        except ValueError as error:
            found.problem[row] = str(error)
    return found


def _fingerprint(content: bytes, given: GivenBoxes | None) -> tuple[tuple[int, int], int, np.ndarray, np.ndarray]:
    """Size of one file, perceptual hash, thumbnail and colours of what its box holds."""
    import imagehash  # takes a second

    pixels, size = decode_content(content, lambda size: reduction(_box(given, size), REDUCED))
    box = _box(given, size)
    inside = crop_box(pixels, box / reduction(box, REDUCED), 0.0)
    grey = Image.fromarray(inside).convert("L")
    small = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    bits = imagehash.phash(grey).hash.ravel()
    return size, int.from_bytes(np.packbits(bits).tobytes(), "big"), np.asarray(small).ravel(), _colours(inside)


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Square roots of the shares of the colours, of 255: uint8. Most photographs are in the middle half of both."""
    import cv2

    small = cv2.resize(pixels, (COLOUR_SIDE, COLOUR_SIDE), interpolation=cv2.INTER_AREA)
    light, *colours = cv2.split(cv2.cvtColor(small, cv2.COLOR_RGB2LAB))
    steps = [light.astype(int) * COLOURS[0] // 256, *((np.clip(one, 96, 159).astype(int) - 96) // 8 for one in colours)]
    counts = np.bincount(np.ravel_multi_index(steps, COLOURS).ravel(), minlength=math.prod(COLOURS))
    return np.round(255 * np.sqrt(counts / counts.sum())).astype(np.uint8)


def _box(given: GivenBoxes | None, size: tuple[int, int]) -> np.ndarray:
    """Box in pixels, float64 (4,); the whole image where there is none, or an empty one, which later steps report."""
    whole = np.array([0.0, 0.0, *size])
    box = whole if given is None else given.placed(np.array([size]))[0]
    return box if (box[2:] > box[:2]).all() else whole


def _empty(n: int) -> Fingerprints:
    return Fingerprints(
        size=np.zeros((n, 2), np.int32),
        phash=np.zeros(n, np.uint64),
        thumbnail=np.zeros((n, THUMBNAIL**2), np.uint8),
        colours=np.zeros((n, math.prod(COLOURS)), np.uint8),
        digest=np.full(n, "", "U20"),
        problem=np.full(n, "", object),
    )
