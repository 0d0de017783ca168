"""One run: an experiment trained on one fold, from images in the cache to `checkpoint.safetensors`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from whaleid.config import Experiment
from whaleid.data.augmentation import Augmentation
from whaleid.data.cache import ImageCache
from whaleid.data.pseudo import with_pseudo_labels
from whaleid.data.samplers import TrainingItems, make_loader, training_items
from whaleid.models.embedder import build_embedder
from whaleid.models.heads.registry import build_head
from whaleid.training.checkpoint import CHECKPOINT, read_metadata, save_checkpoint, write_description
from whaleid.training.epochs import begin_epoch, epoch_lengths, plan_epoch
from whaleid.training.loop import require_finite_weights, train_epoch
from whaleid.training.record import STATE, Recorder, recorder
from whaleid.training.seeds import mix, run_seed
from whaleid.training.selection import embed_rows, fold_queries, identity_map
from whaleid.training.session import LossModule, Session, make_accelerator, make_session, prepare_machine, restore
from whaleid.training.state import is_state_of, load_state
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest

Score = Callable[[Session], float]


@dataclass(frozen=True)
class RunSummary:
    """What came of a run; kept in the checkpoint too."""

    experiment: str
    fold: int | None
    epochs: int
    steps: int
    images: int
    """Images seen, repeats counted."""
    classes: int
    loss: float | None
    """Mean over the last epoch."""
    seconds: float
    """Time in the training loop, over all the times it was resumed."""
    device: str
    precision: str
    optimistic: bool
    """The epoch was chosen by the fold's own score, which then is no honest estimate."""
    score: float | None = None
    """`select: best`: MAP@5 of the fold's answerable queries at the chosen epoch."""
    best_epoch: int | None = None
    """Counted from 1."""
    pseudo: int = 0
    """Test images that were trained on by pseudo-labels."""


@dataclass(frozen=True)
class Task:
    """What is to be trained, on what, and where it goes."""

    experiment: Experiment
    fold: int | None
    items: TrainingItems
    cache: ImageCache
    out: Path
    key: str
    """Digest of all that the weights depend on."""
    pseudo: int = 0
    """Test images among the items."""

    @property
    def title(self) -> str:
        return f"experiment {self.experiment.name}, fold {'all' if self.fold is None else self.fold}"

    @property
    def seed(self) -> int:
        return run_seed(self.experiment.train.seed, self.fold)


def train_run(
    experiment: Experiment,
    fold: int | None,
    images: pd.DataFrame,
    folds: pd.DataFrame,
    cache: ImageCache,
    out: Path,
    unknown: str | None,
    weights: Path,
    key: str = "",
    save_seconds: float = 60.0,
    labels: pd.DataFrame | None = None,
) -> RunSummary:
    """Train `experiment` without the images of `fold` (None: on all labelled ones) into the folder `out`.

    images, folds: images.parquet and folds.csv; cache: the pixels of images' rows, at the size to train at;
    unknown: the competition's unknown label; weights: folder of pretrained weights; key: the caller's digest
    of what is not seen here (the pixels, the weights' files); save_seconds: how often the state is saved;
    labels: pseudo-labels of test images that are trained on, too (`image, identity`); nothing is scored by them.
    A finished run is not trained again; one that was killed goes on to the same result.
    """
    known = (images, folds) if labels is None else with_pseudo_labels(images, folds, labels)
    items = training_items(*known, fold, experiment, unknown)
    key = run_key(experiment, fold, items, cache.size, key)
    task = Task(experiment, fold, items, cache, out, key, 0 if labels is None else len(labels))
    done = finished(task)
    if done is not None:
        return done
    score = fold_score(task, images, folds, unknown) if experiment.train.select == "best" else None
    accelerator = make_accelerator(experiment.train.precision, task.title)
    session = start(task, accelerator, weights)
    try:
        with recorder(session, out, state_key(task, accelerator), save_seconds) as record:
            while session.progress.epoch < session.schedule.epochs:
                run_epoch(task, session, record, score)
    except torch.OutOfMemoryError as error:
        raise WhaleidError(
            f"{task.title}: the GPU's memory is too small for train.batch={experiment.train.batch} at "
            f"{cache.size[0]}x{cache.size[1]}; halve train.batch and double train.accumulate"
        ) from error
    return finish(task, session)


# ---------------------------------------------------------------------------------------------------- start


def run_key(experiment: Experiment, fold: int | None, items: TrainingItems, size: tuple[int, int], key: str) -> str:
    """Digest of all that a run's weights depend on: settings, items, size, and what the caller knows."""
    settings = experiment.model_dump(mode="json", exclude={"name": True, "features": True, "train": {"workers"}})
    content = sha256()
    for array in (items.rows, items.mirrored, items.labels):
        content.update(np.ascontiguousarray(array).tobytes())
    return digest(settings, fold, content.hexdigest(), items.classes, list(size), key)


