"""Pooling: from a feature map (b, c, h, w) to one vector an image (b, c)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class AveragePool(nn.Module):
    """Mean over all positions."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))


class MaxPool(nn.Module):
    """Largest value of each channel (MAC)."""

    def forward(self, features: Tensor) -> Tensor:
        return features.amax(dim=(2, 3))


class GeMPool(nn.Module):
    """Generalised mean (Radenovic et al., 2018): mean(x ** p) ** (1 / p) with a learned p.

    p = 1 is the average, p towards infinity the maximum. Values below `floor` count as `floor`, so negative features
    are lost: use `avg` for networks whose last layer is not rectified (ViTs, ConvNeXt, Swin). Computed in float32,
    since a cube leaves the range of float16 at 40.
    """

    def __init__(self, p: float = 3.0, floor: float = 1e-6):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p], dtype=torch.float32))
        self.floor = floor

    def forward(self, features: Tensor) -> Tensor:
        logs = features.float().clamp(min=self.floor).log()
        p = self.p.float().clamp(min=1e-2)  # an optimiser's step must not take it through zero
        places = features.shape[2] * features.shape[3]
        # mean(x ** p) ** (1 / p) through log-sum-exp: no power overflows, for any p
        mean_log = torch.logsumexp((logs * p).flatten(2), dim=2) - torch.log(p.new_tensor(places))
        return torch.exp(mean_log / p)


def build_pool(name: Literal["avg", "max", "gem"], gem_p: float = 3.0) -> nn.Module:
    """Pooling by its name in the configuration; `gem_p` is the initial p of GeM."""
    if name == "gem":
        return GeMPool(gem_p)
    return AveragePool() if name == "avg" else MaxPool()
