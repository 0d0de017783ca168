"""Heads that tell classes apart: softmax, and ArcFace, CosFace and their kin."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from whaleid.config import MarginHead, SoftmaxHead
from whaleid.models.heads.base import HeadModule
from whaleid.models.heads.losses import (
    LARGEST_MARGIN,
    arcface_cosine,
    classification_loss,
    cosface_cosine,
    cosine_logits,
    margins_by_size,
)
from whaleid.utils.errors import WhaleidError


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


def check_margins(config: MarginHead, sizes: Tensor) -> None:
    """Raises WhaleidError for angular margins that are too large. sizes: int64 (c,), training images of each class."""
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
