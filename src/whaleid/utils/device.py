"""Where networks run: GPUs when torch sees some, else the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def gpu_count() -> int:
    """GPUs that torch sees: those of CUDA_VISIBLE_DEVICES, else all."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_kind() -> str:
    """`cuda` or `cpu`."""
    return "cuda" if gpu_count() else "cpu"


def default_device() -> torch.device:
    """The first GPU, else the CPU."""
    import torch

    return torch.device(device_kind())
