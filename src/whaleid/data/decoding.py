"""The one reading of image files: whatever looks at an image, from `whaleid data check` to the kernel, decodes it here.

So an image that the check can read is read by every stage, in the same orientation and size. Images are uint8 (height,
width, 3) arrays in RGB order; sizes are (width, height), as in OpenCV and PIL.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from whaleid.data.masks import GREY
from whaleid.utils.errors import WhaleidError

cv2.setNumThreads(0)  # the work is parallel over images; threads within a small image only cost
Image.MAX_IMAGE_PIXELS = None  # `MOST_PIXELS` is checked instead: drones and scanners pass PIL's 179 megapixels

MOST_PIXELS = 1 << 28
"""Pixels of the largest image: 0.8 GB in memory. Drones' cameras have 200 million; a few bytes can claim any number."""
REDUCTIONS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
DEPTHS = (8, 10, 12, 14, 16)
"""Bits of a camera's pixels. Files store those of 10 to 14 bits in 16, most often without saying so."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation in EXIF or XMP -> what turns the pixels upright. Any other value is 1: they are upright."""
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
_PNG_START, _PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24
_HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def decode(path: Path, reduce: int = 1, behind: int = GREY) -> np.ndarray:
    """Pixels of an image file, turned upright.

    Grey images get three equal channels, deeper pixels become 8 bits, CMYK is converted.

    Parameters
    ----------
    path : Path
    reduce : {1, 2, 4, 8}
        Factor by which both sides get smaller (rounded up). JPEGs are decoded at that size, which saves most of the
        work where they are resized further anyway.
    behind : int
        Grey level that shows through transparent pixels.

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
    try:
        return decode_content(content, lambda _: reduce, behind)[0]
    except ValueError as error:
        raise WhaleidError(f"{path}: {error}; restore the image") from error


def decode_content(
    content: bytes, reduce: Callable[[tuple[int, int]], int], behind: int = GREY
) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels and size of an image file's bytes.

    Parameters
    ----------
    content : bytes
    reduce : callable
        Gives the factor for a size, as in `decode`.
    behind : int
        As in `decode`.

    Returns
    -------
    pixels : uint8 array, shape (height, width, 3)
        RGB, upright, reduced.
    size : (int, int)
        Width and height of the upright image before it was reduced.

    Raises
    ------
    ValueError
        What is wrong with the file, in a few words.
    """
    _refuse_known_faults(content)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, over {MOST_PIXELS:,}: make it smaller")
            decoded = _decode_jpeg(content, image, reduce) if _is_whole_jpeg(content) else None
            return decoded or _decode_loaded(content, image, reduce, behind)
    except UnidentifiedImageError:
        raise ValueError("not an image") from None
    except Exception as error:  # PIL's plugins raise whatever their format's parser stumbles over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError("truncated" if "truncated" in reason else reason) from error


def _refuse_known_faults(content: bytes) -> None:
    if not content:
        raise ValueError("0 bytes")
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF:
        raise ValueError("HEIC: convert it to JPEG")
    if content.startswith(_JPEG_START) and content.find(_JPEG_END, max(0, content.find(_JPEG_SCAN))) < 0:
        raise ValueError("truncated")  # compressed pixels never hold the end marker by chance


def _is_whole_jpeg(content: bytes) -> bool:
    """Whether a file is a JPEG with a proper end.

    OpenCV is faster, but silently fills what is missing of a truncated file with grey; PIL checks as it decodes.
    """
    return content.startswith(_JPEG_START) and content[-64:].rstrip(b"\0\r\n").endswith(_JPEG_END)


def _decode_jpeg(
    content: bytes, image: Image.Image, reduce: Callable[[tuple[int, int]], int]
) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Pixels and size by OpenCV, None where it gives up."""
    turn = TURNS.get(_orientation(image))
    width, height = image.size
    size = (height, width) if _is_quarter(turn) else (width, height)
    flags = REDUCTIONS[reduce(size)] | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    if pixels is None:
        return None
    pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return (pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))), size


def _decode_loaded(
    content: bytes, image: Image.Image, reduce: Callable[[tuple[int, int]], int], behind: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels and size by PIL."""
    image.load()
    turn = None if image.format == "TIFF" else TURNS.get(_orientation(image))  # PIL turns TIFF as it loads
    flat = _opaque(_eight_bits(content, image), behind)
    upright = flat if turn is None else flat.transpose(turn)
    size, factor = upright.size, reduce(upright.size)
    if factor > 1:
        upright = upright.reduce(factor)
    return np.array(upright), size


def _orientation(image: Image.Image) -> Any:
    """Orientation that EXIF says, or else XMP; 1 where what they hold cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # PIL's parser of EXIF raises whatever it stumbles over; the pixels are good
        return 1


def _is_quarter(turn: Image.Transpose | None) -> bool:
    return turn in (TURNS[5], TURNS[6], TURNS[7], TURNS[8])


def _eight_bits(content: bytes, image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel; PIL's own conversion clips deeper grey, and drops the lower bits of colours."""
    if image.mode == "F":
        raise ValueError("floating point pixels have no standard range: convert it to 8 or 16 bits")
    if content.startswith(_PNG_START) and content[_PNG_DEPTH] == 16:
        pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ValueError("not a readable PNG")
        order = [2, 1, 0, 3]  # of blue, green, red, alpha
        return Image.fromarray(_scaled(pixels if pixels.ndim == 2 else pixels[..., order[: pixels.shape[2]]]))
    if image.mode.startswith("I"):
        return Image.fromarray(_scaled(np.asarray(image)))
    return image


def _scaled(pixels: np.ndarray) -> np.ndarray:
    """Integer pixels as uint8, the least depth of `DEPTHS` that holds them all as the full range."""
    pixels = np.maximum(pixels, 0)
    most = int(pixels.max()).bit_length()
    bits = next((depth for depth in DEPTHS if depth >= most), most)
    return (pixels >> (bits - 8)).astype(np.uint8)


def _opaque(image: Image.Image, behind: int) -> Image.Image:
    """The image in RGB, with grey where it is transparent: what a cut-out hides does not come back."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (behind, behind, behind, 255)), image).convert("RGB")
