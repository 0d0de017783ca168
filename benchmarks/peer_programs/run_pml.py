"""pytorch-metric-learning as its README shows it: a loss of the library in a plain training loop.

ArcFaceLoss with the library's own scale and margin and Adam; pictures are decoded once, before the clock starts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import (
    AUGMENTATION,
    JITTER,
    Clock,
    Images,
    Task,
    best_of_identities,
    make_network,
    picture_size,
    read_task,
    write_candidates,
)
from PIL import Image
from pytorch_metric_learning import losses
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

EMBEDDING = 256
BATCH = 32
RATE, CLASS_RATE = 1e-3, 1e-2
"""Of the network and of the loss's class weights: Adam's own, and ten times as much for what starts from nothing."""


class Network(nn.Module):
    """Backbone and a linear layer: uint8 or float pixels (b, 3, h, w) in 0..255 to embeddings (b, 256)."""

    def __init__(self, task: Task):
        super().__init__()
        self.backbone = make_network(task)
        self.embed = nn.Linear(self.backbone.num_features, EMBEDDING)
        config = self.backbone.default_cfg
        self.normalise = v2.Normalize(list(config["mean"]), list(config["std"]))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.embed(self.backbone(self.normalise(pixels.float() / 255)))


def read_pixels(task: Task, images: Images) -> Tensor:
    """Decoded pictures, uint8 (n, 3, h, w)."""
    size = picture_size(task, images)
    rows = [
        np.asarray(Image.open(path).convert("RGB").resize(size, Image.Resampling.BILINEAR)) for path in images.paths
    ]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


def train(model: Network, pixels: Tensor, images: Images, task: Task) -> dict[str, float]:
    """Train until the minutes are over: epochs, and the mean of the last losses."""
    augment = v2.Compose([v2.RandomAffine(*AUGMENTATION), v2.ColorJitter(*JITTER)])
    loss_func = losses.ArcFaceLoss(len(images.identities), EMBEDDING)
    groups = [{"params": model.parameters()}, {"params": loss_func.parameters(), "lr": CLASS_RATE}]
    optimizer = torch.optim.Adam(groups, lr=RATE)
    seen, recent, clock = 0, [], Clock(task.minutes)
    model.train()
    for chosen in batches(images.gallery, BATCH, task.seed):
        if clock.left() < 0:
            break
        optimizer.zero_grad()
        data = torch.stack([augment(pixels[row]) for row in chosen.tolist()])
        loss = loss_func(model(data), torch.from_numpy(images.codes[chosen]))
        loss.backward()
        optimizer.step()
        seen += len(chosen)
        recent.append(loss.item())
    return {"epochs": round(seen / len(images.gallery), 1), "loss": float(np.mean(recent[-100:]))}


def batches(rows: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """Rows in full batches (of all rows, where these are fewer) and random order, epoch after epoch, without end."""
    rng, size = np.random.default_rng(seed), min(size, len(rows))
    while True:
        order = rng.permutation(rows)
        for first in range(0, len(order) - size + 1, size):
            yield order[first : first + size]


@torch.inference_mode()
def embeddings(model: Network, pixels: Tensor, batch: int = 128) -> np.ndarray:
    """Unit rows, float32 (n, 256)."""
    model.eval()
    parts = [functional.normalize(model(pixels[first : first + batch])) for first in range(0, len(pixels), batch)]
    return torch.cat(parts).numpy()


def run(folder: Path) -> None:
    """The task of a folder."""
    task, images = read_task(folder)
    pixels = read_pixels(task, images)
    model = Network(task)
    facts = {"size": [pixels.shape[3], pixels.shape[2]], **train(model, pixels, images, task)}
    features = embeddings(model, pixels)
    cosine = features[images.queries] @ features[images.gallery].T
    scores = best_of_identities(cosine, images.codes[images.gallery], len(images.identities))
    write_candidates(folder, task, images, scores, facts)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
