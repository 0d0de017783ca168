"""Learners: the head of divide and conquer, K losses that share one embedding.

Learners stand in levels: learner 0 has the full embedding and all images; each further level has one learner a
cluster, with a sub-space, a loss and parameters of its own. A learner starts as a copy of the one whose cluster was cut
to make its own. `schedule.py` decides which is trained when.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from whaleid.config import DivideHead
from whaleid.models.heads.base import HeadModule
from whaleid.models.heads.registry import build_head
from whaleid.utils.errors import WhaleidError

MASK_RATE = 100.0
"""Learning rate of masks as a multiple of that of the other parameters, as published."""
OVERLAP_WEIGHT = 0.01
"""Weight of the mean cosine between masks in the loss, as published."""


class DivideLearners(HeadModule):
    """Learners of all levels, their sub-spaces, and the cluster of every training item.

    Sub-space k of the embedding f is the slice f[k d / K : (k + 1) d / K] (2019), or f * relu(m_k) with a learned mask
    m_k (2021). The loss of a batch from cluster k is that of learner k on its sub-space; with masks, OVERLAP_WEIGHT *
    (mean cosine between the masks of the level) is added. Masks start at ones, and those of a level as their parents'.

    Attributes
    ----------
    masks : float tensor, shape (learners - 1, d)
        m_k of all learners but the first; only with more than one cluster and a preset that has masks.
    assignment : int64 tensor, shape (n,)
        Cluster of every training item at the level that is trained.
    level : int64 scalar tensor
        Place in `settings.levels`.
    present : bool tensor, shape (learners, c)
        Classes in each learner's cluster: those that compete in its softmax.
    """

    unused_parameters = True  # one learner is trained at a time

    def __init__(self, settings: DivideHead, dim: int, class_sizes: Tensor):
        super().__init__()
        if dim % settings.slices:
            raise WhaleidError(
                f"head.clusters={settings.clusters} does not divide the embedding of {dim} dimensions into equal "
                "slices; set model.embedding (with a neck) to a multiple of it"
            )
        self.settings = settings
        self.dim = dim
        self.first = [sum(settings.levels[:level]) for level in range(len(settings.levels))]
        self.learners = nn.ModuleList(
            build_head(settings.learner, self._width(level), class_sizes)
            for level, clusters in enumerate(settings.levels)
            for _ in range(clusters)
        )
        self.masked = settings.form.masks and len(self.learners) > 1
        if self.masked:
            self.masks = nn.Parameter(torch.ones(len(self.learners) - 1, dim))
            self.rates = {"masks": MASK_RATE}
        self.register_buffer("assignment", torch.zeros(int(class_sizes.sum()), dtype=torch.int64))
        self.register_buffer("level", torch.zeros((), dtype=torch.int64))
        self.register_buffer("present", torch.ones(len(self.learners), len(class_sizes), dtype=torch.bool))
        self._classes: dict[int, Tensor | None] = {}
        self.register_load_state_dict_post_hook(lambda module, _: module._classes.clear())

    # ------------------------------------------------------------------------------------------------- clusters

    def open(self, level: int, assignment: Tensor, labels: Tensor) -> list[str]:
        """Train a level from now on, on new clusters.

        Parameters
        ----------
        level : int
            A level above the one before starts as a copy of it.
        assignment : int64 tensor, shape (n,)
            Cluster of every training item, already matched to the level's learners.
        labels : int64 tensor, shape (n,)

        Returns
        -------
        list of str
            Names of the parameters that were overwritten.
        """
        before = int(self.get_buffer("level"))
        copied = [name for below in range(before, level) for name in self._inherit(below + 1)]
        self.get_buffer("level").fill_(level)
        self.get_buffer("assignment").copy_(assignment)
        first, clusters = self.first[level], self.settings.levels[level]
        present = torch.zeros(clusters, self.get_buffer("present").shape[1], dtype=torch.bool)
        present[assignment.cpu(), labels.cpu()] = True
        self.get_buffer("present")[first : first + clusters].copy_(present)
        self._classes.clear()
        return copied

    def learner_of(self, cluster: int, level: int) -> int:
        """Number of the learner (`EpochPlan.parts`) of a cluster."""
        return self.first[level] + cluster

    @torch.no_grad()
    def _inherit(self, level: int) -> list[str]:
        """Copy every learner of a level from the one that it comes from; names of what was written."""
        clusters, above = self.settings.levels[level], self.settings.levels[level - 1]
        copied = []
        for cluster in range(clusters):
            learner, parent = self.learner_of(cluster, level), self.learner_of(cluster * above // clusters, level - 1)
            start = cluster * self._width(level) % self._width(level - 1)
            inherited = dict(self.learners[parent].named_parameters())
            for name, parameter in self.learners[learner].named_parameters():
                parameter.copy_(_cut(inherited[name], parameter.shape, start))
                copied.append(f"learners.{learner}.{name}")
            if self.masked and parent:
                self.masks[learner - 1] = self.masks[parent - 1]
        return copied + (["masks"] if self.masked else [])

    # ----------------------------------------------------------------------------------------------------- loss

    def subspace(self, embeddings: Tensor, learner: int) -> Tensor:
        """The learner's sub-space of embeddings float32 (b, d): (b, its width)."""
        level, cluster = self._place(learner)
        if level == 0:
            return embeddings
        if self.masked:
            return embeddings * functional.relu(self.masks[learner - 1])
        width = self._width(level)
        return embeddings[:, cluster * width : (cluster + 1) * width]

    def overlap(self, level: int) -> Tensor:
        """Mean cosine between the masks of a level, scalar in [0, 1]; 0 where they share no dimension."""
        first, clusters = self.first[level], self.settings.levels[level]
        rows = functional.normalize(functional.relu(self.masks[first - 1 : first - 1 + clusters]), dim=1)
        return ((rows @ rows.T).sum() - rows.square().sum()) / (clusters * (clusters - 1))

    def _learner_loss(self, embeddings: Tensor, labels: Tensor, learner: int) -> Tensor:
        loss = self._learner(learner)._loss(self.subspace(embeddings, learner), labels, self._competing(learner))
        if self.masked and learner:
            loss = loss + OVERLAP_WEIGHT * self.overlap(self._place(learner)[0])
        return loss

    def _logits(self, embeddings: Tensor) -> Tensor | None:
        """Those of learner 0, which is trained last: no other has all classes."""
        return self._learner(0)._logits(embeddings)

    # -------------------------------------------------------------------------------------------------- details

    def _learner(self, number: int) -> HeadModule:
        learner = self.learners[number]
        assert isinstance(learner, HeadModule)
        return learner

    def _width(self, level: int) -> int:
        return self.dim if self.settings.form.masks else self.dim // self.settings.levels[level]

    def _place(self, learner: int) -> tuple[int, int]:
        """Level and cluster of a learner."""
        level = max(level for level, first in enumerate(self.first) if first <= learner)
        return level, learner - self.first[level]

    def _competing(self, learner: int) -> Tensor | None:
        """Classes that compete in a learner, kept from batch to batch: finding them makes a GPU wait."""
        if learner not in self._classes:
            present = self.get_buffer("present")[learner]
            self._classes[learner] = None if bool(present.all()) else present.nonzero().squeeze(1)
        return self._classes[learner]


def _cut(parent: Tensor, shape: Any, start: int) -> Tensor:
    """The dimensions of a parent's parameter that belong to the child: those from `start` on, where the shape
    differs."""
    for axis, (length, wanted) in enumerate(zip(parent.shape, shape, strict=True)):
        if length != wanted:
            return parent.narrow(axis, start, wanted)
    return parent
