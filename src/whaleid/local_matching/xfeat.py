"""XFeat: keypoints and descriptors by a small network, made for processors without a GPU.

Potje et al., "XFeat: accelerated features for lightweight image matching", 2024; kornia's network with the authors'
weights. Descriptors have 64 numbers, half of RootSIFT's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from kornia.feature import XFeat, XFeatModel

from whaleid.local_matching import weights as published
from whaleid.local_matching.detectors import Detector
from whaleid.local_matching.network_keypoints import Maxima, inside, network_detector, padded

_LENGTH = 64
_MULTIPLE = 32  # pixels: kornia would resize images of other sides, which moves keypoints
_ALL = 1 << 24  # more than any image has maxima


def xfeat_network() -> XFeatModel:
    """The network without weights."""
    return XFeatModel()


def make_detector(weights: Path) -> Detector:
    """The detector of RGB images. Raises WhaleidError where its weights are not in the folder `weights`."""
    return xfeat_detector(published.find_published(published.XFEAT, weights))


def xfeat_detector(weights: Path, device: str | None = None) -> Detector:
    """The detector with the weights of a file. device: as in `network_detector`."""
    detector = XFeat(top_k=_ALL, detection_threshold=0.0)
    network = published.load_published(xfeat_network(), weights)
    assert isinstance(network, XFeatModel)
    detector.net = network
    return network_detector(detector.eval(), lambda pixels: _maxima(detector, pixels), _LENGTH, device)


def _maxima(detector: XFeat, pixels: torch.Tensor) -> Maxima:
    found = detector.detectAndCompute(padded(pixels, _MULTIPLE))[0]
    maxima = Maxima(found["keypoints"], found["scores"], lambda rows: found["descriptors"][rows])
    return inside(maxima, *pixels.shape[2:])
