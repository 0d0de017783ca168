"""From an image file to the pixels that a network sees: cropping to the box, resizing.

Images are uint8 (height, width, 3) arrays in RGB order; sizes are (width, height), as in OpenCV and PIL.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import cv2
import numpy as np

from whaleid.config import ImageConfig
from whaleid.data.decoding import REDUCTIONS, decode
from whaleid.utils.errors import WhaleidError


def crop_box(image: np.ndarray, box: np.ndarray, margin: float) -> np.ndarray:
    """Part of an image inside a box, as a view.

    Parameters
    ----------
    image : array, shape (height, width, ...)
    box : float array, shape (4,)
        x0, y0, x1, y1 in pixels.
    margin : float
        Share of the box's width and height that is added on each side, up to the image's edge.

    Raises
    ------
    WhaleidError
        If the box holds no pixel of the image.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (float(side) for side in box)
    wider, higher = margin * (x1 - x0), margin * (y1 - y0)
    if not (x1 > x0 and y1 > y0):  # also true of NaN
        raise WhaleidError(f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is empty; x0 < x1 and y0 < y1 are needed")
    left, top = max(0, int(np.floor(x0 - wider))), max(0, int(np.floor(y0 - higher)))
    right, bottom = min(width, int(np.ceil(x1 + wider))), min(height, int(np.ceil(y1 + higher)))
    if left >= right or top >= bottom:
        raise WhaleidError(f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) lies outside of its {width} x {height} image")
    return image[top:bottom, left:right]


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image at `size` (width, height), stretched rather than padded, so that every pixel shows the animal.

    A side that shrinks is averaged over areas (no aliasing), a side that grows is interpolated.
    """
    width, height = size
    shrunk = (min(width, image.shape[1]), min(height, image.shape[0]))
    if shrunk != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(image)


def prepare(path: Path, box: np.ndarray, margin: float, size: tuple[int, int]) -> np.ndarray:
    """Decode, crop and resize one file: uint8 (h, w, 3) of `size` (width, height). Errors name the file."""
    reduce = reduction(box, size)
    image = decode(path, reduce)
    try:
        return resize(crop_box(image, np.asarray(box, dtype=float) / reduce, margin), size)
    except WhaleidError as error:
        raise WhaleidError(f"{path}: {error}") from error


def reduction(box: np.ndarray, size: tuple[int, int]) -> int:
    """Largest factor for `decode` that leaves the box at least twice `size` (width, height) on each side."""
    room = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    return max([1, *(factor for factor in REDUCTIONS if room / factor >= 2)])


def input_size(config: ImageConfig, boxes: np.ndarray) -> tuple[int, int]:
    """Width and height of the network's input.

    Parameters
    ----------
    config : ImageConfig
        Fixes width and height, or only their product `pixels`.
    boxes : float array, shape (n, 4)
        x0, y0, x1, y1 in pixels. With `pixels`, their median width / height is the aspect, and the sides are the
        multiples of 32 (of 16 where a side would be under 96) that come closest to both: networks halve their input
        five times.
    """
    if config.width is not None and config.height is not None:
        return config.width, config.height
    budget = config.pixels
    assert budget is not None  # a project gives an experiment without a size that of its network
    aspect = _median_aspect(boxes)
    sides = np.sqrt(budget * aspect), np.sqrt(budget / aspect)
    step = 32 if min(sides) >= 96 else 16
    choices = [sorted({max(1, int(side // step)), int(side // step) + 1}) for side in sides]

    def distance(size: tuple[int, int]) -> float:
        width, height = size
        return abs(np.log(width * height / budget)) + abs(np.log(width / height / aspect))

    return min(((w * step, h * step) for w, h in product(*choices)), key=distance)


def _median_aspect(boxes: np.ndarray) -> float:
    sides = np.asarray(boxes, dtype=float).reshape(-1, 4)
    width, height = sides[:, 2] - sides[:, 0], sides[:, 3] - sides[:, 1]
    usable = (width > 0) & (height > 0)
    if not usable.any():
        raise WhaleidError("image.pixels needs boxes and all are empty; give image.width and image.height")
    return float(np.median(width[usable] / height[usable]))
