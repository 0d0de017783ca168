"""Heads: what turns embeddings into a training loss, built from an experiment's `head` settings (`head.py`: their
face)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from whaleid.config import DivideHead, Head, MarginHead, MetricHead, SiameseHead, SoftmaxHead
from whaleid.models.heads.base import HeadModule
from whaleid.models.heads.classifiers import MarginClassifier, SoftmaxClassifier, check_margins
from whaleid.models.heads.divide import DivideLearners
from whaleid.models.heads.siamese import SiamesePairs


class WeightedSum(HeadModule):
    """Several heads on the same embedding; the logits are those of the first that has any."""

    def __init__(self, heads: Sequence[HeadModule], weights: Sequence[float]):
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.weights = tuple(weights)

    def _loss(self, embeddings: Tensor, labels: Tensor, among: Tensor | None = None) -> Tensor:
        losses = []
        for weight, head in zip(self.weights, self.heads, strict=True):
            assert isinstance(head, HeadModule)
            losses.append(weight * head._loss(embeddings, labels, among))
        return torch.stack(losses).sum()

    def _logits(self, embeddings: Tensor) -> Tensor | None:
        for head in self.heads:
            assert isinstance(head, HeadModule)
            found = head._logits(embeddings)
            if found is not None:
                return found
        return None


def build_head(config: Head, dim: int, class_sizes: Tensor | np.ndarray | Sequence[int]) -> HeadModule:
    """Head of an experiment's `head` settings.

    dim: length of an embedding. class_sizes: int (c,), training images of each class.
    Raises WhaleidError for an unknown loss, miner or argument and for angular margins that are too large.
    """
    sizes = torch.as_tensor(np.asarray(class_sizes), dtype=torch.int64, device="cpu")
    if isinstance(config, SoftmaxHead):
        return SoftmaxClassifier(config, dim, len(sizes))
    if isinstance(config, MarginHead):
        check_margins(config, sizes)
        return MarginClassifier(config, dim, sizes)
    if isinstance(config, MetricHead):
        from whaleid.models.heads.metric import MetricLearning  # pytorch-metric-learning takes a second to import

        return MetricLearning(config, dim, len(sizes))
    if isinstance(config, SiameseHead):
        return SiamesePairs(config, dim)
    if isinstance(config, DivideHead):
        return DivideLearners(config, dim, sizes, build_head)
    heads = [build_head(part.head, dim, class_sizes) for part in config.parts]
    return WeightedSum(heads, [part.weight for part in config.parts])
