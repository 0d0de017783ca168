"""What the detectors that are networks share: devices, the mask, the strongest keypoints.

A network gives every local maximum of its score map: the strongest are chosen after the mask, and dull images get
keypoints too, as with RootSIFT. It gives keypoints no size and no direction: SIZE and DIRECTION are stored for all.
Comparisons of sizes and directions then always agree, and the learned match score finds nothing in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch.nn import functional

from whaleid.local_matching.detectors import Detector, Found, signed_bytes
from whaleid.utils.device import device_kind

SIZE, DIRECTION = 1.0, 0.0
"""Pixels and degrees, of every keypoint."""


@dataclass(frozen=True)
class Maxima:
    """All keypoints of one image.

    Attributes
    ----------
    places : float tensor, shape (n, 2)
        x and y in pixels of the image.
    scores : float tensor, shape (n,)
        Larger is stronger.
    describe : callable
        From rows, an int64 tensor (m,), to their unit descriptors, float (m, length).
    """

    places: torch.Tensor
    scores: torch.Tensor
    describe: Callable[[torch.Tensor], torch.Tensor]


def network_detector(
    network: torch.nn.Module, maxima_of: Callable[[torch.Tensor], Maxima], length: int, device: str | None = None
) -> Detector:
    """The detector of a network.

    Parameters
    ----------
    network : torch module
        Moved to the device.
    maxima_of : callable
        From one image, float (1, 3, h, w) in [0, 1] on the device, to its keypoints.
    length : int
        Numbers in a descriptor.
    device : str, optional
        torch's name; None: the GPU if there is one. Threads take turns: one image fills the GPU or the cores.
    """
    place, turn = torch.device(device or device_kind()), Lock()
    network.to(place)

    def detect(image: np.ndarray, most: int, white: np.ndarray | None = None) -> Found:
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(place).permute(2, 0, 1)[None].float() / 255
        with turn, torch.inference_mode():
            return _strongest(maxima_of(pixels), length, most, white)

    return detect


def no_maxima(pixels: torch.Tensor, length: int) -> Maxima:
    """Of an image that is too small for a network."""
    return Maxima(pixels.new_empty(0, 2), pixels.new_empty(0), lambda rows: pixels.new_empty(len(rows), length))


def inside(maxima: Maxima, height: int, width: int) -> Maxima:
    """The keypoints that are not in the margin of `padded`."""
    column, row = maxima.places.unbind(dim=1)
    kept = torch.nonzero((column <= width - 1) & (row <= height - 1))[:, 0]
    return Maxima(maxima.places[kept], maxima.scores[kept], lambda rows: maxima.describe(kept[rows]))


def padded(pixels: torch.Tensor, multiple: int) -> torch.Tensor:
    """An image (1, 3, h, w) whose last row and column are repeated until both sides are multiples."""
    height, width = pixels.shape[2:]
    return functional.pad(pixels, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def _strongest(maxima: Maxima, length: int, most: int, white: np.ndarray | None) -> Found:
    """As `detectors.Detector`."""
    places = maxima.places.float().cpu().numpy()
    order = np.argsort(-maxima.scores.float().cpu().numpy(), kind="stable")
    if white is not None:
        column, row = np.rint(places[order]).astype(int).T
        order = order[white[row, column] != 0]
    kept = order[:most]
    if not len(kept):
        return np.empty((0, length), np.uint8), np.empty((0, 4), np.float32)
    descriptors = maxima.describe(torch.from_numpy(kept).to(maxima.places.device)).float().cpu().numpy()
    points = np.empty((len(kept), 4), np.float32)
    points[:, :2], points[:, 2], points[:, 3] = places[kept], SIZE, DIRECTION
    return signed_bytes(descriptors), points
