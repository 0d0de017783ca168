"""Keypoints of one image and their descriptors: what all detectors share.

A descriptor is stored as bytes. Descriptors with signs, unit vectors v, are stored as round(128 v) + 128: the shift is
the same for all and changes no distance. Each number is off by at most 1 / 256, a distance (0 to 2) by 0.003 on average
(KAZE, 10,000 keypoints of photographs; 0.013 at most). Finer steps would clip large numbers: with steps of 1 / 256, one
KAZE descriptor in twenty had a number outside a byte's range, and distances changed by up to 0.17.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from whaleid.config import LocalConfig
from whaleid.local_matching.registry import detector_entry

Found = tuple[np.ndarray, np.ndarray]
"""Descriptors uint8 (n, length) and points float32 (n, 4): x, y and size in pixels of the image, direction in degrees
[0, 360); strongest first."""
Detector = Callable[[np.ndarray, int, np.ndarray | None], Found]
"""(image uint8 (h, w, 3) RGB, most, white uint8 (h, w) or None) -> at most `most` keypoints, the strongest of those
where white is not 0."""

SIGNED = 128.0
"""A signed descriptor of length 1 is stored in steps of 1 / 128, around 128: its numbers are -1 to 1."""


def detector_of(config: LocalConfig, weights: Path) -> Detector:
    """The detector of a recipe. weights: the folder WEIGHTS_DIR.

    Raises WhaleidError where its weights, or OpenCV's part of it, are missing.
    """
    return detector_entry(config.features).make(weights)


def on_grey(detect: Detector) -> Detector:
    """A detector of RGB images from one of grey images."""
    return lambda image, most, white: detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), most, white)


def signed_bytes(descriptors: np.ndarray) -> np.ndarray:
    """Unit vectors float (n, d) as bytes, uint8 (n, d), in steps of 1 / 128 around 128."""
    return np.clip(np.rint(SIGNED * descriptors) + 128, 0, 255).astype(np.uint8)


def signed_floats(stored: np.ndarray) -> np.ndarray:
    """Unit vectors float32 (n, d) from what `signed_bytes` stored."""
    vectors = stored.astype(np.float32) - 128
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def strongest_keypoints(
    keypoints: Sequence[cv2.KeyPoint],
    descriptors: np.ndarray | None,
    most: int,
    as_bytes: Callable[[np.ndarray], np.ndarray],
    length: int,
) -> Found:
    """The `most` strongest of OpenCV's keypoints, ties in OpenCV's order.

    descriptors: float (n, length), None where there is no keypoint. as_bytes: from float to uint8.
    """
    if descriptors is None or not len(keypoints):
        return np.empty((0, length), np.uint8), np.empty((0, 4), np.float32)
    strength = np.array([keypoint.response for keypoint in keypoints])
    order = np.argsort(-strength, kind="stable")[:most]  # OpenCV keeps all that are as strong as the last one
    points = np.array([(*one.pt, one.size, one.angle % 360) for one in keypoints], dtype=np.float32)
    return as_bytes(descriptors[order]), points[order]
