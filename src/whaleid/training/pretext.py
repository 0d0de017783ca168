"""Pretraining: a backbone trained on images without their labels, written for experiments to start from.

The file is `weights/<name>.safetensors` in timm's own names, as `whaleid weights` leaves them. All else is as in a run:
log, state, and a killed pretraining that goes on to the same result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import yaml
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from whaleid.config import DeepClusterHead, PretextExperiment
from whaleid.data.augmentation import Augmentation
from whaleid.data.cache import ImageCache
from whaleid.data.samplers import EpochPlan, TrainingItems, make_loader
from whaleid.divide.training import agreed
from whaleid.models.pretext import (
    ClusterClassifier,
    PretextClassifier,
    build_pretext_embedder,
    build_pretext_head,
)
from whaleid.training.checkpoint import CONFIG
from whaleid.training.forward import survey_together
from whaleid.training.loop import require_finite_weights, train_epoch
from whaleid.training.pseudo_labels import batches_of, pseudo_labels, uniform_batches
from whaleid.training.record import STATE, Recorder, recorder
from whaleid.training.run import share_of
from whaleid.training.schedule import epochs_of
from whaleid.training.seeds import mix, run_seed, seed_everything
from whaleid.training.session import LossModule, Session, make_accelerator, make_session, prepare_machine, restore
from whaleid.training.state import is_state_of, load_state, storable
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, digest

PSEUDO = "pseudo_labels"
"""Name in `Session.mined` of the items' clusters, int64 (n,). They are saved, not made again from the saved weights:
on a GPU the same weights do not give the same features to the last bit."""

_BACKBONE = "embedder.backbone.net."


@dataclass(frozen=True)
class PretextSummary:
    """What came of a pretraining; kept in the weights' header too."""

    experiment: str
    epochs: int
    steps: int
    images: int
    """Images seen, repeats counted; each of the four turns of an image counts with it."""
    loss: float | None
    """Mean over the last epoch."""
    seconds: float
    device: str
    precision: str


@dataclass(frozen=True)
class PretextTask:
    """What is to be trained, on what, and where it goes."""

    experiment: PretextExperiment
    items: TrainingItems
    cache: ImageCache
    out: Path
    target: Path
    key: str

    @property
    def title(self) -> str:
        return f"pretraining {self.experiment.name}"

    @property
    def seed(self) -> int:
        return run_seed(self.experiment.train.seed, None)


class PretextModule(LossModule):
    """Embedder and head, with the head's own question in place of the labels."""

    def forward(self, images: Tensor, labels: Tensor, part: int = 0) -> Tensor:
        """Scalar loss of uint8 (b, h, w, 3) images. labels: int64 (b,), see `PretextClassifier.shown`."""
        shown, answers = cast(PretextClassifier, self.head).shown(images, labels)
        return self.head(self.embedder(shown), answers, part)


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
) -> PretextSummary:
    """Train a backbone without labels and write it to `target`, a .safetensors file.

    images: images.parquet; its train rows are used, its test rows too where `test`. cache: their pixels; out: folder
    of log, configuration and state; weights: folder of pretrained weights to start from; key: the caller's digest of
    what is not seen here; save_seconds: how often the state is saved.
    Finished weights are not trained again; what was killed goes on to the same result.
    """
    items = unlabelled_items(images, test)
    task = PretextTask(experiment, items, cache, out, target, pretext_key(experiment, items, cache.size, key))
    done = finished(task)
    if done is not None:
        return done
    accelerator = make_accelerator(experiment.train.precision, task.title)
    session = start(task, accelerator, weights)
    try:
        with recorder(session, out, state_key(task, accelerator), save_seconds) as record:
            while session.progress.epoch < session.schedule.epochs:
                run_epoch(task, session, record)
    except torch.OutOfMemoryError as error:
        raise WhaleidError(
            f"{task.title}: the GPU's memory is too small for train.batch={experiment.train.batch} at "
            f"{cache.size[0]}x{cache.size[1]}; halve train.batch and double train.accumulate"
        ) from error
    return finish(task, session)


# ---------------------------------------------------------------------------------------------------- start


def unlabelled_items(images: pd.DataFrame, test: bool) -> TrainingItems:
    """All train images of images.parquet, test images too where `test`; one class."""
    splits = ["train", "test"] if test else ["train"]
    rows = np.flatnonzero(images["split"].isin(splits).to_numpy())
    if len(rows) < 2:
        raise WhaleidError(f"pretraining needs at least 2 images, and found {len(rows)}; add images, or test: true")
    return TrainingItems(rows, np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=np.int64), ["image"])


def pretext_key(experiment: PretextExperiment, items: TrainingItems, size: tuple[int, int], key: str) -> str:
    """Digest of all that the weights depend on: settings, images, size, and what the caller knows."""
    settings = experiment.model_dump(mode="json", exclude={"name": True, "features": True, "train": {"workers"}})
    return digest(settings, sha256(items.rows.tobytes()).hexdigest(), list(size), key)


def state_key(task: PretextTask, accelerator: Accelerator) -> str:
    """Digest of all that must be equal for a state to go on to the same result."""
    return digest(task.key, accelerator.mixed_precision, accelerator.num_processes)


def finished(task: PretextTask) -> PretextSummary | None:
    """Summary of the pretraining if its weights are there already, of these settings and images."""
    try:
        with safe_open(task.target, framework="pt") as file:
            header = file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return None
    return PretextSummary(**json.loads(header["summary"])) if header.get("key") == task.key else None


