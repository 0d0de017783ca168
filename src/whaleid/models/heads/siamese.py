"""A learned similarity of two embeddings, and its training loss.

Koch, Zemel and Salakhutdinov ("Siamese neural networks for one-shot image recognition", 2015) compare two embeddings
dimension by dimension, |a - b|, and learn a weight for each dimension. The solutions of the humpback whale playground
competition (Martin Piotte's, 2018, and those after it) apply a small network, the same for all dimensions, to four
symmetric features of each dimension:

    f(a_k, b_k) = u . x_k + v . relu(W x_k + c),    x_k = (|a_k - b_k|, (a_k - b_k)^2, a_k b_k, a_k + b_k)
    similarity(a, b) = mean over k of w_k f(a_k, b_k) - offset

Unlike a cosine, it can weight dimensions, make a difference count more where both values are large, and saturate. The
features are symmetric, so similarity(a, b) = similarity(b, a), bit for bit. Embeddings are scaled to length sqrt(d),
values of about 1. The shortcut u starts as (0, 0, 1, 0), v as 0 and w as 1: at the start the similarity is
cosine - 1/2, from which the embeddings learn until the other parameters have moved.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from whaleid.config import SiameseHead
from whaleid.models.heads.base import HeadModule, full_precision

_FEATURES = 4
_UNDECIDED = 0.5
"""Cosine at which the similarity is 0, at the start."""
_SMALLEST_LENGTH = 1e-6  # shorter embeddings are not normalised: their gradient would be unbounded
_CELLS = 1 << 23
"""Activations of the hidden layer in memory at a time: 32 MB, and a few times that in the backward pass."""


class SiamesePairs(HeadModule):
    """Logit that two embeddings are of one identity.

    Attributes
    ----------
    inner, outer : linear layers
        W, c and v: the network that all dimensions share.
    shortcut : linear layer
        u.
    weight : float tensor, shape (d,)
        w.
    offset : float scalar tensor
    """

    def __init__(self, settings: SiameseHead, dim: int, class_sizes: Tensor):
        super().__init__()
        self.settings = settings
        self.inner = nn.Linear(_FEATURES, settings.hidden)
        self.outer = nn.Linear(settings.hidden, 1, bias=False)
        self.shortcut = nn.Linear(_FEATURES, 1, bias=False)
        self.weight = nn.Parameter(torch.ones(dim))
        self.offset = nn.Parameter(torch.tensor(_UNDECIDED))
        nn.init.zeros_(self.outer.weight)
        with torch.no_grad():
            self.shortcut.weight.copy_(torch.tensor([[0.0, 0.0, 1.0, 0.0]]))

    @property
    def dim(self) -> int:
        """Length of the embeddings that it compares."""
        return len(self.weight)

    # -------------------------------------------------------------------------------------------- similarities

    @torch.no_grad()
    def score_pairs(self, queries: Tensor, gallery: Tensor, rows: Tensor) -> Tensor:
        """Logit of each query with the gallery embeddings chosen for it.

        Parameters
        ----------
        queries : float tensor, shape (q, d)
        gallery : float tensor, shape (g, d)
            Neither need be normalised.
        rows : int64 tensor, shape (q, m)
            Rows of the gallery, for each query.

        Returns
        -------
        float32 tensor, shape (q, m)
        """
        with full_precision(queries):
            first = torch.arange(len(queries), device=rows.device).repeat_interleave(rows.shape[1])
            return self._score(self._rows(queries), self._rows(gallery), first, rows.flatten()).view(rows.shape)

    def _rows(self, embeddings: Tensor) -> Tensor:
        """Embeddings scaled to length sqrt(d)."""
        rows = functional.normalize(embeddings.float(), dim=1, eps=_SMALLEST_LENGTH)
        return rows * math.sqrt(self.dim)

    def _score(self, left: Tensor, right: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Logits float32 (p,) of the pairs left[first], right[second]. first, second: int64 (p,).

        Computed in chunks whose activations are recomputed in the backward pass: memory does not grow with the pairs.
        """
        step = max(1, _CELLS // (self.dim * self.settings.hidden))
        chunks = zip(first.split(step), second.split(step), strict=True)
        logits = [
            checkpoint(self._logit, left[one], right[other], use_reentrant=False, preserve_rng_state=False)
            for one, other in chunks
        ]
        return torch.cat(logits)

    def _logit(self, a: Tensor, b: Tensor) -> Tensor:
        """Logits (p,) of rows a and b, float32 (p, d)."""
        apart = a - b
        features = torch.stack([apart.abs(), apart.square(), a * b, a + b], dim=-1)
        each = self.shortcut(features) + self.outer(functional.relu(self.inner(features)))
        return self.settings.scale * ((each.squeeze(-1) * self.weight).mean(dim=1) - self.offset)

    # ------------------------------------------------------------------------------------------------ training

    def _loss(self, embeddings: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Mean of the mean losses of the positive pairs and of the hardest negative pairs; 0 for a kind without pairs.

        Positive: every pair of one identity. Negative: for each image, the `negatives` images of other identities with
        the largest logits. The loss of a pair is the binary cross entropy of its logit.
        """
        rows = self._rows(embeddings)
        first, second = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)
        together = labels[first] == labels[second]
        same = self._score(rows, rows, first[together], second[together])
        others = self._score(rows, rows, *self._hardest(rows, labels, first, second))
        return (_mean(functional.softplus(-same)) + _mean(functional.softplus(others))) / 2

    @torch.no_grad()
    def _hardest(self, rows: Tensor, labels: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Places (p,), (p,) of each image and its most similar ones of other identities; ties in their order."""
        scores = rows.new_full((len(labels), len(labels)), -math.inf)
        apart = labels[first] != labels[second]
        first, second = first[apart], second[apart]
        scores[first, second] = scores[second, first] = self._score(rows, rows, first, second)
        highest, places = scores.sort(dim=1, descending=True, stable=True)
        chosen = highest[:, : self.settings.negatives] > -math.inf
        anchors, ranks = chosen.nonzero(as_tuple=True)
        return anchors, places[anchors, ranks]


def _mean(losses: Tensor) -> Tensor:
    """Mean of (p,); 0, with a gradient of 0, where there are none."""
    return losses.sum() / max(1, len(losses))
