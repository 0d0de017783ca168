"""Rotation prediction (Gidaris et al., 2018): which of four quarter turns was the image given?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from whaleid.config import RotationHead
from whaleid.models.heads.base import HeadModule
from whaleid.models.heads.jigsaw import resized


class RotationClassifier(HeadModule):
    """Linear classifier of the four turns."""

    def __init__(self, settings: RotationHead, dim: int, class_sizes: Tensor):
        super().__init__()
        self.linear = nn.Linear(dim, 4)

    def question(self, images: Tensor, labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return four_turns(images)

    def _logits(self, embeddings: Tensor) -> Tensor:
        return self.linear(embeddings)


def four_turns(images: Tensor) -> tuple[Tensor, Tensor]:
    """Every image turned by 0, 90, 180 and 270 degrees, anticlockwise.

    A turned image is resized to the size it had. The stretch distinguishes quarter turns from half turns, but not the
    two of a kind from each other.

    Parameters
    ----------
    images : uint8 or float tensor, shape (b, h, w, 3), 0..255

    Returns
    -------
    turned : float32 tensor, shape (4b, h, w, 3)
        All images at 0 degrees first.
    turns : int64 tensor, shape (4b,), 0..3
        Number of quarter turns.
    """
    height, width = images.shape[1:3]
    turned = [resized(torch.rot90(images, turns, (1, 2)).float(), (width, height)) for turns in range(4)]
    return torch.cat(turned), torch.arange(4, device=images.device).repeat_interleave(len(images))
