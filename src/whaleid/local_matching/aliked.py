"""ALIKED's keypoints and descriptors (Zhao et al., "ALIKED: a lighter keypoint and descriptor extraction network via
deformable transformation", 2023), by kornia's network and the weights that its authors publish (aliked-n16). A picture
of 256 x 128 pixels takes 70 ms of a core, five times RootSIFT's.

The network knows no size and no direction of a keypoint: SIZE and DIRECTION are stored for all. What compares two
keypoints' sizes and directions then finds them equal, and what is learnt from matches finds nothing in them.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import numpy as np
import torch
from kornia.feature import ALIKED

from whaleid.local_matching.detectors import Detector, Found, signed_bytes
from whaleid.local_matching.weights import load_published

NETWORK = "aliked-n16"
SIZE, DIRECTION = 1.0, 0.0
"""Pixels and degrees, of every keypoint."""
_SMALLEST = 5  # pixels: a keypoint is the highest in a window of 5 x 5, and none is nearer to the edge than 2
_LENGTH = 128
_ALL = 1 << 24  # more than any picture has maxima


def aliked_network() -> ALIKED:
    """The network without weights. It finds every maximum of its score: who is strong enough is decided after the mask,
    and dull pictures get their keypoints too, as with RootSIFT.
    """
    return ALIKED(NETWORK, max_num_keypoints=_ALL, detection_threshold=0.0)


def aliked_detector(weights: Path, device: str | None = None) -> Detector:
    """The detector with these weights. device: of torch; None: a GPU where there is one.

    Threads take turns: one picture fills the GPU, or the cores, and its maps are what takes memory.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network, turn = load_published(aliked_network(), weights).to(place), Lock()
    assert isinstance(network, ALIKED)

    def detect(picture: np.ndarray, most: int, white: np.ndarray | None = None) -> Found:
        with turn, torch.inference_mode():
            return _detect(network, place, picture, most, white)

    return detect


def _detect(network: ALIKED, device: torch.device, picture: np.ndarray, most: int, white: np.ndarray | None) -> Found:
    """As `detectors.Detector`."""
    nothing = np.empty((0, _LENGTH), np.uint8), np.empty((0, 4), np.float32)
    height, width = picture.shape[:2]
    if min(height, width) < _SMALLEST:
        return nothing
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(device).permute(2, 0, 1)[None].float() / 255
    features, scores = network.extract_dense_map(pixels)
    found, strength, _ = network.dkd(scores)  # places between -1 and 1
    order = torch.argsort(strength[0], descending=True, stable=True)
    last = torch.tensor([width - 1, height - 1], device=device)
    places = (last * (found[0][order] + 1) / 2).cpu().numpy()
    if white is not None:
        column, row = np.rint(places).astype(int).T
        kept = np.flatnonzero(white[row, column])
    else:
        kept = np.arange(len(places))
    kept = kept[:most]
    if not len(kept):
        return nothing
    chosen = found[0][order[torch.from_numpy(kept).to(device)]]
    descriptors = network.desc_head(features, [chosen])[0][0].float().cpu().numpy()
    points = np.empty((len(kept), 4), np.float32)
    points[:, :2], points[:, 2], points[:, 3] = places[kept], SIZE, DIRECTION
    return signed_bytes(descriptors), points
