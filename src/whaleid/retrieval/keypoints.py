"""What an image looks like in many small places: RootSIFT descriptors of its strongest keypoints, and on disk.

A flank or a fluke is told by its marks, not by its outline. SIFT (Lowe, "Distinctive image features from
scale-invariant keypoints", 2004) describes the gradients around a mark so that turning and scaling the picture
change little; RootSIFT (Arandjelovic and Zisserman, "Three things everyone should know to improve object
retrieval", 2012) takes the square root of each descriptor's shares, so that Euclidean distance between two
becomes Hellinger's, which a few large gradients do not rule.

The folder holds `descriptors.npy` uint8 (N, 128), `points.npy` float32 (N, 4): x, y and size in pixels of
the picture as described, direction in degrees; `offsets.npy` int64 (n + 1): image i has the descriptors offsets[i]
to offsets[i + 1], strongest first; and `rows.csv` (`image`, as images.parquet).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from whaleid.config import LocalConfig
from whaleid.data.images import crop_box, decode, reduction, resize
from whaleid.errors import WhaleidError
from whaleid.progress import progress_bar
from whaleid.workspace import atomic_path, require_space

LENGTH = 128
"""Numbers in a descriptor: 4 x 4 cells of 8 directions."""
UNIT = 512.0
"""A descriptor of length 1 is stored in steps of 1 / 512; its largest number is hardly ever above 255 / 512."""
_CONTRAST = 0.01  # a quarter of OpenCV's own: dull pictures get their keypoints too, and the strongest are kept
_NAMED = 10  # broken images named in an error


# ------------------------------------------------------------------------------------------------- one image


def describe(path: Path, box: np.ndarray, config: LocalConfig) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of the part of a picture inside its box, whose longer side is shrunk to `config.size`.

    box: x0, y0, x1, y1 in pixels of the picture.
    Returns descriptors uint8 (n, 128) and points float32 (n, 4), as `root_sift`. Errors name the file.
    """
    size = described_size(box, config.size)
    reduce = reduction(box, size)
    image = decode(path, reduce)
    try:
        cropped = crop_box(image, np.asarray(box, dtype=float) / reduce, 0.0)
    except WhaleidError as error:
        raise WhaleidError(f"{path}: {error}") from error
    return root_sift(cv2.cvtColor(resize(cropped, size), cv2.COLOR_RGB2GRAY), config.keypoints)


def described_size(box: np.ndarray, longest: int) -> tuple[int, int]:
    """Width and height of the picture that is described: the box's, its longer side shrunk to `longest`."""
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    factor = min(1.0, longest / max(width, height, 1.0))
    return max(1, round(width * factor)), max(1, round(height * factor))


def root_sift(grey: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """RootSIFT of the strongest keypoints of a grey picture.

    grey: uint8 (h, w). most: keypoints kept at the most; a place with two directions is two keypoints.
    Returns descriptors uint8 (n, 128), see `rooted`, and points float32 (n, 4): x, y and size in pixels of
    `grey`, direction in degrees [0, 360); strongest first, n <= most, and 0 where nothing stands out.
    """
    found, descriptors = cv2.SIFT.create(nfeatures=most, contrastThreshold=_CONTRAST).detectAndCompute(grey, None)
    if descriptors is None:
        return np.empty((0, LENGTH), np.uint8), np.empty((0, 4), np.float32)
    strength = np.array([keypoint.response for keypoint in found])
    order = np.argsort(-strength, kind="stable")[:most]  # OpenCV keeps all of those as strong as the last one
    points = np.array([(*one.pt, one.size, one.angle % 360) for one in found], dtype=np.float32)
    return rooted(descriptors[order]), points[order]


def rooted(descriptors: np.ndarray) -> np.ndarray:
    """SIFT as RootSIFT: each number as its share of the sum, its square root, in steps of 1 / 512.

    descriptors: float (n, 128), >= 0. Returns uint8 (n, 128).
    """
    total = np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12)
    return np.minimum(np.rint(UNIT * np.sqrt(descriptors / total)), 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------- the stage


def local_name(config: LocalConfig) -> str:
    """Name of the descriptors' folder: recipes of one size and number of keypoints share it. 256-500"""
    return f"{config.size}-{config.keypoints}"


def describe_images(
    images: pd.DataFrame, root: Path, out: Path, config: LocalConfig, workers: int | None = None
) -> None:
    """Write the descriptors of all `images` to the folder `out`.

    images: images.parquet; `path` is relative to `root`. workers: threads, default: as many as cores.
    Raises WhaleidError for broken images (all of them counted, the first named, in one line).
    """
    most = len(images) * config.keypoints
    require_space(out.parent, most * (LENGTH + 16), "the keypoints' descriptors")
    boxes = images[["x0", "y0", "x1", "y1"]].to_numpy(dtype=float)
    jobs = [(root / path, box) for path, box in zip(images["path"], boxes, strict=True)]
    counts, broken = [0], []
    with atomic_path(out) as folder, progress_bar("keypoints", len(jobs)) as bar:
        folder.mkdir()
        with (
            _Growing(folder / "descriptors.npy", np.uint8, LENGTH) as kept,
            _Growing(folder / "points.npy", np.float32, 4) as places,
        ):
            for found in _described(jobs, config, workers or os.cpu_count() or 1):
                if isinstance(found, str):
                    broken.append(found)
                elif not broken:
                    kept.append(found[0])
                    places.append(found[1])
                    counts.append(len(found[0]))
                bar.advance()
        if broken:
            more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
            raise WhaleidError(
                f"{len(broken)} of {len(jobs)} images cannot be used: {'; '.join(broken[:_NAMED])}{more}"
            )
        np.save(folder / "offsets.npy", np.cumsum(counts, dtype=np.int64))
        images[["image"]].to_csv(folder / "rows.csv", index=False)


def _described(
    jobs: list[tuple[Path, np.ndarray]], config: LocalConfig, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray] | str]:
    """Descriptors and points of each image in turn, or what is wrong with it; few of them wait in memory."""

    def one(path: Path, box: np.ndarray) -> tuple[np.ndarray, np.ndarray] | str:
        try:
            return describe(path, box, config)
        except WhaleidError as error:
            return str(error)

    waiting: deque[Future[tuple[np.ndarray, np.ndarray] | str]] = deque()
    with ThreadPoolExecutor(workers) as pool:  # OpenCV lets other threads run while it works
        for path, box in jobs:
            waiting.append(pool.submit(one, path, box))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Growing:
    """A .npy of rows of one width, appended to; its header, which leaves room for the count, is written last."""

    def __init__(self, path: Path, kind: type, width: int):
        self._path, self._kind, self._width, self._rows = path, np.dtype(kind), width, 0

    def __enter__(self) -> _Growing:
        self._file = self._path.open("w+b")
        self._header()
        return self

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, dtype=self._kind).tobytes())
        self._rows += len(rows)

    def _header(self) -> None:
        about = {"descr": self._kind.str, "fortran_order": False, "shape": (self._rows, self._width)}
        np.lib.format.write_array_header_1_0(self._file, about)

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()


