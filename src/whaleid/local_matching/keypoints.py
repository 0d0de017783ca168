"""Keypoints of all images: detection, and the folder on disk.

A flank or a fluke is recognised by its marks. A detector (`registry.py`) finds the strongest keypoints of an image and
describes each.

The folder holds `descriptors.npy` uint8 (N, length); `points.npy` float32 (N, 4): x, y and size in pixels of the image
as described, direction in degrees; `offsets.npy` int64 (n + 1): image i has the descriptors offsets[i] to
offsets[i + 1], strongest first; and `rows.csv` (`image`, as images.parquet).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import LocalConfig
from whaleid.config.settings import read_settings
from whaleid.data.decoding import decode
from whaleid.data.images import crop_box, reduction, resize
from whaleid.data.masks import Mask, read_mask, resize_mask
from whaleid.local_matching.detectors import Detector, Found, detector_of
from whaleid.local_matching.registry import DETECTORS, detector_entry
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, load_array, require_space
from whaleid.utils.machine import cores
from whaleid.utils.progress import progress_bar

_NAMED = 10  # broken images named in an error
_CHUNK = 1 << 15  # descriptors in memory at a time
_LEAST = 64  # an image counts as at least this many descriptors, which bounds the table of a query's votes


def describe(
    path: Path, box: np.ndarray, config: LocalConfig, mask: Mask | None = None, detector: Detector | None = None
) -> Found:
    """Keypoints of an image inside its box, scaled so that the longer side is `config.size`.

    Parameters
    ----------
    path : Path
        Named in errors.
    box : array, shape (4,)
        x0, y0, x1, y1 in pixels of the image.
    config : LocalConfig
    mask : Mask or None
        Keypoints outside of its white are left out.
    detector : Detector or None
        None: the recipe's, with weights of WEIGHTS_DIR; for many images, make it once.

    Returns
    -------
    uint8 array, shape (n, length), and float32 array, shape (n, 4)
        As `detectors.Found`.
    """
    detector = detector or detector_of(config, read_settings().weights)
    size = described_size(box, config.size)
    reduce = reduction(box, size)
    image = decode(path, reduce)
    inside = np.asarray(box, dtype=float) / reduce
    try:
        cropped = crop_box(image, inside, 0.0)
    except WhaleidError as error:
        raise WhaleidError(f"{path}: {error}") from error
    white = None
    if mask is not None:  # the very pixels that are described
        whole = resize_mask(read_mask(mask), (image.shape[1], image.shape[0]))
        white = resize_mask(crop_box(whole, inside, 0.0), size)
    return detector(resize(cropped, size), config.keypoints, white)


def frames_of(images: pd.DataFrame, longest: int) -> np.ndarray:
    """Width and height of every image as described, float64 (n, 2). images: images.parquet."""
    boxes = images[["x0", "y0", "x1", "y1"]].to_numpy(dtype=float)
    return np.array([described_size(box, longest) for box in boxes], dtype=float).reshape(-1, 2)


def described_size(box: np.ndarray, longest: int) -> tuple[int, int]:
    """Width and height of an image as described: those of the box, scaled so that the longer side is `longest`."""
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    factor = longest / max(width, height, 1.0)
    return max(1, round(width * factor)), max(1, round(height * factor))


def local_name(config: LocalConfig) -> str:
    """Name of the folder of keypoints, shared by recipes of one detector, size and number of keypoints.

    256-500 for RootSIFT, aliked-256-500 for others.
    """
    kind = [] if config.features == "rootsift" else [config.features]
    return "-".join([*kind, str(config.size), str(config.keypoints)])


def describe_images(
    images: pd.DataFrame,
    root: Path,
    out: Path,
    config: LocalConfig,
    workers: int | None = None,
    masks: list[Mask] | None = None,
    weights: Path | None = None,
) -> None:
    """Write the keypoints of all images to the folder `out`.

    Parameters
    ----------
    images : DataFrame
        images.parquet; `path` is relative to `root`.
    root : Path
    out : Path
    config : LocalConfig
    workers : int or None
        Threads, default: as many as cores.
    masks : list of Mask or None
        One for each image.
    weights : Path or None
        Folder of a network's weights, default WEIGHTS_DIR.

    Raises
    ------
    WhaleidError
        For broken images and masks: their number, and the first ones.
    """
    detector, length = detector_of(config, weights or read_settings().weights), detector_entry(config.features).length
    most = len(images) * config.keypoints
    require_space(out.parent, most * (length + 16), "the keypoints' descriptors")
    boxes = images[["x0", "y0", "x1", "y1"]].to_numpy(dtype=float)
    paths = [root / path for path in images["path"]]
    jobs = list(zip(paths, boxes, masks or [None] * len(paths), strict=True))
    counts, broken = [0], []
    with atomic_path(out) as folder, progress_bar("keypoints", len(jobs), images=True) as bar:
        folder.mkdir()
        with (
            _Growing(folder / "descriptors.npy", np.uint8, length) as kept,
            _Growing(folder / "points.npy", np.float32, 4) as places,
        ):
            for found in _described(jobs, config, detector, workers or cores()):
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
    jobs: list[tuple[Path, np.ndarray, Mask | None]], config: LocalConfig, detector: Detector, workers: int
) -> Iterator[Found | str]:
    """Keypoints of each image in turn, or what is wrong with it; only few wait in memory."""

    def one(path: Path, box: np.ndarray, mask: Mask | None) -> Found | str:
        try:
            return describe(path, box, config, mask, detector)
        except WhaleidError as error:
            return str(error)

    waiting: deque[Future[Found | str]] = deque()
    with ThreadPoolExecutor(workers) as pool:  # OpenCV lets other threads run while it works
        for job in jobs:
            waiting.append(pool.submit(one, *job))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Growing:
    """An .npy file that rows of one width are appended to; the header has room for their number, written last."""

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


@dataclass(frozen=True)
class Described:
    """Keypoints of all images, in the order of images.parquet.

    Attributes
    ----------
    vectors : uint8 array, shape (N, length)
        Descriptors, on disk.
    offsets : int64 array, shape (n + 1,)
        Where each image's descriptors begin, and the last image's end.
    points : float32 array, shape (N, 4), or None
        x, y, size, direction (`detectors.Found`), on disk; None: votes need none.
    unit : float
        Length of a unit descriptor as stored (`registry.DetectorEntry`).
    """

    vectors: np.ndarray
    offsets: np.ndarray
    points: np.ndarray | None = None
    unit: float = DETECTORS["rootsift"].unit

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """How many descriptors each of these images has, int64."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Rows of `vectors` that hold these images' descriptors, one image after the other, int64."""
        counts = self.counts(rows)
        first = np.repeat(self.offsets[rows] - (np.cumsum(counts) - counts), counts)
        return first + np.arange(len(first))

    def image_of(self, places: np.ndarray) -> np.ndarray:
        """The image that each of these rows of `vectors` belongs to, int64, of any shape."""
        return np.searchsorted(self.offsets, places, "right") - 1

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Descriptors float32 (m, length) of these images, in that order, and the place in `rows` of each, int64."""
        owner = np.repeat(np.arange(len(rows)), self.counts(rows))
        return self.vectors[self.places(rows)].astype(np.float32), owner

    def image(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """One image's descriptors float32 (n, length), as stored, and points float32 (n, 4)."""
        if self.points is None:
            raise WhaleidError("local matching: the descriptors' folder has no points.npy; remove it and run again")
        own = slice(self.offsets[row], self.offsets[row + 1])
        return self.vectors[own].astype(np.float32), np.asarray(self.points[own])


