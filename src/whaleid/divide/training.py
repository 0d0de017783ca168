"""Divide and conquer during a run: which level of learners works in which epoch, and the clusters it works on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor

from whaleid.config import DivideHead
from whaleid.divide.clustering import (
    bisect,
    facts_for_log,
    kmeans_partition,
    match,
    pairs_together,
    renew,
    repair,
    require_finite,
)
from whaleid.models.heads.divide import DivideLearners
from whaleid.training.seeds import mix
from whaleid.training.session import Session
from whaleid.utils.errors import WhaleidError


@dataclass(frozen=True)
class Phase:
    """What one epoch does."""

    level: int
    """Place in `DivideHead.levels`; 0: the whole embedding."""
    cluster: bool
    """The clusters are made, or made anew, before it."""
    frozen: bool
    """The backbone stands still."""


FULL_DATA = Phase(level=0, cluster=False, frozen=False)
"""An epoch of the whole embedding, and every epoch of other heads."""


def phase_of(head: DivideHead, epochs: int, epoch: int) -> Phase:
    """Phase of an epoch (counted from 0) of `epochs`: warm-up, clusters, joint."""
    since = epoch - head.warmup
    if len(head.levels) == 1 or since < 0 or epoch >= epochs - head.joint:
        return FULL_DATA
    period, place = divmod(since, head.every)
    level = min(period + 1, len(head.levels) - 1)
    return Phase(level, cluster=place == 0, frozen=place < head.freeze)


def check_divide(head: DivideHead, labels: np.ndarray, epochs: int, title: str) -> None:
    """Raise WhaleidError where the data or the schedule have no room for the clusters."""
    identities = len(np.unique(labels))
    if head.clusters * (2 if head.by == "identity" and head.clusters > 1 else 1) > identities:
        raise WhaleidError(
            f"{title}: head.clusters={head.clusters} for {identities} identities; take at most half as many clusters"
        )
    if len(head.levels) > 1 and smallest_cluster(head, len(labels), head.clusters) * head.clusters > len(labels):
        raise WhaleidError(f"{title}: head.clusters={head.clusters} for {len(labels)} images; take fewer clusters")
    divided = epochs - head.warmup - head.joint
    needed = (len(head.levels) - 2) * head.every + 1
    if len(head.levels) > 1 and divided < needed:
        raise WhaleidError(
            f"{title}: {epochs} epochs less head.warmup={head.warmup} and head.joint={head.joint} leave {divided} for "
            f"the clusters, and {head.clusters} of them ({head.growth}) want {needed}; train longer, or lower "
            "head.warmup, head.joint or head.every"
        )


def smallest_cluster(head: DivideHead, units: int, clusters: int) -> int:
    """Least units (images or identities) in a cluster: `head.smallest` of the mean cluster, and at least 2."""
    return max(2, math.floor(head.smallest * units / clusters))


def recluster(session: Session, level: int, labels: np.ndarray, features: Callable[[], np.ndarray]) -> dict[str, Any]:
    """Make the clusters of a level and hand them to the head; the same in every process.

    labels: int64 (n,), of the training items; features: called by all processes, float32 (n, d), unit rows.
    Returns what the log says of it.
    """
    head = cast(DivideLearners, session.module.head)
    before = int(head.get_buffer("level"))
    old = head.get_buffer("assignment").cpu().numpy()
    rows = features()
    require_finite(rows)
    clusters = head.config.levels[level]
    made, moved = old, 0
    if session.accelerator.is_main_process:
        seed = mix(session.seed, "clusters", session.progress.epoch)
        units, unit_of = _units(head.config, rows, labels)
        first = np.unique(unit_of, return_index=True)[1]
        parts = _partition(head.config, units, old[first], before, level, seed)
        smallest = smallest_cluster(head.config, len(units), clusters)
        parts, moved = repair(units, parts, labels[first], clusters, smallest)
        made = parts[unit_of]
    assignment = agreed(torch.from_numpy(made).to(session.accelerator.device))
    copied = head.open(level, assignment, torch.from_numpy(labels))
    if session.ema:
        session.ema.adopt([f"head.{name}" for name in copied])
    stayed = float((made == old).mean()) if before == level else None
    together = round(pairs_together(made, labels), 4)
    facts = facts_for_log(made, labels, clusters)
    return {"clusters": facts, "repaired": moved, "stayed": stayed, "together": together}


def agreed(assignment: Tensor) -> Tensor:
    """The first process's clusters, in every process. int64 (n,), on the accelerator's device."""
    return cast(Tensor, broadcast(assignment, from_process=0))


def _units(head: DivideHead, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is clustered as one: float32 (u, d), and the unit of each item, int64 (n,). Images, or identities' means."""
    if head.by == "image":
        return rows, np.arange(len(rows))
    names, unit_of = np.unique(labels, return_inverse=True)
    means = np.zeros((len(names), rows.shape[1]), dtype=np.float32)
    np.add.at(means, unit_of, rows)
    return means / np.linalg.norm(means, axis=1, keepdims=True).clip(min=1e-12), unit_of


def _partition(head: DivideHead, rows: np.ndarray, old: np.ndarray, before: int, level: int, seed: int) -> np.ndarray:
    """Clusters int64 (u,) of `level`; rows: float32 (u, d), one a unit; old: the clusters of level `before`."""
    clusters = head.levels[level]
    if head.growth == "bisect":
        if before == level:
            return renew(rows, old, clusters, seed)
        return bisect(rows, old, head.levels[before], seed)
    fresh, _ = kmeans_partition(rows, clusters, seed)
    return match(old, fresh, clusters) if before == level else fresh
