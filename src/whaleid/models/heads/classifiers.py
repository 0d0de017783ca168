"""Classifier heads: softmax, and ArcFace and CosFace with sub-centers and margins by class size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from whaleid.config import MarginHead, SoftmaxHead
from whaleid.models.heads.base import HeadModule
from whaleid.models.heads.margins import (
    LARGEST_MARGIN,
    arcface_cosine,
    classification_loss,
    cosface_cosine,
    cosine_logits,
    margins_by_size,
)
from whaleid.utils.errors import WhaleidError

_APART = 0.1  # length of the random part of sub-centers that start from a mean of length 1


class SoftmaxClassifier(HeadModule):
    """Linear classifier on the embedding as it is, with cross entropy or focal loss."""

    def __init__(self, settings: SoftmaxHead, dim: int, class_sizes: Tensor):
        super().__init__()
        self.settings = settings
        self.linear = nn.Linear(dim, len(class_sizes))

    def _loss(self, embeddings: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        weight, bias, labels = select_classes(labels, classes, self.linear.weight, self.linear.bias)
        logits = functional.linear(embeddings, weight, bias)
        return classification_loss(logits, labels, self.settings.smoothing, self.settings.focal)

    def _logits(self, embeddings: Tensor) -> Tensor:
        return self.linear(embeddings)


class MarginClassifier(HeadModule):
    """ArcFace and CosFace: scaled cosines with a margin on that of the true class.

    Attributes
    ----------
    centers : float tensor, shape (c, k, d)
        Learned directions, k a class.
    margins : float tensor, shape (c,)
        Margin of each class, in radians for ArcFace.
    """

    def __init__(self, settings: MarginHead, dim: int, class_sizes: Tensor):
        super().__init__()
        self.settings = settings
        classes = len(class_sizes)
        self.centers = nn.Parameter(torch.empty(classes, settings.subcenters, dim))
        nn.init.normal_(self.centers, std=1.0 / math.sqrt(dim))  # rows of length about 1
        self.register_buffer("margins", class_margins(settings, class_sizes))
        self._with_margin = arcface_cosine if settings.name == "arcface" else cosface_cosine

    def start_from_means(self, means: Tensor) -> list[str]:
        """As `HeadModule.start_from_means`; sub-centers lie around the mean, for equal ones would stay equal."""
        if not self.settings.starts_from_means:
            return []
        apart = _APART if self.settings.subcenters > 1 else 0.0
        held = (means.norm(dim=1) > 0)[:, None, None]
        with torch.no_grad():
            self.centers.copy_(torch.where(held, means[:, None] + apart * self.centers, self.centers))
        return ["centers"]

    def _loss(self, embeddings: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        centers, margins, labels = select_classes(labels, classes, self.centers, self.get_buffer("margins"))
        cosine = cosine_logits(embeddings, centers)
        true = cosine.gather(1, labels[:, None]).squeeze(1)
        lowered = self._with_margin(true, margins[labels])
        logits = self.settings.scale * cosine.scatter(1, labels[:, None], lowered[:, None])
        return classification_loss(logits, labels, self.settings.smoothing, self.settings.focal)

    def _logits(self, embeddings: Tensor) -> Tensor:
        return self.settings.scale * cosine_logits(embeddings, self.centers)


def class_margins(settings: MarginHead, class_sizes: Tensor) -> Tensor:
    """Margin of each class, float32 (c,). class_sizes: int64 (c,), training images of each class.

    Raises WhaleidError for angular margins that are too large.
    """
    margins = torch.full((len(class_sizes),), settings.margin)
    if settings.by_size is not None:
        margins = margins_by_size(class_sizes, settings.by_size)
    largest = float(margins.max()) if len(margins) else 0.0
    if settings.name == "arcface" and largest > LARGEST_MARGIN:
        key = "head.by_size" if settings.by_size is not None else "head.margin"
        raise WhaleidError(f"{key}: a margin of {largest:.3g} radians is above {LARGEST_MARGIN}; 0.2 to 0.5 is usual")
    return margins


def select_classes(
    labels: Tensor, classes: Tensor | None, weights: Tensor, more: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of two tables with one row a class, and labels, for some of the classes.

    Parameters
    ----------
    labels : int64 tensor, shape (b,)
        Each one of `classes`.
    classes : int64 tensor, shape (m,), ascending, or None for all
    weights, more : tensors, shape (c, ...)

    Returns
    -------
    weights, more : tensors, shape (m, ...)
    labels : int64 tensor, shape (b,), 0..m-1
    """
    if classes is None:
        return weights, more, labels
    return weights[classes], more[classes], torch.searchsorted(classes, labels)
