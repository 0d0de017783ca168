"""Conquer: the head of divide and conquer, K learners that share one embedding.

Sanakoyeu et al., "Divide and Conquer the Embedding Space for Metric Learning" (CVPR 2019), and its improved version
(TPAMI 2021). Learners stand in levels: learner 0 sees the whole embedding and all images; each further level has
one learner a cluster, with its own sub-space, loss and parameters. A learner that opens begins as a copy of the one
whose images it takes over. divide/training.py decides which level works when.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from whaleid.config import DivideHead, Head
from whaleid.models.heads.base import HeadModule
from whaleid.utils.errors import WhaleidError

MASK_MEAN, MASK_SPREAD = 0.9, 0.7
"""Start of learnt masks, as in Conditional Similarity Networks (Veit et al., 2017): most dimensions open, no two
masks alike."""


class DivideLearners(HeadModule):
    """Learners of all levels, the masks of their sub-spaces, and the cluster of every training item.

    masks: float (learners - 1, d), learnt (`subspace: learned`) or absent; learner 0 has none.
    assignment: int64 (n,), each training item's cluster at the level that works. level: int64 scalar, place in
    `config.levels`. present: bool (learners, c), the classes that each learner met at its last clustering.
    """

    def __init__(
        self,
        config: DivideHead,
        dim: int,
        class_sizes: Tensor,
        build: Callable[[Head, int, Tensor], HeadModule],
    ):
        """build: makes the head of one learner (`heads.build_head`)."""
        super().__init__()
        if config.cuts and dim % config.clusters:
            raise WhaleidError(
                f"head.clusters={config.clusters} does not divide the embedding of {dim} dimensions into equal parts; "
                "set model.embedding (with a neck) to a multiple of it"
            )
        self.config = config
        self.dim = dim
        self.first = [sum(config.levels[:level]) for level in range(len(config.levels))]
        self.learners = nn.ModuleList(
            build(config.learner, self._width(level), class_sizes)
            for level, clusters in enumerate(config.levels)
            for _ in range(clusters)
        )
        if config.subspace == "learned":
            self.masks = nn.Parameter(torch.empty(len(self.learners) - 1, dim))
            nn.init.normal_(self.masks, MASK_MEAN, MASK_SPREAD)
        self.register_buffer("assignment", torch.zeros(int(class_sizes.sum()), dtype=torch.int64))
        self.register_buffer("level", torch.zeros((), dtype=torch.int64))
        self.register_buffer("present", torch.ones(len(self.learners), len(class_sizes), dtype=torch.bool))
        self._competing: dict[int, Tensor | None] = {}
        self.register_load_state_dict_post_hook(lambda module, _: module._competing.clear())

    # ------------------------------------------------------------------------------------------------ training

    def open(self, level: int, assignment: Tensor, labels: Tensor) -> list[str]:
        """Let a level work, on these clusters.

        assignment: int64 (n,), cluster of every training item, already matched to the level's learners; labels:
        int64 (n,). A level above the one before begins as a copy of it. Returns the names of the parameters that
        were copied over, for averages that follow them.
        """
        before = int(self.get_buffer("level"))
        copied = [name for below in range(before, level) for name in self._inherit(below + 1)]
        self.get_buffer("level").fill_(level)
        self.get_buffer("assignment").copy_(assignment)
        first, clusters = self.first[level], self.config.levels[level]
        present = torch.zeros(clusters, self.get_buffer("present").shape[1], dtype=torch.bool)
        present[assignment.cpu(), labels.cpu()] = True
        self.get_buffer("present")[first : first + clusters] = present.to(assignment.device)
        self._competing.clear()
        return copied

    def learner_of(self, cluster: int, level: int) -> int:
        """Number of the learner (`EpochPlan.parts`) of a cluster."""
        return self.first[level] + cluster

    def view(self, embeddings: Tensor, part: int) -> Tensor:
        """What learner `part` sees of embeddings float32 (b, d): (b, its width)."""
        level, cluster = self._place(part)
        if level == 0 or self.config.subspace == "whole":
            return embeddings
        if self.config.subspace == "learned":
            return embeddings * functional.relu(self.masks[part - 1])
        width = self._width(level)
        return embeddings[:, cluster * width : (cluster + 1) * width]

    def overlap(self, level: int) -> Tensor:
        """Mean cosine between the masks of a level, scalar in [0, 1]; 0 says that they share no dimension."""
        first, clusters = self.first[level], self.config.levels[level]
        rows = functional.normalize(functional.relu(self.masks[first - 1 : first - 1 + clusters]), dim=1)
        return ((rows @ rows.T).sum() - rows.square().sum()) / (clusters * (clusters - 1))

    def _part_loss(self, embeddings: Tensor, labels: Tensor, part: int) -> Tensor:
        learner = self.learners[part]
        assert isinstance(learner, HeadModule)
        loss = learner._loss(self.view(embeddings, part), labels, self._among(part))
        if self.config.subspace == "learned" and part:
            loss = loss + self.config.orthogonality * self.overlap(self._place(part)[0])
        return loss

    def _logits(self, embeddings: Tensor) -> Tensor | None:
        """Those of the whole embedding's learner, if it had the last word; else no learner knows all classes."""
        if not self.config.joint and len(self.config.levels) > 1:
            return None
        whole = self.learners[0]
        assert isinstance(whole, HeadModule)
        return whole._logits(embeddings)

    # ------------------------------------------------------------------------------------------------- details

    def _width(self, level: int) -> int:
        return self.dim // self.config.levels[level] if self.config.cuts else self.dim

    def _place(self, part: int) -> tuple[int, int]:
        """Level and cluster of a learner."""
        level = max(level for level, first in enumerate(self.first) if first <= part)
        return level, part - self.first[level]

    def _among(self, part: int) -> Tensor | None:
        """Classes that compete in a learner, kept from batch to batch: finding them makes a GPU wait."""
        if part not in self._competing:
            present = self.get_buffer("present")[part]
            self._competing[part] = None if bool(present.all()) else present.nonzero().squeeze(1)
        return self._competing[part]

    @torch.no_grad()
    def _inherit(self, level: int) -> list[str]:
        """Copy every learner of a level from the one it comes from; names of what was written."""
        clusters, above = self.config.levels[level], self.config.levels[level - 1]
        copied = []
        for cluster in range(clusters):
            part, parent = self.learner_of(cluster, level), self.learner_of(cluster * above // clusters, level - 1)
            start = cluster * self._width(level) % self._width(level - 1)
            theirs = dict(self.learners[parent].named_parameters())
            for name, own in self.learners[part].named_parameters():
                own.copy_(_cut(theirs[name], own.shape, start))
                copied.append(f"learners.{part}.{name}")
            if self.config.subspace == "learned" and parent:
                self.masks[part - 1] = self.masks[parent - 1]
        return copied + (["masks"] if self.config.subspace == "learned" else [])


def _cut(parent: Tensor, shape: Any, start: int) -> Tensor:
    """The part of a parent's parameter that belongs to the child's dimensions: from `start` on, where one differs."""
    for axis, (whole, wanted) in enumerate(zip(parent.shape, shape, strict=True)):
        if whole != wanted:
            return parent.narrow(axis, start, wanted)
    return parent
