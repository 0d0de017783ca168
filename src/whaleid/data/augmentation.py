"""Augmentation of training images with albumentations (Buslaev et al. 2020), reproducible image by image.

The result depends on the image and a seed alone: not on what was augmented before, nor in which process. That
is what lets a killed training carry on to the same result, with any number of workers.
"""

from __future__ import annotations

import math
import os
import random
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else importing it asks the network for newer versions

import albumentations
import cv2
import numpy as np
from albumentations import BaseCompose, BasicTransform

from whaleid.config import AugmentConfig

TransformType = BasicTransform | BaseCompose

cv2.setNumThreads(0)  # as in data/images.py; a forked worker would wait for threads it lacks

# Warping looks past the edge. Black there would be a shape that no test image has; a mirrored edge continues
# sea and skin with their own texture, where a replicated one draws streaks.
BORDER = cv2.BORDER_REFLECT_101
NOISE = (0.01, 0.05)  # standard deviation, share of the full range
ERASE = (0.1, 0.35)  # sides of the erased rectangle, share of the image's


class Augmentation:
    """Callable `(image uint8 (h, w, 3), seed >= 0) -> uint8 (h, w, 3)`.

    size: (width, height) of the images, which blur is relative to.
    Not for several threads at once: the pipeline holds the generator of the image at hand.
    """

    def __init__(self, config: AugmentConfig, size: tuple[int, int]):
        self._pipeline = albumentations.Compose(transforms(config, size))

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        # Compose.set_random_seed would give every transform the same seed, so that a certain rotation always
        # came with a certain brightness, and takes ten times as long; one generator for all does neither.
        self._pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return self._pipeline(image=image)["image"]


class Warp(albumentations.ImageOnlyTransform):
    """Rotation, scale, shift, shear and perspective as one transform.

    albumentations' Affine and Perspective one after the other interpolate twice, which blurs, and take three
    times as long: together they would be most of the time that an image takes.
    """

    def __init__(self, config: AugmentConfig):
        super().__init__(p=1.0)
        self.config = config

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        return {"matrix": warp_matrix(self.config, width, height, self.py_random)}

    def apply(self, img: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
        size = (img.shape[1], img.shape[0])
        if self.config.perspective:
            return cv2.warpPerspective(img, matrix, size, flags=cv2.INTER_LINEAR, borderMode=BORDER)
        return cv2.warpAffine(img, matrix[:2], size, flags=cv2.INTER_LINEAR, borderMode=BORDER)


def warp_matrix(config: AugmentConfig, width: int, height: int, draw: random.Random) -> np.ndarray:
    """A random homography, float64 (3, 3), from pixels of the image to pixels of the result.

    About the image's centre: scale (each axis its own: foreshortening), shear, turn; then shift; then every
    corner moves on its own by up to `perspective` of the sides.
    """

    def between(reach: float) -> float:
        return draw.uniform(-reach, reach)

    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    angle = math.radians(between(config.rotate))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = np.array(
        [
            [1.0, math.tan(math.radians(between(config.shear)))],
            [math.tan(math.radians(between(config.shear))), 1.0],
        ]
    )
    matrix = np.eye(3)
    matrix[:2, :2] = turn @ shear * (1 + between(config.scale), 1 + between(config.scale))
    shifted = (centre_x + between(config.shift) * width, centre_y + between(config.shift) * height)
    matrix[:2, 2] = shifted - matrix[:2, :2] @ (centre_x, centre_y)
    if not config.perspective:
        return matrix
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    moved = [(x + between(config.perspective) * width, y + between(config.perspective) * height) for x, y in corners]
    edges = np.array(corners, dtype=np.float32), np.array(moved, dtype=np.float32)
    return cv2.getPerspectiveTransform(*edges) @ matrix


def transforms(config: AugmentConfig, size: tuple[int, int]) -> list[TransformType]:
    """Those whose strength is not 0: first where the animal is, then light, then what spoils the picture."""
    return _geometry(config) + _light(config) + _damage(config, size)


def _geometry(config: AugmentConfig) -> list[TransformType]:
    chosen: list[TransformType] = []
    if config.flip:
        chosen.append(albumentations.HorizontalFlip(p=config.flip))
    if config.rotate or config.scale or config.shift or config.shear or config.perspective:
        chosen.append(Warp(config))
    return chosen


def _light(config: AugmentConfig) -> list[TransformType]:
    chosen: list[TransformType] = []
    if config.brightness or config.contrast or config.hue:
        chosen.append(
            albumentations.ColorJitter(  # factors, as exposure is: adding would wash pale animals out
                brightness=config.brightness, contrast=config.contrast, saturation=0, hue=config.hue, p=1.0
            )
        )
    if config.gray:
        chosen.append(albumentations.ToGray(p=config.gray))
    return chosen


def _damage(config: AugmentConfig, size: tuple[int, int]) -> list[TransformType]:
    chosen: list[TransformType] = []
    if config.blur:
        reach = max(1.0, min(size) / 128)  # a photograph out of focus is so at any resolution
        chosen.append(albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.4 * reach, 1.2 * reach), p=config.blur))
    if config.noise:
        chosen.append(albumentations.GaussNoise(std_range=NOISE, p=config.noise))
    if config.erase:
        chosen.append(  # random erasing, Zhong et al. 2017: an animal must be known by any part of it
            albumentations.CoarseDropout(
                num_holes_range=(1, 1),
                hole_height_range=ERASE,
                hole_width_range=ERASE,
                fill="random_uniform",
                p=config.erase,
            )
        )
    return chosen
