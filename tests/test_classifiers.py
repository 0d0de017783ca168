"""Softmax and margin heads against loops that follow the papers, and against pytorch-metric-learning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from head_batch import DIM, SIZES, batch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pytorch_metric_learning import losses as pml
from torch import Tensor
from torch.nn import functional

from whaleid.config import BySize, MarginHead, SoftmaxHead, SumHead, WeightedHead
from whaleid.config.files import load_experiment, parse_overrides
from whaleid.models.heads.classifiers import MarginClassifier
from whaleid.models.heads.margins import LARGEST_MARGIN, arcface_cosine, classification_loss, margins_by_size
from whaleid.models.heads.registry import build_head
from whaleid.utils.errors import WhaleidError


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
    config, centers = head.settings, head.centers.detach().double().numpy()
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


# --------------------------------------------------------------------------------------------- start from means


def test_centres_start_from_means_where_a_class_has_images() -> None:
    head = build_head(MarginHead(name="arcface", start="means"), DIM, SIZES)
    assert isinstance(head, MarginClassifier)
    before, means = head.centers.detach().clone(), torch.eye(len(SIZES), DIM)
    means[1] = 0
    assert head.start_from_means(means) == ["centers"]
    assert torch.equal(head.centers[1], before[1])
    others = [place for place in range(len(SIZES)) if place != 1]
    assert torch.equal(head.centers[others, 0], means[others])


def test_subcentres_lie_around_the_mean_and_apart() -> None:
    head = build_head(MarginHead(name="arcface", subcenters=3, start="means"), DIM, SIZES)
    assert isinstance(head, MarginClassifier)
    head.start_from_means(torch.eye(len(SIZES), DIM))
    rows = functional.normalize(head.centers.detach(), dim=2)
    to_mean = torch.stack([rows[place, :, place] for place in range(len(SIZES))])
    assert to_mean.min() > 0.9
    between = rows @ rows.transpose(1, 2)
    assert between[:, ~torch.eye(3, dtype=torch.bool)].max() < 0.9999


def test_only_the_parts_of_a_sum_that_want_it_start_from_means() -> None:
    random, started = MarginHead(name="cosface"), MarginHead(name="arcface", start="means")
    sums = SumHead(name="sum", parts=[WeightedHead(head=random), WeightedHead(head=started)])
    assert sums.starts_from_means
    assert not SumHead(name="sum", parts=[WeightedHead(head=random)]).starts_from_means
    head = build_head(sums, DIM, SIZES)
    before = head.get_parameter("heads.0.centers").detach().clone()
    assert head.start_from_means(torch.eye(len(SIZES), DIM)) == ["heads.1.centers"]
    assert torch.equal(head.get_parameter("heads.0.centers"), before)
    assert torch.equal(head.get_parameter("heads.1.centers")[:, 0], torch.eye(len(SIZES), DIM))


def test_means_need_embeddings_around_the_origin() -> None:
    with pytest.raises(WhaleidError, match=r"head.start: means needs model.neck: bnneck, not linear"):
        load_experiment("default", parse_overrides(["head={name: arcface, start: means}", "model.neck=linear"]))
