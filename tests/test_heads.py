"""Metric-learning heads against loops that follow the papers one image at a time, and sums of heads."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from head_batch import DIM, SIZES, batch
from pytorch_metric_learning import losses as pml
from torch import Tensor
from torch.nn import functional

from whaleid.config import MarginHead, MetricHead, SoftmaxHead, SumHead, WeightedHead
from whaleid.models.heads.base import HeadModule
from whaleid.models.heads.registry import build_head
from whaleid.utils.errors import WhaleidError

# -------------------------------------------------------------------------------------- metric-learning heads


def metric(loss: str, miner: str | None = None, /, **arguments: object) -> MetricHead:
    return MetricHead(name="metric", loss=loss, miner=miner, arguments=arguments)


def distances(embeddings: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and Euclidean distances of the unit rows, float64 (n, n)."""
    rows = functional.normalize(embeddings.double(), dim=1).numpy()
    cosines = rows @ rows.T
    return cosines, np.sqrt(np.maximum(((rows[:, None] - rows[None]) ** 2).sum(axis=2), 0))


def mean_of_positive(values: list[float]) -> float:
    """The library's default: the mean over those that are not zero."""
    above = [value for value in values if value > 0]
    return float(np.mean(above)) if above else 0.0


def test_contrastive_equals_a_loop() -> None:
    embeddings, labels = batch()
    _, apart = distances(embeddings)
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    together = mean_of_positive([apart[i, j] for i, j in pairs if labels[i] == labels[j]])
    separate = mean_of_positive([max(0, 1.1 - apart[i, j]) for i, j in pairs if labels[i] != labels[j]])
    head = build_head(metric("ContrastiveLoss", neg_margin=1.1), DIM, SIZES)
    assert head(embeddings, labels).item() == pytest.approx(together + separate, rel=1e-4)


def naive_triplets(embeddings: Tensor, labels: Tensor, margin: float, hardest: bool) -> float:
    _, apart = distances(embeddings)
    values = []
    for a in range(len(labels)):
        same = [i for i in range(len(labels)) if labels[i] == labels[a] and i != a]
        other = [i for i in range(len(labels)) if labels[i] != labels[a]]
        if hardest:
            same = [max(same, key=lambda i: apart[a, i])]
            other = [min(other, key=lambda i: apart[a, i])]
        values += [max(0.0, apart[a, p] - apart[a, n] + margin) for p in same for n in other]
    return mean_of_positive(values)


@pytest.mark.parametrize("miner", [None, "BatchHardMiner"])
def test_triplets_equal_a_loop(miner: str | None) -> None:
    embeddings, labels = batch(15)
    head = build_head(metric("TripletMarginLoss", miner, margin=0.2), DIM, SIZES)
    expected = naive_triplets(embeddings, labels, 0.2, hardest=miner is not None)
    assert head(embeddings, labels).item() == pytest.approx(expected, rel=1e-4)


def test_multi_similarity_equals_a_loop() -> None:
    """Wang et al. (2019), equation 16."""
    embeddings, labels = batch()
    cosines, _ = distances(embeddings)
    alpha, beta, base = 2.0, 10.0, 0.5
    values = []
    for a in range(12):
        near = sum(math.exp(-alpha * (cosines[a, i] - base)) for i in range(12) if labels[i] == labels[a] and i != a)
        far = sum(math.exp(beta * (cosines[a, i] - base)) for i in range(12) if labels[i] != labels[a])
        values.append(math.log1p(near) / alpha + math.log1p(far) / beta)
    head = build_head(metric("MultiSimilarityLoss", alpha=alpha, beta=beta, base=base), DIM, SIZES)
    assert head(embeddings, labels).item() == pytest.approx(np.mean(values), rel=1e-4)


def test_supervised_contrastive_equals_a_loop() -> None:
    """Khosla et al. (2020), L_out."""
    embeddings, labels = batch(15)
    cosines, _ = distances(embeddings)
    values = []
    for a in range(15):
        others = [i for i in range(15) if i != a]
        total = math.log(sum(math.exp(cosines[a, i] / 0.2) for i in others))
        same = [cosines[a, i] / 0.2 - total for i in others if labels[i] == labels[a]]
        values.append(-float(np.mean(same)))
    head = build_head(metric("SupConLoss", temperature=0.2), DIM, SIZES)
    assert head(embeddings, labels).item() == pytest.approx(np.mean(values), rel=1e-4)


