"""Divide and conquer where training overfits, against the same learner alone (K = 1): adapters on frozen features.

    .venv/bin/python benchmarks/bench_divide.py [--methods '1 *,8 * 0.5'] [--seeds 0,1,2]

1,000 drawn whales with 8 photographs each to train on, 400 others to test with; frozen EfficientNet-Lite0 of ImageNet,
GeM, 256 principal components; a hidden layer of 512 and an embedding of 128, trained by the project's own heads,
batches, clusters and phases for 24 epochs of 100 batches of 20 whales x 4 photographs, at a constant rate. A photograph
is a query against all others of its part: R@1 and MAP@R of the test whales, and R@1 of 400 of the training whales,
which have as large a gallery.

Drawing and embedding the photographs takes four minutes of one core once, a run a quarter of one. Runs are kept in
work/bench-divide/; the tables are of all that are there. Result: benchmarks/results/divide.md and divide.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from torch import Tensor, nn
from torch.nn import functional

from whaleid.config import DivideHead, SamplerConfig
from whaleid.config.files import load_experiment
from whaleid.config.settings import read_settings
from whaleid.data.flukes import draw_individual
from whaleid.data.photographs import photograph
from whaleid.data.samplers import EpochPlan, epoch_batches
from whaleid.divide.learners import DivideLearners
from whaleid.divide.sampler import cluster_batches
from whaleid.divide.schedule import Phase, divide, learners_of, phase_of
from whaleid.evaluation.retrieval_metrics import recall_and_map
from whaleid.models.embedder import build_embedder, equal_slices
from whaleid.models.heads.registry import build_head
from whaleid.models.weights import ensure_weights
from whaleid.utils.files import atomic_path, write_json

RESULTS = Path(__file__).parent / "results"
TRAIN, TEST, EACH = 1000, 400, 8
"""Whales to train on, to test with, and photographs of each."""
WIDTH, HEIGHT = 128, 64
COMPONENTS = 256  # of 1,280: a step takes 4.7 ms instead of 7.8
HIDDEN, EMBEDDING = 512, 128
EPOCHS, BATCH, SAMPLER = 24, 80, SamplerConfig(name="balanced", images=4, unknown="drop")
LR, WEIGHT_DECAY = 1e-3, 1e-4
MEASURED = 4  # epochs from one measurement to the next
MARGIN = {
    "name": "metric",
    "loss": "MarginLoss",
    "arguments": {"margin": 0.2, "nu": 0.0, "beta": 1.2, "learn_beta": True},
    "miner": "DistanceWeightedSampler",
}


@dataclass(frozen=True)
class Method:
    """One row of the table: `8 cvpr2019 image 0.5` is its name."""

    clusters: int
    preset: str = "cvpr2019"
    by: str = "image"
    dropout: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.clusters} {self.preset} {self.by} {self.dropout:g}"

    def head(self) -> DivideHead:
        content = {"clusters": self.clusters, "preset": self.preset, "by": self.by, "learner": MARGIN}
        return DivideHead.model_validate({"name": "divide", **content})


def all_methods() -> list[Method]:
    """Rows of the table, for each dropout K = 1 first."""
    methods = []
    for dropout in (0.0, 0.5):
        methods.append(Method(1, dropout=dropout))
        methods += [Method(clusters, by=by, dropout=dropout) for by in ("image", "identity") for clusters in (2, 4, 8)]
        methods.append(Method(8, "tpami2021", dropout=dropout))
    return methods


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="*", help="names, separated by commas, * for any part; default all")
    parser.add_argument("--seeds", default="0", help="seeds, separated by commas")
    parser.add_argument("--work", type=Path, default=read_settings().work / "bench-divide")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)  # what the seconds are of, and sums in one order
    cv2.setNumThreads(1)
    patterns = given.methods.split(",")
    chosen = [method for method in all_methods() if any(fnmatchcase(method.name, pattern) for pattern in patterns)]
    drawn = torch.from_numpy(frozen_features(given.work / "features.npy"))
    for seed, method in itertools.product(map(int, given.seeds.split(",")), chosen):
        path = given.work / f"{method.name}, seed {seed}.json"
        if not path.is_file():
            write_json(path, {**asdict(method), "seed": seed, **run(method, seed, drawn)})
            print(path.stem, *last_and_best(json.loads(path.read_text())["curve"]), sep=" | ", flush=True)
    runs = [json.loads(path.read_text()) for path in sorted(given.work.glob("*.json"))]
    write_json(given.out / "divide.json", {"runs": runs})
    with atomic_path(given.out / "divide.md") as partial:
        partial.write_text(tables(runs))
    return 0


# ------------------------------------------------------------------------------------------------------- features


def frozen_features(path: Path) -> np.ndarray:
    """Principal components of the features of drawn photographs, float32 (TRAIN + TEST, EACH, COMPONENTS), kept in a
    file: unit rows. Mean and components are those of the training whales."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = np.concatenate(list(drawn_features(TRAIN + TEST)))
        components = PCA(COMPONENTS, random_state=0).fit(drawn[: TRAIN * EACH])
        rows = np.asarray(normalize(components.transform(drawn)), dtype=np.float32)
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.save(file, rows.reshape(TRAIN + TEST, EACH, COMPONENTS))
    return np.load(path)


