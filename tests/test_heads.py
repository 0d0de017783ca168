"""Heads against loops that follow the papers one image at a time, and against pytorch-metric-learning."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pytorch_metric_learning import losses as pml
from torch import Tensor
from torch.nn import functional

from whaleid.config import BySize, MarginHead, MetricHead, SoftmaxHead, SumHead, WeightedHead
from whaleid.errors import WhaleidError
from whaleid.model.classifiers import MarginClassifier
from whaleid.model.head import HeadModule
from whaleid.model.heads import build_head
from whaleid.model.losses import LARGEST_MARGIN, arcface_cosine, classification_loss, margins_by_size

DIM = 8
SIZES = [1, 2, 5, 40, 3]


def batch(count: int = 12, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings float32 (count, DIM) of many lengths, and labels that hold every class."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, DIM, generator=generator) * (1 + 5 * torch.rand(count, 1, generator=generator))
    labels = torch.arange(count) % classes
    return embeddings, labels[torch.randperm(count, generator=generator)]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def naive_classification(logits: np.ndarray, label: int, smoothing: float, focal: float) -> float:
    p = softmax(logits)
    wanted = np.full(len(p), smoothing / len(p))
    wanted[label] += 1 - smoothing
    return float(sum(-wanted[j] * (1 - p[j]) ** focal * math.log(p[j]) for j in range(len(p))))


def naive_margin_loss(head: MarginClassifier, embeddings: Tensor, labels: Tensor, margins: list[float]) -> float:
    """The margin heads as the papers write them: angles by arccos, in float64, one image at a time."""
    config, centers = head.config, head.centers.detach().double().numpy()
    losses = []
    for row, label in zip(embeddings.double().numpy(), labels.tolist(), strict=True):
        cosines = np.empty(len(centers))
        for c, subcenters in enumerate(centers):
            cosines[c] = max(float(row @ w) / np.linalg.norm(row) / np.linalg.norm(w) for w in subcenters)
        margin = margins[label]
        if config.name == "cosface":
            cosines[label] -= margin
        else:
            theta = math.acos(cosines[label])
            beyond = theta + margin > math.pi
            cosines[label] = math.cos(theta) - margin * math.sin(margin) if beyond else math.cos(theta + margin)
        losses.append(naive_classification(config.scale * cosines, label, config.smoothing, config.focal))
    return float(np.mean(losses))


# ---------------------------------------------------------------------------------------- softmax and its kin


@given(smoothing=st.floats(0, 1), focal=st.floats(0, 5), scale=st.floats(0.1, 30), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_classification_loss_equals_a_loop(smoothing: float, focal: float, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(6, 4, generator=generator) * scale).double()
    labels = torch.randint(0, 4, (6,), generator=generator)
    expected = np.mean(
        [naive_classification(row.numpy(), int(y), smoothing, focal) for row, y in zip(logits, labels, strict=True)]
    )
    assert classification_loss(logits, labels, smoothing, focal).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_softmax_head_is_linear_with_cross_entropy() -> None:
    embeddings, labels = batch()
    head = build_head(SoftmaxHead(name="softmax"), DIM, SIZES)
    weight, bias = (value.detach().double().numpy() for value in head.parameters())
    logits = embeddings.double().numpy() @ weight.T + bias
    expected = np.mean([naive_classification(row, int(y), 0, 0) for row, y in zip(logits, labels, strict=True)])
    assert head(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)
    found = head.logits(embeddings)
    assert found is not None
    np.testing.assert_allclose(found.detach().numpy(), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("focal", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_certain_logits_keep_finite_gradients(focal: float, smoothing: float) -> None:
    logits = torch.tensor([[500.0, -500.0, 0.0], [-500.0, 500.0, 0.0]], requires_grad=True)
    classification_loss(logits, torch.tensor([0, 0]), smoothing, focal).backward()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------- margin heads


@pytest.mark.parametrize("name", ["arcface", "cosface"])
@pytest.mark.parametrize("subcenters", [1, 3])
@pytest.mark.parametrize(("smoothing", "focal"), [(0.0, 0.0), (0.1, 0.0), (0.1, 2.0)])
@pytest.mark.parametrize("margin", [0.0, 0.3, 1.5])
def test_margin_heads_equal_a_loop(name: str, subcenters: int, smoothing: float, focal: float, margin: float) -> None:
    config = MarginHead(
        name=name,  # type: ignore[arg-type]
        scale=16,
        margin=margin,
        subcenters=subcenters,
        smoothing=smoothing,
        focal=focal,
    )
    head = build_head(config, DIM, SIZES)
    assert isinstance(head, MarginClassifier)
    embeddings, labels = batch(40)  # margin 1.5: about half of the angles lie beyond pi - margin
    expected = naive_margin_loss(head, embeddings, labels, [margin] * len(SIZES))
    assert head(embeddings, labels).item() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("name", ["arcface", "cosface"])
def test_margin_by_class_size_equals_a_loop(name: str) -> None:
    rule = BySize(factor=0.4, power=-0.5, floor=0.1)
    config = MarginHead(name=name, scale=16, by_size=rule)  # type: ignore[arg-type]
    head = build_head(config, DIM, SIZES)
    assert isinstance(head, MarginClassifier)
    margins = [0.4 * n**-0.5 + 0.1 for n in SIZES]
    assert head.get_buffer("margins").tolist() == pytest.approx(margins)
    embeddings, labels = batch(30)
    expected = naive_margin_loss(head, embeddings, labels, margins)
    assert head(embeddings, labels).item() == pytest.approx(expected, rel=2e-5)


def test_rare_classes_get_the_larger_margin_and_none_is_infinite() -> None:
    margins = margins_by_size(torch.tensor([0, 1, 2, 10, 1000]), BySize())
    assert torch.isfinite(margins).all()
    assert margins[0] == margins[1]
    assert (margins[1:].diff() < 0).all()
    assert float(margins[4]) > 0.05


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (MarginHead(name="arcface", scale=16, margin=0.5), pml.ArcFaceLoss),
        (MarginHead(name="cosface", scale=16, margin=0.35), pml.CosFaceLoss),
        (MarginHead(name="arcface", scale=16, margin=0.5, subcenters=3), pml.SubCenterArcFaceLoss),
    ],
)
def test_margin_heads_equal_pytorch_metric_learning(ours: MarginHead, theirs: type) -> None:
    head = build_head(ours, DIM, SIZES)
    assert isinstance(head, MarginClassifier)
    margin = math.degrees(ours.margin) if ours.name == "arcface" else ours.margin  # theirs is in degrees
    extra = {"sub_centers": 3} if ours.subcenters == 3 else {}
    other = theirs(num_classes=len(SIZES), embedding_size=DIM, margin=margin, scale=16, **extra)
    other.W.data = head.centers.detach().reshape(-1, DIM).t().clone()
    embeddings, labels = batch(40)
    mine, reference = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    loss, expected = head(mine, labels), other(reference, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        head.centers.grad.reshape(-1, DIM).t(),  # type: ignore[union-attr]
        other.W.grad,
        rtol=1e-3,
        atol=1e-5,
    )
    torch.testing.assert_close(head.logits(embeddings), other.get_logits(embeddings), rtol=1e-4, atol=1e-4)


@given(margin=st.floats(0, LARGEST_MARGIN))
@settings(max_examples=60, deadline=None)
def test_arcface_falls_on_all_angles(margin: float) -> None:
    theta = torch.linspace(0, math.pi, 500, dtype=torch.float64)
    made = arcface_cosine(torch.cos(theta), torch.full_like(theta, margin))
    assert (made.diff() <= 1e-9).all()
    assert (made <= torch.cos(theta) + 1.1e-4).all()  # never easier (1e-4: the floor under the sine)


@pytest.mark.parametrize("name", ["arcface", "cosface"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_identical_opposite_and_zero_embeddings_keep_finite_gradients(name: str, dtype: torch.dtype) -> None:
    head = build_head(MarginHead(name=name, scale=64, margin=0.5), DIM, SIZES)  # type: ignore[arg-type]
    assert isinstance(head, MarginClassifier)
    center = head.centers.detach()[0, 0]
    rows = [center, -center, center * 1e3, -center * 1e-3]
    if dtype != torch.float16:  # the slope at zero is beyond its range: torch's scaler skips such a step
        rows.append(torch.zeros(DIM))
    embeddings = torch.stack(rows).to(dtype).requires_grad_()
    loss = head(embeddings, torch.tensor([0, 0, 0, 0, 1][: len(rows)]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(head.centers.grad).all()  # type: ignore[arg-type]


def test_the_margin_makes_the_loss_larger_and_learning_makes_it_smaller() -> None:
    embeddings, labels = batch(20)
    torch.manual_seed(0)
    easy = build_head(MarginHead(name="arcface", margin=0.0), DIM, SIZES)
    hard = build_head(MarginHead(name="arcface", margin=0.4), DIM, SIZES)
    hard.load_state_dict({**easy.state_dict(), "margins": hard.get_buffer("margins")})
    start = hard(embeddings, labels).item()
    assert start > easy(embeddings, labels).item()
    optimizer = torch.optim.Adam(hard.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        hard(embeddings, labels).backward()
        optimizer.step()
    assert hard(embeddings, labels).item() < 0.8 * start


def test_too_large_margins_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"less than or equal to 2\.33"):
        MarginHead(name="arcface", margin=3.15)
    with pytest.raises(WhaleidError, match=r"head.by_size: .* above 2.33"):
        build_head(MarginHead(name="arcface", by_size=BySize(factor=4)), DIM, SIZES)


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