def described_together(found: list[Found], features: str = "rootsift") -> Described:
    """Keypoints of a few images from `describe`, in memory: image i is found[i]. features: their detector."""
    kind, counts = detector_entry(features), [len(vectors) for vectors, _ in found]
    vectors = np.concatenate([np.empty((0, kind.length), np.uint8), *(vectors for vectors, _ in found)])
    points = np.concatenate([np.empty((0, 4), np.float32), *(points for _, points in found)])
    return Described(vectors, np.cumsum([0, *counts], dtype=np.int64), points, kind.unit)


def read_described(folder: Path, images: pd.DataFrame, features: str = "rootsift") -> Described:
    """Read a folder of keypoints. Raises WhaleidError where it is not of these images, in this order and detector."""
    kind = detector_entry(features)
    try:
        vectors = load_array(folder / "descriptors.npy")
        offsets = np.array(load_array(folder / "offsets.npy"))
        points = None
        if (folder / "points.npy").exists():
            points = load_array(folder / "points.npy")
        names = pd.read_csv(folder / "rows.csv", dtype=str, keep_default_na=False)["image"]
    except (OSError, ValueError, KeyError) as error:
        raise WhaleidError(
            f"{folder}: no readable descriptors here ({error}); remove the folder and run again"
        ) from error
    fits = (
        offsets.shape == (len(names) + 1,) and vectors.dtype == np.uint8 and vectors.shape == (offsets[-1], kind.length)
    )
    fits = fits and (points is None or points.shape == (offsets[-1], 4))
    if not fits or not np.array_equal(names.to_numpy(), images["image"].to_numpy().astype(str)):
        raise WhaleidError(f"{folder}: not the descriptors of these images; remove the folder and run again")
    return Described(vectors, offsets, points, kind.unit)


def chunks(counts: np.ndarray) -> list[slice]:
    """Slices of consecutive images that together have about `_CHUNK` descriptors. counts: int64, of each image."""
    cost = np.maximum(counts, _LEAST)
    starts = np.flatnonzero(np.diff((np.cumsum(cost) - cost) // _CHUNK, prepend=-1)).tolist()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True)]