def test_margin_loss_equals_a_loop() -> None:
    """Wu et al. (2017): pairs on the wrong side of beta +- margin; mean over those that cost something."""
    embeddings, labels = batch()
    _, apart = distances(embeddings)
    total, counted = 0.0, 0
    for a in range(12):
        for p in [i for i in range(12) if labels[i] == labels[a] and i != a]:
            for n in [i for i in range(12) if labels[i] != labels[a]]:
                costs = [max(0, 0.2 + apart[a, p] - 1.0), max(0, 0.2 + 1.0 - apart[a, n])]
                total += sum(costs)
                counted += sum(cost > 0 for cost in costs)
    head = build_head(metric("MarginLoss", margin=0.2, beta=1.0), DIM, SIZES)
    assert head(embeddings, labels).item() == pytest.approx(total / counted, rel=1e-4)


def test_lifted_structure_equals_a_loop() -> None:
    """Oh Song et al. (2016), equation 4, over ordered pairs."""
    embeddings, labels = batch()
    _, apart = distances(embeddings)
    values = []
    for i, j in [(i, j) for i in range(12) for j in range(12) if i != j and labels[i] == labels[j]]:
        far = [math.exp(1 - apart[a, n]) for a in (i, j) for n in range(12) if labels[n] != labels[a]]
        values.append(max(0, math.log(sum(far)) + apart[i, j]) ** 2 / 2)
    head = build_head(metric("LiftedStructureLoss"), DIM, SIZES)
    assert head(embeddings, labels).item() == pytest.approx(np.mean(values), rel=1e-4)


def test_fast_ap_equals_a_loop() -> None:
    """Cakir et al. (2019): average precision from histograms of squared distances in 0..4."""
    embeddings, labels = batch(15)
    _, apart = distances(embeddings)
    edges = np.linspace(0, 4, 11)
    values = []
    for a in range(15):
        hits, total, precision = 0.0, 0.0, 0.0
        same = [i for i in range(15) if labels[i] == labels[a] and i != a]
        for edge in edges:
            weight = [max(0, 1 - abs(apart[a, i] ** 2 - edge) / 0.4) for i in range(15)]
            here = sum(weight[i] for i in same)
            hits += here
            total += sum(weight[i] for i in range(15) if i != a)
            precision += here * hits / total if total > 0 else 0
        values.append(1 - precision / len(same))
    head = build_head(metric("FastAPLoss", num_bins=10), DIM, SIZES)
    assert head(embeddings, labels).item() == pytest.approx(np.mean(values), rel=1e-4)


def test_histogram_loss_equals_a_loop() -> None:
    """Ustinova and Lempitsky (2016): how likely a negative pair is more alike than a positive one."""
    embeddings, labels = batch(15)
    cosines, _ = distances(embeddings)
    centers = np.linspace(-1, 1, 21)

    def density(values: list[float]) -> np.ndarray:
        return np.mean([np.maximum(0, 1 - np.abs(value - centers) / 0.1) for value in values], axis=0)

    pairs = [(i, j) for i in range(15) for j in range(i)]
    positive = density([cosines[i, j] for i, j in pairs if labels[i] == labels[j]])
    negative = density([cosines[i, j] for i, j in pairs if labels[i] != labels[j]])
    head = build_head(metric("HistogramLoss", n_bins=20), DIM, SIZES)
    assert head(embeddings, labels).item() == pytest.approx(float(negative @ np.cumsum(positive)), rel=1e-4)


def naive_smooth_ap(embeddings: Tensor, labels: Tensor, temperature: float) -> float:
    cosines, _ = distances(embeddings)
    n = len(labels)

    def rank(query: int, item: int, among: list[int]) -> float:
        others = [j for j in among if j != item]
        return 1 + sum(1 / (1 + math.exp(-(cosines[query, j] - cosines[query, item]) / temperature)) for j in others)

    losses = []
    for a in range(n):
        same = [i for i in range(n) if labels[i] == labels[a]]
        losses.append(1 - float(np.mean([rank(a, i, same) / rank(a, i, list(range(n))) for i in same])))
    return float(np.mean(losses))


@pytest.mark.parametrize("count", [12, 13, 15])
def test_smooth_ap_equals_a_loop_for_any_batch(count: int) -> None:
    embeddings, labels = batch(count)
    head = build_head(metric("SmoothAPLoss", temperature=0.1), DIM, SIZES)
    assert head(embeddings, labels).item() == pytest.approx(naive_smooth_ap(embeddings, labels, 0.1), rel=1e-4)


