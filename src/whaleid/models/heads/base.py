"""The interface of all heads: `forward(embeddings, labels)` is a scalar loss, `logits(embeddings)` class scores or
None.

Heads compute in float32 whatever autocast says: logits of scale 30 do not fit half precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class HeadModule(nn.Module):
    """Base of all heads.

    A head is built as `Head(settings, dim, class_sizes)`: its settings (a subclass of `config.HeadSettings`), the
    length of an embedding, and the number of training images of each class, int64 (c,). It defines `_logits`
    where it has classes, and `_loss` where that is not the cross entropy of the logits, both on float32 embeddings.
    """

    unused_parameters = False
    """Whether some batches leave some of its parameters without a gradient."""
    rates: Mapping[str, float] = MappingProxyType({})
    """Parameters with a learning rate of their own, as a multiple of the head's, and without weight decay."""

    @classmethod
    def network_size(cls, settings: Any, backbone: str, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the network's input, for images of `size` (width, height) and a timm backbone."""
        return size

    def question(self, images: Tensor, labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What the network sees of a batch, and the right answers: a head without labels makes its own.

        Parameters
        ----------
        images : uint8 or float tensor, shape (b, h, w, 3)
        labels : int64 tensor, shape (b,)
        size : tuple of int
            Width and height of the network's input, `network_size` of the images'.

        Returns
        -------
        images : uint8 or float tensor, shape (m, h', w', 3)
        answers : int64 tensor
        """
        return images, labels

    def forward(self, embeddings: Tensor, labels: Tensor, learner: int = 0) -> Tensor:
        """Training loss of a batch.

        Parameters
        ----------
        embeddings : float tensor, shape (b, d)
            Not normalised.
        labels : int64 tensor, shape (b,)
        learner : int
            The learner of a divided head that the batch belongs to (`EpochPlan.parts`); 0 for all other heads.

        Returns
        -------
        float32 scalar tensor
        """
        with full_precision(embeddings):
            return self._learner_loss(embeddings.float(), labels, learner)

    def start_from_means(self, means: Tensor) -> list[str]:
        """Start every class from the mean direction of its images' embeddings, float (c, d), 0 where it has none.

        Only what the settings want to start so (`HeadSettings.starts_from_means`). Returns the names of the changed
        parameters.
        """
        return []

    def logits(self, embeddings: Tensor) -> Tensor | None:
        """Class scores float32 (b, c) for a softmax, without margin; None where the head has no classes."""
        with full_precision(embeddings):
            return self._logits(embeddings.float())

    def _learner_loss(self, embeddings: Tensor, labels: Tensor, learner: int) -> Tensor:
        return self._loss(embeddings, labels)

    def _loss(self, embeddings: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """classes: int64 (m,), ascending: the classes in the softmax, None for all. Heads on pairs ignore it."""
        logits = self._logits(embeddings)
        assert logits is not None
        return functional.cross_entropy(logits, labels)

    def _logits(self, embeddings: Tensor) -> Tensor | None:
        """Class scores float32 (b, c); None where the head has no classes."""
        return None


def full_precision(embeddings: Tensor) -> contextlib.AbstractContextManager:
    """Autocast off, where the device has it (torch's meta device has none)."""
    device = embeddings.device.type
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
