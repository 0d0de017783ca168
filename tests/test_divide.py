"""Divide and conquer: the head against naive loops, and the phases of the schedule."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pytorch_metric_learning import losses
from torch.nn import functional

from whaleid.config import DivideHead, SamplerConfig
from whaleid.config.heads import DIVIDE_PRESETS
from whaleid.divide import learners
from whaleid.divide.learners import DivideLearners
from whaleid.divide.sampler import cluster_batches
from whaleid.divide.schedule import Phase, learners_of, phase_of
from whaleid.models.embedder import equal_slices
from whaleid.models.heads.registry import build_head

MARGIN = {
    "name": "metric",
    "loss": "MarginLoss",
    "arguments": {"margin": 0.2, "beta": 1.2, "learn_beta": True},
    "miner": "DistanceWeightedMiner",
}
ARCFACE = {"name": "arcface", "scale": 8.0, "margin": 0.2}
DIM, SIZES = 16, [6, 5, 4, 3, 2, 2, 1, 1]


def head_config(**settings: Any) -> DivideHead:
    return DivideHead(**{"name": "divide", "clusters": 4, "learner": ARCFACE, **settings})  # type: ignore[arg-type]


def divided(**settings: Any) -> DivideLearners:
    """A head with its last level open, clusters drawn at random."""
    torch.manual_seed(0)
    head = build_head(head_config(**settings), DIM, SIZES)
    assert isinstance(head, DivideLearners)
    level = len(head.settings.levels) - 1
    head.open(level, random_clusters(head), item_labels())
    if head.masked:
        torch.nn.init.uniform_(head.masks, -0.5, 1.5)  # as after some training: not the ones that they start at
    return head


def item_labels() -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))


def random_clusters(head: DivideLearners, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, head.settings.clusters, (sum(SIZES),), generator=generator)


# ------------------------------------------------------------------------------------------------- the learners


@pytest.mark.parametrize("preset", ["cvpr2019", "tpami2021"])
def test_sum_over_learners_is_that_of_a_naive_loop(preset: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learners, "OVERLAP_WEIGHT", 0.5)  # so that an error in it shows
    head = divided(preset=preset)
    clusters, labels = head.get_buffer("assignment"), item_labels()
    embeddings = torch.randn(len(labels), DIM)
    first = head.first[-1]
    total = sum(
        head(embeddings[clusters == cluster], labels[clusters == cluster], first + cluster) for cluster in range(4)
    )
    expected = torch.zeros(())
    for cluster in range(4):
        for_this = [place for place in range(len(labels)) if clusters[place] == cluster]
        classes = sorted({int(labels[place]) for place in for_this})
        losses_here = []
        for place in for_this:
            if preset == "tpami2021":
                seen = embeddings[place] * head.masks[first + cluster - 1].clamp(min=0)
            else:
                seen = embeddings[place, 4 * cluster : 4 * cluster + 4]
            logits = []
            for name in classes:
                centre = head.learners[first + cluster].centers[name, 0]  # type: ignore[union-attr,index]
                angle = torch.arccos(functional.cosine_similarity(seen, centre, dim=0))
                logits.append(8.0 * torch.cos(angle + (0.2 if name == int(labels[place]) else 0.0)))
            losses_here.append(torch.logsumexp(torch.stack(logits), 0) - logits[classes.index(int(labels[place]))])
        expected = expected + torch.stack(losses_here).mean()
        if preset == "tpami2021":
            expected = expected + 0.5 * naive_overlap(head.masks[first - 1 : first + 3])
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)


def naive_overlap(masks: torch.Tensor) -> torch.Tensor:
    rows = [mask.clamp(min=0) for mask in masks]
    cosines = [functional.cosine_similarity(rows[i], rows[j], dim=0) for i in range(len(rows)) for j in range(i)]
    return torch.stack(cosines).mean()


def test_margin_learner_on_a_slice_is_the_margin_loss_of_that_slice():
    head = divided(learner={**MARGIN, "miner": None})
    embeddings, labels = torch.randn(len(item_labels()), DIM), item_labels()
    alone = losses.MarginLoss(margin=0.2, beta=1.2)
    for cluster in range(4):
        expected = alone(embeddings[:, 4 * cluster : 4 * cluster + 4], labels)
        torch.testing.assert_close(head(embeddings, labels, head.first[-1] + cluster), expected)


@pytest.mark.parametrize("preset", ["cvpr2019", "tpami2021"])
def test_only_the_learner_whose_turn_it_is_gets_gradients(preset: str):
    head = divided(preset=preset)
    mine = head.get_buffer("assignment") == 2
    learner = head.first[-1] + 2
    gradient = embedding_gradient(head, mine, learner)
    touched = {name for name, parameter in head.named_parameters() if parameter.grad is not None}
    assert touched == {f"learners.{learner}.centers"} | ({"masks"} if head.masked else set())
    own = head.masks[learner - 1] > 0 if head.masked else (torch.arange(DIM) // 4 == 2)
    assert own.any()
    assert not own.all()
    assert (gradient[:, own] != 0).all()
    assert (gradient[:, ~own] == 0).all()


@pytest.mark.parametrize("preset", ["cvpr2019", "tpami2021"])
def test_a_merged_epoch_trains_all_dimensions_on_batches_of_one_cluster(preset: str):
    head = divided(preset=preset)
    config = SamplerConfig(name="shuffle", images=4, unknown="drop")
    labels, clusters = item_labels().numpy(), head.get_buffer("assignment").numpy()
    drawn = cluster_batches(labels, clusters, 4, config, 4, 0, 0)
    plan = learners_of(head, Phase("merged", level=head.settings.levels.index(4)), drawn)
    assert plan.parts == [0] * len(plan.batches)
    for items in plan.batches:
        assert len(set(clusters[items])) == 1
    mine = torch.zeros(len(labels), dtype=torch.bool)
    mine[plan.batches[0]] = True
    assert (embedding_gradient(head, mine, 0) != 0).all()
    divided_plan = learners_of(head, Phase("divided", level=head.settings.levels.index(4)), drawn)
    assert divided_plan.parts == [head.first[-1] + part for part in drawn.parts]


def embedding_gradient(head: DivideLearners, mine: torch.Tensor, learner: int) -> torch.Tensor:
    """Gradient of a learner's loss of the chosen items by their random embeddings."""
    embeddings = torch.randn(int(mine.sum()), DIM, requires_grad=True)
    head(embeddings, item_labels()[mine], learner).backward()
    assert embeddings.grad is not None
    return embeddings.grad