# ---------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Described:
    """Descriptors of all images, in the order of images.parquet.

    vectors: uint8 (N, 128), on disk. offsets: int64 (n + 1,): where each image's begin, and the last ones end.
    points: float32 (N, 4), on disk: x, y, size, direction (`root_sift`); None: not known, votes need none.
    """

    vectors: np.ndarray
    offsets: np.ndarray
    points: np.ndarray | None = None

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """How many descriptors each of these images has, int64."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Rows of `vectors` that hold these images' descriptors, one image after the other, int64."""
        counts = self.counts(rows)
        first = np.repeat(self.offsets[rows] - (np.cumsum(counts) - counts), counts)
        return first + np.arange(len(first))

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Descriptors float32 (m, 128) of these images, in that order, and int64 (m,): the place in `rows` of each."""
        owner = np.repeat(np.arange(len(rows)), self.counts(rows))
        return self.vectors[self.places(rows)].astype(np.float32), owner

    def image(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """One image's descriptors float32 (n, 128) and points float32 (n, 4)."""
        if self.points is None:
            raise WhaleidError("local matching: the descriptors' folder has no points.npy; remove it and run again")
        own = slice(self.offsets[row], self.offsets[row + 1])
        return self.vectors[own].astype(np.float32), np.asarray(self.points[own])


def described_together(found: list[tuple[np.ndarray, np.ndarray]]) -> Described:
    """A few images' descriptors and points, as `describe` gives them, as one in memory: row i is found[i]."""
    counts = [len(vectors) for vectors, _ in found]
    vectors = np.concatenate([np.empty((0, LENGTH), np.uint8), *(vectors for vectors, _ in found)])
    points = np.concatenate([np.empty((0, 4), np.float32), *(points for _, points in found)])
    return Described(vectors, np.cumsum([0, *counts], dtype=np.int64), points)


def read_described(folder: Path, images: pd.DataFrame) -> Described:
    """The descriptors in `folder`, which must be those of these images in this order."""
    try:
        vectors = np.load(folder / "descriptors.npy", mmap_mode="r", allow_pickle=False)
        offsets = np.load(folder / "offsets.npy", allow_pickle=False)
        points = None
        if (folder / "points.npy").exists():
            points = np.load(folder / "points.npy", mmap_mode="r", allow_pickle=False)
        names = pd.read_csv(folder / "rows.csv", dtype=str, keep_default_na=False)["image"]
    except (OSError, ValueError, KeyError) as error:
        raise WhaleidError(
            f"{folder}: no readable descriptors here ({error}); remove the folder and run again"
        ) from error
    fits = len(offsets) == len(names) + 1 and vectors.dtype == np.uint8 and vectors.shape == (offsets[-1], LENGTH)
    fits = fits and (points is None or points.shape == (offsets[-1], 4))
    if not fits or not np.array_equal(names.to_numpy(), images["image"].to_numpy().astype(str)):
        raise WhaleidError(f"{folder}: not the descriptors of these images; remove the folder and run again")
    return Described(vectors, offsets, points)
