"""open-metric-learning as its README shows it: balanced batches, mined triplets, retrieval by its own classes.

Its vision transformers come from hubs only, so the network is a timm one inside its extractor interface.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import Clock, Images, Task, best_of_identities, make_network, make_transforms, read_task, write_candidates
from oml import datasets
from oml.inference import inference
from oml.interfaces.models import IExtractor
from oml.losses import ArcFaceLoss, TripletLossWithMiner
from oml.miners import HardTripletsMiner
from oml.retrieval import RetrievalResults
from oml.samplers import BalanceSampler
from torch import Tensor
from torch.utils.data import DataLoader

LABELS, INSTANCES = 8, 4  # of a batch: 32 pictures, as for the other peers
MARGIN = 0.1  # of the README
RATES = {"hard": 1e-4, "arcface": 1e-3}  # of the README, whose loss is of triplets; as for pytorch-metric-learning
CLASS_RATE = 1e-2  # likewise


class Extractor(IExtractor):
    """A timm network as OML wants one."""

    def __init__(self, task: Task):
        super().__init__()
        self.network = make_network(task)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels)

    @property
    def feat_dim(self) -> int:
        return self.network.num_features


def train(model: Extractor, dataset: datasets.ImageLabeledDataset, loss: str, task: Task) -> dict[str, float]:
    """Train until the minutes are over: epochs of pictures, and the mean of the last losses."""
    labels = dataset.get_labels()
    criteria = {
        "hard": lambda: TripletLossWithMiner(MARGIN, HardTripletsMiner()),
        "arcface": lambda: ArcFaceLoss(model.feat_dim, int(labels.max()) + 1),
    }
    criterion = criteria[loss]()
    groups = [{"params": model.parameters()}, {"params": list(criterion.parameters()), "lr": CLASS_RATE}]
    optimizer = torch.optim.Adam(groups, lr=RATES[loss])
    sampler = BalanceSampler(labels, n_labels=min(LABELS, len(set(labels))), n_instances=INSTANCES)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=1, persistent_workers=True)
    seen, recent, clock = 0, [], Clock(task.minutes)
    model.train()
    while clock.left() > 0:
        for batch in loader:
            if clock.left() < 0:
                break
            value = criterion(model(batch["input_tensors"]), batch["labels"])
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen += len(batch["labels"])
            recent.append(value.item())
    return {"epochs": round(seen / len(dataset), 1), "loss": float(np.mean(recent[-100:]))}


def training_frame(images: Images) -> pd.DataFrame:
    """Rows of identities with two images or more, which the sampler needs; labels are 0, 1, 2, ..."""
    codes = images.codes[images.gallery]
    sizes = np.bincount(codes)
    rows = images.gallery[sizes[codes] > 1]
    labels = np.unique(images.codes[rows], return_inverse=True)[1]
    return pd.DataFrame({"path": [images.paths[row] for row in rows], "label": labels})


def retrieve(model: Extractor, images: Images, transform: object) -> np.ndarray:
    """Minus the distance of each query to each gallery image, float (q, g)."""
    queries, gallery = (
        datasets.ImageBaseDataset([Path(images.paths[row]) for row in rows], transform=transform)
        for rows in (images.queries, images.gallery)
    )
    some, others = (inference(model, part, batch_size=64, num_workers=1) for part in (queries, gallery))
    found = RetrievalResults.from_embeddings_qg(some, others, queries, gallery, n_items=len(gallery))
    scores = np.full((len(queries), len(gallery)), -np.inf)
    for row, (columns, distances) in enumerate(zip(found.retrieved_ids, found.distances, strict=True)):
        scores[row, columns.numpy()] = -distances.numpy()
    return scores


def run(folder: Path, loss: str) -> None:
    """The task of a folder."""
    task, images = read_task(folder)
    model = Extractor(task)
    augment, transform = make_transforms(task, images, model.network)
    dataset = datasets.ImageLabeledDataset(training_frame(images), transform=augment, cache_size=len(images.paths))
    facts = {"loss_function": loss, **train(model, dataset, loss, task)}
    distances = retrieve(model.eval(), images, transform)
    scores = best_of_identities(distances, images.codes[images.gallery], len(images.identities))
    write_candidates(folder, task, images, scores, facts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--loss", choices=list(RATES), required=True)
    given = parser.parse_args()
    run(given.folder, given.loss)
