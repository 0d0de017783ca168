"""One run: an experiment trained on one fold, from images in the cache to `checkpoint.safetensors`.

`train_task` is the training itself, which pretraining (`pretrain.py`) uses too.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from whaleid.config import Experiment, ExperimentBase
from whaleid.data.augmentation import Augmentation
from whaleid.data.cache import Inputs
from whaleid.data.pseudo import with_pseudo_labels
from whaleid.data.samplers import TrainingItems, make_loader, training_items
from whaleid.models.embedder import build_adapter, build_embedder
from whaleid.models.heads.registry import build_head, head_class
from whaleid.training.checkpoint import CHECKPOINT, read_metadata, save_checkpoint, write_description
from whaleid.training.epochs import EpochPlanner, make_planner
from whaleid.training.log import Recorder, recorder
from whaleid.training.loop import require_finite_weights, train_epoch
from whaleid.training.resume import STATE, is_state_of, load_state, restore
from whaleid.training.seeds import mix, run_seed
from whaleid.training.session import LossModule, Session, make_accelerator, make_session, prepare_machine
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest


@dataclass(frozen=True)
class RunSummary:
    """Outcome of a run; kept in the checkpoint too."""

    experiment: str
    fold: int | None
    epochs: int
    steps: int
    images: int
    """Images seen, repeats counted."""
    classes: int
    loss: float | None
    """Mean of the last epoch."""
    seconds: float
    """Time in the training loop, over all resumptions."""
    device: str
    precision: str
    pseudo: int = 0
    """Test images that were trained on with pseudo-labels."""


@dataclass(frozen=True)
class Task:
    """What to train, on what, and where to write it."""

    experiment: ExperimentBase
    fold: int | None
    """None: all labelled images, or pretraining without labels."""
    items: TrainingItems
    cache: Inputs
    out: Path
    key: str
    """Digest of all that the weights depend on."""
    pseudo: int = 0
    """Test images among the items."""

    @property
    def title(self) -> str:
        """`experiment ..., fold ...`, for messages."""
        if not self.experiment.head.needs_labels:
            return f"pretraining {self.experiment.name}"
        return f"experiment {self.experiment.name}, fold {'all' if self.fold is None else self.fold}"

    @property
    def seed(self) -> int:
        """Seed of the run, different for each fold."""
        return run_seed(self.experiment.train.seed, self.fold)

    @property
    def class_sizes(self) -> np.ndarray:
        """int64 (c,): training images of each class."""
        return np.bincount(self.items.labels, minlength=len(self.items.classes)).astype(np.int64)

    def planner(self) -> EpochPlanner:
        """The planner of its epochs."""
        return make_planner(self.experiment, self.items, self.cache, self.title)


def train_run(
    experiment: Experiment,
    fold: int | None,
    images: pd.DataFrame,
    folds: pd.DataFrame,
    cache: Inputs,
    out: Path,
    unknown: str | None,
    weights: Path,
    key: str = "",
    save_seconds: float = 60.0,
    labels: pd.DataFrame | None = None,
) -> RunSummary:
    """Train an experiment without the images of one fold.

    A finished run is not trained again; a killed one continues to the same result.

    Parameters
    ----------
    experiment : Experiment
    fold : int or None
        None: train on all labelled images.
    images, folds : tables
        images.parquet and folds.csv.
    cache : Inputs
        Pixels of the rows of `images`, at the size to train at; of an adapter, their features.
    out : Path
        Folder of checkpoint, log and state.
    unknown : str or None
        The competition's label of unknown identities.
    weights : Path
        Folder of pretrained weights.
    key : str
        The caller's digest of what is not seen here: the pixels, the files of weights.
    save_seconds : float
        Time between two saved states.
    labels : table, optional
        Pseudo-labels of test images to train on too (`image, identity`).
    """
    known = (images, folds) if labels is None else with_pseudo_labels(images, folds, labels)
    items = training_items(*known, fold, experiment, unknown)
    key = run_key(experiment, fold, items, cache.size, key)
    task = Task(experiment, fold, items, cache, out, key, 0 if labels is None else len(labels))
    metadata = read_metadata(out)
    if metadata is not None and metadata.get("key") == key:
        return RunSummary(**metadata["summary"])
    return finish(task, train_task(task, weights, save_seconds))


def run_key(experiment: ExperimentBase, fold: int | None, items: TrainingItems, size: tuple[int, int], key: str) -> str:
    """Digest of all that a run's weights depend on: settings, items, image size, and what the caller knows."""
    left_out = {"name": True, "adapter_of": True, "features": True, "train": {"workers", "gpus"}}
    settings = experiment.model_dump(mode="json", exclude=left_out)
    content = sha256()
    for array in (items.rows, items.mirrored, items.labels):
        content.update(np.ascontiguousarray(array).tobytes())
    return digest(settings, fold, content.hexdigest(), items.classes, list(size), key)


def train_task(task: Task, weights: Path, save_seconds: float) -> Session:
    """Train a task to its end, from the start or from a saved state."""
    accelerator = make_accelerator(task.experiment.train.precision, task.title)
    session = start(task, accelerator, weights)
    try:
        settings = task.experiment.model_dump(mode="json")
        with recorder(session, task.out, state_key(task, accelerator), save_seconds, settings) as record:
            while session.progress.epoch < session.schedule.epochs:
                run_epoch(task, session, record)
    except torch.OutOfMemoryError as error:
        raise WhaleidError(
            f"{task.title}: the GPU's memory is too small for train.batch={session.config.batch} at "
            f"{task.cache.size[0]}x{task.cache.size[1]}; halve train.batch and double train.accumulate"
        ) from error
    require_finite_weights(session)
    return session


