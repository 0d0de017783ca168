"""Heads: what turns embeddings into a training loss, built from an experiment's `head` settings.

All heads have one face: `forward(embeddings, labels)` is a scalar loss, `logits(embeddings)` are class scores
or None. They compute in float32 whatever autocast says: logits of scale 30 do not fit half precision.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from whaleid.config import DivideHead, Head, MarginHead, MetricHead, SiameseHead, SoftmaxHead
from whaleid.errors import WhaleidError
from whaleid.model.losses import (
    LARGEST_MARGIN,
    arcface_cosine,
    classification_loss,
    cosface_cosine,
    cosine_logits,
    margins_by_size,
)


class HeadModule(nn.Module):
    """Base of all heads; a head defines `_loss` and `_logits` on float32 embeddings."""

    def forward(self, embeddings: Tensor, labels: Tensor, part: int = 0) -> Tensor:
        """Training loss, a float32 scalar. embeddings: float (b, d), of any length. labels: int64 (b,).

        part: which learner of a divided head the batch is for (`EpochPlan.parts`); other heads have one alone.
        """
        with full_precision(embeddings):
            return self._part_loss(embeddings.float(), labels, part)

    def logits(self, embeddings: Tensor) -> Tensor | None:
        """Class scores float32 (b, c), ready for softmax, no margin; None where the head knows no classes."""
        with full_precision(embeddings):
            return self._logits(embeddings.float())

    def _part_loss(self, embeddings: Tensor, labels: Tensor, part: int) -> Tensor:
        return self._loss(embeddings, labels)

    def _loss(self, embeddings: Tensor, labels: Tensor, among: Tensor | None = None) -> Tensor:
        """among: int64 (m,), ascending: the classes that compete (None: all). Heads on pairs have no use for it."""
        raise NotImplementedError

    def _logits(self, embeddings: Tensor) -> Tensor | None:
        raise NotImplementedError


class SoftmaxClassifier(HeadModule):
    """Linear classifier on the embedding as it is, with cross entropy or focal loss."""

    def __init__(self, config: SoftmaxHead, dim: int, classes: int):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(dim, classes)

    def _loss(self, embeddings: Tensor, labels: Tensor, among: Tensor | None = None) -> Tensor:
        weight, bias, labels = among_classes(labels, among, self.linear.weight, self.linear.bias)
        logits = functional.linear(embeddings, weight, bias)
        return classification_loss(logits, labels, self.config.smoothing, self.config.focal)

    def _logits(self, embeddings: Tensor) -> Tensor:
        return self.linear(embeddings)


class MarginClassifier(HeadModule):
    """ArcFace, CosFace and their sub-center and by-size forms: scaled cosines, the true one made harder.

    centers: (c, k, d) learnt directions. margins: (c,), one a class (radians for ArcFace).
    """

    def __init__(self, config: MarginHead, dim: int, class_sizes: Tensor):
        super().__init__()
        self.config = config
        classes = len(class_sizes)
        self.centers = nn.Parameter(torch.empty(classes, config.subcenters, dim))
        nn.init.normal_(self.centers, std=1.0 / math.sqrt(dim))  # rows of length about 1
        margins = torch.full((classes,), config.margin)
        if config.by_size is not None:  # takes the place of the one margin
            margins = margins_by_size(class_sizes, config.by_size)
        self.register_buffer("margins", margins)
        self._harder = arcface_cosine if config.name == "arcface" else cosface_cosine

    def _loss(self, embeddings: Tensor, labels: Tensor, among: Tensor | None = None) -> Tensor:
        centers, margins, labels = among_classes(labels, among, self.centers, self.get_buffer("margins"))
        cosine = cosine_logits(embeddings, centers)
        true = cosine.gather(1, labels[:, None]).squeeze(1)
        harder = self._harder(true, margins[labels])
        logits = self.config.scale * cosine.scatter(1, labels[:, None], harder[:, None])
        return classification_loss(logits, labels, self.config.smoothing, self.config.focal)

    def _logits(self, embeddings: Tensor) -> Tensor:
        return self.config.scale * cosine_logits(embeddings, self.centers)


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
        _check_margins(config, sizes)
        return MarginClassifier(config, dim, sizes)
    if isinstance(config, MetricHead):
        from whaleid.model.metric import MetricLearning  # pytorch-metric-learning takes a second to import

        return MetricLearning(config, dim, len(sizes))
    if isinstance(config, SiameseHead):
        from whaleid.model.siamese import SiamesePairs  # it needs HeadModule, from here

        return SiamesePairs(config, dim)
    if isinstance(config, DivideHead):
        from whaleid.model.divide import DivideLearners  # it builds its learners with this function

        return DivideLearners(config, dim, sizes)
    heads = [build_head(part.head, dim, class_sizes) for part in config.parts]
    return WeightedSum(heads, [part.weight for part in config.parts])


def _check_margins(config: MarginHead, sizes: Tensor) -> None:
    largest = config.margin
    if config.by_size is not None:
        largest = float(margins_by_size(sizes, config.by_size).max()) if len(sizes) else 0.0
    if config.name == "arcface" and largest > LARGEST_MARGIN:
        key = "head.by_size" if config.by_size is not None else "head.margin"
        raise WhaleidError(f"{key}: a margin of {largest:.3g} radians is above {LARGEST_MARGIN}; 0.2 to 0.5 is usual")


def among_classes(
    labels: Tensor, among: Tensor | None, weights: Tensor, others: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Two tables of one row a class, and labels, with the classes `among` alone (all where it is None).

    labels: int64 (b,), every one in `among`, int64 (m,) ascending. Returns (m, ...), (m, ...), (b,).
    """
    if among is None:
        return weights, others, labels
    return weights[among], others[among], torch.searchsorted(among, labels)


def full_precision(embeddings: Tensor) -> contextlib.AbstractContextManager:
    """Autocast off, where the device has it (torch's meta device has none)."""
    device = embeddings.device.type
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
