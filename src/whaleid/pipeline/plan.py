"""What a recipe costs before anything is trained: runs, sizes, operations, hours, disk."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from whaleid.config import Experiment
from whaleid.data.competition import inspect_rows
from whaleid.pipeline.project import Project
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.workspace import read_images
from whaleid.utils.device import device_kind, gpu_count
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import bytes_text
from whaleid.utils.machine import cores, slowness

if TYPE_CHECKING:
    from torch import nn

BACKWARD = 3.0
"""A training step costs about three forward passes: one forward, two backward (inputs and weights) of what learns."""

CPU_CORES = 2
SUSTAINED_TFLOPS = {"cuda": 30.0, "cpu": 0.1}
"""Sustained in training. GPU: an A100 in bf16 with convolutions (a T4 in fp16: about 8; say `--tflops 8`).
CPU: CPU_CORES cores, each with a run of EfficientNet-Lite0 (0.09 at 8,192 pixels, 0.12 at 32,768)."""

TOO_LONG = 1000.0
"""Hours above which a plan for a CPU is of no use, and a GPU is assumed."""

FLOAT = 4
"""Bytes of a number in single precision."""
TRAINED = 5
"""A network in training holds its weights five times: weights, gradients, two moments, their moving average."""
COPIES = 2
"""Features while they are whitened: what goes in and what comes out."""
LIBRARIES = 1.5e9
"""Bytes of a process with torch in it, and the system's own."""
JPEG_SHARE = 0.1
"""Size of a cache of JPEGs over that of raw pixels."""

DEFAULT_ASPECT = 2.0
"""Width over height where neither the data nor the experiment says: a fluke's."""


@dataclass(frozen=True)
class Census:
    """The counts that decide the cost."""

    labelled: int
    unknown: int
    identities: int
    test: int
    aspect: float
    estimated: bool
    """The figures were given on the command line: the data is not here."""

    @property
    def all_images(self) -> int:
        return self.labelled + self.unknown + self.test


@dataclass(frozen=True)
class Needs:
    """What a recipe needs of a machine, as lower bounds."""

    disk: float
    """Bytes under the work folder: caches, features, runs."""
    memory: float
    """Bytes: the largest network in training without its batch, or one fold's features side by side."""
    hours: float
    """On the given device."""


@dataclass(frozen=True)
class Cost:
    """One experiment, all its runs. images_seen: by a fold's run in training."""

    experiment: str
    backbone: str
    head: str
    size: tuple[int, int]
    parameters: int
    dim: int
    """Columns of its features."""
    forward_flops: float
    images_seen: int
    training_flops: float
    embedding_flops: float

    def hours(self, tflops: float) -> float:
        return (self.training_flops + self.embedding_flops) / (tflops * 1e12) / 3600


