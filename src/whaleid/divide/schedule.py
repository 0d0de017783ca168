"""The schedule of divide and conquer: what each epoch trains, and the clustering between epochs.

Epochs are `warmup` on the full embedding, the divided ones in 2, 4, ... K clusters, and `joint` on the full embedding
again. Every `every` (M) epochs the images are clustered anew, until K is reached with each cluster cut in two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from whaleid.config import DivideHead
from whaleid.data.samplers import EpochPlan
from whaleid.divide.clustering import bisect, cluster_counts, recluster, repair, share_of_pairs_together
from whaleid.divide.learners import DivideLearners
from whaleid.divide.sampler import cluster_batches, divided_length
from whaleid.training.epochs import EpochPlanner
from whaleid.training.kmeans import require_finite
from whaleid.training.seeds import mix
from whaleid.training.session import Session, from_main_process
from whaleid.utils.errors import WhaleidError


@dataclass(frozen=True)
class Phase:
    """What one epoch does."""

    level: int
    """Place in `DivideHead.levels`; 0 is the full embedding."""
    cluster: bool
    """Whether the images are clustered before it."""
    frozen: bool
    """Whether the backbone is frozen."""


FULL = Phase(level=0, cluster=False, frozen=False)
"""An epoch on the full embedding."""


def phase_of(head: DivideHead, epochs: int, epoch: int) -> Phase:
    """Phase of an epoch, counted from 0, of a run of `epochs`."""
    since = epoch - head.warmup
    if len(head.levels) == 1 or since < 0 or epoch >= epochs - head.joint:
        return FULL
    period, place = divmod(since, head.every)
    level = min(period + 1, len(head.levels) - 1)
    return Phase(level, cluster=place == 0, frozen=place < head.freeze)


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
        features = self.extract(session, self.settings.space)
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
            "clusters": cluster_counts(assignment, labels, self.settings.levels[phase.level]),
            "repaired": moved,
            "stayed": float((assignment == before).mean()) if level_before == phase.level else None,
            "together": round(share_of_pairs_together(assignment, labels), 4),
        }

    def plan(self, session: Session) -> EpochPlan:
        level = self._phase(session).level
        if not level:
            return super().plan(session)
        head = cast(DivideLearners, session.module.head)
        plan = cluster_batches(
            self.items.labels,
            head.get_buffer("assignment").cpu().numpy(),
            self.settings.levels[level],
            self.experiment.sampler,
            self.experiment.train.batch,
            session.progress.epoch,
            session.seed,
        )
        return EpochPlan(plan.batches, [head.learner_of(cluster, level) for cluster in plan.parts])

    def _phase(self, session: Session) -> Phase:
        return phase_of(self.settings, session.schedule.epochs, session.progress.epoch)


def check_divide(head: DivideHead, labels: np.ndarray, epochs: int, title: str) -> None:
    """Raise WhaleidError where the data or the schedule have no room for the clusters."""
    identities = len(np.unique(labels))
    if head.clusters * (2 if head.by == "identity" and head.clusters > 1 else 1) > identities:
        raise WhaleidError(
            f"{title}: head.clusters={head.clusters} for {identities} identities; use at most half as many clusters"
        )
    if len(head.levels) == 1:
        return
    if smallest_cluster(head, len(labels), head.clusters) * head.clusters > len(labels):
        raise WhaleidError(f"{title}: head.clusters={head.clusters} for {len(labels)} images; use fewer clusters")
    divided = epochs - head.warmup - head.joint
    needed = (len(head.levels) - 2) * head.every + 1
    if divided < needed:
        raise WhaleidError(
            f"{title}: {epochs} epochs less head.warmup={head.warmup} and head.joint={head.joint} leave {divided} for "
            f"the clusters, but {head.clusters} of them need {needed}; train longer, or lower head.warmup, head.joint "
            "or head.every"
        )


def smallest_cluster(head: DivideHead, units: int, clusters: int) -> int:
    """Least units (images or identities) in a cluster: `head.smallest` of the mean cluster, and at least 2."""
    return max(2, math.floor(head.smallest * units / clusters))


def divide(
    head: DivideHead,
    features: np.ndarray,
    labels: np.ndarray,
    before: np.ndarray,
    level_before: int,
    level: int,
    seed: int,
) -> tuple[np.ndarray, int]:
    """Clusters of a level: the ones before renewed, or each cut in two where the level is new.

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
        parts = bisect(units, before[first], head.levels[level_before], seed)
    parts, moved = repair(units, parts, labels[first], clusters, smallest_cluster(head, len(units), clusters))
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
