"""A peer on equal cores: pytorch-metric-learning as its README shows it, on a competition that has a solution.

    .venv/bin/python benchmarks/bench_peer_pml.py --competition sample --minutes 12 --threads 2

The network of our small recipes with its ImageNet weights, average pooling and a linear embedding; ArcFaceLoss with the
library's own scale and margin, Adam, torchvision's usual augmentation; training rows with the unknown label left out.
The pictures are decoded once, before the clock starts, and the embeddings are computed after it has stopped; the
threshold of the unknown identity is the best one for the solution, so all of this is in the peer's favour. Queries are
answered by the cosine to the nearest training picture of each identity.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from whaleid.config import Competition, KnnConfig
from whaleid.config.files import load_competition
from whaleid.data.competition import read_rows
from whaleid.data.decoding import decode
from whaleid.data.images import resize
from whaleid.evaluation.metrics import rank_of_truth, reciprocal_rank_at_k
from whaleid.models.backbone import build_backbone
from whaleid.retrieval.identities import nearest_identities
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import write_json

EMBEDDING = 256
WITHOUT_TEST = "--competition: a test table and a solution are needed to score the peer"


@dataclass(frozen=True)
class Data:
    """A competition in memory. pixels: uint8 (n, 3, h, w); codes: int64 (n,), -1 unknown; train: bool (n,)."""

    pixels: Tensor
    codes: np.ndarray
    train: np.ndarray
    classes: int


def read_data(competition: Competition, width: int) -> Data:
    """Pictures at `width` and the height that the median aspect asks for; codes of the test rows by the solution.

    An identity of the solution that no training row has is unknown, -1.
    """
    rows = read_rows(competition)
    if competition.solution is None or not (rows["split"] == "test").any():
        raise WhaleidError(WITHOUT_TEST)
    solution = pd.read_csv(competition.root / competition.solution, dtype=str)
    truth = dict(zip(solution.iloc[:, 0], solution.iloc[:, 1], strict=True))
    is_train = (rows["split"] == "train").to_numpy()
    rows = rows[is_train | rows["image"].isin(list(truth)).to_numpy()]
    is_train = (rows["split"] == "train").to_numpy()
    labels = rows["identity"].where(is_train, rows["image"].map(truth))
    names = sorted(set(labels[is_train]) - {competition.unknown})
    codes = labels.map({name: code for code, name in enumerate(names)}).fillna(-1).astype(np.int64).to_numpy()
    pixels = read_pixels([competition.root / path for path in rows["path"]], width)
    return Data(pixels, codes, is_train, len(names))


def read_pixels(paths: list[Path], width: int) -> Tensor:
    """Decoded pictures, uint8 (n, 3, h, width); h is a multiple of 16."""
    some = [decode(path).shape for path in paths[:: max(1, len(paths) // 200)]]
    aspect = float(np.median([shape[1] / shape[0] for shape in some]))
    size = width, max(16, round(width / aspect / 16) * 16)
    return torch.stack([torch.from_numpy(resize(decode(path), size)).permute(2, 0, 1) for path in paths])


class Peer(nn.Module):
    """Backbone, average pooling, linear layer: uint8 or float pixels (b, 3, h, w) in 0..255 to embeddings (b, 256)."""

    def __init__(self, backbone: str, weights: str):
        super().__init__()
        self.backbone = build_backbone(backbone, weights)
        self.embed = nn.Linear(self.backbone.channels, EMBEDDING)
        self.normalise = v2.Normalize(list(self.backbone.mean), list(self.backbone.std))

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.backbone(self.normalise(pixels.float() / 255).contiguous(memory_format=torch.channels_last))
        return self.embed(features.mean(dim=(2, 3)))


def train(model: Peer, data: Data, given: argparse.Namespace) -> dict[str, float]:
    """Train until the minutes are over: photographs seen, epochs, and the mean of the last losses."""
    rows = np.flatnonzero(data.train & (data.codes >= 0))
    augment = v2.Compose([v2.RandomAffine([-10, 10], (0.05, 0.05), (0.85, 1.15)), v2.ColorJitter(0.2, 0.2, 0.2)])
    loss_func = losses.ArcFaceLoss(data.classes, EMBEDDING)
    groups = [{"params": model.parameters()}, {"params": loss_func.parameters(), "lr": given.class_lr}]
    optimizer = torch.optim.Adam(groups, lr=given.lr)
    seen, recent, end = 0, [], time.monotonic() + 60 * given.minutes
    model.train()
    for chosen in batches(rows, given.batch, given.seed):
        if time.monotonic() > end:
            break
        optimizer.zero_grad()
        pixels = torch.stack([augment(data.pixels[row]) for row in chosen.tolist()])
        loss = loss_func(model(pixels), torch.from_numpy(data.codes[chosen]))
        loss.backward()
        optimizer.step()
        seen += len(chosen)
        recent.append(loss.item())
    return {"seen": seen, "epochs": seen / len(rows), "loss": float(np.mean(recent[-100:]))}


def batches(rows: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """Rows in full batches (of all rows, where these are fewer) and random order, epoch after epoch, without end."""
    rng, size = np.random.default_rng(seed), min(size, len(rows))
    while True:
        order = rng.permutation(rows)
        for first in range(0, len(order) - size + 1, size):
            yield order[first : first + size]


@torch.inference_mode()
def embeddings(model: Peer, pixels: Tensor, batch: int = 128) -> np.ndarray:
    """Unit rows, float32 (n, 256)."""
    model.eval()
    parts = [functional.normalize(model(pixels[first : first + batch])) for first in range(0, len(pixels), batch)]
    return torch.cat(parts).numpy()


# ------------------------------------------------------------------------------------------------- scoring


def peer_scores(codes: np.ndarray, scores: np.ndarray, truth: np.ndarray, unknown: bool, k: int) -> dict[str, float]:
    """What the ranked identities score.

    Parameters
    ----------
    codes, scores : int64 and float32 arrays, shape (q, k)
        Best identities first, -1 and -inf padded.
    truth : int64 array, shape (q,)
        -1: an identity that no guess can name.
    unknown : bool
        Whether the unknown identity may be guessed.

    Returns
    -------
    dict
        map: MAP@k with the threshold that is best for these queries. threshold: null, or where the unknown identity is
        guessed before all lower scores. map_known, top1_known: of the queries of known identity, unknown not guessed.
    """
    known = truth >= 0
    rank = rank_of_truth(codes, truth)
    figures = {
        "map_known": float(reciprocal_rank_at_k(rank[known], k).mean()),
        "top1_known": float((rank[known] == 1).mean()),
    }
    if not unknown:
        return {"map": float(reciprocal_rank_at_k(rank, k).mean()), **figures}
    thresholds = np.unique(np.quantile(scores[np.isfinite(scores)], np.linspace(0, 1, 501)))
    values = [map_at_threshold(codes, scores, truth, limit, k) for limit in thresholds]
    best = int(np.argmax(values))
    return {"map": values[best], "threshold": float(thresholds[best]), **figures}


def map_at_threshold(codes: np.ndarray, scores: np.ndarray, truth: np.ndarray, threshold: float, k: int) -> float:
    """MAP@k where the unknown identity is guessed before the first score below the threshold."""
    above = (scores >= threshold).sum(axis=1)
    rank = rank_of_truth(codes, truth)
    rank = np.where(truth < 0, above + 1, np.where(rank > above, rank + 1, rank))
    return float(reciprocal_rank_at_k(rank, k).mean())


def run(competition: Competition, given: argparse.Namespace) -> dict[str, object]:
    """Train the peer and score it."""
    torch.manual_seed(given.seed)
    data = read_data(competition, given.width)
    model = Peer(given.backbone, given.weights)
    load = [os.getloadavg()[0]]
    trained = train(model, data, given)
    load.append(os.getloadavg()[0])
    features = embeddings(model, data.pixels)
    gallery, queries = data.train & (data.codes >= 0), ~data.train
    found = nearest_identities(features[queries], features[gallery], data.codes[gallery], KnnConfig(), competition.k)
    scored = peer_scores(*found, data.codes[queries], competition.unknown is not None, competition.k)
    return {"size": list(data.pixels.shape[:1:-1]), **trained, **scored, "load_before": load[0], "load_after": load[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--competition", default="sample", help="name or YAML")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the network")
    parser.add_argument("--class-lr", type=float, default=1e-2, help="of the loss's class weights")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peer_pml.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    competition = load_competition(given.competition)
    figures = run(competition, given)
    settings = {name: value for name, value in vars(given).items() if name != "out"}
    write_json(given.out, {**settings, **figures})
    print(
        f"MAP@{competition.k} (solution, best threshold): {figures['map']:.3f}; known queries: top-1 "
        f"{figures['top1_known']:.3f}, MAP@{competition.k} {figures['map_known']:.3f}; {given.minutes:g} minutes of "
        f"{given.threads} threads, {figures['epochs']:.1f} epochs, loss {figures['loss']:.2f}, load "
        f"{figures['load_before']:.1f} to {figures['load_after']:.1f}"
    )


if __name__ == "__main__":
    main()
