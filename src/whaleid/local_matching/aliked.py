"""ALIKED: keypoints and descriptors by a network.

Zhao et al., "ALIKED: a lighter keypoint and descriptor extraction network via deformable transformation", 2023;
kornia's network with the authors' weights (aliked-n16). An image of 256 x 128 pixels takes 70 ms on one core, five
times as long as RootSIFT.
"""

from __future__ import annotations

from pathlib import Path

import torch
from kornia.feature import ALIKED

from whaleid.local_matching import weights as published
from whaleid.local_matching.detectors import Detector
from whaleid.local_matching.network_keypoints import Maxima, network_detector, no_maxima

NETWORK = "aliked-n16"
_SMALLEST = 5  # pixels: a keypoint is the maximum of a window of 5 x 5, at least 2 pixels from the edge
_LENGTH = 128
_ALL = 1 << 24  # more than any image has maxima


def aliked_network() -> ALIKED:
    """The network without weights, which returns every maximum of its score."""
    return ALIKED(NETWORK, max_num_keypoints=_ALL, detection_threshold=0.0)


def make_detector(weights: Path) -> Detector:
    """The detector of RGB images. Raises WhaleidError where its weights are not in the folder `weights`."""
    return aliked_detector(published.find_published(published.ALIKED, weights))


def aliked_detector(weights: Path, device: str | None = None) -> Detector:
    """The detector with the weights of a file. device: as in `network_detector`."""
    network = published.load_published(aliked_network(), weights)
    assert isinstance(network, ALIKED)
    return network_detector(network, lambda pixels: _maxima(network, pixels), _LENGTH, device)


def _maxima(network: ALIKED, pixels: torch.Tensor) -> Maxima:
    height, width = pixels.shape[2:]
    if min(height, width) < _SMALLEST:
        return no_maxima(pixels, _LENGTH)
    features, scores = network.extract_dense_map(pixels)
    found, strength, _ = network.dkd(scores)  # places between -1 and 1
    last = torch.tensor([width - 1, height - 1], device=pixels.device)
    return Maxima(
        last * (found[0] + 1) / 2, strength[0], lambda rows: network.desc_head(features, [found[0][rows]])[0][0]
    )