def test_per_class_boundaries_move():
    head = divided(learner=MARGIN)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    labels, clusters = item_labels(), head.get_buffer("assignment")
    # alike within a class: positives keep their distance already, and only negatives pull at the boundaries
    embeddings = (torch.randn(len(SIZES), DIM)[labels] + 0.1 * torch.randn(len(labels), DIM)).requires_grad_()
    for cluster in range(4):
        mine = clusters == cluster
        if mine.any():
            head(embeddings[mine], labels[mine], head.first[-1] + cluster).backward()
    optimizer.step()
    moved = [beta for name, beta in head.named_parameters() if "beta" in name and (beta != 1.2).any()]
    assert moved
    assert any(beta.unique().numel() > 1 for beta in moved)  # one a class, not one for all


def test_slices_open_as_cuts_of_the_whole_and_stay_when_clustered_anew():
    head = build_head(head_config(), DIM, SIZES)
    assert isinstance(head, DivideLearners)
    whole = head.learners[0].centers  # type: ignore[union-attr]
    copied = head.open(1, torch.arange(sum(SIZES)) % 4, item_labels())
    for cluster in range(4):
        cut = whole[:, :, 4 * cluster : 4 * cluster + 4]  # type: ignore[index]
        torch.testing.assert_close(head.learners[1 + cluster].centers, cut)  # type: ignore[union-attr]
    assert set(copied) == {f"learners.{number}.centers" for number in range(1, 5)}
    with torch.no_grad():
        head.learners[1].centers += 1  # type: ignore[operator,union-attr]
    kept = head.learners[1].centers.clone()  # type: ignore[union-attr,operator]
    assert head.open(1, torch.arange(sum(SIZES)) % 4, item_labels()) == []
    torch.testing.assert_close(head.learners[1].centers, kept)


