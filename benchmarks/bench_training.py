"""A step of the training loop compared with a bare loop: same network, head, optimiser and batch, in memory.

The loops take turns with one network, in changing order, so that other programs slow all of them; a ratio is the
median over the rounds. Settings: configs/experiments/default.yaml with random weights. Loops:
`bare` (forward, backward, step), `bare + clip` (with torch's clipping alone), `loop` (ours: clipping, checks,
seeds, log) and `loop + ema`. Result: benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import device_seconds

from whaleid.config.files import load_experiment
from whaleid.data.cache import ImageCache
from whaleid.data.samplers import EpochPlan, TrainingItems
from whaleid.training.ema import Ema
from whaleid.training.log import recorder
from whaleid.training.loop import train_epoch
from whaleid.training.run import Task, start
from whaleid.training.session import Progress, Session, make_accelerator
from whaleid.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "training.json"
ROUNDS, STEPS, CLASSES = 24, 2, 150
Batch = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    experiment = load_experiment("default", {"model.weights": "random"})
    size = (experiment.image.width or 128, experiment.image.height or 64)
    generator = torch.Generator().manual_seed(0)
    shape = (experiment.train.batch, size[1], size[0], 3)
    batch = (
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        torch.randint(0, CLASSES, shape[:1], generator=generator),
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        session = make_session(size, folder / "loop")
        averaged = replace(session, ema=Ema(session.module, 0.999), progress=Progress())
        (folder / "ema").mkdir()
        seconds = measure(
            {
                "bare": bare_loop(session, batch, clip=0.0),
                "bare + clip": bare_loop(session, batch, experiment.train.clip),
                "loop": whaleid_loop(session, batch, folder / "loop", stack),
                "loop + ema": whaleid_loop(averaged, batch, folder / "ema", stack),
            }
        )
    report(
        seconds,
        {"backbone": experiment.model.backbone, "width": size[0], "height": size[1], "batch": shape[0]},
    )


def make_session(size: tuple[int, int], out: Path) -> Session:
    """A session whose epoch has `STEPS` batches; nothing is read from its items or its cache."""
    settings = {"model.weights": "random", "train.epochs": 100_000, "train.warmup": 0.0}
    experiment = load_experiment("default", settings)
    count = STEPS * experiment.train.batch
    labels = np.arange(count) % CLASSES
    rows = np.arange(count)
    items = TrainingItems(rows, np.zeros(count, dtype=bool), labels, [f"{name:03d}" for name in range(CLASSES)])
    cache = ImageCache(out, size, np.empty(0), None)
    task = Task(experiment, 0, items, cache, out, "benchmark")
    return start(task, make_accelerator("auto", task.title), out)


def bare_loop(session: Session, batch: Batch, clip: float) -> Callable[[], None]:
    module, optimizer, device = session.module, session.optimizer, session.accelerator.device
    module.train()
    raw = getattr(optimizer, "optimizer", optimizer)  # without accelerate's wrapper

    def run() -> None:
        for _ in range(STEPS):
            raw.zero_grad(set_to_none=True)
            with session.accelerator.autocast():
                loss = module(batch[0].to(device), batch[1].to(device))
            loss.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            raw.step()

    return run


def whaleid_loop(session: Session, batch: Batch, folder: Path, stack: ExitStack) -> Callable[[], None]:
    record = stack.enter_context(recorder(session, folder, "benchmark", save_seconds=60.0))
    assert record is not None
    plan = EpochPlan([np.arange(len(batch[1]))] * STEPS, [0] * STEPS)

    def run() -> None:
        batches: Iterator[Batch] = itertools.repeat(batch)
        train_epoch(session, plan, batches, record.after_tick)
        session.progress.batch = 0

    return run


def measure(loops: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds a step of each loop in each round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(ROUNDS + 1):
        names = list(loops)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken = device_seconds(loops[name]) / STEPS
            if number:
                seconds[name].append(taken)
    return seconds


def report(seconds: dict[str, list[float]], settings: dict[str, Any]) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    paired = {
        name: [ours / bare for ours, bare in zip(taken, seconds["bare"], strict=True)]
        for name, taken in seconds.items()
        if name != "bare"
    }
    ratios = {name: statistics.median(values) for name, values in paired.items()}
    content = {
        **settings,
        "device": device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "clock": "wall" if torch.cuda.is_available() else "processor time",
        "rounds": ROUNDS,
        "seconds_a_step": {name: round(statistics.median(taken), 5) for name, taken in seconds.items()},
        "ratio_to_bare": {name: round(ratio, 4) for name, ratio in ratios.items()},
        "ratio_quartiles": {
            name: [round(value, 4) for value in statistics.quantiles(values, n=4)[::2]]
            for name, values in paired.items()
        },
    }
    write_json(RESULTS, content)
    for name, ratio in ratios.items():
        print(f"training step, {name}: {ratio:.3f} x the bare loop's ({content['seconds_a_step'][name]:.4f} s)")


if __name__ == "__main__":
    main()
