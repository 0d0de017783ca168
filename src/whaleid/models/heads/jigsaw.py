"""Context prediction (Doersch et al., 2015): where, of eight places, does a patch lie around the centre patch?

Patches are cut on the images' own device.
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from whaleid.config import JigsawHead
from whaleid.models.heads.base import HeadModule
from whaleid.utils.errors import WhaleidError

PLACES = ((-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1))
"""The neighbours of a 3 x 3 grid's centre (x, y), in reading order: what the answers 0..7 stand for."""

SMALLEST_PATCH = 4
"""Pixels a side; smaller patches show nothing."""

_STRIDE = 32  # inputs of the usual networks are multiples of it


class JigsawClassifier(HeadModule):
    """Place of the second patch around the first, from both embeddings side by side.

    It has a hidden layer, since the answer lies in how the two patches fit: a linear layer would judge each alone.
    Doersch et al. warn of chromatic aberration as a cue to the place; it is gone in photographs of a few hundred
    pixels, and the augmentation's grays and hues work against what is left of colour.
    """

    def __init__(self, settings: JigsawHead, dim: int, class_sizes: Tensor):
        super().__init__()
        self.settings = settings
        self.layers = nn.Sequential(
            nn.Linear(2 * dim, dim), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, len(PLACES))
        )

    @classmethod
    def network_size(cls, settings: JigsawHead, backbone: str, size: tuple[int, int]) -> tuple[int, int]:
        """Half the images' sides in multiples of 32: larger, patches would be blurred, and cost more.

        Transformers get patches at the images' own size: timm adapts their positions only from square images.
        Raises WhaleidError where patches would be too small.
        """
        patch_size(size, settings.gap, settings.jitter)
        family = timm.get_pretrained_cfg(backbone)
        if family is not None and family.fixed_input_size:
            return size
        width, height = (max(_STRIDE, round(side / 2 / _STRIDE) * _STRIDE) for side in size)
        return width, height

    def question(self, images: Tensor, labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Two patches of every image, all centres first, and the place of the second.

        Draws from torch's CPU generator, which the training loop seeds for every batch.
        """
        gap, jitter = self.settings.gap, self.settings.jitter
        whole = (images.shape[2], images.shape[1])
        patch = patch_size(whole, gap, jitter)
        place = torch.randint(len(PLACES), (len(images),))
        shifts = 2 * torch.rand(len(images), 2, 2) - 1
        corners = patch_corners(whole, patch, gap, jitter, place, shifts)
        return patch_pairs(images, corners, patch, size), place.to(images.device)

    def _logits(self, embeddings: Tensor) -> Tensor:
        centres, neighbours = embeddings.chunk(2)
        return self.layers(torch.cat([centres, neighbours], dim=1))


def patch_size(size: tuple[int, int], gap: float, jitter: float) -> tuple[int, int]:
    """Width and height of a patch: the largest for which the jittered 3 x 3 grid fits into the image.

    Parameters
    ----------
    size : tuple of int
        Width and height of the image.
    gap, jitter : float
        Shares of the patch's side.

    Raises
    ------
    WhaleidError
        Where a side of the patch would be shorter than `SMALLEST_PATCH`.
    """
    width, height = (int(side / (3 + 2 * gap + 2 * jitter)) for side in size)
    if min(width, height) < SMALLEST_PATCH:
        raise WhaleidError(
            f"head jigsaw: images of {size[0]}x{size[1]} give patches of {width}x{height} pixels; use larger images "
            "(image.width, image.height)"
        )
    return width, height


def patch_corners(
    size: tuple[int, int], patch: tuple[int, int], gap: float, jitter: float, place: Tensor, shifts: Tensor
) -> Tensor:
    """Upper left corners (x, y) of the centre patch and of one neighbour.

    Parameters
    ----------
    size, patch : tuple of int
        Width and height of images and patches.
    gap, jitter : float
        Shares of the patch's side.
    place : int64 tensor, shape (b,)
        Index into PLACES, on the CPU.
    shifts : float tensor, shape (b, 2, 2), -1..1
        Jitter of each patch along each axis.

    Returns
    -------
    int64 tensor, shape (b, 2, 2)
        Image, patch, axis.
    """
    side = torch.tensor(patch, dtype=torch.float64)
    centre = (torch.tensor(size, dtype=torch.float64) - side) / 2
    steps = torch.tensor(PLACES, dtype=torch.float64)[place] * side * (1 + gap)
    nominal = torch.stack([centre.expand(len(place), 2), centre + steps], dim=1)
    return (nominal + shifts * jitter * side).round().long()


def patch_pairs(images: Tensor, corners: Tensor, patch: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The patches at `corners`, resized: float32 (2b, h, w, 3), all centres first, then all neighbours.

    Parameters
    ----------
    images : uint8 or float tensor, shape (b, h, w, 3)
    corners : int64 tensor, shape (b, 2, 2)
        As `patch_corners` returns them.
    patch, size : tuple of int
        Width and height of the patches in the image, and as returned.
    """
    corners = corners.to(images.device)
    rows = corners[:, :, 1, None, None] + torch.arange(patch[1], device=images.device)[:, None]
    columns = corners[:, :, 0, None, None] + torch.arange(patch[0], device=images.device)
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    cut = images[image, rows, columns]  # (b, 2, h, w, 3)
    return resized(cut.transpose(0, 1).flatten(0, 1).float(), size)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Float images (n, h, w, 3) resized to `size` (width, height), bilinear, with antialiasing."""
    if (images.shape[2], images.shape[1]) == size:
        return images
    planes = images.permute(0, 3, 1, 2)
    return functional.interpolate(planes, (size[1], size[0]), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
