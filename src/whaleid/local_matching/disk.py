"""DISK: keypoints and descriptors by a network.

Tyszkiewicz, Fua and Trulls, "DISK: learning local features with policy gradient", 2020; kornia's network with the
authors' weights that were trained with depth maps (depth-save). LightGlue has a matcher for it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from kornia.feature import DISK
from torch.nn import functional

from whaleid.local_matching import weights as published
from whaleid.local_matching.detectors import Detector
from whaleid.local_matching.network_keypoints import Maxima, inside, network_detector, padded

_LENGTH = 128
_MULTIPLE = 32  # pixels: the network halves four times, and a coarsest map of 2 x 2 is the smallest it can normalise


def disk_network() -> DISK:
    """The network without weights."""
    return DISK(_LENGTH)


def make_detector(weights: Path) -> Detector:
    """The detector of RGB images. Raises WhaleidError where its weights are not in the folder `weights`."""
    return disk_detector(published.find_published(published.DISK, weights))


def disk_detector(weights: Path, device: str | None = None) -> Detector:
    """The detector with the weights of a file. device: as in `network_detector`."""
    network = published.load_published(disk_network(), weights)
    assert isinstance(network, DISK)
    return network_detector(network, lambda pixels: _maxima(network, pixels), _LENGTH, device)


def _maxima(network: DISK, pixels: torch.Tensor) -> Maxima:
    found = network(padded(pixels, _MULTIPLE), score_threshold=-torch.inf)[0]
    descriptors = functional.normalize(found.descriptors, dim=1)
    maxima = Maxima(found.keypoints, found.detection_scores, lambda rows: descriptors[rows])
    return inside(maxima, *pixels.shape[2:])
