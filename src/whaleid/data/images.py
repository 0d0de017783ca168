"""From an image file to the pixels that a network sees: decoding, cropping to the box, resizing.

Images are uint8 (height, width, 3) arrays in RGB order; sizes are (width, height), as in OpenCV and PIL.
"""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from whaleid.config import ImageConfig
from whaleid.utils.errors import WhaleidError

cv2.setNumThreads(0)  # the work is parallel over images; threads within a small image only cost

REDUCTIONS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def decode(path: Path, reduce: int = 1) -> np.ndarray:
    """Pixels of an image file, turned upright as its EXIF orientation says.

    Grey images get three equal channels, 16 bits become 8, transparency is dropped, CMYK is converted.

    Parameters
    ----------
    path : Path
    reduce : {1, 2, 4, 8}
        Factor by which both sides get smaller (rounded up). JPEGs are decoded at that size, which saves most of the
        work where they are resized further anyway.

    Returns
    -------
    uint8 array, shape (height, width, 3)
        RGB.

    Raises
    ------
    WhaleidError
        If the file cannot be read, is empty, truncated, or not an image.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WhaleidError(f"{path}: cannot be read ({error.strerror}); restore the image") from error
    if not content:
        raise WhaleidError(f"{path}: empty file (0 bytes); restore the image")
    complete = _is_complete(content)
    if not complete and content.startswith(_JPEG_START) and _lacks_end(content):
        raise WhaleidError(f"{path}: truncated JPEG ({len(content)} bytes, no end marker); restore the image")
    image = _decode_opencv(content, reduce) if complete else None
    return _decode_pil(path, content, reduce) if image is None else image


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


def _lacks_end(content: bytes) -> bool:
    """Whether a JPEG certainly lacks its end: compressed pixels never hold the end marker by chance."""
    return content.find(_JPEG_END, max(0, content.find(_JPEG_SCAN))) < 0


def _is_complete(content: bytes) -> bool:
    """Whether OpenCV certainly decodes a file to its end.

    OpenCV 4 silently fills what is missing of a truncated file with grey; so files without a proper end (and all
    rarer formats) are left to PIL, which checks as it decodes.
    """
    end = content[-64:].rstrip(b"\0\r\n")
    return (content.startswith(_JPEG_START) and end.endswith(_JPEG_END)) or (
        content.startswith(_PNG_START) and end.endswith(_PNG_END)
    )


def _decode_opencv(content: bytes, reduce: int) -> np.ndarray | None:
    image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), REDUCTIONS[reduce])
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_pil(path: Path, content: bytes, reduce: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            pixels = _eight_bits(ImageOps.exif_transpose(image))
    except Exception as error:  # PIL's plugins raise whatever their format's parser stumbles over
        reason = " ".join(str(error).split())
        raise WhaleidError(f"{path}: not a readable image ({type(error).__name__}: {reason}); restore it") from error
    if reduce == 1:
        return pixels
    height, width = pixels.shape[:2]
    return resize(pixels, (-(-width // reduce), -(-height // reduce)))


def _eight_bits(image: Image.Image) -> np.ndarray:
    """RGB pixels; PIL's own conversion would clip 16 bits to white instead of scaling them."""
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating point pixels have no standard range")
    return np.array(image.convert("RGB"))
