"""Losses on pairs and batches against loops that follow the papers, one image at a time, and on ugly batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from naive_losses import (
    BOUNDARIES,
    DIM,
    SIZES,
    Reference,
    apart,
    batch,
    contrastive,
    fast_ap,
    histogram,
    lifted_structure,
    log_ratio,
    log_ratio_of,
    margin,
    metric,
    multi_similarity,
    others,
    quantized_ap,
    smooth_ap,
    supervised_contrastive,
    triplet,
    unit,
)
from pytorch_metric_learning import losses as library
from torch import Tensor

from whaleid.config import MetricHead
from whaleid.models.heads.extra_losses import LogRatioLoss, QuantizedAPLoss
from whaleid.models.heads.registry import build_head
from whaleid.utils.errors import WhaleidError

MARGIN = metric("MarginLoss", margin=0.2, nu=0.1, learn_beta=True)
LOOPS: list[tuple[MetricHead, Reference]] = [
    (metric("ContrastiveLoss", neg_margin=1.1), contrastive),
    (metric("TripletMarginLoss", margin=0.2), triplet),
    (MARGIN, margin),
    (metric("LiftedStructureLoss"), lifted_structure),
    (metric("MultiSimilarityLoss", alpha=2, beta=50, base=0.5), multi_similarity),
    (metric("HistogramLoss", n_bins=20), histogram),
    (metric("FastAPLoss", num_bins=10), fast_ap),
    (metric("SmoothAPLoss", temperature=0.1), smooth_ap),
    (metric("QuantizedAPLoss"), quantized_ap),
    (metric("SupConLoss", temperature=0.2), supervised_contrastive),
    (metric("LogRatioLoss"), log_ratio),
]
EVERY = pytest.mark.parametrize("config", [config for config, _ in LOOPS], ids=lambda config: config.loss)


@pytest.mark.parametrize(("config", "loop"), LOOPS, ids=[config.loss for config, _ in LOOPS])
@pytest.mark.parametrize(("count", "seed"), [(9, 0), (13, 1), (17, 2), (29, 3)])  # beyond 25: other distance code
def test_losses_equal_a_loop(config: MetricHead, loop: Reference, count: int, seed: int) -> None:
    embeddings, labels = batch(count, seed)
    head = build_head(config, DIM, SIZES)
    for parameter in head.parameters():  # the boundaries of MarginLoss
        parameter.data = torch.tensor(BOUNDARIES)
    expected = loop(unit(embeddings), labels.tolist())
    assert expected > 0.01
    assert head(embeddings, labels).item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


# --------------------------------------------------------------------------------------------- ugly batches


ROW = torch.randn(1, DIM, generator=torch.Generator().manual_seed(0))
RANDOM = torch.randn(6, DIM, generator=torch.Generator().manual_seed(1))
UGLY: dict[str, tuple[Tensor, list[int]]] = {
    "identical": (ROW.repeat(6, 1), [0, 0, 1, 1, 2, 3]),
    "identical, one class": (ROW.repeat(6, 1), [0] * 6),
    "identical, no two of a class": (ROW.repeat(6, 1), [0, 1, 2, 3, 4, 5]),
    "opposite classes": (torch.cat([ROW, ROW, ROW, -ROW, -ROW, -ROW]), [0, 0, 0, 1, 1, 1]),
    "opposite within classes": (torch.cat([ROW, -ROW] * 3), [0, 0, 1, 1, 2, 2]),
    "one class": (RANDOM, [0] * 6),
    "no two of a class": (RANDOM, [0, 1, 2, 3, 4, 5]),
    "a pair": (RANDOM[:2], [0, 0]),
    "one image": (RANDOM[:1], [0]),
    "many identical": (ROW.repeat(32, 1), [0, 1, 2, 3] * 8),
}


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ugly", UGLY)
def test_losses_are_finite_on_ugly_batches(config: MetricHead, ugly: str, dtype: torch.dtype) -> None:
    rows, labels = UGLY[ugly]
    embeddings = rows.to(dtype, copy=True).requires_grad_()
    head = build_head(config, DIM, SIZES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(embeddings, torch.tensor(labels))
    assert loss.requires_grad  # a zero too is joined to the graph
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@EVERY
def test_a_batch_without_pairs_costs_nothing(config: MetricHead) -> None:
    """But for losses that push identities apart whether an image has a mate or not."""
    rows, labels = UGLY["no two of a class"]
    loss = build_head(config, DIM, SIZES)(rows, torch.tensor(labels)).item()
    pushes = config.loss in {"ContrastiveLoss", "MultiSimilarityLoss", "LogRatioLoss"}
    assert (loss > 0) == pushes


@pytest.mark.parametrize("loss", [LogRatioLoss(), QuantizedAPLoss()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extra_losses_take_half_precision_without_a_head(loss: torch.nn.Module, dtype: torch.dtype) -> None:
    embeddings, labels = batch(13, 1)
    half = embeddings.to(dtype).requires_grad_()
    value = loss(half, labels)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(half.detach().float(), labels))
    assert torch.isfinite(half.grad).all()  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- log-ratio


@pytest.mark.parametrize("shape", [(11,), (11, 1), (11, 3)])
def test_log_ratio_on_continuous_labels_equals_a_loop(shape: tuple[int, ...]) -> None:
    embeddings, _ = batch(11, 4)
    labels = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    flat = labels.double().numpy().reshape(11, -1)
    expected = log_ratio_of(unit(embeddings), lambda a, i: ((flat[a] - flat[i]) ** 2).sum() + 1e-6)
    assert LogRatioLoss()(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


def test_log_ratio_compares_with_other_rows() -> None:
    rows, labels = torch.randn(7, DIM), torch.randn(7)
    rest, rest_labels = torch.randn(5, DIM), torch.randn(5)
    values = []
    for a in range(7):
        far = ((unit(rows)[a] - unit(rest)) ** 2).sum(axis=1) + 1e-6
        wanted = (labels[a].double() - rest_labels.double()).square().numpy() + 1e-6
        mismatch = [math.log(d) - math.log(y) for d, y in zip(far, wanted, strict=True)]
        values += [(mismatch[i] - mismatch[j]) ** 2 for i in range(5) for j in range(5) if i != j]
    found = LogRatioLoss()(rows, labels, ref_emb=rest, ref_labels=rest_labels)
    assert found.item() == pytest.approx(float(np.mean(values)), rel=1e-5)


def test_log_ratio_on_chosen_triplets() -> None:
    embeddings, labels = batch(11, 6)
    triplets = (torch.tensor([0, 0, 4]), torch.tensor([1, 2, 3]), torch.tensor([5, 3, 9]))
    rows, values = unit(embeddings), []
    for a, i, j in torch.stack(triplets, dim=1).tolist():
        wanted = [0.01 if labels[a] == labels[k] else 1.0 for k in (i, j)]
        ratio = (apart(rows, a, i) ** 2 + 1e-6) / (apart(rows, a, j) ** 2 + 1e-6)
        values.append((math.log(ratio) - math.log(wanted[0] / wanted[1])) ** 2)
    assert LogRatioLoss()(embeddings, labels, triplets).item() == pytest.approx(float(np.mean(values)), rel=1e-5)
    none = tuple(t[:0] for t in triplets)
    assert LogRatioLoss()(embeddings, labels, none).item() == 0


def test_log_ratio_is_nothing_where_distances_are_in_proportion() -> None:
    config = metric("LogRatioLoss", distance={"name": "LpDistance", "power": 2, "normalize_embeddings": False})
    loss = build_head(config, 1, SIZES).loss
    assert isinstance(loss, LogRatioLoss)
    labels = torch.linspace(0, 3, 9) ** 2
    assert loss(7 * labels[:, None] - 2, labels).item() == pytest.approx(0, abs=1e-6)
    assert loss(labels[:, None].sqrt(), labels).item() > 0.1


def test_log_ratio_on_identities_wants_a_tenth_of_the_distance() -> None:
    angle = 2 * math.asin(0.05)  # two identities at a right angle, 1.414 apart; mates a tenth of that apart
    inner = math.sqrt(2) * angle / 2
    angles = torch.tensor([-inner, inner, math.pi / 2 - inner, math.pi / 2 + inner])
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 0, 1, 1])
    reached = LogRatioLoss()(rows, labels).item()
    assert reached < 0.1
    assert LogRatioLoss()(rows, labels[[0, 2, 1, 3]]).item() > 10
    assert LogRatioLoss(same=0.25)(rows, labels).item() > 10 * reached


def test_labels_of_identities_are_names_not_numbers() -> None:
    embeddings, labels = batch(13, 2)
    renamed = torch.tensor([40, 3, 999, 0, 12, 7, 8, 100])[labels]
    torch.testing.assert_close(LogRatioLoss()(embeddings, renamed), LogRatioLoss()(embeddings, labels))


# --------------------------------------------------------------------------------------------- quantised AP


def test_quantized_ap_compares_with_other_rows() -> None:
    """Queries of a batch among the rows of another: as in one batch of both, where only those pairs count."""
    embeddings, labels = batch(24, 7)
    same = labels[:10, None] == labels[None, 10:]
    (anchor, positive), (other, negative) = torch.where(same), torch.where(~same)
    pairs = (anchor, positive + 10, other, negative + 10)
    found = QuantizedAPLoss()(embeddings[:10], labels[:10], ref_emb=embeddings[10:], ref_labels=labels[10:])
    torch.testing.assert_close(found, QuantizedAPLoss()(embeddings, labels, pairs))


def test_quantized_ap_of_right_and_wrong_orders() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-0.9, 0.1], [-1.0, 0.0]])
    loss = QuantizedAPLoss()
    assert loss(rows, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(0, abs=1e-6)
    assert loss(rows, torch.tensor([0, 1, 1, 0])).item() > 0.6


@pytest.mark.parametrize("loss", ["QuantizedAPLoss", "LogRatioLoss"])
def test_extra_losses_bring_identities_together(loss: str) -> None:
    embeddings, labels = batch(17, 9)
    labels = labels % 4
    head = build_head(metric(loss), DIM, SIZES)
    embeddings.requires_grad_()
    before = smooth_ap(unit(embeddings.detach()), labels.tolist())
    optimizer = torch.optim.Adam([embeddings], lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        head(embeddings, labels).backward()
        optimizer.step()
    assert smooth_ap(unit(embeddings.detach()), labels.tolist()) < 0.5 * before


@pytest.mark.parametrize("loss", ["QuantizedAPLoss", "LogRatioLoss", "MarginLoss"])
def test_own_and_mended_losses_work_over_a_memory_of_earlier_batches(loss: str) -> None:
    head = build_head(metric("CrossBatchMemory", loss=loss, memory_size=40), DIM, SIZES)
    for seed in range(4):
        embeddings, labels = batch(12, seed)
        embeddings.requires_grad_()
        value = head(embeddings, labels)
        value.backward()
        assert torch.isfinite(value)
        assert embeddings.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_a_miners_choice_is_found_in_a_memory_of_earlier_batches() -> None:
    arguments = {"loss": {"name": "ContrastiveLoss", "neg_margin": 1.1, "reducer": "MeanReducer"}, "memory_size": 30}
    config = MetricHead(name="metric", loss="CrossBatchMemory", arguments=arguments, miner="BatchHardMiner")
    head = build_head(config, DIM, SIZES)
    seen = [batch(11, seed) for seed in range(4)]  # the fourth batch begins at the memory's third place
    found = [head(*one).item() for one in seen][-1]
    rows, labels = unit(torch.cat([rows for rows, _ in seen])), torch.cat([labels for _, labels in seen]).tolist()
    batch_rows, memory = range(33, 44), range(14, 44)  # the last 30 images
    together, separate = [], []
    for a in batch_rows:
        same = [i for i in memory if labels[i] == labels[a] and i != a]
        different = [i for i in memory if labels[i] != labels[a]]
        mates, strangers = ([i for i in kind if i >= 33] for kind in (same, different))
        if mates:  # BatchHardMiner's pairs come on top
            same.append(max(mates, key=lambda i: apart(rows, a, i)))
            different.append(min(strangers, key=lambda i: apart(rows, a, i)))
        together += [apart(rows, a, i) for i in same]
        separate += [max(0.0, 1.1 - apart(rows, a, i)) for i in different]
    assert found == pytest.approx(float(np.mean(together) + np.mean(separate)), rel=1e-5)


# ------------------------------------------------------------------------------------------------- the rest


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_the_librarys_histogram_is_the_same_where_it_is_right() -> None:
    embeddings, _ = batch(12, 3)
    labels = torch.arange(12) // 3
    found = build_head(metric("HistogramLoss", n_bins=20), DIM, SIZES)(embeddings, labels)
    torch.testing.assert_close(found, library.HistogramLoss(n_bins=20)(embeddings, labels))


def test_boundaries_of_the_margin_loss_are_learnt_one_a_class() -> None:
    """A boundary moves out where more positives than negatives are on its wrong side, and in the other way round."""
    embeddings, labels = batch(17, 3)
    head = build_head(metric("MarginLoss", margin=0.2, learn_beta=True), DIM, SIZES)
    boundaries = dict(head.named_parameters())["loss.beta"]
    assert boundaries.shape == (len(SIZES),)
    head(embeddings, labels).backward()
    rows, push, counted = unit(embeddings), np.zeros(len(SIZES)), 0
    for a in range(17):
        same, different = others(labels.tolist(), a)
        beyond = sum(apart(rows, a, p) > 1.0 for p in same) * len(different)
        within = sum(apart(rows, a, n) < 1.4 for n in different) * len(same)
        push[labels[a]] += within - beyond
        counted += within + beyond
    np.testing.assert_allclose(boundaries.grad.numpy(), push / counted, rtol=1e-5, atol=1e-7)  # type: ignore[union-attr]
    torch.optim.SGD(head.parameters(), lr=1.0).step()
    np.testing.assert_allclose(boundaries.detach().numpy(), 1.2 - push / counted, rtol=1e-5)
    assert (push == 0).any() and (push != 0).any()


def test_fixed_boundaries_go_where_the_head_goes() -> None:
    head = build_head(metric("MarginLoss"), DIM, SIZES)
    assert not list(head.parameters()) and not head.state_dict()
    assert dict(head.named_buffers())["loss.beta"].shape == (len(SIZES),)
    assert head.to("meta").get_buffer("loss.beta").device.type == "meta"


def test_extra_losses_refuse_what_they_cannot_use() -> None:
    for config, message in [
        (metric("LogRatioLoss", same=0), r"head\.loss LogRatioLoss: .*same and epsilon must be above 0"),
        (metric("LogRatioLoss", distance="CosineSimilarity"), r"LogRatioLoss: .*LpDistance"),
        (metric("QuantizedAPLoss", bins=1), r"QuantizedAPLoss: .*bins must be 2 or more"),
        (metric("QuantizedAPLoss", bin=9), r"QuantizedAPLoss: unknown argument 'bin'; did you mean 'bins'"),
        (metric("QuantisedAPLoss"), r"'QuantisedAPLoss': .*did you mean QuantizedAPLoss"),
        (metric("DynamicSoftMarginLoss"), r"head\.loss DynamicSoftMarginLoss: .*fails at its second step"),
        (metric("CrossBatchMemory", loss="DynamicSoftMarginLoss"), r"DynamicSoftMarginLoss: .*fails"),
    ]:
        with pytest.raises(WhaleidError, match=message) as caught:
            build_head(config, DIM, SIZES)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="needs the labels"):
        LogRatioLoss()(torch.randn(3, 2))
    with pytest.raises(ValueError, match="continuous labels as float"):
        LogRatioLoss()(torch.randn(3, 2), torch.ones(3, 2, dtype=torch.int64))
