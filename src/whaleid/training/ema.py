"""Moving average of the weights (Polyak & Juditsky 1992), with the decay warmed up for short schedules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def ema_decay(decay: float, step: int) -> float:
    """Decay at `step` (0 for the first): min(decay, (1 + step) / (10 + step)).

    The first average is then nearly the weights themselves, and a run of a few hundred steps is not dominated
    by its random start.
    """
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """Average of a module's parameters and floating buffers (batch normalisation's statistics among them)."""

    def __init__(self, module: nn.Module, decay: float):
        self._module = module
        self._decay = decay
        self.values: dict[str, Tensor] = {name: tensor.clone() for name, tensor in self._live().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (0 for the first): average <- d average + (1 - d) weights."""
        live = self._live()
        weight = 1.0 - ema_decay(self._decay, step)
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [self.values[name] for name in live], list(live.values()), weight
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The module's state with the averages in place of what they average; integer buffers as they are."""
        return {**self._module.state_dict(), **self.values}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module carries the averages within the block, and its own weights again after it."""
        own = {name: tensor.clone() for name, tensor in self._live().items()}
        self._fill(self.values)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def adopt(self, names: list[str]) -> None:
        """Begin these averages anew at the weights as they are: something else than a step has changed them."""
        live = self._live()
        for name in names:
            self.values[name].copy_(live[name])

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Carry on from saved averages; the names must be this module's."""
        for name, tensor in self.values.items():
            tensor.copy_(values[name])

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, tensor in self._live().items():
            tensor.copy_(values[name])

    def _live(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._module.state_dict().items() if tensor.is_floating_point()}
