"""What an image costs in training here: a few real training steps at two sizes, on as many processes as will train.

The time of a step is about a constant and a part that grows with the pixels, so two sizes give every other one.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whaleid.auto.facts import Machine

SIZES = {"cpu": (8192, 32768), "cuda": (50176, 147456)}
"""Pixels at which the time of a step is measured: the smallest and about the largest that `choose` considers."""
SECONDS = 5.0
"""Of steps that are timed at each size, after the first ones."""
BATCHES, EPOCHS = 4, 300
"""Batches between two looks at the clock, as many before the first; and the most looks."""


@dataclass(frozen=True)
class Throughput:
    """Seconds that a run takes for an image in training while all slots train: `fixed + pixels * per_pixel`."""

    fixed: float
    per_pixel: float

    def seconds(self, pixels: float) -> float:
        """Of one image of so many pixels."""
        return self.fixed + pixels * self.per_pixel


def line_through(sizes: tuple[float, float], seconds: tuple[float, float]) -> Throughput:
    """The throughput of two measurements; more pixels never cost less."""
    per_pixel = max(0.0, (seconds[1] - seconds[0]) / (sizes[1] - sizes[0]))
    return Throughput(max(0.0, seconds[0] - sizes[0] * per_pixel), per_pixel)


def measure(machine: Machine, experiment: str, classes: int, weights: Path) -> dict[str, Throughput]:
    """Throughput of each of the machine's backbones; takes about half a minute a backbone.

    Parameters
    ----------
    machine : Machine
    experiment : str
        Name of the experiment whose settings are measured, with other backbones and sizes.
    classes : int
        Number of classes of its head.
    weights : Path
        Folder of pretrained backbones, which are not needed to be there: random weights take as long.
    """
    sizes = SIZES["cuda" if machine.gpus else "cpu"]
    threads = max(1, machine.cores // machine.slots)
    context = multiprocessing.get_context("spawn")
    rates = {}
    with ProcessPoolExecutor(machine.slots, mp_context=context) as pool:
        for backbone in machine.backbones:
            means = []
            for size in sizes:
                work = [
                    pool.submit(seconds_an_image, experiment, backbone, size, classes, threads, slot, weights)
                    for slot in range(machine.slots)
                ]
                means.append(float(np.mean([item.result() for item in work])))
            rates[backbone] = line_through(sizes, (means[0], means[1]))
    return rates


def seconds_an_image(
    experiment: str, backbone: str, pixels: int, classes: int, threads: int, slot: int, weights: Path
) -> float:
    """Seconds an image of training on noise, in this process; slot: of the GPU, where there are several."""
    import torch

    from whaleid.config.files import load_experiment
    from whaleid.data.cache import ImageCache
    from whaleid.data.images import input_size
    from whaleid.data.samplers import TrainingItems
    from whaleid.training.run import Task, run_epoch, start
    from whaleid.training.session import make_accelerator

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())
    settings = {"model.backbone": backbone, "model.weights": "random", "image.pixels": pixels, "train.epochs": EPOCHS}
    made = load_experiment(experiment, settings)
    width, height = input_size(made.image, np.array([[0.0, 0.0, 1000.0, 1000.0]]))
    count = BATCHES * made.train.batch
    pixels_ = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % classes
    items = TrainingItems(
        np.arange(count), np.zeros(count, dtype=bool), labels, [f"{number:06d}" for number in range(classes)]
    )
    with tempfile.TemporaryDirectory() as folder:
        task = Task(made, 0, items, ImageCache(Path(folder), (width, height), pixels_, None), Path(folder), "")
        session = start(task, make_accelerator(made.train.precision, task.title), weights)
        run_epoch(task, session, None)
        began, images = session.progress.seconds, session.progress.images
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and session.progress.epoch < EPOCHS:
            run_epoch(task, session, None)
        return (session.progress.seconds - began) / (session.progress.images - images)
