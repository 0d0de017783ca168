"""What each epoch of a run trains on: how long it is, what it must know first, and its batches.

Most samplers need the labels alone. Divide and conquer needs clusters, hard mining needs neighbours: both come from
a survey of the training images with the network as it is, made between two epochs.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from whaleid.config import DivideHead, Experiment
from whaleid.data.cache import ImageCache
from whaleid.data.samplers import EpochPlan, TrainingItems, epoch_batches
from whaleid.divide.sampler import cluster_batches, divided_length
from whaleid.divide.training import FULL_DATA, Phase, agreed, check_divide, phase_of, recluster
from whaleid.models.heads.divide import DivideLearners
from whaleid.training.forward import Space, survey_together
from whaleid.training.schedule import epochs_of
from whaleid.training.session import Session


def epoch_lengths(experiment: Experiment, labels: np.ndarray, title: str) -> list[int]:
    """Batches of each epoch of a run, known before its first step. labels: int64 (n,).

    Raises WhaleidError, beginning with `title`, where data and schedule do not suit the head.
    """
    sampler, batch, head = experiment.sampler, experiment.train.batch, experiment.head
    whole = [len(chosen) for chosen in epoch_batches(labels, sampler, batch, 0, 0)]
    epochs = epochs_of(experiment.train, sum(whole))
    if not isinstance(head, DivideHead):
        return [len(whole)] * epochs
    check_divide(head, labels, epochs, title)
    levels = [len(whole), *(divided_length(labels, sampler, batch, clusters)[0] for clusters in head.levels[1:])]
    return [levels[phase_of(head, epochs, epoch).level] for epoch in range(epochs)]


def begin_epoch(
    session: Session, experiment: Experiment, items: TrainingItems, cache: ImageCache
) -> dict[str, Any] | None:
    """Make what the epoch needs to know, where it is due; returns a line for the log where something was made.

    Nothing is made for an epoch that was begun already (a resumed one): the state has it.
    """
    epoch, phase = session.progress.epoch, _phase(session)
    session.frozen = epoch < session.config.freeze.epochs or phase.frozen
    fresh = session.progress.batch == 0

    def rows(space: Space) -> np.ndarray:
        embedder = session.module.embedder
        return survey_together(session.accelerator, embedder, items, cache, experiment.features.batch, space)

    if fresh and phase.cluster:
        assert isinstance(experiment.head, DivideHead)
        space = experiment.head.space
        return {"kind": "clusters", **recluster(session, phase.level, items.labels, lambda: rows(space))}
    if fresh and experiment.sampler.name == "mined" and epoch and epoch % experiment.sampler.every == 0:
        return _mine(session, rows("embedding"), items.labels)
    return None


def plan_epoch(session: Session, experiment: Experiment, labels: np.ndarray) -> EpochPlan:
    """Batches of the running epoch, and the learner of each."""
    sampler, batch, epoch = experiment.sampler, experiment.train.batch, session.progress.epoch
    phase = _phase(session)
    if phase.level:
        head = cast(DivideLearners, session.module.head)
        clusters = head.config.levels[phase.level]
        assignment = head.get_buffer("assignment").cpu().numpy()
        plan = cluster_batches(labels, assignment, clusters, sampler, batch, epoch, session.seed)
        return EpochPlan(plan.batches, [head.learner_of(cluster, phase.level) for cluster in plan.parts])
    batches = _whole_batches(session, experiment, labels)
    return EpochPlan(batches, [0] * len(batches))


def _whole_batches(session: Session, experiment: Experiment, labels: np.ndarray) -> list[np.ndarray]:
    sampler, batch, epoch = experiment.sampler, experiment.train.batch, session.progress.epoch
    if session.mined:
        from whaleid.data.mined_samplers import mined_batches

        others, own = (session.mined[name].cpu().numpy() for name in ("others", "own"))
        return mined_batches(labels, others, own, batch, sampler.images, epoch, session.seed)
    return epoch_batches(labels, sampler, batch, epoch, session.seed)


def _mine(session: Session, rows: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    from whaleid.data.mined_samplers import hard_neighbours

    found = hard_neighbours(rows, labels, HARD_OTHERS, HARD_OWN)
    device = session.accelerator.device
    session.mined = {
        name: agreed(torch.from_numpy(table).to(device)) for name, table in zip(("others", "own"), found, strict=True)
    }
    similarity = float((rows * rows[found[0][:, 0]]).sum(axis=1).mean())
    return {"kind": "mined", "nearest_other": round(similarity, 5)}


HARD_OTHERS, HARD_OWN = 16, 2
"""Neighbours kept of each image: enough of other identities to fill a batch, the two least similar of its own."""


def _phase(session: Session) -> Phase:
    head = session.module.head
    if not isinstance(head, DivideLearners):
        return FULL_DATA
    return phase_of(head.config, session.schedule.epochs, session.progress.epoch)