def start(task: PretextTask, accelerator: Accelerator, weights: Path) -> Session:
    """A session at the beginning, or where the saved state left it."""
    key = state_key(task, accelerator)
    if accelerator.is_main_process:
        _prepare_folder(task, key)
    accelerator.wait_for_everyone()
    state = load_state(task.out / STATE, key)
    session = _build_session(task, accelerator, weights, pretrained=state is None)
    if state is not None:
        restore(session, state)
        if accelerator.is_main_process:
            print(f"{task.title}: going on after step {session.progress.step} of {session.schedule.steps}")
    return session


def _prepare_folder(task: PretextTask, key: str) -> None:
    """A state of other settings goes, one of these stays."""
    task.out.mkdir(parents=True, exist_ok=True)
    if not is_state_of(task.out / STATE, key):
        shutil.rmtree((task.out / STATE).parent, ignore_errors=True)
    with atomic_path(task.out / CONFIG) as temporary:
        settings = task.experiment.model_dump(mode="json")
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _build_session(task: PretextTask, accelerator: Accelerator, weights: Path, pretrained: bool) -> Session:
    experiment, config, count = task.experiment, task.experiment.train, len(task.items)
    lengths = [batches_of(count, config.batch)] * epochs_of(config, count)
    prepare_machine(accelerator, task.seed)
    embedder = build_pretext_embedder(experiment, weights, pretrained, task.cache.size)
    head = build_pretext_head(experiment, embedder.dim, task.cache.size)
    return make_session(task.title, config, lengths, task.seed, accelerator, PretextModule(embedder, head))


# --------------------------------------------------------------------------------------------------- epochs


def run_epoch(task: PretextTask, session: Session, record: Recorder | None) -> None:
    """Train what is left of the running epoch, then note how it went."""
    progress, accelerator = session.progress, session.accelerator
    session.frozen = progress.epoch < session.config.freeze.epochs
    note = recluster(task, session)
    if note and record:
        record.note(**note)
    items = replace(task.items, labels=item_labels(task, session))
    batches = uniform_batches(items.labels, session.config.batch, progress.epoch, session.seed)
    loader = make_loader(
        items,
        task.cache,
        Augmentation(task.experiment.augment, task.cache.size),
        share_of(batches, accelerator.process_index, accelerator.num_processes),
        progress.epoch,
        mix(task.seed, accelerator.process_index),
        session.config.workers,
        start=progress.batch,
    )
    plan = EpochPlan(batches, [0] * len(batches))
    train_epoch(session, plan, loader, record.after_tick if record else lambda _: None)
    progress.last_loss = progress.epoch_loss / max(1, progress.epoch_steps)
    progress.epoch_loss, progress.epoch_steps = 0.0, 0
    progress.epoch, progress.batch = progress.epoch + 1, 0
    if record:
        record.end_epoch(progress.last_loss, None)


def item_labels(task: PretextTask, session: Session) -> np.ndarray:
    """Cluster of every item, int64 (n,); one for all where the pretext makes none."""
    return session.mined[PSEUDO].cpu().numpy() if PSEUDO in session.mined else task.items.labels


def recluster(task: PretextTask, session: Session) -> dict[str, Any] | None:
    """DeepCluster, where it is due: cluster the items anew and start the classifier anew; a line for the log.

    Nothing is made for an epoch that was begun already (a resumed one): the state has it.
    """
    config, progress = task.experiment.head, session.progress
    if not isinstance(config, DeepClusterHead) or progress.batch or progress.epoch % config.every:
        return None
    embedder, batch = session.module.embedder, task.experiment.features.batch
    rows = survey_together(session.accelerator, embedder, task.items, task.cache, batch, "embedding")
    seed = mix(session.seed, "clusters", progress.epoch)
    before, made = item_labels(task, session), task.items.labels
    if session.accelerator.is_main_process:
        made = pseudo_labels(rows, config, seed)
    session.mined = {PSEUDO: agreed(torch.from_numpy(made).to(session.accelerator.device))}
    made = item_labels(task, session)
    sizes = np.bincount(made)
    _start_classifier(session, len(sizes), seed)
    return {
        "kind": "clusters",
        "found": len(sizes),
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
        "agreement": round(float(normalized_mutual_info_score(before, made)), 5),  # with the clusters before
    }


def _start_classifier(session: Session, found: int, seed: int) -> None:
    """A new classifier, with no memory of the old one in optimizer and average."""
    head = cast(ClusterClassifier, session.module.head)
    seed_everything(seed)
    head.start_anew(found)
    for parameter in head.parameters():
        session.optimizer.state.pop(parameter, None)
    if session.ema:
        session.ema.adopt([f"head.{name}" for name, _ in head.named_parameters()])


# --------------------------------------------------------------------------------------------------- finish


def finish(task: PretextTask, session: Session) -> PretextSummary:
    """Write the backbone, then drop the state that it makes superfluous."""
    require_finite_weights(session)
    progress = session.progress
    summary = PretextSummary(
        experiment=task.experiment.name,
        epochs=progress.epoch,
        steps=progress.step,
        images=progress.images,
        loss=progress.last_loss,
        seconds=round(progress.seconds, 3),
        device=session.accelerator.device.type,
        precision=session.accelerator.mixed_precision,
    )
    if session.accelerator.is_main_process:
        save_backbone(task.target, session.weights(), {"key": task.key, "summary": json.dumps(asdict(summary))})
        shutil.rmtree((task.out / STATE).parent, ignore_errors=True)
    session.accelerator.wait_for_everyone()
    return summary


def save_backbone(path: Path, weights: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """Write a session's backbone atomically, under timm's own names. header: kept in the file."""
    tensors = {name.removeprefix(_BACKBONE): tensor for name, tensor in weights.items() if name.startswith(_BACKBONE)}
    with atomic_path(path) as temporary:
        save_file(storable(tensors), temporary, metadata={"format": "pt", **header})
        temporary.chmod(0o644)  # safetensors writes for its owner's eyes alone
