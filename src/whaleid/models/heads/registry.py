"""Build a head from its settings. The registry itself is `config.heads.HEADS`, which needs no torch to be read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from whaleid.config import HeadSettings
from whaleid.config.heads import find_class
from whaleid.models.heads.base import HeadModule


def head_class(settings: HeadSettings) -> type[HeadModule]:
    """The class of head that is built from these settings."""
    return find_class(settings.module)


def build_head(settings: HeadSettings, dim: int, class_sizes: Tensor | np.ndarray | Sequence[int]) -> HeadModule:
    """Head of an experiment's `head` settings.

    Parameters
    ----------
    settings : HeadSettings
    dim : int
        Length of an embedding.
    class_sizes : int array, shape (c,)
        Training images of each class.

    Raises
    ------
    WhaleidError
        For an unknown loss, miner or argument, and for angular margins that are too large.
    """
    sizes = torch.as_tensor(np.asarray(class_sizes), dtype=torch.int64, device="cpu")
    return head_class(settings)(settings, dim, sizes)
