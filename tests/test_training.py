"""One run from images to checkpoint."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from training_world import (
    ARCFACE,
    EACH,
    IDENTITIES,
    SIZE,
    SOFTMAX,
    checkpoint,
    in_children,
    log_lines,
    same,
    small,
    stop_after,
    train,
    two_processes,
    write_case,
)

from whaleid.config import Experiment
from whaleid.data.cache import open_cache
from whaleid.training import loop, run
from whaleid.training.checkpoint import CHECKPOINT, load_run, read_metadata
from whaleid.training.extract_features import class_means
from whaleid.training.resume import STATE
from whaleid.utils.errors import WhaleidError


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_case(folder)
    return folder


# ---------------------------------------------------------------------------------------------- one whole run


def test_run_learns_and_leaves_its_files(case: Path, tmp_path: Path):
    summary = train(case, tmp_path, small(train_epochs=6))
    losses = [line["loss"] for line in log_lines(tmp_path, "epoch")]
    assert len(losses) == 6
    assert losses[-1] < 0.6 * losses[0]
    assert summary.steps == 24
    assert summary.images == 6 * 32
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.safetensors", "classes.txt", "config.yaml", "log.jsonl", "tensorboard",
    ]  # fmt: skip
    step = log_lines(tmp_path, "step")[0]
    assert {"step", "epoch", "loss", "lr", "images_per_second", "gradient_norm"} <= step.keys()
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_finished_run_is_read_back_and_not_trained_again(case: Path, tmp_path: Path):
    summary = train(case, tmp_path, small(train_epochs=1))
    written = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    assert train(case, tmp_path, small(train_epochs=1)) == summary
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == written
    trained = load_run(tmp_path)
    assert trained.size == SIZE
    assert trained.classes == [f"whale {number}" for number in range(IDENTITIES)]
    assert trained.class_sizes.tolist() == [EACH - 1] * IDENTITIES
    assert trained.experiment == small(train_epochs=1)
    assert not trained.embedder.training
    embeddings = trained.embedder.embed(torch.zeros(2, SIZE[1], SIZE[0], 3, dtype=torch.uint8))
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(2))
    train(case, tmp_path, small(train_epochs=2))
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns != written


def test_same_seed_same_weights_and_another_seed_others(case: Path, tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(seed)  # what happened before in this process must not matter
        train(case, tmp_path / name, small(train_epochs=1, train_seed=seed, model_dropout=0.3))
    first = checkpoint(tmp_path / "a")
    assert same(first, checkpoint(tmp_path / "b"))
    assert not same(first, checkpoint(tmp_path / "c"))


def test_all_labelled_images_without_a_fold(case: Path, tmp_path: Path):
    assert train(case, tmp_path, small(train_epochs=1), fold=None).images == IDENTITIES * EACH


def test_loss_parameters_are_trained_and_saved(case: Path, tmp_path: Path):
    arguments = {"beta": 1.2, "learn_beta": True, "num_classes": IDENTITIES}
    head = {"name": "metric", "loss": "MarginLoss", "arguments": arguments}
    experiment = small(head=head, sampler_name="balanced", sampler_images=2, train_epochs=2)
    train(case, tmp_path, experiment)
    beta = next(tensor for name, tensor in checkpoint(tmp_path).items() if name.startswith("head.") and "beta" in name)
    assert not torch.allclose(beta, torch.full_like(beta, 1.2), atol=1e-4)
    loaded = load_run(tmp_path).head.state_dict()
    assert any(torch.equal(tensor, beta) for tensor in loaded.values())


def test_frozen_backbone_stands_still(case: Path, tmp_path: Path):
    start = initial_weights(case, small(train_epochs=2))
    train(case, tmp_path, small(train_epochs=2, **{"train_freeze.epochs": 2}))
    moved = {
        name for name, tensor in checkpoint(tmp_path).items() if name in start and not torch.equal(tensor, start[name])
    }
    assert moved
    assert not any(name.startswith("embedder.backbone.") for name in moved)
    train(case, tmp_path, small(train_epochs=2, **{"train_freeze.epochs": 1}))
    assert not torch.equal(*(w["embedder.backbone.net.conv1.0.weight"] for w in (start, checkpoint(tmp_path))))


def test_frozen_stages_stand_still_in_a_run(case: Path, tmp_path: Path):
    start = initial_weights(case, small(train_epochs=1))
    train(case, tmp_path, small(train_epochs=1, **{"train_freeze.stages": 2}))
    end, net = checkpoint(tmp_path), "embedder.backbone.net."
    first = [name for name in start if name.startswith((f"{net}conv1.", f"{net}bn1.", f"{net}layer1."))]
    assert first
    assert all(torch.equal(start[name], end[name]) for name in first)
    assert not any(torch.equal(start[name], end[name]) for name in start if name.startswith(f"{net}layer4.0.conv"))


def test_frozen_statistics_stand_still_while_weights_move(case: Path, tmp_path: Path):
    start = initial_weights(case, small(train_epochs=1))
    train(case, tmp_path, small(train_epochs=1, **{"train_freeze.batchnorm": True}))
    end = checkpoint(tmp_path)
    statistics = [name for name in start if name.startswith("embedder.backbone") and "running_" in name]
    assert statistics
    assert all(torch.equal(start[name], end[name]) for name in statistics)
    assert not torch.equal(start["embedder.backbone.net.conv1.0.weight"], end["embedder.backbone.net.conv1.0.weight"])


def make_session(case: Path, experiment: Experiment, out: Path) -> tuple[run.Task, run.Session]:
    images, folds = pd.read_parquet(case / "images.parquet"), pd.read_csv(case / "folds.csv")
    items = run.training_items(images, folds, 0, experiment, None)
    task = run.Task(experiment, 0, items, open_cache(case / "cache"), out, "key")
    return task, run.start(task, run.make_accelerator("no", task.title), case)


def initial_weights(case: Path, experiment: Experiment) -> dict[str, torch.Tensor]:
    _, session = make_session(case, experiment, case / "initial")
    return {name: tensor.clone() for name, tensor in session.module.state_dict().items()}


# ------------------------------------------------------------------------------------------------------ steps


def test_centres_start_at_the_means_of_their_images(case: Path, tmp_path: Path):
    task, session = make_session(case, small(head={**ARCFACE, "start": "means"}, train_ema=0.9), tmp_path)
    assert task.planner().prepare(session) is None
    pixels, items = torch.from_numpy(task.cache.read_many(task.items.rows)), task.items
    with torch.no_grad():
        units = session.module.embedder.eval().embed(pixels).numpy()
    rows = [(row - units.mean(axis=0)) / units.std(axis=0) for row in units]
    for label in range(IDENTITIES):
        own = [row / np.linalg.norm(row) for row, of in zip(rows, items.labels, strict=True) if of == label]
        mean = np.sum(own, axis=0)
        center = session.module.get_parameter("head.centers")[label, 0].detach().numpy()
        np.testing.assert_allclose(center, mean / np.linalg.norm(mean), atol=1e-4)
    assert torch.equal(session.weights()["head.centers"], session.module.get_parameter("head.centers"))


def test_means_of_a_constant_dimension_and_of_a_class_without_images_are_finite():
    embeddings = np.array([[1, 2, 5], [1, 0, 5], [1, 4, 5]], np.float32)
    means = class_means(embeddings, np.array([0, 2, 0]), 3)
    np.testing.assert_allclose(means, [[0, 1, 0], [0, 0, 0], [0, -1, 0]], atol=1e-6)


def test_centres_at_random_and_of_later_epochs_stay(case: Path, tmp_path: Path):
    for start, epoch in (("random", 0), ("means", 1)):
        task, session = make_session(case, small(head={**ARCFACE, "start": start}), tmp_path / start)
        session.progress.epoch = epoch
        before = session.module.get_parameter("head.centers").clone()
        task.planner().prepare(session)
        assert torch.equal(before, session.module.get_parameter("head.centers"))


def test_accumulation_has_the_gradient_of_one_large_batch(case: Path, tmp_path: Path):
    """For a network and a loss that do not couple the images of a batch: statistics frozen, softmax."""
    settings = {
        "head": SOFTMAX,
        "model_neck": "linear",
        "train_freeze.batchnorm": True,
        "train_optimizer": "sgd",
    }
    settings |= {"train_warmup": 0.0, "train_weight.decay": 0.0, "train_clip": 0.0, "train_lr": 1e-2}
    settings["train_weight_decay"] = settings.pop("train_weight.decay")
    images = torch.randint(0, 256, (22, SIZE[1], SIZE[0], 3), dtype=torch.uint8)
    labels = torch.arange(22) % IDENTITIES
    ends = []
    for parts in ([22], [16, 6]):
        _, session = make_session(case, small(**settings), tmp_path / str(len(parts)))
        loop.set_mode(session)
        batches = iter(list(zip(images.split(parts), labels.split(parts), strict=True)))
        loss = loop.take_step(session, session.module, batches, [(size, 0) for size in parts])
        ends.append((loss, session.module.state_dict()))
    assert ends[0][0].item() == pytest.approx(ends[1][0].item(), rel=1e-5)
    for name, tensor in ends[0][1].items():
        assert torch.allclose(tensor.float(), ends[1][1][name].float(), atol=1e-6), name


def test_average_equals_a_naive_one(case: Path, tmp_path: Path):
    _, session = make_session(case, small(train_ema=0.3), tmp_path)
    assert session.ema is not None
    average = {name: tensor.double() for name, tensor in session.module.state_dict().items()}
    for step in range(6):
        for parameter in session.module.parameters():
            parameter.data += torch.randn_like(parameter)
        session.module.get_buffer("embedder.backbone.net.bn1.running_mean").add_(1.0)
        session.ema.update(session.module, step)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, tensor in session.module.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * tensor.double()
    weights = session.weights()
    for name, tensor in session.module.state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(weights[name].double(), average[name], atol=1e-5), name
    session.restart_average(["head.centers"])
    assert torch.equal(session.weights()["head.centers"], session.module.get_parameter("head.centers"))


def test_clipping_bounds_the_step(case: Path, tmp_path: Path):
    """Plain SGD at rate 1 moves by the clipped gradient (Nesterov's first step: 1.9 of it)."""
    settings = {
        "train_optimizer": "sgd",
        "train_lr": 1.0,
        "train_backbone_lr": 1.0,
        "train_weight_decay": 0.0,
    }
    _, session = make_session(case, small(train_clip=0.01, train_warmup=0.0, **settings), tmp_path)
    loop.set_mode(session)
    before = [parameter.detach().clone() for parameter in session.module.parameters()]
    batch = torch.randint(0, 256, (8, SIZE[1], SIZE[0], 3), dtype=torch.uint8), torch.arange(8)
    loop.take_step(session, session.module, iter([batch]), [(8, 0)])
    moved = [(now - then).norm() for now, then in zip(session.module.parameters(), before, strict=True)]
    assert session.gradient_norm is not None
    assert session.gradient_norm > 0.01
    assert torch.stack(moved).norm().item() == pytest.approx(0.019, rel=1e-3)


# ----------------------------------------------------------------------------------- killed, diverged, broken


RESUMED = {
    "model_dropout": 0.2,
    "model_drop_path": 0.1,
    "train_ema": 0.9,
}


QUEUE = {"name": "metric", "loss": "CrossBatchMemory", "arguments": {"loss": "ContrastiveLoss", "memory_size": 24}}
HINGE = {"name": "metric", "loss": "TripletMarginLoss", "arguments": {"margin": 0.2}}
KILLED: dict[str, tuple[int, dict[str, Any]]] = {
    "everything": (6, RESUMED),
    "accumulated": (3, {"train_accumulate": 2, "train_optimizer": "sgd", "train_freeze.epochs": 2}),
    "queue": (6, {"head": QUEUE, "sampler_name": "balanced", "sampler_images": 2}),
    "mined": (6, {"head": HINGE, "sampler_name": "mined", "sampler_images": 2, "sampler_every": 1}),
    "means": (2, {"head": {**ARCFACE, "start": "means"}, "train_ema": 0.9}),
}
"""Step in the middle of the first or second epoch at which the process kills itself, and the run's settings."""


@pytest.mark.parametrize("name", KILLED)
def test_killed_run_goes_on_to_the_same_result(children: Path, case: Path, tmp_path: Path, name: str):
    killed, whole = children / name, tmp_path
    _, settings = KILLED[name]
    assert (killed / STATE).is_file()
    assert not (killed / CHECKPOINT).exists()
    resumed = train(case, killed, small(**settings))
    straight = train(case, whole, small(**settings))
    assert same(checkpoint(killed), checkpoint(whole))
    assert replace(resumed, seconds=0) == replace(straight, seconds=0)
    epochs = [[line["loss"] for line in log_lines(out, "epoch")] for out in (killed, whole)]
    assert len(epochs[0]) == 3
    assert epochs[0] == epochs[1]
    assert not (killed / STATE).parent.exists()


def test_state_of_other_settings_is_dropped(case: Path, tmp_path: Path, monkeypatch, capsys):
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(case, tmp_path / "a", small(train_lr=1e-3, train_epochs=1), save_seconds=0)
    monkeypatch.undo()
    train(case, tmp_path / "a", small(train_epochs=1))
    assert "other settings" in capsys.readouterr().out
    train(case, tmp_path / "b", small(train_epochs=1))
    assert same(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))


