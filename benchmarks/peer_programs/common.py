"""What the peers' programs share. They run in environments of their own: nothing of whaleid is imported here.

A program is given a folder that holds `task.json` (the fields of Task) and `images.csv` (path, identity, query: 0 or 1;
identities of queries are empty). It writes `candidates.csv` (query, identity, score; best first) and `facts.json`.
"""

from __future__ import annotations

import csv
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

AUGMENTATION = ([-10, 10], (0.05, 0.05), (0.85, 1.15))  # degrees, shift, scale of RandomAffine
JITTER = (0.2, 0.2, 0.2)
SAMPLED = 200
"""Pictures whose aspect is looked at."""


@dataclass(frozen=True)
class Task:
    """What the peer has to do.

    Attributes
    ----------
    minutes : float
        Of training, matching, or both.
    threads, seed, k : int
    side : int
        Pictures have side * side pixels, and the median aspect of all.
    backbone, weights : str
        A timm name, and a file with its weights; "": drawn.
    """

    minutes: float
    threads: int
    seed: int
    k: int
    side: int
    backbone: str
    weights: str


@dataclass(frozen=True)
class Images:
    """The gallery and the queries. paths: list of str (n,); codes: int64 (n,), -1 for queries; identities: (c,)."""

    paths: list[str]
    codes: np.ndarray
    identities: list[str]

    @property
    def gallery(self) -> np.ndarray:
        """Rows with an identity, int64."""
        return np.flatnonzero(self.codes >= 0)

    @property
    def queries(self) -> np.ndarray:
        """Rows without, int64."""
        return np.flatnonzero(self.codes < 0)


class Clock:
    """Seconds of the budget that have passed since it was made."""

    def __init__(self, minutes: float):
        self.begin, self.seconds = time.monotonic(), 60 * minutes

    def left(self) -> float:
        """Seconds, below 0 once the budget is over."""
        return self.begin + self.seconds - time.monotonic()


def read_task(folder: Path) -> tuple[Task, Images]:
    """The task of a folder; threads and seeds are set."""
    task = Task(**json.loads((folder / "task.json").read_text()))
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    np.random.seed(task.seed)  # OML's sampler draws from it
    with (folder / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    identities = sorted({row["identity"] for row in rows if row["query"] == "0"})
    code_of = {name: code for code, name in enumerate(identities)}
    codes = [-1 if row["query"] == "1" else code_of[row["identity"]] for row in rows]
    return task, Images([row["path"] for row in rows], np.array(codes, np.int64), identities)


def make_network(task: Task) -> nn.Module:
    """The backbone with average pooling: pixels (b, 3, h, w), normalised, to features (b, d).

    It computes channels-last, which is faster on a processor; no library does so by itself.
    """
    overlay = {"file": task.weights} if task.weights else None
    network = timm.create_model(
        task.backbone, pretrained=bool(task.weights), num_classes=0, pretrained_cfg_overlay=overlay
    )
    network.register_forward_pre_hook(lambda _, given: (given[0].contiguous(memory_format=torch.channels_last),))
    return network.to(memory_format=torch.channels_last)


def picture_size(task: Task, images: Images) -> tuple[int, int]:
    """Width and height of about side * side pixels in the median aspect; multiples of 16."""
    aspects = []
    for path in images.paths[:: max(1, len(images.paths) // SAMPLED)]:
        with Image.open(path) as picture:
            aspects.append(picture.width / picture.height)
    root = float(np.median(aspects)) ** 0.5
    return max(16, round(task.side * root / 16) * 16), max(16, round(task.side / root / 16) * 16)


def make_transforms(task: Task, images: Images, network: nn.Module) -> tuple[transforms.Compose, transforms.Compose]:
    """For training (with the augmentation) and for embeddings: from a PIL picture to normalised pixels."""
    width, height = picture_size(task, images)
    normalise = [transforms.ToTensor(), transforms.Normalize(network.default_cfg["mean"], network.default_cfg["std"])]
    resize = transforms.Resize((height, width))
    augment = [transforms.RandomAffine(*AUGMENTATION), transforms.ColorJitter(*JITTER)]
    return transforms.Compose([resize, *augment, *normalise]), transforms.Compose([resize, *normalise])


def best_of_identities(scores: np.ndarray, codes: np.ndarray, classes: int) -> np.ndarray:
    """Best score of each identity's images.

    Parameters
    ----------
    scores : float array, shape (q, g)
    codes : int64 array, shape (g,)
        Identity of each column.
    classes : int

    Returns
    -------
    float64 array, shape (q, classes)
        -inf where an identity has no column.
    """
    best = np.full((len(scores), classes), -np.inf)
    for column, code in enumerate(codes):
        np.maximum(best[:, code], scores[:, column], out=best[:, code])
    return best


def write_candidates(folder: Path, task: Task, images: Images, scores: np.ndarray, facts: dict) -> None:
    """The k identities with the best scores of each query (scores: (q, classes)), and facts for the table."""
    lines = []
    for query, row in zip(images.queries, scores, strict=True):
        best = np.argsort(-row, kind="stable")[: task.k]
        lines += [[images.paths[query], images.identities[code], f"{row[code]:.9g}"] for code in best]
    with (folder / "candidates.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["query", "identity", "score"], *lines])
    (folder / "facts.json").write_text(json.dumps(facts))
