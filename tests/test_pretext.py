"""Training without labels: transformations and pseudo-labels against loops, whole pretrainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from training_world import SIZE, log_lines, same, small, stop_after, write_case

from whaleid.config import DeepClusterHead, JigsawHead, PretextExperiment, RotationHead
from whaleid.data.cache import open_cache
from whaleid.models.embedder import build_embedder
from whaleid.models.heads.deepcluster import ClusterClassifier
from whaleid.models.heads.jigsaw import PLACES, JigsawClassifier, patch_corners, patch_pairs, patch_size
from whaleid.models.heads.rotation import RotationClassifier, four_turns
from whaleid.training.deepcluster import (
    ITERATIONS,
    MIXING,
    merge_small,
    power_iteration_clusters,
    pseudo_labels,
    unit_rows,
    whiten,
)
from whaleid.training.epochs import batches_of, uniform_batches
from whaleid.training.optimizer import optimizer_tensors
from whaleid.training.pretrain import pretrain_run, unlabelled_items
from whaleid.training.resume import STATE
from whaleid.training.run import RunSummary, Task, run_epoch, start
from whaleid.training.session import make_accelerator
from whaleid.utils.errors import WhaleidError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --------------------------------------------------------------------------------------------- transformations


def test_turns_of_square_images_are_numpys() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    turned, labels = four_turns(torch.from_numpy(images))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for place, label in enumerate(labels.tolist()):
        expected = np.rot90(images[place % 2], label)
        assert np.array_equal(turned[place].numpy(), expected)


def test_turns_of_wide_images_come_back_to_their_size() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    turned, _ = four_turns(torch.from_numpy(image[None]))
    assert turned.shape == (4, 8, 16, 3)
    assert np.array_equal(turned[2].numpy(), image[::-1, ::-1])
    assert np.allclose(turned[3].numpy(), turned[1].numpy()[::-1, ::-1], atol=1e-3)
    for channel in range(3):  # Pillow's bilinear filter averages where it shrinks, as torch's antialias does
        plane = Image.fromarray(np.rot90(image)[..., channel].astype(np.float32))
        assert np.allclose(turned[1, ..., channel].numpy(), plane.resize((16, 8), Image.Resampling.BILINEAR), atol=1e-2)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 200),
    st.integers(20, 200),
    st.floats(0, 1),
    st.floats(0, 0.5),
    st.integers(0, 7),
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
)
def test_patches_lie_inside_apart_and_where_the_label_says(
    width: int, height: int, gap: float, share: float, place: int, shifts: list[float]
) -> None:
    size, jitter = (width, height), gap * share
    try:
        patch = patch_size(size, gap, jitter)
    except WhaleidError:
        assert min(size) < 4 * (3 + 2 * gap + 2 * jitter) + 1e-6
        return
    moved = torch.tensor(shifts).reshape(1, 2, 2)
    (centre, neighbour), *_ = patch_corners(size, patch, gap, jitter, torch.tensor([place]), moved).tolist()
    for axis in range(2):
        for corner in (centre, neighbour):
            assert 0 <= corner[axis] <= size[axis] - patch[axis]
        step = neighbour[axis] - centre[axis]
        if PLACES[place][axis]:
            assert step * PLACES[place][axis] >= patch[axis] - 1  # rounding
        else:
            assert abs(step) <= 2 * jitter * patch[axis] + 1


def test_patches_equal_a_loop() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    corners = np.random.default_rng(1).integers(0, 15, (3, 2, 2))
    pairs = patch_pairs(torch.from_numpy(images), torch.from_numpy(corners), (8, 5), (8, 5))
    for number in range(3):
        for second in range(2):
            x, y = corners[number, second]
            expected = images[number, y : y + 5, x : x + 8]
            assert np.array_equal(pairs[3 * second + number].numpy(), expected)


def test_places_that_the_network_is_asked_for_are_right() -> None:
    """Images whose pixels say where they are: a patch's mean is its middle."""
    size = (128, 64)
    y, x = np.mgrid[: size[1], : size[0]]
    images = torch.from_numpy(np.stack([x, y, 0 * x], axis=2).astype(np.uint8)).expand(40, -1, -1, -1)
    head = JigsawClassifier(JigsawHead(name="jigsaw"), 4, torch.tensor([40]))
    patch = patch_size(size, 0.5, 0.07)
    torch.manual_seed(0)  # places are drawn; 40 draws of 8 may leave one out
    shown, answers = head.question(images, torch.zeros(40, dtype=torch.int64), (64, 32))
    assert shown.shape == (80, 32, 64, 3)
    middles = shown.mean(dim=(1, 2))[:, :2]
    steps = (middles[40:] - middles[:40]) / torch.tensor(patch)
    assert len(answers.unique()) == 8
    expected = torch.tensor(PLACES, dtype=torch.float32)[answers]
    assert torch.equal((steps / 1.5).round(), expected)
    assert not torch.allclose(steps, 1.5 * expected, atol=0.02)  # jittered


