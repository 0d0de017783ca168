"""ALIKED: keypoints and descriptors by a network.

Zhao et al., "ALIKED: a lighter keypoint and descriptor extraction network via deformable transformation", 2023;
kornia's network with the authors' weights (aliked-n16). An image of 256 x 128 pixels takes 70 ms on one core, five
times as long as RootSIFT.

The network gives keypoints no size and no direction: SIZE and DIRECTION are stored for all. Comparisons of sizes and
directions then always agree, and the learned match score finds nothing in them.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import numpy as np
import torch
from kornia.feature import ALIKED

from whaleid.local_matching import weights as published
from whaleid.local_matching.detectors import Detector, Found, signed_bytes
from whaleid.utils.device import device_kind

NETWORK = "aliked-n16"
SIZE, DIRECTION = 1.0, 0.0
"""Pixels and degrees, of every keypoint."""
_SMALLEST = 5  # pixels: a keypoint is the maximum of a window of 5 x 5, at least 2 pixels from the edge
_LENGTH = 128
_ALL = 1 << 24  # more than any image has maxima


def aliked_network() -> ALIKED:
    """The network without weights. It returns every maximum of its score: the strongest are chosen after the mask, and
    dull images get keypoints too, as with RootSIFT.
    """
    return ALIKED(NETWORK, max_num_keypoints=_ALL, detection_threshold=0.0)


def make_detector(weights: Path) -> Detector:
    """The detector of RGB images. Raises WhaleidError where its weights are not in the folder `weights`."""
    return aliked_detector(published.find_published(published.ALIKED, weights))


def aliked_detector(weights: Path, device: str | None = None) -> Detector:
    """The detector with the weights of a file.

    device: torch's name; None: the GPU if there is one. Threads take turns: one image fills the GPU or the cores.
    """
    place = torch.device(device or device_kind())
    network, turn = published.load_published(aliked_network(), weights).to(place), Lock()
    assert isinstance(network, ALIKED)

    def detect(image: np.ndarray, most: int, white: np.ndarray | None = None) -> Found:
        with turn, torch.inference_mode():
            return _detect(network, place, image, most, white)

    return detect


def _detect(network: ALIKED, device: torch.device, image: np.ndarray, most: int, white: np.ndarray | None) -> Found:
    """As `detectors.Detector`."""
    nothing = np.empty((0, _LENGTH), np.uint8), np.empty((0, 4), np.float32)
    height, width = image.shape[:2]
    if min(height, width) < _SMALLEST:
        return nothing
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float() / 255
    features, scores = network.extract_dense_map(pixels)
    found, strength, _ = network.dkd(scores)  # places between -1 and 1
    order = torch.argsort(strength[0], descending=True, stable=True)
    last = torch.tensor([width - 1, height - 1], device=device)
    places = (last * (found[0][order] + 1) / 2).cpu().numpy()
    kept = np.arange(len(places))
    if white is not None:
        column, row = np.rint(places).astype(int).T
        kept = np.flatnonzero(white[row, column])
    kept = kept[:most]
    if not len(kept):
        return nothing
    chosen = found[0][order[torch.from_numpy(kept).to(device)]]
    descriptors = network.desc_head(features, [chosen])[0][0].float().cpu().numpy()
    points = np.empty((len(kept), 4), np.float32)
    points[:, :2], points[:, 2], points[:, 3] = places[kept], SIZE, DIRECTION
    return signed_bytes(descriptors), points