def test_loss_that_is_not_finite_stops_and_keeps_the_good_state(case: Path, tmp_path: Path, monkeypatch):
    plain = loop.take_step

    def take_step(session, *arguments):
        loss = plain(session, *arguments)
        return loss * float("nan") if session.progress.step == 5 else loss

    monkeypatch.setattr(loop, "take_step", take_step)
    with pytest.raises(WhaleidError, match=r"experiment default, fold 0: the loss is nan at epoch 2, step 6") as raised:
        train(case, tmp_path, small(), save_seconds=0)
    assert "train.lr" in str(raised.value)
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    resumed = train(case, tmp_path, small())
    assert resumed.steps == 12
    train(case, tmp_path / "whole", small())
    assert same(checkpoint(tmp_path), checkpoint(tmp_path / "whole"))


def test_weights_that_a_step_broke_are_not_saved(case: Path, tmp_path: Path, monkeypatch):
    plain = loop.take_step

    def take_step(session, *arguments):
        loss = plain(session, *arguments)
        if session.progress.step == 2:
            next(session.module.head.parameters()).data.fill_(float("inf"))
        return loss

    monkeypatch.setattr(loop, "take_step", take_step)
    with pytest.raises(WhaleidError, match="weights are no longer finite at epoch 1, step 3"):
        train(case, tmp_path, small(), save_seconds=0)


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_truncated_checkpoint_is_one_clear_line(case: Path, tmp_path: Path, keep: int):
    train(case, tmp_path, small(train_epochs=1))
    os.truncate(tmp_path / CHECKPOINT, keep)
    with pytest.raises(WhaleidError, match=r"checkpoint\.safetensors: broken or cut short") as raised:
        load_run(tmp_path)
    assert "\n" not in str(raised.value)
    assert read_metadata(tmp_path) is None