def state_key(task: Task, accelerator: Accelerator) -> str:
    """Digest of all that must be equal for a state to go on to the same result."""
    return digest(task.key, accelerator.mixed_precision, accelerator.num_processes)


def finished(task: Task) -> RunSummary | None:
    """Summary of the run if it is done already, with these settings and these data."""
    metadata = read_metadata(task.out)
    if metadata is None or metadata.get("key") != task.key:
        return None
    return RunSummary(**metadata["summary"])


def start(task: Task, accelerator: Accelerator, weights: Path) -> Session:
    """A session at the run's beginning, or where the saved state left it."""
    key = state_key(task, accelerator)
    if accelerator.is_main_process:
        _prepare_folder(task, key)
    accelerator.wait_for_everyone()
    state = load_state(task.out / STATE, key)
    session = _build_session(task, accelerator, weights, pretrained=state is None)
    if state is not None:
        restore(session, state)
        if accelerator.is_main_process:
            progress = session.progress
            print(f"{task.title}: going on after step {progress.step} of {session.schedule.steps}")
    return session


def _prepare_folder(task: Task, key: str) -> None:
    """Make room for the run: what is left there of other settings goes, a state of these settings stays."""
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
    lengths = epoch_lengths(experiment, task.items.labels, task.title)
    prepare_machine(accelerator, task.seed)
    embedder = build_embedder(experiment.model, weights, pretrained, task.cache.size, experiment.slices)
    head = build_head(experiment.head, embedder.dim, class_sizes(task.items))
    return make_session(task.title, experiment.train, lengths, task.seed, accelerator, LossModule(embedder, head))


def class_sizes(items: TrainingItems) -> np.ndarray:
    """int64 (c,): training images of each class."""
    return np.bincount(items.labels, minlength=len(items.classes)).astype(np.int64)


# --------------------------------------------------------------------------------------------------- epochs


def run_epoch(task: Task, session: Session, record: Recorder | None, score: Score | None) -> None:
    """Train what is left of the running epoch, then note how it went."""
    progress, accelerator = session.progress, session.accelerator
    note = begin_epoch(session, task.experiment, task.items, task.cache)
    if note and record:
        record.note(**note)
    plan = plan_epoch(session, task.experiment, task.items.labels)
    batches = make_loader(
        task.items,
        task.cache,
        Augmentation(task.experiment.augment, task.cache.size),
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
    reached = score(session) if score else None
    if reached is not None and (progress.best_score is None or reached > progress.best_score):
        progress.best_score, progress.best_epoch = reached, progress.epoch
        session.best = {name: tensor.detach().cpu().clone() for name, tensor in session.weights().items()}
    if record:
        record.end_epoch(progress.last_loss, reached)


def share_of(plan: list[np.ndarray], process: int, processes: int) -> list[np.ndarray]:
    """One process's part of every batch, equally many for each; the last repeats some of the first."""
    shares = []
    for batch in plan:
        size = max(2, -(-len(batch) // processes)) if processes > 1 else len(batch)
        shares.append(np.resize(batch, size * processes)[process * size : (process + 1) * size])
    return shares


def fold_score(task: Task, images: pd.DataFrame, folds: pd.DataFrame, unknown: str | None) -> Score:
    """`select: best`: what the fold's own queries say of a session's weights."""
    if task.fold is None:
        raise WhaleidError(f"{task.title}: train.select=best needs a fold to score; use train.select=last")
    gallery, codes, queries, truth = fold_queries(images, folds, task.fold, unknown)
    if not len(queries):
        raise WhaleidError(
            f"{task.title}: train.select=best, but no image of the fold has its identity elsewhere; "
            "use train.select=last"
        )
    batch = task.experiment.features.batch

    def score(session: Session) -> float:
        embedder, device = session.module.embedder, session.accelerator.device
        with session.averaged():
            near, asked = (embed_rows(embedder, task.cache, rows, batch) for rows in (gallery, queries))
        return identity_map(asked, torch.from_numpy(truth).to(device), near, torch.from_numpy(codes).to(device))

    return score


# --------------------------------------------------------------------------------------------------- finish


def finish(task: Task, session: Session) -> RunSummary:
    """Write the checkpoint, then drop the state that it makes superfluous."""
    require_finite_weights(session)
    summary = summarise(task, session)
    if session.accelerator.is_main_process:
        save_checkpoint(
            task.out,
            session.best or session.weights(),
            class_sizes(task.items),
            task.cache.size,
            {
                "name": task.experiment.name,
                "fold": task.fold,
                "key": task.key,
                "optimistic": summary.optimistic,
                "summary": asdict(summary),
            },
        )
        shutil.rmtree((task.out / STATE).parent, ignore_errors=True)
    session.accelerator.wait_for_everyone()
    return summary


def summarise(task: Task, session: Session) -> RunSummary:
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
        optimistic=session.config.select == "best",
        score=progress.best_score,
        best_epoch=progress.best_epoch,
        pseudo=task.pseudo,
    )
