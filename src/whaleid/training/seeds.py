"""Seeds: everything random is a pure function of the run's seed and of the position in the run.

A run that was killed needs no generator's state to continue as it would have: whatever drew random numbers before (a
data loader, feature extraction) does not change what the next step draws.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def run_seed(seed: int, fold: int | None) -> int:
    """Seed of a run, different for each fold, 0 <= seed < 2**31."""
    return mix(seed, "all" if fold is None else fold)


def mix(*parts: int | str) -> int:
    """Integer in [0, 2**31) that depends on all parts and on nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()) >> 1


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch (all devices): for dropout, stochastic depth, miners."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def prefer_determinism() -> None:
    """Make cuDNN deterministic; it must not choose its algorithms by timing them.

    On a CPU torch is deterministic for a given number of threads. Full determinism on a GPU would forbid operations
    that some backbones need.
    """
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