def test_files_that_do_not_belong_together_are_refused(case: Path, tmp_path: Path):
    with pytest.raises(WhaleidError, match="no checkpoint"):
        load_run(tmp_path)
    train(case, tmp_path, small(train_epochs=1))
    config = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("embedding: 16", "embedding: 24"))
    with pytest.raises(WhaleidError, match="another shape of"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "classes.txt").write_text("whale 0\n")
    with pytest.raises(WhaleidError, match="1 classes"):
        load_run(tmp_path)


def test_precision_that_the_device_lacks_is_one_clear_line(case: Path, tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("fp16 works here")
    with pytest.raises(WhaleidError, match=r"train\.precision=fp16 needs a GPU"):
        train(case, tmp_path, small(train_precision="fp16"))


def test_bf16_trains(case: Path, tmp_path: Path):
    summary = train(case, tmp_path, small(train_precision="bf16", train_epochs=1))
    assert summary.precision == "bf16"
    assert checkpoint(tmp_path)["head.centers"].dtype == torch.float32


# ----------------------------------------------------------------------------------------- several processes


def test_shares_of_a_plan_are_equal_and_hold_every_item():
    plan = [np.arange(8), np.arange(7), np.arange(3)]
    shares = [run.share_of(plan, process, 2) for process in range(2)]
    for number, batch in enumerate(plan):
        one, other = shares[0][number], shares[1][number]
        assert len(one) == len(other)
        assert set(one) | set(other) == set(batch)
    assert [len(batch) for batch in run.share_of(plan, 0, 1)] == [8, 7, 3]


def test_two_processes_equal_one(children: Path, case: Path, tmp_path: Path):
    """Where nothing couples a batch's images or draws numbers, the halves of a batch give its gradient."""
    ranks = [load_file(children / "two" / f"rank{rank}.safetensors") for rank in range(2)]
    assert same(*ranks)
    assert (children / "two" / CHECKPOINT).is_file()
    train(case, tmp_path, small(**TWO))
    alone = checkpoint(tmp_path)
    start = initial_weights(case, small(**TWO))
    name = "head.linear.weight"
    assert not torch.allclose(start[name], alone[name], atol=1e-3)
    for name, tensor in ranks[0].items():
        assert torch.allclose(tensor.float(), alone[name].float(), atol=1e-4), name


# ------------------------------------------------------------------------------------- processes of their own

TWO = {
    **{f"augment.{name}": 0.0 for name in type(small().augment).model_fields},
    "head": SOFTMAX,
    "model_neck": "linear",
    "train_epochs": 2,
    "train_freeze.batchnorm": True,
    "train_optimizer": "sgd",
}


@pytest.fixture(scope="session")
def children(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of runs that killed themselves, and of one by two processes: forks, which need not import torch."""
    out = tmp_path_factory.mktemp("children")
    killed = [partial(train_and_die, case, out / name, step, settings) for name, (step, settings) in KILLED.items()]
    assert in_children(killed) == [-signal.SIGKILL] * len(killed)
    assert two_processes(case, out / "two", TWO) == [0, 0]
    return out


def train_and_die(case: Path, out: Path, step: int, settings: dict[str, Any]) -> None:
    plain = loop.take_step

    def take_step(session, *arguments):
        if session.progress.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(session, *arguments)

    loop.take_step = take_step
    train(case, out, small(**settings), save_seconds=0.0)
