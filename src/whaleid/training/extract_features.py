"""Features of training images with the network as it is: clusters, hard neighbours and class means are made of them."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from whaleid.data.cache import Inputs
from whaleid.data.samplers import TrainingItems
from whaleid.models.embedder import Embedder

Space = Literal["features", "embedding"]


@torch.no_grad()
def extract_features(
    embedder: Embedder,
    cache: Inputs,
    rows: np.ndarray,
    batch: int,
    space: Space = "embedding",
    mirrored: np.ndarray | None = None,
) -> Tensor:
    """Unit features of cached images, without augmentation; the embedder's mode is restored.

    Parameters
    ----------
    embedder : Embedder
    cache : Inputs
    rows : int64 array, shape (n,)
        Rows of the cache.
    batch : int
        Images at a time.
    space : {"features", "embedding"}
        Pooled features before the neck, or embeddings.
    mirrored : bool array, shape (n,), optional
        Images to reverse left to right.

    Returns
    -------
    float32 tensor, shape (n, d)
        On the embedder's device.
    """
    device = next(embedder.parameters()).device
    mode = embedder.training
    embedder.eval()
    parts = []
    for start in range(0, len(rows), batch):
        images = torch.from_numpy(cache.read_many(rows[start : start + batch])).to(device)
        if mirrored is not None and mirrored.any():  # an adapter's rows of features have no sides
            flip = torch.from_numpy(mirrored[start : start + batch]).to(device)
            images = torch.where(flip[:, None, None, None], images.flip(2), images)
        features = embedder.features(images) if space == "features" else embedder(images)
        parts.append(functional.normalize(features.float(), dim=1))
    embedder.train(mode)
    return torch.cat(parts)


def extract_item_features(
    accelerator: Accelerator, embedder: Embedder, items: TrainingItems, cache: Inputs, batch: int, space: Space
) -> np.ndarray:
    """Unit features float32 (n, d) of all training items; each process computes a share, and all get the whole."""
    share = -(-len(items) // accelerator.num_processes)
    chosen = (np.arange(share) + accelerator.process_index * share) % len(items)  # the last share wraps round
    with accelerator.autocast():
        features = extract_features(embedder, cache, items.rows[chosen], batch, space, items.mirrored[chosen])
    if accelerator.num_processes > 1:
        features = cast(Tensor, accelerator.gather(features.contiguous()))
    return features[: len(items)].cpu().numpy()


def class_means(embeddings: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Mean direction of each class.

    Every dimension is standardised first, as the neck's batch normalisation does in training: embeddings of a
    pretrained network have a large part in common, beside which no class would be told from another.

    Parameters
    ----------
    embeddings : float32 array, shape (n, d)
    labels : int64 array, shape (n,), 0..classes-1
    classes : int

    Returns
    -------
    float32 array, shape (classes, d)
        Unit rows; 0 for a class without images.
    """
    spread = embeddings.std(axis=0)
    scaled = (embeddings - embeddings.mean(axis=0)) / np.where(spread > 0, spread, 1)
    sums = np.zeros((classes, embeddings.shape[1]), np.float32)
    np.add.at(sums, labels, unit_rows(scaled))
    return unit_rows(sums)


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows normalised to length 1; zero rows stay zero."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)
