"""Losses that pytorch-metric-learning (2.9) lacks, with the library's interface and found by class name.

    loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)

Each compares the batch with itself, or with ref_emb where given; a miner's pairs (indices_tuple) restrict what is
compared. They compute in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import distances, losses
from pytorch_metric_learning.utils import common_functions, loss_and_miner_utils
from torch import Tensor


class LogRatioLoss(losses.BaseMetricLossFunction):
    """Distances of embeddings in proportion to distances of labels (Kim et al., CVPR 2019).

    For an anchor a and two others i and j, with squared distances d of embeddings and y of labels:
    (log(d(a, i) / d(a, j)) - log(y(a, i) / y(a, j))) ** 2, its mean over all triplets of the batch.

    Float labels (b,) or (b, m) are continuous: y is their squared Euclidean distance. Integer labels (b,) are
    identities, whose numbers have no distance: y is 1 between two identities and `same` within one. With 0.01, the
    target distance within an identity is a tenth of that between identities.

    Parameters
    ----------
    same : float
        y of two images of one identity, above 0.
    epsilon : float
        Added to d and to continuous y, above the rounding error of a squared distance in float32.
    **kwargs
        Of the library's losses. The default distance is that of unit rows, as the gallery is searched; the paper does
        not normalise: {distance: {name: LpDistance, normalize_embeddings: false, power: 2}}.
    """

    def __init__(self, same: float = 0.01, epsilon: float = 1e-6, **kwargs: Any):
        super().__init__(**kwargs)
        common_functions.assert_distance_type(self, distances.LpDistance)
        if same <= 0 or epsilon <= 0:
            raise ValueError(f"same and epsilon must be above 0, not {same} and {epsilon}")
        self.same = float(same)
        self.epsilon = float(epsilon)

    def get_default_distance(self) -> distances.LpDistance:
        return distances.LpDistance(power=2)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss, a float32 scalar; 0 where the batch has no triplet. The library's own `forward` refuses labels (b, m).

        embeddings: float (b, d). labels: float (b,) or (b, m), or integer (b,). indices_tuple: triplets (a, i, j),
        or pairs in the library's form. ref_emb (n, d), ref_labels: where i and j come from, the batch if None.
        """
        if labels is None or (ref_emb is not None and ref_labels is None):
            raise ValueError("log-ratio loss needs the labels of all embeddings")
        if not labels.is_floating_point() and labels.dim() != 1:
            raise ValueError("integer labels are identities, one an image; give continuous labels as float")
        self.reset_stats()
        rows = embeddings.float()
        mismatch = self._mismatch(rows, labels, ref_emb, ref_labels)
        if indices_tuple is None:
            parts = self._all_triplets(mismatch, itself=ref_emb is None)
        else:
            parts = self._chosen_triplets(mismatch, labels, indices_tuple)
        self.add_embedding_regularization_to_loss_dict(parts, rows)
        return self.reducer(parts, rows, labels)

    def _mismatch(self, rows: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None) -> Tensor:
        """log d - log y, float32 (b, n); the loss of a triplet is the square of a difference of two of a row."""
        others = None if ref_emb is None else ref_emb.to(rows)
        other_labels = labels if ref_labels is None else ref_labels
        apart = self.distance(rows, others)
        return (apart + self.epsilon).log() - self._label_distances(labels, other_labels.to(labels.device)).log()

    def _label_distances(self, labels: Tensor, others: Tensor) -> Tensor:
        """y of each pair, float32 (b, n), above 0."""
        if not labels.is_floating_point():
            return torch.where(labels[:, None] == others[None, :], self.same, 1.0)
        left, right = labels.float().reshape(len(labels), -1), others.float().reshape(len(others), -1)
        exact = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
        return exact.square() + self.epsilon

    def _all_triplets(self, mismatch: Tensor, itself: bool) -> dict[str, Any]:
        """Losses (b,), each anchor's mean over its pairs (i, j).

        The mean squared difference of two of m numbers is twice their variance, which needs b * n numbers instead of
        b * n * n. itself: the others are the batch, so that an anchor is not compared with itself.
        """
        partners = mismatch.shape[1] - int(itself)
        if partners < 2:
            return self.zero_losses()
        keep = torch.ones_like(mismatch)
        if itself:
            keep.fill_diagonal_(0.0)
        mean = (mismatch * keep).sum(dim=1, keepdim=True) / partners
        squares = ((mismatch - mean) * keep).square().sum(dim=1)
        anchors = torch.arange(len(mismatch), device=mismatch.device)
        return _part(2.0 * squares / (partners - 1), anchors, "element")

    def _chosen_triplets(self, mismatch: Tensor, labels: Tensor, indices_tuple: Any) -> dict[str, Any]:
        triplets = loss_and_miner_utils.convert_to_triplets(indices_tuple, labels)
        anchor, one, other = triplets
        if len(anchor) == 0:
            return self.zero_losses()
        return _part((mismatch[anchor, one] - mismatch[anchor, other]).square(), triplets, "triplet")


class QuantizedAPLoss(losses.BaseMetricLossFunction):
    """1 - average precision, from histograms of similarity (Revaud et al., ICCV 2019).

    Each query ranks all others. Each cosine is divided between the two nearest of `bins` centers from 1 down to -1
    (triangular kernel), and precision is computed after each bin. The loss is the mean over the queries that have a
    positive. Needs memory for b * n * bins numbers.
    """

    def __init__(self, bins: int = 20, **kwargs: Any):
        super().__init__(**kwargs)
        common_functions.assert_distance_type(self, distances.CosineSimilarity)
        if bins < 2:
            raise ValueError(f"bins must be 2 or more, not {bins}")
        self.register_buffer("centers", torch.linspace(1.0, -1.0, bins), persistent=False)

    def get_default_distance(self) -> distances.CosineSimilarity:
        return distances.CosineSimilarity()

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """Losses float32 in [0, 1] of the queries that have a positive. embeddings: (b, d). ref_emb: (n, d)."""
        common_functions.labels_or_indices_tuple_required(labels, indices_tuple)
        anchor, positive, other, negative = loss_and_miner_utils.convert_to_pairs(indices_tuple, labels, ref_labels)
        if len(anchor) == 0:
            return self.zero_losses()
        cosine = self.distance(embeddings.float(), ref_emb.float()).clamp(-1.0, 1.0)
        same, different = torch.zeros_like(cosine), torch.zeros_like(cosine)
        same[anchor, positive] = 1.0
        different[other, negative] = 1.0
        shares = self._shares(cosine)
        hits = torch.einsum("qnb,qn->qb", shares, same)
        seen = hits + torch.einsum("qnb,qn->qb", shares, different)
        # 0 / 0 where no image is in the bins so far: the bin adds 0
        precision = hits.cumsum(dim=1) / seen.cumsum(dim=1).clamp_min(1e-12)
        queries = torch.where(same.any(dim=1))[0]
        average = (precision * hits)[queries].sum(dim=1) / same[queries].sum(dim=1)
        return _part(1.0 - average, queries, "element")

    def _shares(self, cosine: Tensor) -> Tensor:
        """Share of each pair in each bin, (b, n, bins); a pair's shares sum to 1."""
        centers = self.get_buffer("centers")
        width = 2.0 / (len(centers) - 1)
        return (1.0 - (cosine[:, :, None] - centers).abs() / width).relu()


def _part(values: Tensor, indices: Any, kind: str) -> dict[str, Any]:
    """The form that the library's reducers take."""
    return {"loss": {"losses": values, "indices": indices, "reduction_type": kind}}
