"""Pretraining: a backbone trained on images without their labels, for experiments to start from.

It is written to `weights/<name>.safetensors` under timm's own names, like the files of `whaleid weights`. All else is
as in any run: log, state, and a killed pretraining that continues to the same result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whaleid.config import PretextExperiment
from whaleid.data.cache import ImageCache
from whaleid.data.samplers import TrainingItems
from whaleid.training.checkpoint import storable
from whaleid.training.resume import STATE
from whaleid.training.run import RunSummary, Task, run_key, summarise, train_task
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

_BACKBONE = "embedder.backbone.net."


def pretrain_run(
    experiment: PretextExperiment,
    images: pd.DataFrame,
    test: bool,
    cache: ImageCache,
    out: Path,
    target: Path,
    weights: Path,
    key: str = "",
    save_seconds: float = 60.0,
) -> RunSummary:
    """Train a backbone without labels and write it as a .safetensors file.

    Finished weights are not trained again; a killed pretraining continues to the same result.

    Parameters
    ----------
    experiment : PretextExperiment
    images : table
        images.parquet; its train rows are used.
    test : bool
        Use its test rows too.
    cache : ImageCache
        Pixels of the rows of `images`.
    out : Path
        Folder of log, configuration and state.
    target : Path
        File to write.
    weights : Path
        Folder of pretrained weights to start from.
    key : str
        The caller's digest of what is not seen here.
    save_seconds : float
        Time between two saved states.
    """
    items = unlabelled_items(images, test)
    task = Task(experiment, None, items, cache, out, run_key(experiment, None, items, cache.size, key))
    done = _finished(target, task.key)
    if done is not None:
        return done
    session = train_task(task, weights, save_seconds)
    summary = summarise(task, session)
    if session.accelerator.is_main_process:
        save_backbone(target, session.weights(), {"key": task.key, "summary": json.dumps(asdict(summary))})
        shutil.rmtree((out / STATE).parent, ignore_errors=True)
    session.accelerator.wait_for_everyone()
    return summary


def unlabelled_items(images: pd.DataFrame, test: bool) -> TrainingItems:
    """All train images of images.parquet, and its test images where `test`; one class."""
    splits = ["train", "test"] if test else ["train"]
    rows = np.flatnonzero(images["split"].isin(splits).to_numpy())
    if len(rows) < 2:
        raise WhaleidError(f"pretraining needs at least 2 images, and found {len(rows)}; add images, or test: true")
    return TrainingItems(rows, np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=np.int64), ["image"])


def _finished(target: Path, key: str) -> RunSummary | None:
    """Summary of the pretraining if its weights are there already, of these settings and images."""
    try:
        with safe_open(target, framework="pt") as file:
            header = file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return None
    return RunSummary(**json.loads(header["summary"])) if header.get("key") == key else None


def save_backbone(path: Path, weights: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """Write a session's backbone atomically, under timm's own names. header: metadata of the file."""
    tensors = {name.removeprefix(_BACKBONE): tensor for name, tensor in weights.items() if name.startswith(_BACKBONE)}
    with atomic_path(path) as temporary:
        save_file(storable(tensors), temporary, metadata={"format": "pt", **header})
        temporary.chmod(0o644)  # safetensors makes it readable for its owner only
