"""Divide and conquer: the head against naive loops, the phases of a run, and what kills and processes cannot change.

As a script it is two processes that train together.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pytorch_metric_learning import losses
from safetensors.torch import load_file
from torch.nn import functional
from training_world import IDENTITIES, checkpoint, log_lines, same, small, stop_after, train, two_processes, write_case

from whaleid.config import DivideHead
from whaleid.divide import clustering, schedule
from whaleid.divide.learners import DivideLearners
from whaleid.divide.schedule import phase_of
from whaleid.models.embedder import equal_slices
from whaleid.models.heads.registry import build_head
from whaleid.training.checkpoint import load_run
from whaleid.training.resume import STATE
from whaleid.utils.errors import WhaleidError

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
    return head


def item_labels() -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))


def random_clusters(head: DivideLearners, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, head.settings.clusters, (sum(SIZES),), generator=generator)


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("divide")
    write_case(folder)
    return folder


# ------------------------------------------------------------------------------------------------- the learners


@pytest.mark.parametrize("subspace", ["slices", "learned"])
def test_sum_over_learners_is_that_of_a_naive_loop(subspace: str):
    head = divided(subspace=subspace, orthogonality=0.5)
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
            if subspace == "learned":
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
        if subspace == "learned":
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


@pytest.mark.parametrize("subspace", ["slices", "learned"])
def test_only_the_learner_whose_turn_it_is_gets_gradients(subspace: str):
    head = divided(subspace=subspace)
    embeddings = torch.randn(sum(SIZES), DIM, requires_grad=True)
    labels, clusters = item_labels(), head.get_buffer("assignment")
    mine = clusters == 2
    head(embeddings[mine], labels[mine], head.first[-1] + 2).backward()
    touched = {name for name, parameter in head.named_parameters() if parameter.grad is not None}
    own = {f"learners.{head.first[-1] + 2}.centers"}
    assert touched == (own | {"masks"} if subspace == "learned" else own)
    assert embeddings.grad is not None
    if subspace != "learned":
        assert (embeddings.grad[:, 8:12] != 0).any()
        assert (embeddings.grad[:, :8] == 0).all()
        assert (embeddings.grad[:, 12:] == 0).all()


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


def test_a_level_opens_as_a_copy_of_the_one_above():
    head = build_head(head_config(subspace="slices"), DIM, SIZES)
    assert isinstance(head, DivideLearners)
    whole = head.learners[0].centers  # type: ignore[union-attr]
    copied = head.open(1, torch.arange(sum(SIZES)) % 2, item_labels())
    torch.testing.assert_close(head.learners[1].centers, whole[:, :, :8])  # type: ignore[union-attr,index]
    torch.testing.assert_close(head.learners[2].centers, whole[:, :, 8:])  # type: ignore[union-attr,index]
    assert set(copied) == {"learners.1.centers", "learners.2.centers"}
    with torch.no_grad():
        head.learners[1].centers += 1  # type: ignore[operator,union-attr]
    head.open(2, torch.arange(sum(SIZES)) % 4, item_labels())
    torch.testing.assert_close(head.learners[3].centers, whole[:, :, :4] + 1)  # type: ignore[union-attr,index]
    torch.testing.assert_close(head.learners[4].centers, whole[:, :, 4:8] + 1)  # type: ignore[union-attr,index]
    torch.testing.assert_close(head.learners[5].centers, whole[:, :, 8:12])  # type: ignore[union-attr,index]
    kept = head.learners[4].centers.clone()  # type: ignore[union-attr,operator]
    assert head.open(2, torch.arange(sum(SIZES)) % 4, item_labels()) == []  # clustered anew: learners stay
    torch.testing.assert_close(head.learners[4].centers, kept)


def test_children_take_their_parents_mask():
    head = build_head(head_config(subspace="learned"), DIM, SIZES)
    assert isinstance(head, DivideLearners)
    first_two = head.masks[:2].detach().clone()
    head.open(1, torch.arange(sum(SIZES)) % 2, item_labels())
    torch.testing.assert_close(head.masks[:2], first_two)  # the whole embedding has no mask to give
    head.open(2, torch.arange(sum(SIZES)) % 4, item_labels())
    torch.testing.assert_close(head.masks[2:], first_two.repeat_interleave(2, dim=0))


def test_equal_slices_are_unit_vectors_side_by_side():
    rows = torch.randn(5, 12)
    found = functional.normalize(equal_slices(rows, 3), dim=1)
    for row, out in zip(rows, found, strict=True):
        expected = torch.cat([part / part.norm() for part in row.split(4)]) / 3**0.5
        torch.testing.assert_close(out, expected)
    assert equal_slices(rows, 1) is rows


def test_logits_are_the_whole_embeddings_or_none():
    embeddings = torch.randn(3, DIM)
    joint = divided(joint=1)
    assert joint.logits(embeddings).shape == (3, len(SIZES))  # type: ignore[union-attr]
    assert divided(joint=0).logits(embeddings) is None


# ---------------------------------------------------------------------------------------------------- phases


def test_phases_of_the_published_schedules():
    two = head_config(clusters=2, every=2, warmup=0, joint=2)
    assert [phase_of(two, 8, epoch).level for epoch in range(8)] == [1] * 6 + [0, 0]
    assert [phase_of(two, 8, epoch).cluster for epoch in range(8)] == [True, False] * 3 + [False, False]
    grown = head_config(clusters=8, every=2, warmup=1, joint=1, freeze=1)
    assert [phase_of(grown, 10, epoch).level for epoch in range(10)] == [0, 1, 1, 2, 2, 3, 3, 3, 3, 0]
    assert [phase_of(grown, 10, epoch).frozen for epoch in range(10)] == [False, *[True, False] * 4, False]
    assert grown.levels == (1, 2, 4, 8)


@given(st.integers(1, 40), st.integers(0, 3), st.integers(1, 5), st.integers(0, 3), st.sampled_from([1, 2, 4, 8]))
def test_every_epoch_has_a_phase_and_levels_only_rise_until_the_joint_one(
    epochs: int, warmup: int, every: int, joint: int, clusters: int
):
    config = head_config(clusters=clusters, warmup=warmup, every=every, joint=joint)
    phases = [phase_of(config, epochs, epoch) for epoch in range(epochs)]
    middle = phases[min(warmup, epochs) : max(0, epochs - joint)]
    assert all(one.level <= other.level for one, other in pairwise(middle))
    assert all(phase.level == 0 for phase in [*phases[:warmup], *phases[max(0, epochs - joint) :]])
    for before, phase in pairwise(phases):
        assert phase.cluster or phase.level in (0, before.level)  # a level opens with clusters of its own


# ------------------------------------------------------------------------------------------------------ runs

DIVIDE: dict[str, Any] = {
    "head": {"name": "divide", "clusters": 4, "every": 1, "learner": MARGIN, "subspace": "learned"},
    "sampler_name": "balanced",
    "sampler_images": 2,
    "train_epochs": 6,
    "train_lr": 1e-3,
    "train_ema": 0.9,
}
SLICES: dict[str, Any] = {
    **DIVIDE,
    "head": {
        **DIVIDE["head"], "learner": ARCFACE, "subspace": "slices", "every": 2, "freeze": 1,
        "space": "embedding",
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", [DIVIDE, SLICES], ids=["learned masks", "slices"])
def test_run_goes_through_its_phases_and_says_what_clusters_hold(case: Path, tmp_path: Path, settings: dict):
    train(case, tmp_path, small(**settings))
    lines = log_lines(tmp_path, "clusters")
    expected = [(2, 2), (3, 4), (4, 4), (5, 4)] if settings is DIVIDE else [(2, 2), (4, 4)]
    assert [(line["epoch"], len(line["clusters"])) for line in lines] == expected
    for line in lines:
        assert sum(facts["images"] for facts in line["clusters"]) == 32
        assert all(facts["identities"] >= 2 for facts in line["clusters"])
    trained = load_run(tmp_path)
    assert isinstance(trained.head, DivideLearners)
    assert trained.head.get_buffer("assignment").unique().tolist() == [0, 1, 2, 3]
    embeddings = trained.embedder.embed(torch.randint(0, 256, (3, 32, 64, 3), dtype=torch.uint8))
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3))
    if settings is SLICES:
        slices = embeddings.unflatten(1, (4, -1)).norm(dim=2)
        assert torch.allclose(slices, torch.full_like(slices, 0.5))


def test_by_identity_no_pair_is_parted(case: Path, tmp_path: Path):
    head = {**DIVIDE["head"], "by": "identity"}
    train(case, tmp_path, small(**{**DIVIDE, "head": head}))
    assert [line["together"] for line in log_lines(tmp_path, "clusters")] == [1.0] * 4
    clusters = load_run(tmp_path).head.get_buffer("assignment")
    labels = torch.repeat_interleave(torch.arange(IDENTITIES), 4)
    assert len({(int(a), int(b)) for a, b in zip(clusters, labels, strict=True)}) == IDENTITIES
    assert clusters.unique().tolist() == [0, 1, 2, 3]


def test_learns_as_its_learner_does(case: Path, tmp_path: Path):
    settings = {**SLICES, "train_lr": 5e-3, "train_ema": 0.0, "train_epochs": 14}
    settings["head"] = {**SLICES["head"], "freeze": 0, "joint": 7}
    train(case, tmp_path, small(**settings))
    seen = [line["loss"] for line in log_lines(tmp_path, "epoch")]
    assert seen[-1] < 0.6 * seen[0]  # both on the whole embedding


@pytest.mark.parametrize("settings", [DIVIDE, SLICES], ids=["learned masks", "slices"])
def test_killed_in_any_phase_it_goes_on_to_the_same_result(case: Path, tmp_path: Path, monkeypatch, settings: dict):
    train(case, tmp_path / "whole", small(**settings))
    whole = checkpoint(tmp_path / "whole")
    steps = log_lines(tmp_path / "whole", "epoch")[-1]["step"]
    for stop in (1, steps // 4, steps // 2, steps - 2):  # warm-up, between clusterings, joint
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            with pytest.raises(KeyboardInterrupt):
                train(case, tmp_path / "killed", small(**settings), save_seconds=0)
            assert (tmp_path / "killed" / STATE).is_file()
    train(case, tmp_path / "killed", small(**settings))
    assert same(checkpoint(tmp_path / "killed"), whole)
    notes = [log_lines(tmp_path / name, "clusters") for name in ("killed", "whole")]
    assert notes[0] == notes[1]


def test_killed_inside_each_clustering_it_goes_on_to_the_same_result(case: Path, tmp_path: Path, monkeypatch):
    train(case, tmp_path / "whole", small(**DIVIDE))
    times = 0
    while True:
        with monkeypatch.context() as patch:
            patch.setattr(schedule, "repair", interrupt)
            patch.setattr(schedule, "bisect", interrupt)
            if times % 2:  # every other time it gets through one clustering and is killed in the next
                die_in_second(patch)
            try:
                train(case, tmp_path / "killed", small(**DIVIDE), save_seconds=0)
                break
            except KeyboardInterrupt:
                times += 1
        if times > 12:
            break
    train(case, tmp_path / "killed", small(**DIVIDE))
    assert times >= 4
    assert same(checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "whole"))


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


REPAIR, BISECT = schedule.repair, schedule.bisect


def die_in_second(patch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def repair(*arguments: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return REPAIR(*arguments)

    patch.setattr(schedule, "repair", repair)
    patch.setattr(schedule, "bisect", BISECT)


def test_two_processes_agree_on_the_clusters(case: Path, tmp_path: Path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, str(case), str(tmp_path)], env=environment, timeout=300)
    assert done.returncode == 0
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]
    for name, tensor in ranks[0].items():
        if "running_" not in name and "num_batches" not in name:  # statistics are each process's own
            torch.testing.assert_close(tensor, ranks[1][name], rtol=0, atol=0, msg=name)
    assert ranks[0]["head.assignment"].unique().tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------------- bad input


def test_more_clusters_than_identities(case: Path, tmp_path: Path):
    head = {**SLICES["head"], "clusters": 16}
    with pytest.raises(WhaleidError, match=f"head.clusters=16 for {IDENTITIES} identities"):
        train(case, tmp_path, small(**{**SLICES, "head": head}))
    with pytest.raises(WhaleidError, match=r"head.clusters=8 for 8 identities; use at most half"):
        train(case, tmp_path, small(**{**DIVIDE, "head": {**DIVIDE["head"], "by": "identity", "clusters": 8}}))


def test_too_few_epochs_for_the_clusters(case: Path, tmp_path: Path):
    with pytest.raises(WhaleidError, match=r"3 epochs less head.warmup=1 and head.joint=1 leave 1 for"):
        train(case, tmp_path, small(**{**DIVIDE, "train_epochs": 3}))


def test_features_that_are_not_finite(case: Path, tmp_path: Path, monkeypatch):
    from whaleid.training import epochs

    plain = epochs.extract_item_features
    monkeypatch.setattr(epochs, "extract_item_features", lambda *arguments: plain(*arguments) * np.float32("nan"))
    with pytest.raises(WhaleidError, match="row 0 of 32 holds NaN or infinity"):
        train(case, tmp_path, small(**DIVIDE))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"clusters": 3}, "clusters must be a power of two, not 3"),
        ({"learner": {"name": "divide", "learner": ARCFACE}}, "a learner of divide cannot be a divide itself"),
    ],
)
def test_heads_that_make_no_sense(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        TypeAdapter(DivideHead).validate_python({"name": "divide", "learner": ARCFACE, **settings})


def test_an_embedding_that_clusters_do_not_divide():
    with pytest.raises(WhaleidError, match=r"model.embedding \(18\) must be a multiple of head.clusters \(4\)"):
        small(**{**SLICES, "model_embedding": 18})
    with pytest.raises(WhaleidError, match=r"head.clusters=4 does not divide the embedding of 18 dimensions"):
        build_head(head_config(), 18, SIZES)
    with pytest.raises(WhaleidError, match="sampler: mined and head: divide both choose"):
        small(**{**SLICES, "sampler_name": "mined"})


def test_repaired_clusters_and_a_cluster_of_one_identity_in_a_run(case: Path, tmp_path: Path, monkeypatch):
    def lopsided(rows: np.ndarray, clusters: int, seed: int, **_: Any) -> tuple[np.ndarray, np.ndarray]:
        return (np.arange(len(rows)) >= len(rows) - clusters + 1).astype(np.int64), rows[:clusters]

    monkeypatch.setattr(clustering, "kmeans_partition", lopsided)
    head = {**SLICES["head"], "clusters": 2}
    train(case, tmp_path, small(**{**SLICES, "head": head}))
    line = log_lines(tmp_path, "clusters")[0]
    assert line["repaired"] >= 3
    assert min(facts["images"] for facts in line["clusters"]) >= 4  # a quarter of 32 / 2


if __name__ == "__main__":
    folder, out = map(Path, sys.argv[1:])
    sys.exit(max(two_processes(folder, out, {**DIVIDE, "train_ema": 0.0})))
