"""A batch of embeddings for tests of heads."""

from __future__ import annotations

import torch
from torch import Tensor

DIM = 8
SIZES = [1, 2, 5, 40, 3]


def batch(count: int = 12, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings float32 (count, DIM) of many lengths, and labels that hold every class."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, DIM, generator=generator) * (1 + 5 * torch.rand(count, 1, generator=generator))
    labels = torch.arange(count) % classes
    return embeddings, labels[torch.randperm(count, generator=generator)]