def test_smooth_ap_equals_the_library_where_that_is_right() -> None:
    embeddings, _ = batch(9)
    labels = torch.arange(9) // 3  # three classes of three: the one form of batch that the library reads rightly
    head = build_head(metric("SmoothAPLoss", temperature=0.1), DIM, SIZES)
    torch.testing.assert_close(head(embeddings, labels), pml.SmoothAPLoss(temperature=0.1)(embeddings, labels))


LOSSES = [
    metric("ContrastiveLoss"),
    metric("TripletMarginLoss", "TripletMarginMiner"),
    metric("TripletMarginLoss", "DistanceWeightedMiner"),
    metric("TripletMarginLoss", "BatchEasyHardMiner"),
    metric("MarginLoss", "DistanceWeightedMiner", learn_beta=True),
    metric("LiftedStructureLoss"),
    metric("GeneralizedLiftedStructureLoss"),
    metric("MultiSimilarityLoss", "MultiSimilarityMiner"),
    metric("SupConLoss"),
    metric("NTXentLoss"),
    metric("FastAPLoss"),
    metric("SmoothAPLoss"),
    metric("HistogramLoss", n_bins=50),
    metric("CircleLoss"),
    metric("NPairsLoss"),
    metric("AngularLoss"),
    metric("ProxyAnchorLoss"),
    metric("ProxyNCALoss"),
    metric("NormalizedSoftmaxLoss"),
    metric("SoftTripleLoss"),
    metric("RankedListLoss", margin=0.4, Tn=10),
    metric("ContrastiveLoss", distance="CosineSimilarity", pos_margin=1, neg_margin=0),
    metric("TripletMarginLoss", reducer={"name": "ThresholdReducer", "low": 0.1}),
    metric("CrossBatchMemory", loss={"name": "ContrastiveLoss", "neg_margin": 0.5}, memory_size=32),
]