def test_sizes_that_the_network_is_shown() -> None:
    jigsaw = JigsawHead(name="jigsaw")
    assert JigsawClassifier.network_size(jigsaw, "resnet18", (128, 64)) == (64, 32)
    assert JigsawClassifier.network_size(jigsaw, "resnet18", (40, 40)) == (32, 32)
    assert JigsawClassifier.network_size(jigsaw, "vit_tiny_patch16_224", (128, 64)) == (128, 64)
    assert RotationClassifier.network_size(RotationHead(name="rotation"), "resnet18", (130, 70)) == (130, 70)
    with pytest.raises(WhaleidError, match="images of 64x12 give patches of 15x2 pixels"):
        patch_size((64, 12), 0.5, 0.07)


# ----------------------------------------------------------------------------------------------- pseudo-labels


def test_whitening_leaves_the_identity_as_covariance() -> None:
    features = noise(200, 12) @ np.diag(np.linspace(0.1, 5, 12)) @ noise(12, 12, seed=1) + 3
    for dimensions in (12, 5):
        white = whiten(features.astype(np.float32), dimensions)
        assert white.shape == (200, dimensions)
        assert np.allclose(white.mean(axis=0), 0, atol=1e-4)
        assert np.allclose(white.T @ white / 200, np.eye(dimensions), atol=1e-3)
    flat = np.concatenate([features, np.full((200, 3), 7.0)], axis=1).astype(np.float32)
    assert whiten(flat, 15).shape == (200, 12)
    assert not whiten(np.ones((9, 4), dtype=np.float32), 4).any()


def blobs(*sizes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    truth = np.repeat(np.arange(len(sizes)), sizes)
    centres = 20 * np.eye(len(sizes), 4)
    return (centres[truth] + noise(len(truth), 4, seed=seed)).astype(np.float32), truth


def test_power_iteration_equals_a_loop() -> None:
    features, _ = blobs(15, 10)
    count, k = len(features), 4
    distances = ((features[:, None] - features[None]) ** 2).sum(axis=2)
    near = [sorted((j for j in range(count) if j != i), key=lambda j, i=i: distances[i, j])[:k] for i in range(count)]
    scale = np.median([distances[i, j] for i in range(count) for j in near[i]])
    w = np.zeros((count, count))
    for i in range(count):
        for j in near[i]:
            w[i, j] = np.exp(-distances[i, j] / scale)
    v = np.full(count, 1 / count)
    for _ in range(ITERATIONS):
        v = MIXING * (w + w.T) @ v + (1 - MIXING) * v
        v /= v.sum()
    summit = []
    for i in range(count):
        at = i
        while True:
            rise, best = max((w[at, j] * (v[j] - v[at]), j) for j in near[at])
            if rise <= 0:
                break
            at = best
        summit.append(at)
    found = power_iteration_clusters(features, k)
    assert len(set(zip(summit, found.tolist(), strict=True))) == len(set(summit)) == found.max() + 1


def test_power_iteration_separates_planted_clusters() -> None:
    features, truth = blobs(60, 40)
    found = power_iteration_clusters(features)
    assert all(len(set(truth[found == cluster])) == 1 for cluster in range(found.max() + 1))
    assert found.max() + 1 < 40
    assert power_iteration_clusters(np.zeros((8, 3), dtype=np.float32)).shape == (8,)


def test_small_clusters_join_their_nearest() -> None:
    features, truth = blobs(9, 3, 7, 2)
    features[truth == 1] = features[truth == 0].mean(axis=0) + 1
    merged = merge_small(features, truth, 2)
    centres = [features[truth == 0].mean(axis=0), features[truth == 2].mean(axis=0)]
    for row, was, now in zip(features, truth, merged, strict=True):
        nearest = int(np.argmin([((row - centre) ** 2).sum() for centre in centres]))
        assert now == {0: 0, 2: 1}.get(int(was), nearest)
    assert merge_small(features, truth, 4) is truth


@pytest.mark.parametrize("clustering", ["kmeans", "pic"])
def test_pseudo_labels_find_planted_clusters_and_repeat(clustering: Any) -> None:
    features, truth = blobs(40, 30, 30)
    config = DeepClusterHead(name="deepcluster", clusters=3, clustering=clustering)
    found = pseudo_labels(features, config, seed=1)
    assert np.array_equal(found, pseudo_labels(features, config, seed=1))
    assert sorted(set(found)) == list(range(found.max() + 1))
    assert found.max() < 3
    if clustering == "kmeans":
        assert len(set(zip(truth, found, strict=True))) == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(2, 16), st.integers(0, 5))