@torch.inference_mode()
def drawn_features(whales: int) -> Iterator[np.ndarray]:
    """Features of each whale's photographs, float32 (EACH, 1280)."""
    model, weights = load_experiment("default", {}).model, read_settings().weights
    ensure_weights(model.backbone, model.weights, weights)
    embedder = build_embedder(model, weights).eval()
    for whale in range(whales):
        rng = np.random.default_rng([0, whale])
        individual = draw_individual(rng)
        drawn = [photograph(individual, rng) for _ in range(EACH)]
        small = [cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for image in drawn]
        yield functional.normalize(embedder.features(torch.from_numpy(np.stack(small))), dim=1).numpy()
        if whale % 100 == 99:
            print(f"{whale + 1} of {whales} whales drawn", flush=True)


# ------------------------------------------------------------------------------------------------------- training


class Adapter(nn.Module):
    """Frozen features float32 (b, COMPONENTS) to embeddings (b, EMBEDDING), as `Embedder` after its pooling."""

    def __init__(self, dropout: float, slices: int):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(COMPONENTS, HIDDEN), nn.ReLU())
        self.neck = nn.Sequential(nn.Dropout(dropout), nn.Linear(HIDDEN, EMBEDDING))
        self.slices = slices

    def forward(self, features: Tensor) -> Tensor:
        return equal_slices(self.neck(self.hidden(features)), self.slices)


def run(method: Method, seed: int, drawn: Tensor) -> dict[str, Any]:
    """Train one method; its figures every MEASURED epochs, and its processor seconds.

    drawn: features float32 (TRAIN + TEST, EACH, COMPONENTS).
    """
    rows, labels = drawn[:TRAIN].flatten(0, 1), np.repeat(np.arange(TRAIN), EACH)
    parts = {"train": drawn[:TEST].flatten(0, 1), "test": drawn[TRAIN:].flatten(0, 1)}
    torch.manual_seed(seed)
    settings = method.head()
    adapter = Adapter(method.dropout, settings.slices)
    head = build_head(settings, EMBEDDING, np.bincount(labels))
    assert isinstance(head, DivideLearners)
    optimizer = make_optimizer(adapter, head)
    curve, began = [], time.process_time()
    targets = torch.from_numpy(labels)
    for epoch in range(EPOCHS):
        phase = phase_of(settings, EPOCHS, epoch)
        if phase.cluster:
            cluster(settings, phase, adapter, head, rows, labels, seed + epoch)
        adapter.hidden.requires_grad_(not phase.frozen)
        plan = plan_epoch(head, phase, labels, epoch, seed)
        for items, learner in zip(plan.batches, plan.parts, strict=True):
            optimizer.zero_grad(set_to_none=True)
            chosen = torch.from_numpy(items)
            head(adapter(rows[chosen]), targets[chosen], learner).backward()
            optimizer.step()
        if (epoch + 1) % MEASURED == 0:
            curve.append({"epoch": epoch + 1, "phase": phase.name, **figures(adapter, parts)})
    return {"curve": curve, "seconds": round(time.process_time() - began, 1)}