# ---------------------------------------------------------------------------------------------------- start


def state_key(task: Task, accelerator: Accelerator) -> str:
    """Digest of all that must be equal for a state to continue to the same result."""
    return digest(task.key, accelerator.mixed_precision, accelerator.num_processes)


def start(task: Task, accelerator: Accelerator, weights: Path) -> Session:
    """A session at the start of the run, or at its saved state."""
    key = state_key(task, accelerator)
    if accelerator.is_main_process:
        _prepare_folder(task, key)
    accelerator.wait_for_everyone()
    state = load_state(task.out / STATE, key)
    session = _build_session(task, accelerator, weights, pretrained=state is None)
    if state is not None:
        restore(session, state)
        if accelerator.is_main_process:
            print(f"{task.title}: resuming after step {session.progress.step} of {session.schedule.steps}")
    return session


def _prepare_folder(task: Task, key: str) -> None:
    """Remove a checkpoint and a state of other settings; a state of these settings stays."""
    task.out.mkdir(parents=True, exist_ok=True)
    (task.out / CHECKPOINT).unlink(missing_ok=True)  # a finished run of these settings would not be trained again
    path = task.out / STATE
    if not is_state_of(path, key):
        if path.exists():
            print(f"{task.title}: the saved state is of other settings or data; starting from the beginning")
        shutil.rmtree(path.parent, ignore_errors=True)
    write_description(task.out, task.experiment, task.items.classes)


def _build_session(task: Task, accelerator: Accelerator, weights: Path, pretrained: bool) -> Session:
    experiment = task.experiment
    lengths = task.planner().lengths()
    prepare_machine(accelerator, task.seed)
    size = head_class(experiment.head).network_size(experiment.head, experiment.model.backbone, task.cache.size)
    if experiment.is_adapter:
        embedder = build_adapter(experiment.model, task.cache.size[0], experiment.head.slices)
    else:
        embedder = build_embedder(experiment.model, weights, pretrained, size, experiment.head.slices)
    head = build_head(experiment.head, embedder.dim, task.class_sizes)
    return make_session(task.title, experiment.train, lengths, task.seed, accelerator, LossModule(embedder, head, size))


# --------------------------------------------------------------------------------------------------- epochs


def run_epoch(task: Task, session: Session, record: Recorder | None) -> None:
    """Train the rest of the running epoch, and log it."""
    progress, accelerator, planner = session.progress, session.accelerator, task.planner()
    session.frozen = planner.frozen(session)
    note = planner.prepare(session) if progress.batch == 0 else None  # a resumed epoch has it in its state
    if note and record:
        record.note(**note)
    plan = planner.plan(session)
    batches = make_loader(
        planner.items_of(session),
        task.cache,
        None if task.experiment.is_adapter else Augmentation(task.experiment.augment, task.cache.size),
        share_of(plan.batches, accelerator.process_index, accelerator.num_processes),
        progress.epoch,
        mix(task.seed, accelerator.process_index),
        session.config.workers,
        start=progress.batch,
    )
    train_epoch(session, plan, batches, record.after_tick if record else lambda _: None)
    progress.last_loss = progress.epoch_loss / max(1, progress.epoch_steps)
    progress.epoch_loss, progress.epoch_steps = 0.0, 0
    progress.epoch, progress.batch = progress.epoch + 1, 0
    if record:
        record.end_epoch(progress.last_loss)


def share_of(plan: list[np.ndarray], process: int, processes: int) -> list[np.ndarray]:
    """One process's part of every batch, equally long for each process; the last repeats some of the first."""
    shares = []
    for batch in plan:
        size = max(2, -(-len(batch) // processes)) if processes > 1 else len(batch)
        shares.append(np.resize(batch, size * processes)[process * size : (process + 1) * size])
    return shares


# --------------------------------------------------------------------------------------------------- finish


def finish(task: Task, session: Session) -> RunSummary:
    """Write the checkpoint, then remove the state."""
    summary = summarise(task, session)
    if session.accelerator.is_main_process:
        metadata: dict[str, Any] = {"name": task.experiment.name, "fold": task.fold, "key": task.key}
        metadata |= {"summary": asdict(summary), "snapshot": session.module.embedder.backbone.snapshot}
        save_checkpoint(task.out, session.weights(), task.class_sizes, task.cache.size, metadata)
        shutil.rmtree((task.out / STATE).parent, ignore_errors=True)
    session.accelerator.wait_for_everyone()
    return summary


def summarise(task: Task, session: Session) -> RunSummary:
    """Outcome of a finished session."""
    progress = session.progress
    return RunSummary(
        experiment=task.experiment.name,
        fold=task.fold,
        epochs=progress.epoch,
        steps=progress.step,
        images=progress.images,
        classes=len(task.items.classes),
        loss=progress.last_loss,
        seconds=round(progress.seconds, 3),
        device=session.accelerator.device.type,
        precision=session.accelerator.mixed_precision,
        pseudo=task.pseudo,
    )