def test_the_first_masks_are_ones_and_children_copy_their_parents():
    head = build_head(head_config(preset="tpami2021"), DIM, SIZES)
    assert isinstance(head, DivideLearners)
    head.open(1, torch.arange(sum(SIZES)) % 2, item_labels())
    assert (head.masks[:2] == 1).all()
    with torch.no_grad():
        head.masks[:2] = torch.rand(2, DIM)
        head.learners[2].centers += 1  # type: ignore[operator,union-attr]
    copied = head.open(2, torch.arange(sum(SIZES)) % 4, item_labels())
    torch.testing.assert_close(head.masks[2:], head.masks[:2].repeat_interleave(2, dim=0))
    for child, parent in ((3, 1), (4, 1), (5, 2), (6, 2)):
        mine, theirs = head.learners[child].centers, head.learners[parent].centers  # type: ignore[union-attr]
        torch.testing.assert_close(mine, theirs)
    assert set(copied) == {"masks", *(f"learners.{number}.centers" for number in range(3, 7))}


def test_equal_slices_are_unit_vectors_side_by_side():
    rows = torch.randn(5, 12)
    found = functional.normalize(equal_slices(rows, 3), dim=1)
    for row, out in zip(rows, found, strict=True):
        expected = torch.cat([part / part.norm() for part in row.split(4)]) / 3**0.5
        torch.testing.assert_close(out, expected)
    assert equal_slices(rows, 1) is rows


def test_logits_are_the_whole_embeddings():
    embeddings, head = torch.randn(3, DIM), divided()
    own = build_head(head.settings.learner, DIM, SIZES)
    own.load_state_dict(head.learners[0].state_dict())
    torch.testing.assert_close(head.logits(embeddings), own.logits(embeddings))


# ---------------------------------------------------------------------------------------------------- phases


def test_the_schedule_of_2019_is_the_published_one():
    head = head_config(preset="cvpr2019", clusters=8)
    phases = [phase_of(head, 200, epoch) for epoch in range(200)]
    assert [phase.name for phase in phases] == ["divided"] * 80 + ["merged"] * 110 + ["joint"] * 10
    assert [head.levels[phase.level] for phase in phases] == [8] * 190 + [1] * 10
    assert [phase.cluster for phase in phases] == [True, False] * 95 + [False] * 10
    assert not any(phase.frozen for phase in phases)


def test_the_schedule_of_2021_is_the_published_one():
    head = head_config(preset="tpami2021", clusters=32)
    phases = [phase_of(head, 180, epoch) for epoch in range(180)]
    assert [phase.name for phase in phases] == ["warm-up"] * 2 + ["divided"] * 78 + ["merged"] * 100
    assert [head.levels[phase.level] for phase in phases] == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16] + [32] * 170
    assert [phase.cluster for phase in phases] == [False] * 2 + [True, False] * 89
    assert [phase.frozen for phase in phases] == [phase.cluster for phase in phases]


@given(st.integers(1, 60), st.integers(1, 5), st.sampled_from([1, 2, 4, 8]), st.sampled_from(list(DIVIDE_PRESETS)))
def test_phases_follow_each_other_and_levels_only_rise_until_the_joint_one(
    epochs: int, every: int, clusters: int, preset: str
):
    config = head_config(clusters=clusters, every=every, preset=preset)
    phases = [phase_of(config, epochs, epoch) for epoch in range(epochs)]
    order = ["warm-up", "divided", "merged", "joint"]
    for before, phase in pairwise(phases):
        assert order.index(before.name) <= order.index(phase.name)
        assert before.level <= phase.level or phase.name == "joint"
        assert phase.cluster or phase.level in (0, before.level)  # a level opens with clusters of its own
    assert phases[-1].name != "divided"  # the full embedding is trained last


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"clusters": 3, "preset": "tpami2021"}, "clusters must be a power of two with preset: tpami2021, not 3"),
        ({"learner": {"name": "divide", "learner": ARCFACE}}, "a learner of divide cannot be a divide itself"),
        ({"learner": {**ARCFACE, "start": "means"}}, "a learner of divide starts at random: leave `start: means` out"),
    ],
)
def test_heads_that_make_no_sense(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        TypeAdapter(DivideHead).validate_python({"name": "divide", "learner": ARCFACE, **settings})