def plan_lines(
    project: Project, census: Census, tflops: float | None = None, gpus: int = 8, price: float | None = None
) -> list[str]:
    """The tables that `whaleid plan` prints.

    tflops: sustained rate of a device; None: that of this machine's device. gpus: how many devices beside one to plan
    for. price: of an hour of a device, in any currency; None: no money is spoken of.
    """
    from whaleid.models.snapshots import is_snapshot

    costs = recipe_costs(project, census)
    runs = sum(len(project.folds_of(item)) for item in project.experiments)
    full = len(project.full_experiments)
    frozen = len(costs) - len(project.trained)
    rate = tflops or _rate(costs)
    table = pd.DataFrame(
        {
            "experiment": [cost.experiment for cost in costs],
            "backbone": [cost.backbone for cost in costs],
            "head": [cost.head for cost in costs],
            "size": [f"{cost.size[0]}x{cost.size[1]}" for cost in costs],
            "Mparam": [f"{cost.parameters / 1e6:.1f}" for cost in costs],
            "GFLOP": [f"{cost.forward_flops / 1e9:.2f}" for cost in costs],
            "seen/run": [f"{cost.images_seen:,}" for cost in costs],
            "hours": [f"{cost.hours(rate):.2f}" for cost in costs],
        }
    )
    again = project.recipe.pseudo.rounds if project.recipe.pseudo is not None else 0
    total = sum(cost.hours(rate) for cost in costs) * (1 + again)
    named = dict.fromkeys(item.model.backbone for item in project.experiments if is_snapshot(item.model.backbone))
    snapshots = [f"snapshots, downloaded where they are not here: {', '.join(named)}"] if named else []
    pretraining = [] if project.pretext is None else [f"not counted: the pretraining {project.pretext.name}"]
    return [
        f"recipe {project.recipe.name} on {project.competition.name}: {len(costs) - frozen} experiments x "
        f"{len(project.folds)} folds"
        + (f" + {frozen} frozen" if frozen else "")
        + (f" + {full} on all labelled images" if full else "")
        + f" = {runs} runs"
        + (f", at most {again} times more with pseudo-labels" if again else ""),
        f"images: {census.labelled:,} labelled, {census.unknown:,} unknown, {census.test:,} test; "
        f"{census.identities:,} identities" + (" (as given, not counted)" if census.estimated else ""),
        "",
        table.to_string(index=False),
        "",
        f"estimated: {total:.1f} h in all on one device of {rate:.2g} sustained TFLOP/s "
        f"(--tflops to change), {total / max(1, runs * (1 + again)):.2f} h a run",
        "",
        places_table(run_hours(project, costs, rate), 1 + again, gpus, price).to_string(index=False),
        "",
        *snapshots,
        *pretraining,
        *_local_lines(project, census),
        *_needs_lines(project, census),
        f"features on disk: {bytes_text(_feature_bytes(project, census, costs) * (1 + again))}",
    ]


def places_table(runs: list[float], rounds: int, gpus: int, price: float | None) -> pd.DataFrame:
    """Hours of training and features, by the clock and of all devices, and their money, by where they happen.

    Parameters
    ----------
    runs : list of float
        Hours of each run on one device.
    rounds : int
        How often all runs are done, one round after the other.
    gpus : int
        Devices that are paid for from the first run's start to the last one's end. A device takes the next run when it
        is free.
    price : float, optional
        Of an hour of a device. Jobs of SLURM are paid for while they run, and all start at once.
    """
    ends = [0.0] * gpus
    for hours in sorted(runs, reverse=True):
        heapq.heapreplace(ends, ends[0] + hours)
    total = sum(runs)
    places = {
        "one device": (total, total),
        f"{gpus} devices": (max(ends), gpus * max(ends)),
        f"SLURM, {len(runs)} jobs": (max(runs), total),
    }
    table = pd.DataFrame(
        [
            {"on": place, "hours": f"{rounds * clock:.2f}", "device hours": f"{rounds * paid:.2f}"}
            for place, (clock, paid) in places.items()
        ]
    )
    if price is not None:
        table["money"] = [f"{rounds * paid * price:,.2f}" for _, paid in places.values()]
    return table


def longest_run(project: Project, census: Census, tflops: float | None) -> float:
    """Estimated hours of the longest run and its features; parameters as in `plan_lines`."""
    costs = recipe_costs(project, census)
    return max(run_hours(project, costs, tflops or _rate(costs)))


def run_hours(project: Project, costs: list[Cost], tflops: float) -> list[float]:
    """Hours of every run of a round and its features on one device, experiment by experiment."""
    numbers = [len(project.folds_of(item)) for item in project.experiments]
    return [cost.hours(tflops) / number for cost, number in zip(costs, numbers, strict=True) for _ in range(number)]


def _needs_lines(project: Project, census: Census) -> list[str]:
    needs = recipe_needs(project, census, device_kind())
    return [f"at least {bytes_text(needs.memory)} of memory, and {bytes_text(needs.disk)} of disk for the work folder"]


def _local_lines(project: Project, census: Census) -> list[str]:
    """What local matching takes, where the recipe has it."""
    from whaleid.local_matching.cost import local_cost, this_core

    config = project.local_matching
    if config is None:
        return []
    again = project.recipe.combine.full_gallery
    cost = local_cost(census.labelled, census.unknown, census.test, len(project.folds), config, this_core(), again)
    parts = ", ".join(f"{name} {seconds / 60:.0f}" for name, seconds in asdict(cost).items())
    keypoints = f"if every image has {config.keypoints:,} keypoints"
    return [f"local matching: {cost.total / 60:.0f} minutes of a core {keypoints} ({parts})"]


