"""The siamese head against loops over pairs; what its similarity is, and that it learns what a cosine cannot say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from whaleid.config import SiameseHead, SumHead, WeightedHead
from whaleid.config.files import load_experiment
from whaleid.models.heads import siamese
from whaleid.models.heads.registry import build_head
from whaleid.models.heads.siamese import SiamesePairs

DIM = 6


def pairs_head(hidden: int = 5, negatives: int = 3, dim: int = DIM, scale: float = 10.0, seed: int | None = 0):
    """A siamese head; with a seed, its numbers are anything but those of the start."""
    config = SiameseHead(name="siamese", hidden=hidden, negatives=negatives, scale=scale)
    head = build_head(config, dim, [3, 4, 5])
    assert isinstance(head, SiamesePairs)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def rows_of(count: int, dim: int = DIM, seed: int = 1) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def naive_logit(head: SiamesePairs, a: np.ndarray, b: np.ndarray) -> float:
    """The formula at the head of the module, one dimension after the other, in float64."""
    weights = {name: value.detach().double().numpy() for name, value in head.named_parameters()}
    a, b = (row / np.linalg.norm(row) * math.sqrt(len(row)) for row in (a.astype(float), b.astype(float)))
    total = 0.0
    for k in range(len(a)):
        x = np.array([abs(a[k] - b[k]), (a[k] - b[k]) ** 2, a[k] * b[k], a[k] + b[k]])
        hidden = np.maximum(weights["inner.weight"] @ x + weights["inner.bias"], 0)
        f = float(weights["shortcut.weight"][0] @ x + weights["outer.weight"][0] @ hidden)
        total += weights["weight"][k] * f
    return float(head.settings.scale * (total / len(a) - weights["offset"]))


def naive_loss(head: SiamesePairs, embeddings: Tensor, labels: list[int]) -> float:
    rows = embeddings.double().numpy()
    n = len(labels)
    logit = [[naive_logit(head, rows[i], rows[j]) for j in range(n)] for i in range(n)]
    same = [math.log1p(math.exp(-logit[i][j])) for i in range(n) for j in range(i) if labels[i] == labels[j]]
    others = []
    for i in range(n):
        apart = sorted((logit[i][j] for j in range(n) if labels[i] != labels[j]), reverse=True)
        others += [math.log1p(math.exp(value)) for value in apart[: head.settings.negatives]]
    return sum(float(np.mean(kind)) / 2 for kind in (same, others) if kind)


# ------------------------------------------------------------------------------------------------ the similarity


@pytest.mark.parametrize("cells", [1, 100, 1 << 23])
def test_score_pairs_equals_a_loop(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siamese, "_CELLS", cells)
    head, queries, gallery = pairs_head(), rows_of(4) * 7, rows_of(9, seed=2)
    rows = torch.randint(0, 9, (4, 5), generator=torch.Generator().manual_seed(3))
    found = head.score_pairs(queries, gallery, rows)
    expected = [
        [naive_logit(head, queries[q].numpy(), gallery[row].numpy()) for row in rows[q].tolist()] for q in range(4)
    ]
    assert found.dtype == torch.float32 and not found.requires_grad
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert head.score_pairs(queries[:0], gallery, rows[:0]).shape == (0, 5)


def test_similarity_is_symmetric_bit_for_bit_and_blind_to_lengths() -> None:
    head, rows = pairs_head(), rows_of(30)
    everyone = torch.arange(30).expand(30, 30)
    found = head.score_pairs(rows, rows, everyone)
    assert torch.equal(found, found.T)
    lengths = torch.rand(30, 1, generator=torch.Generator().manual_seed(0)) * 10 + 0.1
    torch.testing.assert_close(head.score_pairs(rows * lengths, rows, everyone), found, rtol=1e-4, atol=1e-4)


def test_it_starts_as_the_cosine() -> None:
    head, rows = pairs_head(seed=None, scale=8.0), rows_of(12)
    unit = functional.normalize(rows, dim=1)
    found = head.score_pairs(rows, rows, torch.arange(12).expand(12, 12))
    torch.testing.assert_close(found, 8.0 * (unit @ unit.T - 0.5), rtol=1e-4, atol=1e-4)
    assert head.logits(rows) is None


# ----------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("negatives", [1, 3, 100])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7], [0] * 8, [0] * 7 + [1]])
def test_loss_equals_a_loop(negatives: int, labels: list[int]) -> None:
    head, embeddings = pairs_head(negatives=negatives), rows_of(8) * 3
    assert head(embeddings, torch.tensor(labels)).item() == pytest.approx(
        naive_loss(head, embeddings, labels), rel=1e-4
    )


def test_chunks_change_neither_loss_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])
    found = []
    for cells in (1 << 23, 1):
        monkeypatch.setattr(siamese, "_CELLS", cells)
        head, embeddings = pairs_head(), rows_of(8).requires_grad_()
        loss = head(embeddings, labels)
        loss.backward()
        found.append([loss.detach(), embeddings.grad, *(parameter.grad for parameter in head.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_gradients_equal_differences() -> None:
    """Central differences of the loss, through the head's scalar offset."""
    head, embeddings, labels = pairs_head(), rows_of(8), torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])
    head(embeddings, labels).backward()
    assert head.offset.grad is not None
    step, values = 1e-2, []
    for sign in (1, -1):
        with torch.no_grad():
            head.offset.add_(sign * step)
            values.append(head(embeddings, labels).item())
            head.offset.sub_(sign * step)
    assert head.offset.grad.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-2)