def test_every_cluster_is_drawn_equally_often(sizes: list[int], batch: int, epoch: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    if len(labels) < 2:
        return
    plan = uniform_batches(labels, batch, epoch, seed=3)
    assert len(plan) == batches_of(len(labels), batch)
    lengths = [len(chosen) for chosen in plan]
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= max(3, batch)
    assert min(lengths) >= 2
    drawn = np.concatenate(plan)
    assert len(drawn) == len(labels)
    each = np.bincount(labels[drawn], minlength=len(sizes))
    assert each.max() - each.min() <= 1
    times = np.bincount(drawn, minlength=len(labels))
    assert all(np.ptp(times[labels == cluster]) <= 1 for cluster in range(len(sizes)))
    assert all(np.array_equal(a, b) for a, b in zip(plan, uniform_batches(labels, batch, epoch, 3), strict=True))


def test_unit_rows_leave_zero_rows() -> None:
    assert np.allclose(unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]])


# ------------------------------------------------------------------------------------------ whole pretrainings

ROTATION = {"name": "rotation"}
JIGSAW = {"name": "jigsaw", "gap": 0.2, "jitter": 0.05}
DEEPCLUSTER = {"name": "deepcluster", "clusters": 4, "every": 2}
PRETEXTS: dict[str, dict[str, Any]] = {
    "rotation": ROTATION,
    "jigsaw": JIGSAW,
    "deepcluster": {**DEEPCLUSTER, "every": 9},
    "pic": {**DEEPCLUSTER, "every": 9, "clustering": "pic"},
}


def pretext(head: dict[str, Any], **changes: Any) -> PretextExperiment:
    """The small experiment of the other tests, with a pretext; `train_epochs=2` stands for `train.epochs=2`."""
    content = small(model_neck="none", model_pool="avg", **changes).model_dump(mode="json", exclude={"adapter_of"})
    return PretextExperiment.model_validate({**content, "head": head})


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretext")
    write_case(folder)
    return folder


def pretrain(case: Path, out: Path, experiment: PretextExperiment, **given: Any) -> RunSummary:
    images = pd.read_parquet(case / "images.parquet")
    return pretrain_run(
        experiment, images, False, open_cache(case / "cache"), out, out / "backbone.safetensors", case, **given
    )


@pytest.mark.parametrize("name", PRETEXTS)
def test_a_pretext_is_learnt_and_its_backbone_is_a_start(case: Path, tmp_path: Path, name: str) -> None:
    summary = pretrain(case, tmp_path, pretext(PRETEXTS[name], train_epochs=4))
    losses = [line["loss"] for line in log_lines(tmp_path, "epoch")]
    assert len(losses) == 4
    assert losses[-1] < 0.97 * losses[0]
    assert (summary.steps, summary.images) == (20, 160)
    path = tmp_path / "backbone.safetensors"
    embedder = build_embedder(small(model_weights=str(path)).model, case, size=SIZE)
    written = load_file(path)
    loaded = embedder.backbone.net.state_dict()
    assert same(written, {name: tensor.contiguous() for name, tensor in loaded.items()})
    assert not (tmp_path / STATE).parent.exists()
    assert pretrain(case, tmp_path, pretext(PRETEXTS[name], train_epochs=4)) == summary  # nothing left to do