def make_optimizer(adapter: nn.Module, head: DivideLearners) -> torch.optim.Optimizer:
    own = [{"params": [head.get_parameter(name)], "lr": LR * rate} for name, rate in head.rates.items()]
    rest = [parameter for name, parameter in head.named_parameters() if name not in head.rates]
    groups = [{"params": [*adapter.parameters(), *rest], "weight_decay": WEIGHT_DECAY}, *own]
    return torch.optim.AdamW(groups, lr=LR, weight_decay=0.0, fused=True)


@torch.no_grad()
def cluster(
    settings: DivideHead,
    phase: Phase,
    adapter: Adapter,
    head: DivideLearners,
    rows: Tensor,
    labels: np.ndarray,
    seed: int,
) -> None:
    """Cluster the rows by what the neck sees of them, and open the phase's level of the head."""
    features = functional.normalize(adapter.hidden(rows), dim=1).numpy()
    before, level = head.get_buffer("assignment").numpy(), int(head.get_buffer("level"))
    assignment, _ = divide(settings, features, labels, before, level, phase.level, seed)
    head.open(phase.level, torch.from_numpy(assignment), torch.from_numpy(labels))


def plan_epoch(head: DivideLearners, phase: Phase, labels: np.ndarray, epoch: int, seed: int) -> EpochPlan:
    if not phase.level:
        batches = epoch_batches(labels, SAMPLER, BATCH, epoch, seed)
        return EpochPlan(batches, [0] * len(batches))
    assignment, clusters = head.get_buffer("assignment").numpy(), head.settings.levels[phase.level]
    return learners_of(head, phase, cluster_batches(labels, assignment, clusters, SAMPLER, BATCH, epoch, seed))


@torch.no_grad()
def figures(adapter: Adapter, parts: dict[str, Tensor]) -> dict[str, float]:
    """R@1 and MAP@R of each part, in percent."""
    found = {}
    adapter.eval()
    for name, rows in parts.items():
        embeddings = functional.normalize(adapter(rows), dim=1).numpy()
        recall, map_at_r, _ = recall_and_map(embeddings, np.arange(len(rows)) // EACH, (1,))
        found |= {f"{name}_recall": round(100 * recall[1], 3), f"{name}_map": round(100 * map_at_r, 3)}
    adapter.train()
    return found


# --------------------------------------------------------------------------------------------------------- tables


def last_and_best(curve: list[dict[str, Any]]) -> tuple[float, float, int]:
    """R@1 of the test at the last epoch, at the best one, and that epoch."""
    best = max(curve, key=lambda point: point["test_recall"])
    return curve[-1]["test_recall"], best["test_recall"], best["epoch"]


def tables(runs: list[dict[str, Any]]) -> str:
    """The page of results: a row a method, mean ± standard deviation over its seeds, and a curve of seed 0."""
    epochs = [point["epoch"] for point in runs[0]["curve"]]
    rows = [
        "| K | preset | clusters of | dropout | seeds | R@1 last | R@1 best (epoch) | MAP@R last | train R@1 | s |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    curves = [
        "| K | preset | clusters of | dropout | " + " | ".join(map(str, epochs)) + " |",
        "|---:|---|---|---:|" + "---:|" * len(epochs),
    ]
    for method in all_methods():
        same = [one for one in runs if all(one[key] == value for key, value in asdict(method).items())]
        if not same:
            continue
        plain = method.clusters == 1
        name = f"| {method.clusters} | {'' if plain else method.preset} | {'' if plain else method.by} | "
        name += f"{method.dropout:g} | "
        ends = [one["curve"][-1] for one in same]
        bests = [last_and_best(one["curve"]) for one in same]
        cells = [
            str(len(same)),
            spread([end["test_recall"] for end in ends]),
            f"{spread([best for _, best, _ in bests])} ({', '.join(str(epoch) for *_, epoch in bests)})",
            spread([end["test_map"] for end in ends]),
            spread([end["train_recall"] for end in ends]),
            f"{np.mean([one['seconds'] for one in same]):.0f}",
        ]
        rows.append(name + " | ".join(cells) + " |")
        points = [f"{point['test_recall']:.1f} ({point['train_recall']:.0f})" for point in same[0]["curve"]]
        curves.append(name + " | ".join(points) + " |")
    title = "R@1 of the test against epochs (of training whales), seed 0"
    return "\n".join(["# Divide and conquer on frozen features", "", *rows, "", title, "", *curves, ""])


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds; the mean alone of one."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
