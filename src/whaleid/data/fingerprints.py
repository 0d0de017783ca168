"""Size, perceptual hash and thumbnail of every image, in one parallel pass over the files.

JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, which is several times faster than a full decode and still reads
the file to its end, so that a truncated one is noticed.
"""

from __future__ import annotations

import io
import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from whaleid.data.digests import content_digest
from whaleid.utils.machine import cores
from whaleid.utils.progress import progress_bar

THUMBNAIL = 16  # pixels: side of the grey thumbnail that confirms near-duplicates
REDUCED = 128  # pixels: a JPEG is decoded at a scale that leaves its shorter side at least this long
CHUNK = 64  # images in one task of a worker
WORTH_PROCESSES = 1000  # images: with fewer, starting processes takes longer than they save
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 are turned by a quarter


@dataclass(frozen=True)
class Fingerprints:
    """Facts about n images; zero for images that cannot be read.

    Attributes
    ----------
    size : int32 array, shape (n, 2)
        Width and height in pixels of the upright image (EXIF orientation applied).
    phash : uint64 array, shape (n,)
        Perceptual hash: 8 x 8 signs of the low frequencies of a cosine transform.
    thumbnail : uint8 array, shape (n, THUMBNAIL ** 2)
        Grey levels.
    digest : str array, shape (n,)
        Digest of the file's content.
    problem : object array, shape (n,)
        Why an image cannot be read; '' for a good one.
    """

    size: np.ndarray
    phash: np.ndarray
    thumbnail: np.ndarray
    digest: np.ndarray
    problem: np.ndarray

    @property
    def readable(self) -> np.ndarray:
        """Whether each image can be read, bool (n,)."""
        return self.problem == ""

    def subset(self, kept: np.ndarray) -> Fingerprints:
        """Fingerprints of some of the images. kept: bool (n,)."""
        return Fingerprints(*(values[kept] for values in vars(self).values()))


def fingerprint_images(root: Path, paths: Sequence[str], workers: int | None = None) -> Fingerprints:
    """Fingerprints of image files; an image that cannot be read is noted, not raised.

    Parameters
    ----------
    root : Path
    paths : sequence of str, length n
        Relative to `root`.
    workers : int, optional
        Number of processes, by default one for each core; 1 works in this process. The result is always the same.
    """
    chunks = [list(paths[start : start + CHUNK]) for start in range(0, len(paths), CHUNK)]
    done: list[Fingerprints] = []
    with progress_bar("reading images", len(paths)) as bar:
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


def _each_chunk(root: Path, chunks: list[list[str]], workers: int) -> Iterator[Fingerprints]:
    if workers == 1:
        yield from (_fingerprint_chunk(root, chunk) for chunk in chunks)
        return
    # spawn: a fork of a process that has threads (torch, OpenCV) can hang
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(_fingerprint_chunk, [root] * len(chunks), chunks)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fingerprint_chunk(root: Path, paths: list[str]) -> Fingerprints:
    found = _empty(len(paths))
    for row, path in enumerate(paths):
        try:
            content = (root / path).read_bytes()
            found.digest[row] = content_digest(content)
            found.size[row], found.phash[row], found.thumbnail[row] = _fingerprint(content)
        except Exception as error:  # decoders raise nearly anything for damaged files
            found.problem[row] = _reason(error, root / path)
    return found


def _fingerprint(content: bytes) -> tuple[tuple[int, int], int, np.ndarray]:
    """Size, perceptual hash and thumbnail of one file."""
    import imagehash  # takes a second

    with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
        warnings.simplefilter("ignore")  # large images and odd metadata do no harm here
        size = _upright_size(image)
        image.draft(image.mode, (REDUCED, REDUCED))
        image.load()
        grey = ImageOps.exif_transpose(_grey(image))
    small = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    bits = imagehash.phash(grey).hash.ravel()
    return size, int.from_bytes(np.packbits(bits).tobytes(), "big"), np.asarray(small).ravel()


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    turned = image.getexif().get(ORIENTATION, 1) >= 5 and image.format != "TIFF"  # Pillow turns TIFF itself
    return (height, width) if turned else (width, height)


def _grey(image: Image.Image) -> Image.Image:
    """The image in 8-bit grey; deeper ones are scaled to their own range, which `convert` would clip."""
    if not image.mode.startswith(("I", "F")):
        return image.convert("L")
    values = np.asarray(image, np.float64)
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


def _empty(n: int) -> Fingerprints:
    return Fingerprints(
        size=np.zeros((n, 2), np.int32),
        phash=np.zeros(n, np.uint64),
        thumbnail=np.zeros((n, THUMBNAIL**2), np.uint8),
        digest=np.full(n, "", "U20"),
        problem=np.full(n, "", object),
    )
