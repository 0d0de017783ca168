"""The cost of divide and conquer: its epochs compared with those of one learner, its clustering with faiss.

Epochs: `divide` (`preset: cvpr2019`, its divided epochs, clustered every 2) and `margin` (its learner alone) train the
same network on the same cached images with whole epochs: batches, augmentation, steps, and the embedding of all images
for the clustering. A round is two epochs of each, in alternating order; a ratio compares the times per image, as the
median over rounds. Clustering: kmeans_partition compared with faiss.Kmeans with the same settings and a search for each
row's centre, best time of each. Result: benchmarks/results/divide_cost.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from measuring import device_seconds

from whaleid.config.files import load_experiment
from whaleid.data.cache import ImageCache
from whaleid.data.samplers import TrainingItems
from whaleid.training.kmeans import POINTS, kmeans_partition
from whaleid.training.run import Task, run_epoch, start
from whaleid.training.session import Session, make_accelerator
from whaleid.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "divide_cost.json"
EVERY, CLUSTERS, IDENTITIES = 2, 4, 64
MARGIN = {
    "name": "metric",
    "loss": "MarginLoss",
    "arguments": {"margin": 0.2, "nu": 0.0, "beta": 1.2, "learn_beta": True},
    "miner": "DistanceWeightedSampler",
}
DIVIDE = {"name": "divide", "learner": MARGIN, "clusters": CLUSTERS, "every": EVERY}
EPOCH_TARGET, CLUSTER_TARGET = 1.15, 1.10
DIMENSIONS, ITERATIONS = 2048, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="rounds of two epochs each")
    parser.add_argument("--images", type=int, default=768, help="images of an epoch")
    parser.add_argument("--rows", type=int, default=100_000, help="rows to cluster")
    parser.add_argument("--repeats", type=int, default=3, help="clusterings of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    content = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "epoch": compare_epochs(given.rounds, given.images),
        "clustering": [compare_clustering(given.rows, clusters, given.repeats) for clusters in (8, 32)],
    }
    write_json(given.out, content)


# --------------------------------------------------------------------------------------------------- epochs


def compare_epochs(rounds: int, images: int) -> dict[str, Any]:
    """Seconds of an image in a period of EVERY epochs with one clustering, and with the learner alone."""
    with tempfile.TemporaryDirectory() as folder:
        items, cache = make_data(images, Path(folder))
        heads = {"margin": MARGIN, "divide": DIVIDE}
        periods = {name: make_period(head, items, cache, Path(folder) / name) for name, head in heads.items()}
        seconds: dict[str, list[float]] = {name: [] for name in periods}
        for number in range(rounds + 1):
            for name in list(periods)[:: 1 if number % 2 else -1]:
                taken = periods[name]()
                if number:  # the first round warms up
                    seconds[name].append(taken)
    ratios = [divide / margin for divide, margin in zip(seconds["divide"], seconds["margin"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"epoch of divide and conquer: {ratio:.3f} x the learner's alone (target {EPOCH_TARGET})")
    return {
        "clock": "wall" if torch.cuda.is_available() else "processor time",
        "images": images,
        "identities": IDENTITIES,
        "clusters": CLUSTERS,
        "every": EVERY,
        "rounds": rounds,
        "milliseconds_an_image": {name: round(1000 * statistics.median(took), 3) for name, took in seconds.items()},
        "ratio": round(ratio, 4),
        "ratios": [round(value, 4) for value in ratios],
        "target": EPOCH_TARGET,
    }


def make_data(images: int, folder: Path) -> tuple[TrainingItems, ImageCache]:
    """Noise of many identities, on disk as a cache has it: what is in the pictures costs no time."""
    width, height = 128, 64
    rng = np.random.default_rng(0)
    np.save(folder / "pixels.npy", rng.integers(0, 256, (images, height, width, 3), dtype=np.uint8))
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    labels = np.arange(images) % IDENTITIES
    items = TrainingItems(
        np.arange(images), np.zeros(images, dtype=bool), labels, [f"{name:03d}" for name in range(IDENTITIES)]
    )
    return items, ImageCache(folder, (width, height), pixels, None)


def make_period(head: dict[str, Any], items: TrainingItems, cache: ImageCache, out: Path) -> Callable[[], float]:
    """Trains EVERY epochs of a session that has more than enough, and gives the seconds an image."""
    settings = {
        "model.weights": "random",
        "sampler.name": "balanced",
        "train.epochs": 100_000,  # so many that all that are timed are divided ones
        "train.warmup": 0.0,
        "head": head,
    }
    experiment = load_experiment("default", settings)
    task = Task(experiment, None, items, cache, out, "benchmark")
    session = start(task, make_accelerator("auto", task.title), out)

    def run() -> float:
        before = session.progress.images
        taken = device_seconds(lambda: train_period(task, session))
        return taken / (session.progress.images - before)

    return run


def train_period(task: Task, session: Session) -> None:
    for _ in range(EVERY):
        run_epoch(task, session, None)


# ----------------------------------------------------------------------------------------------- clustering


def compare_clustering(rows: int, clusters: int, repeats: int) -> dict[str, Any]:
    """Best seconds of the clustering, ours and bare, taking turns on the same rows."""
    features = make_features(rows, clusters)
    calls = {
        "bare": lambda: bare_clustering(features, clusters),
        "whaleid": lambda: kmeans_partition(features, clusters, 0, ITERATIONS)[0],
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    found = {}
    for number in range(repeats):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            found[name] = calls[name]()
            seconds[name].append(time.perf_counter() - began)
    ratio = min(seconds["whaleid"]) / min(seconds["bare"])
    print(f"{rows:,} x {DIMENSIONS} in {clusters} clusters: {ratio:.3f} x bare faiss (target {CLUSTER_TARGET})")
    return {
        "rows": rows,
        "dimensions": DIMENSIONS,
        "clusters": clusters,
        "iterations": ITERATIONS,
        "points_a_cluster": POINTS,
        "seconds": {name: round(min(took), 3) for name, took in seconds.items()},
        "ratio": round(ratio, 4),
        "agreement": round(float((found["bare"] == found["whaleid"]).mean()), 5),
        "target": CLUSTER_TARGET,
    }


def make_features(rows: int, clusters: int) -> np.ndarray:
    """Unit rows float32 (rows, DIMENSIONS) scattered about as many centres as there will be clusters."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((rows, DIMENSIONS), dtype=np.float32)
    centres = rng.standard_normal((clusters, DIMENSIONS), dtype=np.float32)
    for first in range(0, rows, 4096):
        part = features[first : first + 4096]
        part += centres[rng.integers(0, clusters, len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return features


def bare_clustering(features: np.ndarray, clusters: int) -> np.ndarray:
    """Cluster of each row by faiss alone, int64 (n,)."""
    gpu = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    kmeans = faiss.Kmeans(
        DIMENSIONS,
        clusters,
        niter=ITERATIONS,
        seed=0,
        gpu=gpu,
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS,
    )
    kmeans.train(features)
    assert kmeans.index is not None
    return kmeans.index.search(features, 1)[1][:, 0]


if __name__ == "__main__":
    main()
