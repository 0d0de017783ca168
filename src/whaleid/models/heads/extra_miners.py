"""Miners that pytorch-metric-learning (2.9) lacks or has with errors, found by class name like the library's."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import distances, miners
from pytorch_metric_learning.utils import common_functions, loss_and_miner_utils
from torch import Tensor


class DistanceWeightedSampler(miners.BaseMiner):
    """One negative for every pair of anchor and positive, at distances spread evenly (Wu et al., ICCV 2017).

    On a sphere of n dimensions most negatives lie about sqrt(2) away. A negative at distance d is drawn with weight
    1 / q(d), log q = (n - 2) log d + ((n - 3) / 2) log(1 - d ** 2 / 4), d no less than `cutoff`. Negatives beyond
    `nonzero_loss_cutoff` are drawn (all alike) only by anchors that have none nearer.

    The library's DistanceWeightedMiner normalises all rows of the batch by the heaviest pair, even one that it then
    leaves out: with hundreds of dimensions, one close or one opposite pair rounds the weights of all other anchors to
    zero, and they get no triplet. It drops anchors whose negatives all lie beyond the cutoff, and draws positives at
    random, some twice and some never.

    Draws come from torch's own generator, as in the library's miners.
    """

    def __init__(self, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4, **kwargs: Any):
        super().__init__(**kwargs)
        common_functions.assert_distance_type(self, distances.LpDistance, p=2, power=1, normalize_embeddings=True)
        if not 0 < cutoff < 2:
            raise ValueError(f"cutoff must be between 0 and 2, not {cutoff}")
        self.cutoff = float(cutoff)
        self.nonzero_loss_cutoff = float(nonzero_loss_cutoff)

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors, positives, negatives, int64 (t,) each: every positive pair once, ordered by anchor.

        An anchor without a negative has no triplet.
        """
        matches, differs = (m.bool() for m in loss_and_miner_utils.get_matches_and_diffs(labels, ref_labels))
        usable = matches & differs.any(dim=1, keepdim=True)
        anchors, positives = torch.where(usable)
        if len(anchors) == 0:
            return anchors, positives, positives
        weights = self.weights(self.distance(embeddings.float(), ref_emb.float()), differs, embeddings.shape[1])
        # as many draws a row as any row has positives: less memory than a row of weights for each pair
        draws = torch.multinomial(weights, int(usable.sum(dim=1).max()), replacement=True)
        place = usable.long().cumsum(dim=1)[anchors, positives] - 1
        return anchors, positives, draws[anchors, place]

    def weights(self, apart: Tensor, allowed: Tensor, dim: int) -> Tensor:
        """Probability of each negative, float (b, n); rows sum to 1 (uniform in a row without a negative, which is not
        used).

        apart: distances (b, n). allowed: bool (b, n), pairs of two identities. dim: length of the embeddings.
        """
        near = allowed & (apart < self.nonzero_loss_cutoff)
        distance = apart.clamp_min(self.cutoff)
        inside = (1.0 - 0.25 * distance.square()).clamp_min(1e-6)  # opposite embeddings
        log_weight = (2.0 - dim) * distance.log() - 0.5 * (dim - 3) * inside.log()
        log_weight = log_weight.masked_fill(~near.any(dim=1, keepdim=True), 0.0)
        candidates = torch.where(near.any(dim=1, keepdim=True), near, allowed)
        candidates = candidates | ~allowed.any(dim=1, keepdim=True)
        return log_weight.masked_fill(~candidates, float("-inf")).softmax(dim=1)