@pytest.mark.parametrize(
    ("head", "steps"),
    [(JIGSAW, 8), (DEEPCLUSTER, 7), (DEEPCLUSTER, 10), ({**DEEPCLUSTER, "clustering": "pic"}, 12)],
)
def test_killed_pretraining_goes_on_to_the_same_bytes(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: dict[str, Any], steps: int
) -> None:
    experiment = pretext(head, train_epochs=3, train_ema=0.9)
    stop_after(monkeypatch, steps)
    with pytest.raises(KeyboardInterrupt):
        pretrain(case, tmp_path / "killed", experiment, save_seconds=0)
    monkeypatch.undo()
    assert (tmp_path / "killed" / STATE).is_file()
    pretrain(case, tmp_path / "killed", experiment)
    pretrain(case, tmp_path / "whole", experiment)
    killed, whole = (load_file(tmp_path / name / "backbone.safetensors") for name in ("killed", "whole"))
    assert same(killed, whole)
    for kind, key in (("epoch", "loss"), ("clusters", "agreement")):
        told = [[line[key] for line in log_lines(tmp_path / name, kind)] for name in ("killed", "whole")]
        assert told[0] == told[1]
    assert len(log_lines(tmp_path / "whole", "clusters")) == (0 if head is JIGSAW else 2)


def test_classifier_starts_anew_and_unused_outputs_stay_out() -> None:
    head = ClusterClassifier(DeepClusterHead(name="deepcluster", clusters=6), 4, torch.tensor([5]))
    before = head.linear.weight.detach().clone()
    head.start_anew(3)
    assert not torch.equal(before, head.linear.weight)
    rows, labels = torch.from_numpy(noise(5, 4)), torch.tensor([0, 1, 2, 0, 1])
    loss = head(rows, labels)
    expected = torch.nn.functional.cross_entropy(head.linear(rows)[:, :3], labels)
    assert torch.allclose(loss, expected)
    loss.backward()
    assert head.linear.weight.grad is not None
    assert not head.linear.weight.grad[3:].any()


def test_a_new_clustering_leaves_no_memory_of_the_old_classifier(case: Path, tmp_path: Path) -> None:
    experiment = pretext({**DEEPCLUSTER, "every": 1}, train_epochs=2, train_ema=0.9)
    items = unlabelled_items(pd.read_parquet(case / "images.parquet"), test=False)
    task = Task(experiment, None, items, open_cache(case / "cache"), tmp_path, "key")
    session = start(task, make_accelerator("no", task.title), case)
    run_epoch(task, session, None)
    head = session.module.head
    assert isinstance(head, ClusterClassifier)
    assert head.linear.weight in session.optimizer.state
    old = head.linear.weight.detach().clone()
    planner = task.planner()
    assert planner.prepare(session) is not None
    assert not torch.equal(old, head.linear.weight)
    moments = optimizer_tensors(session.optimizer, session.module)
    assert moments
    assert not any("head." in name for name in moments)
    assert session.ema is not None
    assert torch.equal(session.weights()["head.linear.weight"], head.linear.weight)
    assert sorted(np.unique(planner.labels(session))) == list(range(int(head.get_buffer("found"))))


def test_images_of_the_test_set_only_where_asked_for() -> None:
    images = pd.DataFrame({"split": ["train", "test", "train", "test"], "identity": ["a", None, "new", None]})
    assert unlabelled_items(images, test=False).rows.tolist() == [0, 2]
    assert unlabelled_items(images, test=True).rows.tolist() == [0, 1, 2, 3]
    with pytest.raises(WhaleidError, match="at least 2 images, and found 0"):
        unlabelled_items(images[1:2], test=False)


def test_more_clusters_than_images_is_one_clear_line(case: Path, tmp_path: Path) -> None:
    with pytest.raises(WhaleidError, match=r"head\.clusters=41, but there are only 40 images"):
        pretrain(case, tmp_path, pretext({**DEEPCLUSTER, "clusters": 41}))


@pytest.mark.parametrize(
    ("head", "said"),
    [({"jitter": 0.3}, "jitter \\(0.3\\) above half the gap"), ({"gaps": 1}, "gaps")],
)
def test_wrong_options_are_refused(head: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        JigsawHead.model_validate({"name": "jigsaw", **head})
