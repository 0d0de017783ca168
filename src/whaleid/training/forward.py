"""A look at all training images with the network as it is: what clusters and hard neighbours are made of."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from whaleid.data.cache import ImageCache
from whaleid.data.samplers import TrainingItems
from whaleid.models.embedder import Embedder

Space = Literal["features", "embedding"]


@torch.no_grad()
def survey(embedder: Embedder, items: TrainingItems, cache: ImageCache, batch: int, space: Space) -> np.ndarray:
    """Unit rows float32 (n, d) of all training items, without augmentation; the embedder's mode is put back.

    batch: items at a time. space: `features` (pooled, before the neck) or `embedding`.
    """
    return _surveyed(embedder, items, cache, batch, space, np.arange(len(items))).cpu().numpy()


@torch.no_grad()
def survey_together(
    accelerator: Accelerator, embedder: Embedder, items: TrainingItems, cache: ImageCache, batch: int, space: Space
) -> np.ndarray:
    """As `survey`, each process looking at its share of the items; all get the whole."""
    if accelerator.num_processes == 1:
        with accelerator.autocast():
            return survey(embedder, items, cache, batch, space)
    share = -(-len(items) // accelerator.num_processes)
    own = np.arange(share) + accelerator.process_index * share
    with accelerator.autocast():
        found = _surveyed(embedder, items, cache, batch, space, own % len(items))  # the last share wraps round
    return cast(Tensor, accelerator.gather(found.contiguous()))[: len(items)].cpu().numpy()


def _surveyed(
    embedder: Embedder, items: TrainingItems, cache: ImageCache, batch: int, space: Space, chosen: np.ndarray
) -> Tensor:
    device = next(embedder.parameters()).device
    mode = embedder.training
    embedder.eval()
    parts = []
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        images = torch.from_numpy(cache.read_many(items.rows[part])).to(device)
        mirrored = torch.from_numpy(items.mirrored[part]).to(device)
        images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
        rows = embedder.features(images) if space == "features" else embedder(images)
        parts.append(functional.normalize(rows.float(), dim=1))
    embedder.train(mode)
    return torch.cat(parts)
