"""Losses of pytorch-metric-learning (2.9) that need mending, under the library's names."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import distances, losses
from torch import Tensor, nn


class SmoothAP(losses.SmoothAPLoss):
    """SmoothAP (Brown et al., 2020) on any batch.

    The library cuts the batch into blocks by a number of classes that is right only where the batch holds as
    many classes as images of each, and reads the images as ordered by class. Here the labels alone decide,
    and classes may differ in size. With as many classes as images of each, in order, both give the same.
    """

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any,
        ref_emb: Any = None,
        ref_labels: Any = None,
    ) -> dict[str, Any]:
        """Losses 1 - AP of every image as the query (b,), itself among its positives as in the authors' code.

        Takes b ** 3 numbers of memory.
        """
        if indices_tuple is not None:
            raise ValueError("it ranks whole batches and takes no miner")
        similarity = self.distance(embeddings)
        same = (labels[:, None] == labels[None, :]).to(similarity.dtype)
        # ahead[q, i, j]: how surely j stands before i in the ranking of query q
        ahead = torch.sigmoid((similarity[:, None, :] - similarity[:, :, None]) / self.temperature)
        ahead = ahead * (1.0 - torch.eye(len(labels), device=ahead.device, dtype=ahead.dtype))
        rank = 1.0 + ahead.sum(dim=2)
        rank_among_same = 1.0 + (ahead * same[:, None, :]).sum(dim=2)
        precision = (rank_among_same / rank * same).sum(dim=1) / same.sum(dim=1)
        indices = torch.arange(len(labels), device=labels.device)
        return {"ap_loss": {"losses": 1.0 - precision, "indices": indices, "reduction_type": "element"}}


class Histogram(losses.HistogramLoss):
    """Histogram loss (Ustinova and Lempitsky, 2016) that bears two equal embeddings.

    At a cosine of exactly 1 the library writes one bin past the end of its histogram.
    """

    def get_default_distance(self) -> distances.CosineSimilarity:
        return _InnerCosine()


class _InnerCosine(distances.CosineSimilarity):
    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return super().compute_mat(query_emb, ref_emb).clamp(-1.0 + 1e-6, 1.0 - 1e-6)


class Memory(losses.CrossBatchMemory):
    """CrossBatchMemory (Wang et al., 2020) whose place in its queue is saved with the checkpoint too.

    The library keeps it as plain attributes, so that a resumed run would start its memory afresh.
    """

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


MENDED: dict[type[nn.Module], type[nn.Module]] = {
    losses.SmoothAPLoss: SmoothAP,
    losses.HistogramLoss: Histogram,
    losses.CrossBatchMemory: Memory,
}