BATCHES = {
    "identical": (torch.ones(4, DIM), [0, 0, 1, 1]),
    "opposite": (torch.cat([torch.ones(2, DIM), -torch.ones(2, DIM)]), [0, 1, 0, 1]),
    "one class": (rows_of(5), [2] * 5),
    "all alone": (rows_of(5), [0, 1, 2, 3, 4]),
    "one image": (rows_of(1), [0]),
    "far apart in length": (rows_of(4) * torch.tensor([[1e-3], [1.0], [1e2], [1e3]]), [0, 0, 1, 1]),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", [None, 0])
def test_gradients_are_finite(name: str, dtype: torch.dtype, seed: int | None) -> None:
    head, (rows, labels) = pairs_head(seed=seed), BATCHES[name]
    embeddings = rows.clone().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(embeddings, torch.tensor(labels))
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert embeddings.grad is not None and torch.isfinite(embeddings.grad).all()
    for parameter in head.parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()


def test_a_zero_embedding_is_no_harm() -> None:
    head, embeddings = pairs_head(), torch.cat([rows_of(3), torch.zeros(1, DIM)]).requires_grad_()
    loss = head(embeddings, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert torch.isfinite(loss) and embeddings.grad is not None and torch.isfinite(embeddings.grad).all()


def test_it_may_be_a_part_of_a_sum() -> None:
    config = SumHead(name="sum", parts=[WeightedHead(weight=2.0, head=SiameseHead(name="siamese"))])
    torch.manual_seed(0)
    head = build_head(config, DIM, [4, 4])
    torch.manual_seed(0)
    alone = build_head(SiameseHead(name="siamese"), DIM, [4, 4])
    embeddings, labels = rows_of(8), torch.arange(8) % 2
    assert head(embeddings, labels).item() == pytest.approx(2 * alone(embeddings, labels).item(), rel=1e-6)


# --------------------------------------------------------------------------------------------------- what it learns


def toy(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Identities told apart by the size of the first four values; their signs, and the other twelve, are noise.

    The expected cosine of two images is 0, of one identity or of two: their signs are drawn anew each time.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(12, 4, generator=torch.Generator().manual_seed(99)) * 2
    labels = torch.arange(count) % 12
    signs = torch.randint(0, 2, (count, 4), generator=generator) * 2 - 1
    noise = 0.5 * torch.randn(count, 12, generator=generator)
    return torch.cat([sizes[labels] * signs, noise], dim=1), labels


def nearest_is_right(similarity: Tensor, labels: Tensor) -> float:
    similarity = similarity.clone().fill_diagonal_(-math.inf)
    return float((labels[similarity.argmax(dim=1)] == labels).float().mean())


def test_it_learns_what_a_cosine_cannot_say() -> None:
    torch.manual_seed(0)
    head = pairs_head(hidden=32, dim=16, seed=None)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for step in range(250):
        optimizer.zero_grad()
        head(*toy(48, step)).backward()
        optimizer.step()
    rows, labels = toy(240, 10_000)
    unit = functional.normalize(rows, dim=1)
    learnt = nearest_is_right(head.score_pairs(rows, rows, torch.arange(240).expand(240, 240)), labels)
    by_cosine = nearest_is_right(unit @ unit.T, labels)
    assert learnt > by_cosine + 0.15, (learnt, by_cosine)


def test_embeddings_are_trained_from_the_first_step() -> None:
    """Free embeddings of three identities, mixed at the start, come apart by cosine too."""
    torch.manual_seed(0)
    head, labels = pairs_head(seed=None), torch.arange(12) % 3
    embeddings = torch.nn.Parameter(rows_of(12))
    optimizer = torch.optim.Adam([embeddings, *head.parameters()], lr=0.02)
    first = head(embeddings, labels).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = head(embeddings, labels)
        loss.backward()
        optimizer.step()
    unit = functional.normalize(embeddings.detach(), dim=1)
    assert loss.item() < 0.2 * first and nearest_is_right(unit @ unit.T, labels) == 1.0


def test_experiment_of_the_repository() -> None:
    experiment = load_experiment("lite0_siamese")
    assert isinstance(experiment.head, SiameseHead)
    assert (experiment.sampler.name, experiment.sampler.images) == ("balanced", 4)
