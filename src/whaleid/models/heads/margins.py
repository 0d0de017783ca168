"""The mathematics of the classifier heads as pure functions: cosine logits, margins, cross entropy and focal loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from whaleid.config import BySize

LARGEST_MARGIN = 2.33
"""Root of tan(m / 2) = m: with a larger margin `arcface_cosine` would jump up where its extension begins."""

_SMALLEST_LENGTH = 1e-6
"""Shorter embeddings are not normalised to length 1: their gradient would be unbounded."""

_SMALLEST_SINE2 = 1e-8
"""Floor of sin ** 2: at angles 0 and pi the slope of arccos is infinite, here it stays below 1e4."""


def cosine_logits(embeddings: Tensor, centers: Tensor) -> Tensor:
    """Cosine of every embedding with the nearest center of every class.

    Parameters
    ----------
    embeddings : float tensor, shape (b, d)
        Of any length; a zero embedding has cosine 0 with everything.
    centers : float tensor, shape (c, k, d)
        k centers a class; k = 1 is ArcFace, more are sub-center ArcFace (Deng et al., 2020).

    Returns
    -------
    float tensor, shape (b, c), in [-1, 1]
    """
    classes, subcenters, dim = centers.shape
    rows = functional.normalize(embeddings, dim=1, eps=_SMALLEST_LENGTH)
    flat = functional.normalize(centers.reshape(classes * subcenters, dim), dim=1)
    cosine = functional.linear(rows, flat).clamp(-1.0, 1.0)
    return cosine if subcenters == 1 else cosine.view(-1, classes, subcenters).amax(dim=2)


def arcface_cosine(cosine: Tensor, margin: Tensor) -> Tensor:
    """cos(theta + margin) of the true class (ArcFace, Deng et al., 2019), decreasing on all of 0..pi.

    Beyond theta = pi - margin, where cos(theta + margin) would rise again, it continues as
    cos(theta) - margin * sin(margin), the extension in the authors' code. Values and slopes are finite everywhere.

    Parameters
    ----------
    cosine : float tensor, shape (b,)
        cos(theta).
    margin : float tensor, shape (b,), radians in [0, LARGEST_MARGIN]

    Returns
    -------
    float tensor, shape (b,)
    """
    sine = (1.0 - cosine.square()).clamp(min=_SMALLEST_SINE2).sqrt()
    added = cosine * torch.cos(margin) - sine * torch.sin(margin)
    extended = cosine - margin * torch.sin(margin)
    return torch.where(cosine >= -torch.cos(margin), added, extended)


def cosface_cosine(cosine: Tensor, margin: Tensor) -> Tensor:
    """cos(theta) - margin of the true class (CosFace, Wang et al., 2018). cosine, margin: float (b,)."""
    return cosine - margin


def margins_by_size(class_sizes: Tensor, rule: BySize) -> Tensor:
    """Margin of each class, larger for rare classes: factor * n ** power + floor for n images (Ha et al., 2020).

    class_sizes: int (c,); 0 counts as 1. Returns float32 (c,).
    """
    return rule.factor * class_sizes.clamp(min=1).float() ** rule.power + rule.floor


def classification_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0, focal: float = 0.0) -> Tensor:
    """Mean over the batch of -sum_j y_j (1 - p_j) ** focal log p_j, with p = softmax(logits).

    Parameters
    ----------
    logits : float tensor, shape (b, c)
    labels : int64 tensor, shape (b,)
    smoothing : float
        Label smoothing (Szegedy et al., 2016): y is 1 - smoothing + smoothing / c for the true class, and
        smoothing / c for the others.
    focal : float
        Gamma of the focal loss (Lin et al., 2017); 0 is the cross entropy.

    Returns
    -------
    float scalar tensor
    """
    if focal == 0:
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    log_p = functional.log_softmax(logits, dim=1)
    rest = -torch.expm1(log_p)  # 1 - p without cancellation
    losses = -(rest.clamp(min=1e-8) ** focal) * log_p
    true = losses.gather(1, labels[:, None]).squeeze(1)
    return ((1.0 - smoothing) * true + smoothing * losses.mean(dim=1)).mean()
