"""Length of a run and its learning rate: linear warm-up, then half a cosine (Loshchilov & Hutter 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from whaleid.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """What is done when, known before the first step. A step is one change of the weights."""

    epochs: int
    steps: int
    """Over all epochs."""
    warmup: float
    """Share of all steps, [0, 1]."""
    final: float
    """Factor that the cosine ends at, [0, 1]."""

    def factor(self, step: int) -> float:
        """Learning rate of a step (0 for the first) as a share of its peak, [0, 1]."""
        return learning_rate_factor(step, self.steps, self.warmup, self.final)


def learning_rate_factor(step: int, steps: int, warmup: float, final: float) -> float:
    """Share of the peak learning rate at `step` of `steps` (0 for the first).

    With w = round(warmup x steps): (step + 1) / w while step < w, then
    final + (1 - final) x (1 + cos(pi x (step - w) / (steps - w))) / 2.
    """
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, steps - warm))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))


def epochs_of(config: TrainConfig, images_an_epoch: int) -> int:
    """Whole epochs of a run: as configured, or as many as come nearest to `images_seen`, at least one."""
    if config.epochs is not None:
        return config.epochs
    assert config.images_seen is not None  # the configuration gives one of the two
    return max(1, round(config.images_seen / images_an_epoch))


def make_schedule(config: TrainConfig, batches: list[int]) -> Schedule:
    """Schedule of a run. batches: how many each of its epochs has."""
    return Schedule(
        epochs=len(batches),
        steps=sum(math.ceil(count / config.accumulate) for count in batches),
        warmup=config.warmup,
        final=config.final_lr,
    )
