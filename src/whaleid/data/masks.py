"""Masks: for each image one of the same size that is white where the animal is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.digests import file_digests
from whaleid.data.listing import image_files, image_path, read_listed
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest

WHITE = 128
"""Least grey level that counts as white, so that edges may be smoothed."""
GREY = 128
"""Level of all channels of what is taken out of an image: the middle, near every network's mean."""


@dataclass(frozen=True)
class Mask:
    """File of a mask, and the size (width, height) of its upright image, which it must have, too."""

    path: Path
    size: tuple[int, int]


def masks_of(competition: Competition, images: pd.DataFrame) -> list[Mask] | None:
    """Mask of each image of an images table, None where the competition has none. No file is opened.

    The mask of `x/a.jpg` in a table's folder of images is `x/a.png` in the folder of masks.
    """
    if competition.masks is None:
        return None
    folder = _folder(competition)
    columns = zip(images["split"], images["path"], images["width"], images["height"], strict=True)
    return [
        Mask(folder / mask_name(competition, split, path), (int(width), int(height)))
        for split, path, width, height in columns
    ]


def mask_name(competition: Competition, split: str, path: str) -> str:
    """Path of an image's mask within the folder of masks. path: of the image, relative to the root."""
    table = competition.train if split == "train" or competition.test is None else competition.test
    folder, image = PurePosixPath(os.path.normpath(table.images).replace(os.sep, "/")), PurePosixPath(path)
    return (image.relative_to(folder) if image.is_relative_to(folder) else image).with_suffix(".png").as_posix()


def masks_key(competition: Competition, digests: Path | None = None) -> str:
    """Short key of the names and contents of all masks; '' where the competition has none.

    digests: table of known digests (`file_digests`).
    """
    if competition.masks is None:
        return ""
    folder = _folder(competition)
    paths = sorted(folder.rglob("*.png"))
    names = [path.relative_to(folder).as_posix() for path in paths]
    return digest("masks", list(zip(names, file_digests(paths, digests), strict=True)))


def labelled_masks_key(competition: Competition, digests: Path | None = None) -> str:
    """As `masks_key`, of the labelled images' masks alone, on which runs that remove the background depend."""
    table, folder = competition.train, _folder(competition)
    files = image_files(competition.root, table, read_listed(competition.root, table))
    names = sorted({mask_name(competition, "train", image_path(table, file)) for file in files})
    names = [name for name in names if (folder / name).is_file()]  # the cache says which are missing
    contents = file_digests([folder / name for name in names], digests)
    return digest("labelled masks", list(zip(names, contents, strict=True)))


def read_mask(mask: Mask) -> np.ndarray:
    """Pixels of a mask.

    Returns
    -------
    uint8 array, shape (height, width)
        255 where the animal is, else 0.

    Raises
    ------
    WhaleidError
        If it is missing, unreadable, of another size than its image, or has grey but no white pixels.
    """
    white = read_mask_file(mask.path)
    size = white.shape[1], white.shape[0]
    if size != mask.size:
        raise WhaleidError(
            f"{mask.path}: the mask is {size[0]} x {size[1]} pixels, its image {mask.size[0]} x {mask.size[1]}; "
            "resize it to the image's size"
        )
    return white


def read_mask_file(path: Path) -> np.ndarray:
    """Pixels of a mask of any size, as `read_mask`."""
    from whaleid.data.decoding import decode

    if not path.is_file():
        raise WhaleidError(
            f"{path}: mask not found; every image needs one: add it (white = animal), let `whaleid masks` make it, or "
            "set masks to null"
        )
    grey = decode(path, behind=0).max(axis=2)
    if 0 < grey.max() < WHITE:
        raise WhaleidError(f"{path}: its brightest pixel is {grey.max()} of 255; white (255) marks the animal")
    return np.where(grey >= WHITE, 255, 0).astype(np.uint8)


def mask_problem(mask: Mask) -> str:
    """What is wrong with a mask, in one line; '' for a good one."""
    try:
        read_mask(mask)
    except WhaleidError as error:
        return str(error)
    return ""


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask, or a part of one, at another size (width, height): 255 where it is mostly white, else 0."""
    if (mask.shape[1], mask.shape[0]) == size:
        return mask
    import cv2

    shrinks = size[0] <= mask.shape[1] and size[1] <= mask.shape[0]
    resized = cv2.resize(mask, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.where(resized >= WHITE, 255, 0).astype(np.uint8)


def prepare_mask(mask: Mask, box: np.ndarray, margin: float, size: tuple[int, int]) -> np.ndarray:
    """The part of a mask that `images.prepare` shows of its image: uint8 (h, w) of `size` (width, height), 255 or 0."""
    from whaleid.data.images import crop_box

    return resize_mask(crop_box(read_mask(mask), box, margin), size)


def take_out(image: np.ndarray, out: np.ndarray) -> np.ndarray:
    """A copy of an image, uint8 (h, w, 3), that is GREY where `out`, bool (h, w), is true."""
    return np.where(out[..., None], np.uint8(GREY), image)


def _folder(competition: Competition) -> Path:
    folder = competition.root / str(competition.masks)
    if not folder.is_dir():
        raise WhaleidError(
            f"{folder}: folder of masks not found; put it there or set masks to null in '{competition.name}'"
        )
    return folder
