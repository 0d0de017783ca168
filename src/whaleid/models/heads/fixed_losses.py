"""Corrected versions of losses of pytorch-metric-learning (2.9), used under the library's names, and losses refused."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import distances, losses
from pytorch_metric_learning.utils import common_functions, loss_and_miner_utils
from torch import Tensor, nn


class SmoothAP(losses.SmoothAPLoss):
    """SmoothAP (Brown et al., 2020) on any batch.

    The library's version is right only for a batch with as many classes as images of each, ordered by class; there,
    both give the same. Here classes may differ in size. An image alone in its class is not a query.
    """

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any,
        ref_emb: Any = None,
        ref_labels: Any = None,
    ) -> dict[str, Any]:
        """1 - AP of every query that has a positive; as in the authors' code, a query is a positive of itself.

        Needs memory for b ** 3 numbers.
        """
        if indices_tuple is not None:
            raise ValueError("it ranks whole batches and takes no miner")
        similarity = self.distance(embeddings)
        same = (labels[:, None] == labels[None, :]).to(similarity.dtype)
        queries = torch.where(same.sum(dim=1) > 1)[0]
        if len(queries) == 0:
            return self.zero_losses()
        # ahead[q, i, j]: soft indicator that j ranks before i for query q
        ahead = torch.sigmoid((similarity[:, None, :] - similarity[:, :, None]) / self.temperature)
        ahead = ahead * (1.0 - torch.eye(len(labels), device=ahead.device, dtype=ahead.dtype))
        rank = 1.0 + ahead.sum(dim=2)
        rank_among_same = 1.0 + (ahead * same[:, None, :]).sum(dim=2)
        precision = (rank_among_same / rank * same).sum(dim=1) / same.sum(dim=1)
        return {"ap_loss": {"losses": 1.0 - precision[queries], "indices": queries, "reduction_type": "element"}}


class Histogram(losses.HistogramLoss):
    """Histogram loss (Ustinova and Lempitsky, 2016) for equal embeddings too, over every pair.

    At a cosine of exactly 1 the library writes one bin past the end of its histogram. It makes its pairs from
    triplets, and so misses negative pairs of images that are each alone in their class.
    """

    def get_default_distance(self) -> distances.CosineSimilarity:
        return _InnerCosine()

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """Probability that a negative pair is more similar than a positive one; pairs are unordered."""
        common_functions.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        anchor, positive, other, negative = loss_and_miner_utils.convert_to_pairs(indices_tuple, labels)
        if len(anchor) == 0 or len(other) == 0:
            return self.zero_losses()
        cosine = self.distance(embeddings)
        below = self.compute_density(cosine[_once(anchor, positive, len(labels))]).cumsum(dim=0)
        density = self.compute_density(cosine[_once(other, negative, len(labels))])
        return {"loss": {"losses": (density * below).sum(), "indices": None, "reduction_type": "already_reduced"}}


def _once(left: Tensor, right: Tensor, count: int) -> Tensor:
    """Bool (count, count) with each unordered pair once."""
    chosen = torch.zeros(count, count, dtype=torch.bool, device=left.device)
    chosen[left, right] = True
    return (chosen | chosen.t()).triu(diagonal=1)


class _InnerCosine(distances.CosineSimilarity):
    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return super().compute_mat(query_emb, ref_emb).clamp(-1.0 + 1e-6, 1.0 - 1e-6)


class Margin(losses.MarginLoss):
    """MarginLoss (Wu et al., 2017) whose boundaries move to the device with it, learned or not.

    The library keeps boundaries that are not learned as a plain tensor on the CPU, and on a GPU fails to index it.
    """

    def initialize_beta(self, beta: float, num_classes: int | None) -> None:
        super().initialize_beta(beta, num_classes)
        if self.learn_beta:
            return
        fixed = self.beta
        del self.beta
        self.register_buffer("beta", fixed, persistent=False)  # a setting, not a state


class Memory(losses.CrossBatchMemory):
    """CrossBatchMemory (Wang et al., 2020) that saves the position in its queue with the checkpoint.

    The library keeps the position as plain attributes, so that a resumed run would start with an empty memory. It also
    uses a miner's indices into the batch as indices into the memory, and accepts only losses of certain names, to
    which ours are added here.
    """

    @staticmethod
    def supported_losses() -> list[str]:
        ours = ["LogRatioLoss", "QuantizedAPLoss", Margin.__name__]
        return [*losses.CrossBatchMemory.supported_losses(), *ours]

    def create_indices_tuple(
        self,
        embeddings: Tensor,
        labels: Tensor,
        E_mem: Tensor,
        L_mem: Tensor,
        input_indices_tuple: tuple[Tensor, ...] | None,
        do_remove_self_comparisons: bool,
    ) -> Any:
        """The library's pairs; a miner's references are mapped from the batch to their places in the memory."""
        if input_indices_tuple is not None:
            here = self.curr_batch_idx
            anchors = (0,) if len(input_indices_tuple) == 3 else (0, 2)  # triplets a, p, n or pairs a, p, a, n
            input_indices_tuple = tuple(
                index if position in anchors else here[index] for position, index in enumerate(input_indices_tuple)
            )
        return super().create_indices_tuple(
            embeddings, labels, E_mem, L_mem, input_indices_tuple, do_remove_self_comparisons
        )

    @property
    def queue_idx(self) -> int:
        return int(self.get_buffer("place")[0])

    @queue_idx.setter
    def queue_idx(self, value: int) -> None:
        self._note(0, value)

    @property
    def has_been_filled(self) -> bool:
        return bool(self.get_buffer("place")[1])

    @has_been_filled.setter
    def has_been_filled(self, value: bool) -> None:
        self._note(1, value)

    def _note(self, position: int, value: int) -> None:
        if "place" not in self._buffers:
            self.register_buffer("place", torch.zeros(2, dtype=torch.int64))
        self.get_buffer("place")[position] = int(value)


FIXED: dict[type[nn.Module], type[nn.Module]] = {
    losses.SmoothAPLoss: SmoothAP,
    losses.HistogramLoss: Histogram,
    losses.MarginLoss: Margin,
    losses.CrossBatchMemory: Memory,
}

REFUSED: dict[type[nn.Module], str] = {
    losses.DynamicSoftMarginLoss: (
        "pytorch-metric-learning's own version fails at its second step (its histogram keeps the gradients of the "
        "first); choose another, for example MarginLoss with learn_beta: true"
    ),
}
"""Losses that cannot be trained, with the message for each."""
