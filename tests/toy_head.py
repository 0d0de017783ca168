"""A head in one file, as somebody would add one: its settings and its network."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from whaleid.config import HeadSettings
from whaleid.models.heads.base import HeadModule


class ToySettings(HeadSettings):
    """Cross entropy of a linear classifier, `factor` times."""

    module: ClassVar[str] = "toy_head:ToyClassifier"

    name: Literal["toy"]
    factor: float = 1.0

    @property
    def has_logits(self) -> bool:
        return True


class ToyClassifier(HeadModule):
    """See `ToySettings`."""

    def __init__(self, settings: ToySettings, dim: int, class_sizes: Tensor):
        super().__init__()
        self.settings = settings
        self.linear = nn.Linear(dim, len(class_sizes))

    def _loss(self, embeddings: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        return self.settings.factor * super()._loss(embeddings, labels, classes)

    def _logits(self, embeddings: Tensor) -> Tensor:
        return self.linear(embeddings)
