"""Weighted sum of heads on the same embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from whaleid.config import SumHead
from whaleid.models.heads.base import HeadModule
from whaleid.models.heads.registry import build_head


class WeightedSum(HeadModule):
    """Weighted sum of heads; the logits are those of the first head that has any."""

    def __init__(self, settings: SumHead, dim: int, class_sizes: Tensor):
        super().__init__()
        self.heads = nn.ModuleList(build_head(part.head, dim, class_sizes) for part in settings.parts)
        self.weights = tuple(part.weight for part in settings.parts)
        self.unused_parameters = any(head.unused_parameters for head in self._heads())

    def _heads(self) -> list[HeadModule]:
        return [head for head in self.heads if isinstance(head, HeadModule)]

    def start_from_means(self, means: Tensor) -> list[str]:
        """As `HeadModule.start_from_means`, of every part."""
        return [
            f"heads.{place}.{name}" for place, head in enumerate(self._heads()) for name in head.start_from_means(means)
        ]

    def _loss(self, embeddings: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        losses = [head._loss(embeddings, labels, classes) for head in self._heads()]
        return torch.stack([weight * loss for weight, loss in zip(self.weights, losses, strict=True)]).sum()

    def _logits(self, embeddings: Tensor) -> Tensor | None:
        scores = (head._logits(embeddings) for head in self._heads())
        return next((score for score in scores if score is not None), None)
