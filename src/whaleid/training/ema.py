"""Moving average of the weights: timm's, with a warm-up of the decay for short schedules."""

from __future__ import annotations

import torch
from timm.utils.model_ema import ModelEmaV3


class Ema(ModelEmaV3):
    """Average of a module's parameters and floating buffers (Polyak & Juditsky, 1992); `module` has the averages.

    The decay at `step` (0 for the first) is min(decay, (1 + step) / (10 + step)): the first average is nearly the
    weights themselves, so that a run of a few hundred steps is not dominated by its random start.
    """

    def get_decay(self, step: int | None = None) -> float:
        return self.decay if step is None else min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def restart(self, module: torch.nn.Module, names: list[str]) -> None:
        """Start these averages anew at the module's values, which something other than a step has changed."""
        averages, values = self.module.state_dict(), module.state_dict()
        for name in names:
            averages[name].copy_(values[name])