def recipe_needs(project: Project, census: Census, device: str) -> Needs:
    """Disk, memory and time of the whole recipe, all its rounds counted. device: cuda or cpu."""
    costs = recipe_costs(project, census)
    weights = [FLOAT * cost.parameters for cost in costs]
    kept = [weight * len(project.folds_of(item)) for weight, item in zip(weights, project.experiments, strict=True)]
    rounds = 1 + (project.recipe.pseudo.rounds if project.recipe.pseudo is not None else 0)
    trained = [weight for weight, item in zip(weights, project.experiments, strict=True) if not item.frozen]
    runs = rounds * sum(kept) + TRAINED * max(trained, default=0)
    caches: dict[tuple[tuple[int, int], str], float] = {}
    for item, cost in zip(project.experiments, costs, strict=True):
        bytes_a_pixel = 3 * (JPEG_SHARE if item.image.cache == "jpeg" else 1.0)
        caches[cost.size, item.image.cache] = census.all_images * cost.size[0] * cost.size[1] * bytes_a_pixel
    side_by_side = COPIES * FLOAT * census.all_images * sum(cost.dim for cost in costs)
    return Needs(
        disk=sum(caches.values()) + rounds * _feature_bytes(project, census, costs) + runs,
        memory=LIBRARIES + max(TRAINED * max(trained, default=0), max(weights, default=0), side_by_side),
        hours=rounds * sum(cost.hours(SUSTAINED_TFLOPS[device]) for cost in costs),
    )


def _rate(costs: list[Cost]) -> float:
    """Rate to estimate with: this machine's, unless it has no GPU and would take months."""
    own = SUSTAINED_TFLOPS["cuda"] if device_kind() == "cuda" else _cpu_rate()
    return own if sum(cost.hours(own) for cost in costs) < TOO_LONG else SUSTAINED_TFLOPS["cuda"]


def _cpu_rate() -> float:
    return SUSTAINED_TFLOPS["cpu"] / slowness()


