"""Divide and conquer in runs: what a run's phases do, and what kills and processes cannot change.

As a script it is two processes that train together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_divide import ARCFACE, MARGIN, SIZES, head_config
from training_world import IDENTITIES, checkpoint, log_lines, same, small, stop_after, train, two_processes, write_case

from whaleid.config import DivideHead
from whaleid.config.files import load_experiment
from whaleid.config.heads import DIVIDE_PRESETS
from whaleid.divide import clustering, schedule
from whaleid.divide.learners import DivideLearners
from whaleid.divide.schedule import phase_of
from whaleid.models.heads.registry import build_head
from whaleid.training.checkpoint import load_run
from whaleid.training.optimizer import parameter_groups
from whaleid.training.resume import STATE
from whaleid.training.schedule import make_schedule
from whaleid.utils.errors import WhaleidError

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


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("divide")
    write_case(folder)
    return folder


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
    assert two_processes(case, tmp_path, {**MASKS, "train_ema": 0.0}) == [0, 0]
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
