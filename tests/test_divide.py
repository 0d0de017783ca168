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

from whaleid.config import DivideHead, SamplerConfig
from whaleid.config.files import load_experiment
from whaleid.config.heads import DIVIDE_PRESETS
from whaleid.divide import clustering, learners, schedule
from whaleid.divide.learners import DivideLearners
from whaleid.divide.sampler import cluster_batches
from whaleid.divide.schedule import Phase, learners_of, phase_of
from whaleid.models.embedder import equal_slices
from whaleid.models.heads.registry import build_head
from whaleid.training.checkpoint import load_run
from whaleid.training.optimizer import parameter_groups
from whaleid.training.resume import STATE
from whaleid.training.schedule import make_schedule
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
    if head.masked:
        torch.nn.init.uniform_(head.masks, -0.5, 1.5)  # as after some training: not the ones that they start at
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


# ------------------------------------------------------------------------------------------------------ runs

MASKS: dict[str, Any] = {
    "head": {"name": "divide", "preset": "tpami2021", "clusters": 4, "every": 1, "learner": MARGIN},
    "sampler_name": "balanced",
    "sampler_images": 2,
    "train_epochs": 7,
    "train_lr": 1e-3,
    "train_ema": 0.9,
}
SLICES: dict[str, Any] = {
    **MASKS,
    "head": {"name": "divide", "preset": "cvpr2019", "clusters": 4, "learner": ARCFACE},
    "train_epochs": 6,
}


@pytest.mark.parametrize("settings", [MASKS, SLICES], ids=["masks", "slices"])
def test_run_goes_through_its_phases_and_says_what_clusters_hold(case: Path, tmp_path: Path, settings: dict):
    train(case, tmp_path, small(**settings))
    lines = log_lines(tmp_path, "clusters")
    merged = [(epoch, "merged", 4) for epoch in range(4, 8)]
    expected = [(2, "divided", 2), (3, "divided", 4), *merged]
    if settings is SLICES:
        expected = [(1, "divided", 4), (3, "merged", 4), (5, "merged", 4)]
    assert [(line["epoch"], line["phase"], len(line["clusters"])) for line in lines] == expected
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
    head = {**MASKS["head"], "by": "identity"}
    train(case, tmp_path, small(**{**MASKS, "head": head}))
    assert [line["together"] for line in log_lines(tmp_path, "clusters")] == [1.0] * 6
    clusters = load_run(tmp_path).head.get_buffer("assignment")
    labels = torch.repeat_interleave(torch.arange(IDENTITIES), 4)
    assert len({(int(a), int(b)) for a, b in zip(clusters, labels, strict=True)}) == IDENTITIES
    assert clusters.unique().tolist() == [0, 1, 2, 3]


def test_learns_as_its_learner_does(case: Path, tmp_path: Path):
    train(
        case,
        tmp_path,
        small(**{**SLICES, "train_lr": 5e-3, "train_ema": 0.0, "train_final_lr": 1.0, "train_epochs": 14}),
    )
    seen = [line["loss"] for line in log_lines(tmp_path, "epoch")]
    assert seen[-1] < 0.8 * seen[5]  # both on the full embedding


@pytest.mark.parametrize("preset", list(DIVIDE_PRESETS))
def test_one_cluster_is_the_plain_head_bit_for_bit(case: Path, tmp_path: Path, preset: str):
    plain = {**MASKS, "head": ARCFACE, "train_epochs": 3}
    train(case, tmp_path / "plain", small(**plain))
    train(
        case,
        tmp_path / "one",
        small(**{**plain, "head": {**MASKS["head"], "preset": preset, "clusters": 1, "learner": ARCFACE}}),
    )
    expected, found = checkpoint(tmp_path / "plain"), checkpoint(tmp_path / "one")
    renamed = {name.replace("head.learners.0.", "head."): tensor for name, tensor in found.items()}
    assert all(torch.equal(renamed[name], tensor) for name, tensor in expected.items())


