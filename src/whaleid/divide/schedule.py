"""The schedule of divide and conquer: what each epoch trains, and the clustering between epochs.

*Divided* epochs train each cluster's learner on its sub-space; *merged* epochs train the full embedding, still on
batches of one cluster; *joint* epochs train it on all images. Where clusters are bisected, the first epochs have one:
the *warm-up*. Every `every` (M) epochs the images are clustered anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch

from whaleid.config import DivideHead
from whaleid.data.samplers import EpochPlan
from whaleid.divide.clustering import cluster_counts, recluster, repair, share_of_pairs_together, split
from whaleid.divide.learners import DivideLearners
from whaleid.divide.sampler import cluster_batches, divided_length
from whaleid.training.epochs import EpochPlanner
from whaleid.training.kmeans import require_finite
from whaleid.training.seeds import mix
from whaleid.training.session import Session, from_main_process
from whaleid.utils.errors import WhaleidError

SMALLEST = 0.25
"""Least size of a cluster, as a share of the mean: a smaller one takes in the images nearest to its centre, so that its
learner sees more than a batch of the same few."""


@dataclass(frozen=True)
class Phase:
    """What one epoch does."""

    name: Literal["warm-up", "divided", "merged", "joint"]
    """warm-up, joint: the full embedding on all images. divided: each cluster's sub-space on its images. merged: the
    full embedding on batches of one cluster."""
    level: int
    """Place in `DivideHead.levels` of the clusters that batches are drawn from; 0 is all images."""
    cluster: bool = False
    """Whether the images are clustered before it."""
    frozen: bool = False
    """Whether the backbone is frozen."""


def phase_of(head: DivideHead, epochs: int, epoch: int) -> Phase:
    """Phase of an epoch, counted from 0, of a run of `epochs`."""
    divided, merged = phase_ends(head, epochs)
    if len(head.levels) == 1 or epoch >= merged:
        return Phase("joint", 0)
    period, place = divmod(epoch, head.every)
    level = min(period + _first_level(head), len(head.levels) - 1)
    if not level:
        return Phase("warm-up", 0)
    name = "divided" if epoch < divided else "merged"
    return Phase(name, level, cluster=place == 0, frozen=place < head.form.frozen)


def phase_ends(head: DivideHead, epochs: int) -> tuple[int, int]:
    """First epoch after the divided ones, and after the merged ones, of a run of `epochs`; parts of an epoch fall to
    the phase that follows."""
    form = head.form
    return epochs * form.divided // form.epochs, epochs * form.merged // form.epochs


def _first_level(head: DivideHead) -> int:
    return 0 if head.form.bisected else 1


class DividePlanner(EpochPlanner):
    """Plans the epochs of a run with a `divide` head."""

    @property
    def settings(self) -> DivideHead:
        """The head's settings."""
        return cast(DivideHead, self.experiment.head)

    def lengths(self) -> list[int]:
        """Batches of each epoch. Raises WhaleidError where data or schedule have no room for the clusters."""
        full = super().lengths()
        head, epochs = self.settings, len(full)
        check_divide(head, self.items.labels, epochs, self.title)
        sampler, batch = self.experiment.sampler, self.experiment.train.batch
        divided = [divided_length(self.items.labels, sampler, batch, clusters)[0] for clusters in head.levels[1:]]
        of_level = [full[0], *divided]
        return [of_level[phase_of(head, epochs, epoch).level] for epoch in range(epochs)]

    def frozen(self, session: Session) -> bool:
        return super().frozen(session) or self._phase(session).frozen

    def prepare(self, session: Session) -> dict[str, Any] | None:
        """Cluster the training items where it is due, the same in every process, and give the clusters to the head."""
        phase = self._phase(session)
        if not phase.cluster:
            return None
        head, labels = cast(DivideLearners, session.module.head), self.items.labels
        level_before = int(head.get_buffer("level"))
        before = head.get_buffer("assignment").cpu().numpy()
        features = self.extract(session, "features")
        require_finite(features)
        assignment, moved = before, 0
        if session.accelerator.is_main_process:
            seed = mix(session.seed, "clusters", session.progress.epoch)
            assignment, moved = divide(self.settings, features, labels, before, level_before, phase.level, seed)
        assignment = from_main_process(session.accelerator, assignment)
        copied = head.open(phase.level, torch.from_numpy(assignment), torch.from_numpy(labels))
        session.restart_average([f"head.{name}" for name in copied])
        return {
            "kind": "clusters",
            "phase": phase.name,
            "clusters": cluster_counts(assignment, labels, self.settings.levels[phase.level]),
            "repaired": moved,
            "stayed": float((assignment == before).mean()) if level_before == phase.level else None,
            "together": round(share_of_pairs_together(assignment, labels), 4),
        }

    def plan(self, session: Session) -> EpochPlan:
        phase = self._phase(session)
        if not phase.level:
            return super().plan(session)
        head = cast(DivideLearners, session.module.head)
        plan = cluster_batches(
            self.items.labels,
            head.get_buffer("assignment").cpu().numpy(),
            self.settings.levels[phase.level],
            self.experiment.sampler,
            self.experiment.train.batch,
            session.progress.epoch,
            session.seed,
        )
        return learners_of(head, phase, plan)

    def _phase(self, session: Session) -> Phase:
        return phase_of(self.settings, session.schedule.epochs, session.progress.epoch)


