"""Augmentation of training images with albumentations, reproducible image by image.

The result depends on the image and a seed, not on what was augmented before nor in which process. So an interrupted
training is resumed to the same result, with any number of workers.

References
----------
Buslaev et al., "Albumentations: fast and flexible image augmentations", 2020.
"""

from __future__ import annotations

import math
import os
import random
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # importing it would look for newer versions online

import albumentations
import cv2
import numpy as np
from albumentations import BaseCompose, BasicTransform

from whaleid.config import AugmentConfig

TransformType = BasicTransform | BaseCompose

cv2.setNumThreads(0)  # as in data/images.py; a forked worker would wait for threads that it lacks

# Warping reads beyond the edge. Black would be a shape that no test image has and a replicated edge draws streaks; a
# mirrored edge continues sea and skin with their own texture.
BORDER = cv2.BORDER_REFLECT_101
NOISE = (0.01, 0.05)  # standard deviation, share of the full range
ERASE = (0.1, 0.35)  # sides of the erased rectangle, share of the image's


class Augmentation:
    """Random augmentation of one image, a function `(image, seed) -> image`.

    Not thread-safe: the transforms share the generator of the current image.

    Parameters
    ----------
    config : AugmentConfig
        Strength of each transform.
    size : (int, int)
        Width and height of the images, which blur is relative to.
    """

    def __init__(self, config: AugmentConfig, size: tuple[int, int]):
        self._pipeline = albumentations.Compose(transforms(config, size))

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        # Compose.set_random_seed gives every transform the same seed, so that rotation and brightness would be
        # correlated, and takes ten times as long.
        self._pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return self._pipeline(image=image)["image"]


class Warp(albumentations.ImageOnlyTransform):
    """Rotation, scale, shift, shear and perspective in one transform.

    albumentations' Affine followed by Perspective interpolates twice, which blurs, and takes three times as long.
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
    """Random homography from pixels of the image to pixels of the result, float64 (3, 3).

    About the image's centre: scale (of each axis separately, as foreshortening does), shear, rotation; then shift;
    then each corner moves independently by up to `perspective` of the sides.
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
    """Transforms whose strength is not 0: geometry, then light, then degradations."""
    return _geometry(config) + _light(config) + _degradation(config, size)


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
            albumentations.ColorJitter(  # factors, as exposure is; adding would wash out pale animals
                brightness=config.brightness, contrast=config.contrast, saturation=0, hue=config.hue, p=1.0
            )
        )
    if config.gray:
        chosen.append(albumentations.ToGray(p=config.gray))
    return chosen


def _degradation(config: AugmentConfig, size: tuple[int, int]) -> list[TransformType]:
    chosen: list[TransformType] = []
    if config.blur:
        reach = max(1.0, min(size) / 128)  # out of focus means the same share of the image at any resolution
        chosen.append(albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.4 * reach, 1.2 * reach), p=config.blur))
    if config.noise:
        chosen.append(albumentations.GaussNoise(std_range=NOISE, p=config.noise))
    if config.erase:
        chosen.append(  # random erasing (Zhong et al. 2017): every part must identify the animal
            albumentations.CoarseDropout(
                num_holes_range=(1, 1),
                hole_height_range=ERASE,
                hole_width_range=ERASE,
                fill="random_uniform",
                p=config.erase,
            )
        )
    return chosen