def test_the_gold_experiment_differs_from_the_margin_loss_by_its_head_only():
    margin, divided = (load_experiment(f"gold/r50_{name}", {}) for name in ("margin", "divide"))
    assert isinstance(divided.head, DivideHead)
    assert divided.head.learner == margin.head
    assert divided.model_copy(update={"head": margin.head, "name": margin.name}) == margin


@pytest.mark.parametrize("name, share", [("lite0_divide", 0.6), ("gold/r50_divide", 0.25)])
def test_the_full_embedding_gets_its_share_of_the_learning_rate(name: str, share: float):
    experiment = load_experiment(name, {})
    assert isinstance(experiment.head, DivideHead)
    assert experiment.train.epochs is not None
    plan = make_schedule(experiment.train, [10] * experiment.train.epochs)
    phases = [phase_of(experiment.head, plan.epochs, step // 10).name for step in range(plan.steps)]
    rates = np.array([plan.factor(step) for step in range(plan.steps)])
    merged = np.isin(phases, ["merged", "joint"])
    assert rates[merged].sum() / rates.sum() >= share  # 0.05 where one cosine ran over 0.3 of the epochs


def test_masks_learn_at_a_hundred_times_the_rate(case: Path, tmp_path: Path):
    train(case, tmp_path, small(**{**MASKS, "train_ema": 0.0, "train_warmup": 0.0, "train_final_lr": 1.0}))
    trained = load_run(tmp_path)
    groups = parameter_groups(trained.embedder, trained.head, lr=1e-3, backbone_lr=0.3, weight_decay=0.1)
    (own,) = [group for group in groups if any(parameter is trained.head.masks for parameter in group["params"])]
    assert len(own["params"]) == 1
    assert (own["lr"], own["weight_decay"]) == (pytest.approx(0.1), 0.0)
    masks = trained.head.masks.detach()  # type: ignore[operator]
    assert (masks[2:] - masks[:2].repeat_interleave(2, dim=0)).abs().max() > 0.05  # a step is up to 0.1
    assert len({tuple(row.tolist()) for row in masks[2:]}) == 4


@pytest.mark.parametrize("settings", [MASKS, SLICES], ids=["masks", "slices"])
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
    train(case, tmp_path / "whole", small(**MASKS))
    times = 0
    while True:
        with monkeypatch.context() as patch:
            patch.setattr(schedule, "repair", interrupt)
            patch.setattr(schedule, "split", interrupt)
            if times % 2:  # every other time it gets through one clustering and is killed in the next
                die_in_second(patch)
            try:
                train(case, tmp_path / "killed", small(**MASKS), save_seconds=0)
                break
            except KeyboardInterrupt:
                times += 1
        if times > 12:
            break
    train(case, tmp_path / "killed", small(**MASKS))
    assert times >= 4
    assert same(checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "whole"))


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


REPAIR, SPLIT = schedule.repair, schedule.split


def die_in_second(patch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def repair(*arguments: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return REPAIR(*arguments)

    patch.setattr(schedule, "repair", repair)
    patch.setattr(schedule, "split", SPLIT)


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
        train(case, tmp_path, small(**{**MASKS, "head": {**MASKS["head"], "by": "identity", "clusters": 8}}))


def test_too_few_epochs_for_the_clusters(case: Path, tmp_path: Path):
    with pytest.raises(
        WhaleidError, match=r"of 3 epochs the first 1 are divided, and head.clusters=4 are reached after 2"
    ):
        train(case, tmp_path, small(**{**MASKS, "train_epochs": 3}))


def test_features_that_are_not_finite(case: Path, tmp_path: Path, monkeypatch):
    from whaleid.training import epochs

    plain = epochs.extract_item_features
    monkeypatch.setattr(epochs, "extract_item_features", lambda *arguments: plain(*arguments) * np.float32("nan"))
    with pytest.raises(WhaleidError, match="row 0 of 32 holds NaN or infinity"):
        train(case, tmp_path, small(**MASKS))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"clusters": 3, "preset": "tpami2021"}, "clusters must be a power of two with preset: tpami2021, not 3"),
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
    sys.exit(max(two_processes(folder, out, {**MASKS, "train_ema": 0.0})))
