"""Masks: for each picture one of the same size that is white where the animal is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.digests import file_digests
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest

WHITE = 128
"""Values from here on are white: edges may be smoothed."""


@dataclass(frozen=True)
class Mask:
    """Where a picture's mask is, and the picture's size (width, height) in pixels as seen, which must be its own."""

    path: Path
    size: tuple[int, int]


def masks_of(competition: Competition, images: pd.DataFrame) -> list[Mask] | None:
    """The mask of each image; None where the competition has none.

    images: rows of images.parquet. The mask of `x/a.jpg` in a table's folder is `x/a.png` in the folder of masks.
    Nothing is opened: `read_mask` says what is missing.
    """
    if competition.masks is None:
        return None
    folder = _folder(competition)
    places = zip(images["split"], images["path"], images["width"], images["height"], strict=True)
    return [
        Mask(folder / mask_name(competition, split, path), (int(width), int(height)))
        for split, path, width, height in places
    ]


def mask_name(competition: Competition, split: str, path: str) -> str:
    """Name of an image's mask in the folder of masks. path: of the image, relative to the root."""
    table = competition.train if split == "train" or competition.test is None else competition.test
    of, own = PurePosixPath(os.path.normpath(table.images).replace(os.sep, "/")), PurePosixPath(path)
    return (own.relative_to(of) if own.is_relative_to(of) else own).with_suffix(".png").as_posix()


def masks_key(competition: Competition, digests: Path | None = None) -> str:
    """Short key of the names and contents of all masks; empty where the competition has none.

    digests: table of known digests (`file_digests`).
    """
    if competition.masks is None:
        return ""
    folder = _folder(competition)
    paths = sorted(folder.rglob("*.png"))
    names = [path.relative_to(folder).as_posix() for path in paths]
    return digest("masks", list(zip(names, file_digests(paths, digests), strict=True)))


def read_mask(mask: Mask) -> np.ndarray:
    """The mask as uint8 (h, w), 255 where the animal is, else 0. Errors name the file.

    Raises WhaleidError where it is missing, unreadable, of another size than its picture, or has grey but no white.
    """
    from whaleid.data.images import decode

    if not mask.path.is_file():
        raise WhaleidError(
            f"{mask.path}: mask not found; every image needs one: draw it (white = animal) or set masks to null"
        )
    grey = decode(mask.path).max(axis=2)
    size = grey.shape[1], grey.shape[0]
    if size != mask.size:
        raise WhaleidError(
            f"{mask.path}: the mask is {size[0]} x {size[1]} pixels, its picture {mask.size[0]} x {mask.size[1]}; "
            "bring it to the picture's size"
        )
    if 0 < grey.max() < WHITE:
        raise WhaleidError(f"{mask.path}: its brightest pixel is {grey.max()} of 255; white (255) marks the animal")
    return np.where(grey >= WHITE, 255, 0).astype(np.uint8)


def mask_problem(mask: Mask) -> str:
    """What is wrong with a mask, in one line; empty where it can be used."""
    try:
        read_mask(mask)
    except WhaleidError as error:
        return str(error)
    return ""


def brought_to(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (or a part of one) at another size (width, height), uint8 (h, w), 255 or 0: what is mostly white."""
    if (mask.shape[1], mask.shape[0]) == size:
        return mask
    import cv2

    shrinks = size[0] <= mask.shape[1] and size[1] <= mask.shape[0]
    moved = cv2.resize(mask, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.where(moved >= WHITE, 255, 0).astype(np.uint8)


def _folder(competition: Competition) -> Path:
    folder = competition.root / str(competition.masks)
    if not folder.is_dir():
        raise WhaleidError(
            f"{folder}: folder of masks not found; put it there or set masks to null in '{competition.name}'"
        )
    return folder
