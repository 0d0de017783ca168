"""Length of a run and its learning rate: linear warm-up, then half a cosine (Loshchilov & Hutter, 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from whaleid.config import Experiment, TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a run, known before its first step. A step is one update of the weights."""

    epochs: int
    steps: int
    """Of all epochs."""
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

    Notes
    -----
    timm's CosineLRScheduler has one lowest rate for all parameter groups, where here each group ends at its own share,
    and starts its warm-up at the lowest rate instead of one step above.
    """
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, steps - warm))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))


def epochs_of(config: TrainConfig, images_an_epoch: int) -> int:
    """Epochs of a run: as configured, or the whole number nearest to `images_seen`, at least one."""
    if config.epochs is not None:
        return config.epochs
    assert config.images_seen is not None  # the configuration gives one of the two
    return max(1, round(config.images_seen / images_an_epoch))


def make_schedule(config: TrainConfig, batches: list[int]) -> Schedule:
    """Schedule of a run with these batches in each of its epochs."""
    return Schedule(
        epochs=len(batches),
        steps=sum(math.ceil(count / config.accumulate) for count in batches),
        warmup=config.warmup,
        final=config.final_lr,
    )


def full_data_experiment(experiment: Experiment, summaries: list[dict[str, Any]]) -> Experiment:
    """The experiment as it is trained on all labelled images: for the mean number of epochs of its folds' runs.

    summaries: `RunSummary` of each fold's run, as a dict.
    """
    taken = [summary["epochs"] for summary in summaries]
    epochs = max(1, int(sum(taken) / len(taken) + 0.5))
    train = experiment.train.model_copy(update={"epochs": epochs, "images_seen": None})
    return experiment.model_copy(update={"train": train})