@pytest.mark.parametrize("config", LOSSES, ids=lambda config: f"{config.loss}-{config.miner}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_learn_in_any_precision(config: MetricHead, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embeddings, _ = batch(16)
    labels = torch.arange(16) % 4
    embeddings = embeddings.to(dtype).requires_grad_()
    head = build_head(config, DIM, SIZES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(embeddings, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()
    assert embeddings.grad.abs().sum() > 0
    scores = head.logits(embeddings.detach())
    assert scores is None or scores.shape == (16, len(SIZES))


ORDERLESS = [c for c in LOSSES if c.miner is None and c.loss != "NPairsLoss"]  # that one picks the first two


@pytest.mark.parametrize("config", ORDERLESS, ids=lambda config: config.loss)
def test_the_order_of_a_batch_does_not_matter(config: MetricHead) -> None:
    embeddings, labels = batch(16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
    straight = build_head(config, DIM, SIZES)
    shuffled = copy.deepcopy(straight)
    expected = straight(embeddings, labels)
    torch.testing.assert_close(shuffled(embeddings[order], labels[order]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["HistogramLoss", "FastAPLoss", "TripletMarginLoss", "SupConLoss", "SmoothAPLoss"])
def test_losses_are_finite_for_identical_and_opposite_embeddings(loss: str) -> None:
    row = torch.randn(1, DIM, generator=torch.Generator().manual_seed(0))
    embeddings = torch.cat([row, row, -row, -row]).requires_grad_()
    value = build_head(metric(loss), DIM, SIZES)(embeddings, torch.tensor([0, 0, 1, 1]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(embeddings.grad).all()  # type: ignore[arg-type]


def test_learnt_margins_are_parameters_one_a_class() -> None:
    head = build_head(metric("MarginLoss", learn_beta=True, beta=1.1), DIM, SIZES)
    parameters = dict(head.named_parameters())
    assert parameters["loss.beta"].tolist() == pytest.approx([1.1] * len(SIZES))
    assert "loss.beta" in head.state_dict()
    embeddings, labels = batch(15)
    head(embeddings, labels).backward()
    assert parameters["loss.beta"].grad.abs().sum() > 0  # type: ignore[union-attr]


def test_memory_goes_on_where_the_checkpoint_was_taken() -> None:
    config = metric("CrossBatchMemory", loss="ContrastiveLoss", memory_size=20)
    straight, resumed = build_head(config, DIM, SIZES), build_head(config, DIM, SIZES)
    for seed in range(2):
        straight(*batch(12, seed=seed))
    resumed.load_state_dict(straight.state_dict())
    torch.testing.assert_close(resumed(*batch(12, seed=9)), straight(*batch(12, seed=9)))
    fresh = build_head(config, DIM, SIZES)
    assert not torch.equal(fresh(*batch(12, seed=9)), straight(*batch(12, seed=9)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (metric("TripletMarginLos"), r"head\.loss 'TripletMarginLos': .*did you mean TripletMarginLoss"),
        (metric("tripletmarginloss"), r"did you mean TripletMarginLoss"),
        (metric("Nonsense"), r"head\.loss 'Nonsense': .*known: .*ContrastiveLoss"),
        (
            metric("SupConLoss", "BatchHardMinor"),
            r"head\.miner 'BatchHardMinor': .*did you mean BatchHardMiner",
        ),
        (
            metric("SupConLoss", temperatur=0.1),
            r"head\.loss SupConLoss: unknown argument 'temperatur'; did you mean",
        ),
        (metric("SupConLoss", colour="red"), r"unknown argument 'colour'; it takes .*temperature"),
        (
            metric("SupConLoss", distance="LpDistanc"),
            r"head\.loss\.distance 'LpDistanc'.*did you mean LpDistance",
        ),
        (metric("SupConLoss", distance={"p": 2}), r"argument 'distance' needs a name"),
        (metric("RankedListLoss", margin=0.4), r"head\.loss RankedListLoss: .*Tn"),
        (metric("FastAPLoss", num_bins="many"), r"head\.loss FastAPLoss: arguments .*many.* do not work"),
        (metric("SmoothAPLoss", distance="LpDistance"), r"head\.loss SmoothAPLoss: .*do not work"),
        (
            MetricHead(name="metric", loss="SupConLoss", miner="BatchHardMiner", miner_arguments={"margin": 1}),
            r"head\.miner BatchHardMiner: unknown argument 'margin'",
        ),
        (
            MetricHead(name="metric", loss="SupConLoss", miner_arguments={"a": 1}),
            r"miner_arguments is set but",
        ),
    ],
)
def test_wrong_names_and_arguments_are_one_clear_line(config: MetricHead, message: str) -> None:
    with pytest.raises(WhaleidError, match=message) as caught:
        build_head(config, DIM, SIZES)
    assert "\n" not in str(caught.value)


def test_a_batch_that_a_loss_cannot_use_is_one_clear_line() -> None:
    head = build_head(metric("SmoothAPLoss", "BatchHardMiner"), DIM, SIZES)
    with pytest.raises(WhaleidError, match=r"SmoothAPLoss cannot use this batch of 4 images of 2 classes.*no miner"):
        head(torch.randn(4, DIM), torch.tensor([0, 0, 1, 1]))
    head = build_head(metric("VICRegLoss"), DIM, SIZES)
    with pytest.raises(WhaleidError, match="VICRegLoss cannot use this batch"):
        head(torch.randn(4, DIM), torch.tensor([0, 0, 1, 1]))


# ------------------------------------------------------------------------------------------------------- sums


def test_a_sum_is_the_weighted_sum_of_its_parts() -> None:
    parts = [
        (0.5, metric("SupConLoss")),
        (2.0, MarginHead(name="arcface", scale=16)),
        (1.0, SoftmaxHead(name="softmax")),
    ]
    config = SumHead(name="sum", parts=[WeightedHead(weight=weight, head=head) for weight, head in parts])
    head = build_head(config, DIM, SIZES)
    embeddings, labels = batch(15)
    inner = [module for module in head.heads if isinstance(module, HeadModule)]  # type: ignore[union-attr]
    expected = sum(weight * module(embeddings, labels).item() for (weight, _), module in zip(parts, inner, strict=True))
    assert head(embeddings, labels).item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(head.logits(embeddings), inner[1].logits(embeddings))  # the first that has any
    assert len(list(head.parameters())) == 3


def test_a_sum_without_classifiers_has_no_logits() -> None:
    config = SumHead(name="sum", parts=[WeightedHead(head=metric("SupConLoss"))])
    assert build_head(config, DIM, SIZES).logits(torch.randn(2, DIM)) is None