def count_images(project: Project, images: int | None = None, identities: int | None = None) -> Census:
    """Counts of the competition's images.

    Parameters
    ----------
    project : Project
    images, identities : int, optional
        Labelled images and identities to plan with where the data is not here.
    """
    competition, workspace = project.competition, project.workspace
    if not (competition.root / competition.train.csv).is_file():
        if images is None or identities is None:
            raise WhaleidError(
                f"{competition.root / competition.train.csv} is not here: get the data, or plan with given counts, "
                "e.g. ARGS='--images 25361 --identities 5004'"
            )
        return Census(images, 0, identities, images // 3, DEFAULT_ASPECT, estimated=True)
    aspect, table = DEFAULT_ASPECT, None
    if workspace.is_current(workspace.images, project.keys.images):
        table = read_images(workspace)
        aspect = float(((table.x1 - table.x0) / (table.y1 - table.y0)).median())
    return census_of(inspect_rows(competition)[0] if table is None else table, competition.unknown, aspect)


def census_of(rows: pd.DataFrame, unknown: str | None, aspect: float) -> Census:
    """Counts of rows of images (`split`, `identity`), in which `unknown` is the label of unknown identities."""
    train = rows[rows["split"] == "train"]
    known = train.loc[train["identity"] != unknown, "identity"]
    return Census(len(known), len(train) - len(known), known.nunique(), len(rows) - len(train), aspect, estimated=False)


def estimate_minutes(project: Project, census: Census, tasks: Sequence[Task]) -> tuple[float, str]:
    """Minutes that the runs and features among some tasks take on this machine, and the machine in words."""
    gpus, threads = gpu_count(), cores()
    rate = gpus * SUSTAINED_TFLOPS["cuda"] if gpus else _cpu_rate() * threads / CPU_CORES
    names = {task.run[0] for task in tasks if task.run is not None}
    costs = {
        item.name: experiment_cost(item, census, project.recipe.folds, 1, weights=project.settings.weights)
        for item in project.experiments
        if item.name in names
    }
    shards = Counter(task.run for task in tasks if task.shard is not None)
    flops = 0.0
    for task in tasks:
        if task.run is None:
            continue
        cost = costs[task.run[0]]
        if task.shard is not None:
            flops += cost.embedding_flops / shards[task.run]
        elif task.stage in ("features", "frozen"):
            flops += 0 if task.run in shards else cost.embedding_flops
        else:
            flops += cost.training_flops
    machine = (
        f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else f"{threads} core{'s' if threads > 1 else ''} without a GPU"
    )
    return flops / (rate * 1e12) / 60, machine


def recipe_costs(project: Project, census: Census) -> list[Cost]:
    """Cost of each experiment of the recipe, in its order."""
    costs = []
    for item in project.experiments:
        runs = project.folds_of(item)
        trained = len(runs) - runs.count(None)
        weights = project.settings.weights
        costs.append(experiment_cost(item, census, project.recipe.folds, trained, None in runs, weights))
    return costs


def experiment_cost(
    experiment: Experiment,
    census: Census,
    folds: int,
    trained: int,
    full: bool = False,
    weights: Path | None = None,
) -> Cost:
    """Operations of one experiment over its runs, counted on torch's meta device: no memory, no weights.

    folds: into which the images are assigned. trained: how many of them are. full: on all labelled images, too, or
    frozen. weights: their folder, in which a snapshot may lie.
    """
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from whaleid.data.images import input_size
    from whaleid.models.backbone import freeze_stages
    from whaleid.models.embedder import build_adapter, build_embedder

    boxes = np.array([[0.0, 0.0, census.aspect * 1000, 1000.0]])
    size = input_size(experiment.image, boxes)
    with torch.device("meta"):
        embedder = build_embedder(experiment.model, weights, pretrained=False, size=size)
        image = torch.empty((1, size[1], size[0], 3), dtype=torch.uint8)
        if experiment.is_adapter:
            channels = embedder.backbone.channels
            embedder, image = build_adapter(experiment.model, channels), torch.empty((1, channels))
        elif experiment.train.freeze.stages:
            freeze_stages(embedder.backbone, experiment.train.freeze.stages)
        embedder.eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            embedder(image)
    forward, frozen = float(counter.get_total_flops()), _frozen_flops(embedder, counter.get_flop_counts())
    seen = _images_seen(experiment, census, folds)
    seen_in_all = seen * trained + (round(seen * folds / (folds - 1)) if full else 0)
    views = (2 if experiment.features.mirror else 1) * sum(scale**2 for scale in experiment.features.scales)
    if experiment.is_adapter:
        views = 1
    return Cost(
        experiment.name,
        experiment.model.backbone,
        experiment.head.name,
        size,
        sum(parameter.numel() for parameter in embedder.parameters()),
        embedder.dim * (2 if experiment.features.mirror and experiment.image.mirror_identities else 1),
        forward,
        seen,
        (forward + (BACKWARD - 1) * (forward - frozen)) * seen_in_all,
        forward * views * census.all_images * (trained + full),
    )


def _frozen_flops(embedder: nn.Module, counts: Mapping[str, Mapping[Any, int]]) -> float:
    """Operations of a forward pass before the layers that learn. counts: of each module, by the counter's names."""
    total = 0
    for name, module in embedder.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            total += sum(counts.get(f"{type(embedder).__name__}.{name}", {}).values())
    return float(total)


def _images_seen(experiment: Experiment, census: Census, folds: int) -> int:
    """Images that one run sees in training."""
    if experiment.train.images_seen is not None:
        return experiment.train.images_seen
    assert experiment.train.epochs is not None
    own = census.unknown if experiment.sampler.unknown == "own" else 0
    items = (census.labelled + own) * (folds - 1) / folds * (2 if experiment.image.mirror_identities else 1)
    return round(items * experiment.train.epochs)


def _feature_bytes(project: Project, census: Census, costs: list[Cost]) -> int:
    """Bytes of all features (embeddings, and logits where they are kept)."""
    total = 0
    for experiment, cost in zip(project.experiments, costs, strict=True):
        width = cost.dim
        width += census.identities if experiment.features.logits and experiment.head.has_logits else 0
        total += census.all_images * width * (2 if experiment.features.half else 4) * len(project.folds_of(experiment))
    return total
