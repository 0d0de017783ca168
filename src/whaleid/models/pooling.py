"""Pooling: from a feature map (b, c, h, w) to one vector an image (b, c).

Each pooling also tells what every position adds to the vector (`parts`), for maps of the similarity of two images. Only
the mean is linear (`exact`); the others say by how much a position took part in a value that all of them made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class Pool(nn.Module, ABC):
    """What all poolings have. `exact`: whether `parts` do not depend on one another."""

    exact = False

    @abstractmethod
    def parts(self, features: Tensor) -> Tensor:
        """What each position adds to the pooled vector, (b, c, h * w): the sum over positions is the vector."""


class AveragePool(Pool):
    """Mean over all positions."""

    exact = True

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))

    def parts(self, features: Tensor) -> Tensor:
        return features.flatten(2) / (features.shape[2] * features.shape[3])


class MaxPool(Pool):
    """Largest value of each channel (MAC)."""

    def forward(self, features: Tensor) -> Tensor:
        return features.amax(dim=(2, 3))

    def parts(self, features: Tensor) -> Tensor:
        """All of a channel's value stands at its largest position."""
        flat = features.flatten(2)
        return functional.one_hot(flat.argmax(dim=2), flat.shape[2]) * flat


class GeMPool(Pool):
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

    def parts(self, features: Tensor) -> Tensor:
        """A channel's value is divided among the positions as x ** p is."""
        logs = features.float().clamp(min=self.floor).log()
        return (logs * self.p.float()).flatten(2).softmax(dim=2) * self(features)[:, :, None]


def build_pool(name: Literal["avg", "max", "gem"], gem_p: float = 3.0) -> Pool:
    """Pooling by its name in the configuration; `gem_p` is the initial p of GeM."""
    if name == "gem":
        return GeMPool(gem_p)
    return AveragePool() if name == "avg" else MaxPool()
