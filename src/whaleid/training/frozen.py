"""The run of a frozen network: its pretrained weights in the form of a trained run; no image decides them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from whaleid.config import Experiment
from whaleid.models.embedder import build_embedder
from whaleid.training.checkpoint import read_metadata, save_checkpoint, write_description
from whaleid.training.seeds import seed_everything


def write_frozen_run(experiment: Experiment, size: tuple[int, int], out: Path, weights: Path, key: str) -> None:
    """Write checkpoint and configuration of a frozen experiment, unless they are there with this key.

    Parameters
    ----------
    experiment : Experiment
    size : tuple of int
        Width and height of the images, pixels.
    out : Path
        Folder of the run.
    weights : Path
        Folder of pretrained weights.
    key : str
        Digest of what the run depends on.

    Raises
    ------
    WhaleidError
        For weights that are missing or do not fit.
    """
    if (read_metadata(out) or {}).get("key") == key:
        return
    seed_everything(experiment.train.seed)  # for random weights
    embedder = build_embedder(experiment.model, weights, size=size)
    out.mkdir(parents=True, exist_ok=True)
    write_description(out, experiment, [])
    tensors = {f"embedder.{name}": tensor for name, tensor in embedder.state_dict().items()}
    metadata = {"name": experiment.name, "key": key, "snapshot": embedder.backbone.snapshot}
    save_checkpoint(out, tensors, np.zeros(0, dtype=np.int64), size, metadata)
