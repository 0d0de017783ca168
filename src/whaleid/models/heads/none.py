"""No head: a frozen network has no loss and no classes."""

from __future__ import annotations

from torch import Tensor

from whaleid.config import NoHead
from whaleid.models.heads.base import HeadModule


class NoLoss(HeadModule):
    """Head of a network that is not trained: no parameters, no logits."""

    def __init__(self, settings: NoHead, dim: int, class_sizes: Tensor):
        super().__init__()
