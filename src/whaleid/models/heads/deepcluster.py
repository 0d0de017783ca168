"""DeepCluster's classifier (Caron et al., 2018): which cluster of the network's own features is the image in?

`training/deepcluster.py` makes the clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from whaleid.config import DeepClusterHead
from whaleid.models.heads.base import HeadModule


class ClusterClassifier(HeadModule):
    """Linear classifier of the pseudo-labels; of its `clusters` outputs, the first `found` compete."""

    def __init__(self, settings: DeepClusterHead, dim: int, class_sizes: Tensor):
        super().__init__()
        self.linear = nn.Linear(dim, settings.clusters)
        self.register_buffer("found", torch.tensor(settings.clusters))

    def start_anew(self, found: int) -> None:
        """Forget the last clustering; the new one has `found` clusters. Draws from the device's generator."""
        self.linear.reset_parameters()
        self.get_buffer("found").fill_(found)

    def _logits(self, embeddings: Tensor) -> Tensor:
        logits = self.linear(embeddings)
        unused = torch.arange(logits.shape[1], device=logits.device) >= self.get_buffer("found")
        return logits.masked_fill(unused, -torch.inf)
