"""Keypoints of one picture and what each looks like, by three methods of one face.

    rootsift   gradients around blobs (Lowe 2004; Arandjelovic and Zisserman 2012): needs nothing, and is the default
    kaze       the same in a scale space that keeps edges sharp (Alcantarilla, Bartoli and Davison, "KAZE features",
               2012); OpenCV 4 has it, of OpenCV 5 the contrib wheel alone
    aliked     a network (local_matching/aliked.py)

A descriptor is stored as bytes. Those with signs, unit vectors v, as round(128 v) + 128: the shift is in all of them
and moves no distance, and a number errs by 1 / 256 at most, so that a distance (0 to 2) changes by 0.003 in the mean
(KAZE, 10,000 keypoints of photographs; 0.013 at the most). Finer steps would cut large numbers: with steps of 1 / 256,
one KAZE descriptor in twenty had one beyond a byte's range, and distances changed by up to 0.17.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from whaleid.config import LocalConfig
from whaleid.local_matching.weights import ALIKED, find_published, weights_files
from whaleid.utils.errors import WhaleidError

Found = tuple[np.ndarray, np.ndarray]
"""Descriptors uint8 (n, length) and points float32 (n, 4): x, y and size in pixels of the picture, direction in degrees
[0, 360); strongest first."""
Detector = Callable[[np.ndarray, int, np.ndarray | None], Found]
"""(picture uint8 (h, w, 3) RGB, most, white uint8 (h, w) or None) -> at most `most` keypoints, none where white is 0;
the strongest are chosen from the others."""

LENGTH = 128
"""Numbers in a descriptor of SIFT: 4 x 4 cells of 8 directions."""
UNIT = 512.0
"""RootSIFT of length 1 is stored in steps of 1 / 512; its largest number is hardly ever above 255 / 512."""
SIGNED = 128.0
"""A signed descriptor of length 1 is stored in steps of 1 / 128, around 128: its numbers are -1 to 1."""
_CONTRAST = 0.01  # a quarter of OpenCV's own: dull pictures get their keypoints too, and the strongest are kept
_KAZE_CONTRAST = 0.00025  # likewise


@dataclass(frozen=True)
class Kind:
    """A kind of descriptor. length: numbers in it. unit: what a descriptor of length 1 is stored as."""

    length: int
    unit: float


KINDS = {"rootsift": Kind(LENGTH, UNIT), "kaze": Kind(64, SIGNED), "aliked": Kind(128, SIGNED)}


def detector_of(config: LocalConfig, weights: Path) -> Detector:
    """The detector of a recipe. weights: the folder WEIGHTS_DIR.

    Raises WhaleidError where its weights, or OpenCV's part of it, are not there.
    """
    if config.features == "aliked":
        from whaleid.local_matching.aliked import aliked_detector

        return aliked_detector(find_published(ALIKED, weights))
    if config.features == "kaze":
        _kaze_create()
        return _of_grey(kaze)
    return _of_grey(root_sift)


def require_parts(config: LocalConfig, weights: Path) -> None:
    """Raise WhaleidError where something that local matching needs is not on this machine; no work is done."""
    weights_files(config, weights)
    if config.features == "kaze":
        _kaze_create()


def _of_grey(detect: Detector) -> Detector:
    return lambda picture, most, white: detect(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), most, white)


def signed_bytes(descriptors: np.ndarray) -> np.ndarray:
    """Unit vectors as bytes, uint8 (n, d): in steps of 1 / 128 around 128. descriptors: float (n, d)."""
    return np.clip(np.rint(SIGNED * descriptors) + 128, 0, 255).astype(np.uint8)


def signed_floats(stored: np.ndarray) -> np.ndarray:
    """What `signed_bytes` stored, as unit vectors again, float32 (n, d)."""
    vectors = stored.astype(np.float32) - 128
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


# ------------------------------------------------------------------------------------------------------ by OpenCV


def root_sift(grey: np.ndarray, most: int, white: np.ndarray | None = None) -> Found:
    """RootSIFT of the strongest keypoints of a grey picture.

    grey: uint8 (h, w). most: keypoints kept at the most; a place with two directions is two keypoints.
    white: uint8 (h, w), 0 where no keypoint is wanted: the strongest are chosen from the others.
    Returns descriptors uint8 (n, 128), see `rooted`, and points float32 (n, 4): x, y and size in pixels of
    `grey`, direction in degrees [0, 360); strongest first, n <= most, and 0 where nothing stands out.
    """
    asked = most if white is None else 0  # all: OpenCV would choose the strongest before it looks at the mask
    found, descriptors = cv2.SIFT.create(nfeatures=asked, contrastThreshold=_CONTRAST).detectAndCompute(grey, white)
    return _strongest(found, descriptors, most, rooted, LENGTH)


def rooted(descriptors: np.ndarray) -> np.ndarray:
    """SIFT as RootSIFT: each number as its share of the sum, its square root, in steps of 1 / 512.

    descriptors: float (n, 128), >= 0. Returns uint8 (n, 128).
    """
    total = np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12)
    return np.minimum(np.rint(UNIT * np.sqrt(descriptors / total)), 255).astype(np.uint8)


def kaze(grey: np.ndarray, most: int, white: np.ndarray | None = None) -> Found:
    """KAZE of the strongest keypoints of a grey picture, as `root_sift`; descriptors uint8 (n, 64), `signed_bytes`.

    Raises WhaleidError where the installed OpenCV has none.
    """
    found, descriptors = _kaze_create()(threshold=_KAZE_CONTRAST).detectAndCompute(grey, white)
    return _strongest(found, descriptors, most, signed_bytes, KINDS["kaze"].length)


def _kaze_create() -> Callable[..., cv2.Feature2D]:
    """What makes OpenCV's KAZE, whichever wheel it came with. AKAZE (a binary descriptor) comes and goes with it."""
    for place in (cv2, getattr(cv2, "xfeatures2d", None)):
        create = getattr(place, "KAZE_create", None)
        if create is not None:
            return create
    raise WhaleidError(
        f"combine.local_matching.features: kaze: OpenCV {cv2.__version__} of the wheel opencv-python-headless has no "
        "KAZE; put opencv-contrib-python-headless of the same version in its place (two wheels overwrite each other: "
        "remove the first), or take other features"
    )


def _strongest(
    found: Sequence[cv2.KeyPoint],
    descriptors: np.ndarray | None,
    most: int,
    stored: Callable[[np.ndarray], np.ndarray],
    length: int,
) -> Found:
    """OpenCV's keypoints, the strongest first, equals as they came."""
    if descriptors is None or not len(found):
        return np.empty((0, length), np.uint8), np.empty((0, 4), np.float32)
    strength = np.array([keypoint.response for keypoint in found])
    order = np.argsort(-strength, kind="stable")[:most]  # OpenCV keeps all of those as strong as the last one
    points = np.array([(*one.pt, one.size, one.angle % 360) for one in found], dtype=np.float32)
    return stored(descriptors[order]), points[order]