def learners_of(head: DivideLearners, phase: Phase, plan: EpochPlan) -> EpochPlan:
    """The batches of clusters with the learner that each one trains: its cluster's in a divided epoch, that of the
    full embedding in a merged one."""
    divided = phase.name == "divided"
    parts = [head.learner_of(cluster, phase.level) if divided else 0 for cluster in plan.parts]
    return EpochPlan(plan.batches, parts)


def check_divide(head: DivideHead, labels: np.ndarray, epochs: int, title: str) -> None:
    """Raise WhaleidError where the data or the schedule have no room for the clusters."""
    identities = len(np.unique(labels))
    if head.clusters * (2 if head.by == "identity" and head.clusters > 1 else 1) > identities:
        raise WhaleidError(
            f"{title}: head.clusters={head.clusters} for {identities} identities; use at most half as many clusters"
        )
    if len(head.levels) == 1:
        return
    if smallest_cluster(len(labels), head.clusters) * head.clusters > len(labels):
        raise WhaleidError(f"{title}: head.clusters={head.clusters} for {len(labels)} images; use fewer clusters")
    divided, _ = phase_ends(head, epochs)
    opened = (len(head.levels) - 1 - _first_level(head)) * head.every
    if divided <= opened:
        raise WhaleidError(
            f"{title}: of {epochs} epochs the first {divided} are divided, and head.clusters={head.clusters} are "
            f"reached after {opened}; train longer, or lower head.clusters or head.every"
        )


def smallest_cluster(units: int, clusters: int) -> int:
    """Least units (images or identities) in a cluster: SMALLEST of the mean cluster, and at least 2."""
    return max(2, math.floor(SMALLEST * units / clusters))


def divide(
    head: DivideHead,
    features: np.ndarray,
    labels: np.ndarray,
    before: np.ndarray,
    level_before: int,
    level: int,
    seed: int,
) -> tuple[np.ndarray, int]:
    """Clusters of a level: the ones before renewed, or each cut where the level is new.

    Parameters
    ----------
    head : DivideHead
    features : float32 array, shape (n, d)
        Unit rows of the training items.
    labels, before : int64 arrays, shape (n,)
        Identities, and clusters of `level_before`.
    level_before, level : int
        Places in `head.levels`.
    seed : int

    Returns
    -------
    assignment : int64 array, shape (n,)
        Clusters 0..head.levels[level] - 1, matched to those before.
    moved : int
        Images (or identities) that were moved to clusters that were too small.
    """
    units, unit_of = _units(head, features, labels)
    first = np.unique(unit_of, return_index=True)[1]
    clusters = head.levels[level]
    if level == level_before:
        parts = recluster(units, before[first], clusters, seed)
    else:
        fewer = head.levels[level_before]
        parts = split(units, before[first], fewer, clusters // fewer, seed)
    parts, moved = repair(units, parts, labels[first], clusters, smallest_cluster(len(units), clusters))
    return parts[unit_of], moved


def _units(head: DivideHead, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows to cluster, float32 (u, d), and the row of each item, int64 (n,): images, or mean directions of
    identities."""
    if head.by == "image":
        return features, np.arange(len(features))
    names, unit_of = np.unique(labels, return_inverse=True)
    means = np.zeros((len(names), features.shape[1]), dtype=np.float32)
    np.add.at(means, unit_of, features)
    return means / np.linalg.norm(means, axis=1, keepdims=True).clip(min=1e-12), unit_of
