"""The one face of all heads: `forward(embeddings, labels)` is a scalar loss, `logits(embeddings)` are class scores or
None. They compute in float32 whatever autocast says: logits of scale 30 do not fit half precision.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn


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


def full_precision(embeddings: Tensor) -> contextlib.AbstractContextManager:
    """Autocast off, where the device has it (torch's meta device has none)."""
    device = embeddings.device.type
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
