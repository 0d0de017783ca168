"""KAZE: gradients in a scale space that keeps edges sharp (Alcantarilla, Bartoli and Davison, "KAZE features", 2012).

OpenCV 4 has it; of OpenCV 5 only the contrib wheel.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from whaleid.local_matching.detectors import Detector, Found, on_grey, signed_bytes, strongest_keypoints
from whaleid.utils.errors import WhaleidError

_LENGTH = 64
_CONTRAST = 0.00025  # a quarter of OpenCV's default, as for RootSIFT


def make_detector(_weights: Path) -> Detector:
    """The detector of RGB images. Raises WhaleidError where the installed OpenCV has no KAZE."""
    _kaze_create()
    return on_grey(kaze)


def kaze(grey: np.ndarray, most: int, white: np.ndarray | None = None) -> Found:
    """KAZE of the strongest keypoints of a grey image, as `rootsift.root_sift`; descriptors uint8 (n, 64)."""
    keypoints, descriptors = _kaze_create()(threshold=_CONTRAST).detectAndCompute(grey, white)
    return strongest_keypoints(keypoints, descriptors, most, signed_bytes, _LENGTH)


def _kaze_create() -> Callable[..., cv2.Feature2D]:
    """OpenCV's constructor of KAZE, wherever its wheel has it."""
    for place in (cv2, getattr(cv2, "xfeatures2d", None)):
        create = getattr(place, "KAZE_create", None)
        if create is not None:
            return create
    raise WhaleidError(
        f"combine.local_matching.features: kaze: OpenCV {cv2.__version__} of the wheel opencv-python-headless has no "
        "KAZE; put opencv-contrib-python-headless of the same version in its place (two wheels overwrite each other: "
        "remove the first), or choose other features"
    )
