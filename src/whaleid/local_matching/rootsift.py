"""RootSIFT: gradients around blobs, by OpenCV. It needs no weights and is the default.

SIFT (Lowe, "Distinctive image features from scale-invariant keypoints", 2004) describes the gradients around a mark so
that rotation and scale change little. RootSIFT (Arandjelovic and Zisserman, "Three things everyone should know to
improve object retrieval", 2012) takes the square root of each descriptor's shares: Euclidean distances become Hellinger
distances, which a few large gradients do not dominate.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from whaleid.local_matching.detectors import Detector, Found, on_grey, strongest_keypoints

LENGTH = 128
"""Numbers in a descriptor: 4 x 4 cells of 8 directions."""
UNIT = 512.0
"""A descriptor of length 1 is stored in steps of 1 / 512; its largest number is hardly ever above 255 / 512."""
_CONTRAST = 0.01  # a quarter of OpenCV's default: dull images get keypoints too, and the strongest are kept


def make_detector(_weights: Path) -> Detector:
    """The detector of RGB images."""
    return on_grey(root_sift)


def root_sift(grey: np.ndarray, most: int, white: np.ndarray | None = None) -> Found:
    """RootSIFT of the strongest keypoints of a grey image.

    Parameters
    ----------
    grey : uint8 array, shape (h, w)
    most : int
        Largest number of keypoints. A place with two directions is two keypoints.
    white : uint8 array, shape (h, w), or None
        0 where no keypoint is wanted; the strongest of the others are kept.

    Returns
    -------
    uint8 array, shape (n, 128), and float32 array, shape (n, 4)
        As `detectors.Found`; n <= most, 0 where nothing stands out.
    """
    nfeatures = most if white is None else 0  # 0: all, since OpenCV would choose the strongest before the mask
    sift = cv2.SIFT.create(nfeatures=nfeatures, contrastThreshold=_CONTRAST)
    keypoints, descriptors = sift.detectAndCompute(grey, white)
    return strongest_keypoints(keypoints, descriptors, most, rooted, LENGTH)


def rooted(descriptors: np.ndarray) -> np.ndarray:
    """SIFT descriptors, float (n, 128) >= 0, as RootSIFT in steps of 1 / 512, uint8 (n, 128)."""
    total = np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12)
    return np.minimum(np.rint(UNIT * np.sqrt(descriptors / total)), 255).astype(np.uint8)
