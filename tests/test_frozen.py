"""Frozen networks as experiments (one run and one extraction, whatever the number of folds), and adapters on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import draw_sample
from pipeline_world import figures_of
from safetensors.torch import load_file

from whaleid.config.files import load_experiment, load_recipe, parse_overrides
from whaleid.config.settings import Settings
from whaleid.features.extractor import load_extractor
from whaleid.features.files import FeatureRows, open_embeddings
from whaleid.models import hub
from whaleid.models.embedder import build_adapter
from whaleid.pipeline.data_stages import read_cache
from whaleid.pipeline.plan import Census, plan_lines
from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.runner import Only, run
from whaleid.training.run import train_run
from whaleid.utils.errors import WhaleidError

COMPETITION = """
name: drawn
root: data
train: {csv: train.csv, images: train, image: Image, identity: Id}
test: {csv: sample_submission.csv, images: test, image: Image}
unknown: new_whale
"""
ICE = "extends: frozen\nmodel: {backbone: test_resnet, weights: random}\nimage: {width: 64, height: 32}\n"
WARM = """
adapter_of: ice
model: {neck: bnneck, embedding: 8, dropout: 0.1}
head: {name: softmax}
train: {epochs: 3, batch: 8, lr: 0.01}
"""
COMBINE = "combine: {full_gallery: false, concat: {whiten: 8}, classifier: {epochs: 2, seeds: 1}}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen")
    draw_sample(folder / "data", identities=10, train_images=40, test_images=12)
    (folder / "drawn.yaml").write_text(COMPETITION)
    (folder / "ice.yaml").write_text(ICE)
    (folder / "warm.yaml").write_text(WARM)
    return folder


def project(place: Path, recipe: str, *pairs: str, work: str = "work") -> Project:
    path = place / f"{work}.yaml"
    path.write_text(f"folds: 3\n{recipe}\n{COMBINE}\n")
    settings = Settings(weights=place / "weights")
    return open_project(str(place / "drawn.yaml"), str(path), place / work, list(pairs), settings=settings)


def test_a_frozen_network_is_extracted_once_for_all_folds(place: Path) -> None:
    one = project(place, "experiments: [ice]")
    assert Counter(task.stage for task in run(one, "features")) == Counter(["images", "cache", "frozen"])
    assert [path.name for path in (one.workspace.root / "features" / "ice").iterdir() if path.is_dir()] == ["full"]
    assert np.load(one.workspace.features("ice", None) / "embeddings.npy").shape == (52, 96)
    rungs = figures_of(one)["ladder"]["rungs"]
    assert any(rung["name"].startswith("ice") for rung in rungs)
    more = project(place, "experiments: [ice]\nfull: true\nset: {train.epochs: 9, train.lr: 1.0}")
    assert run(more, "features") == []  # neither the recipe's length nor its rate is one of a frozen network
    with pytest.raises(WhaleidError, match="ice is frozen, the same for every fold; use --full"):
        run(one, "features", only=Only("ice", fold=0))
    assert run(one, "features", only=Only("ice", full=True)) == []


def test_the_plan_counts_one_run_and_no_training(place: Path) -> None:
    census = Census(40, 0, 10, 12, 2.0, estimated=False)
    lines = plan_lines(project(place, "experiments: [ice]"), census, None, 8, None)
    assert "0 experiments x 3 folds + 1 frozen = 1 runs" in lines[0]
    assert " none 64x32 " in " ".join("\n".join(lines).split())


def test_a_network_that_cannot_be_had_is_reported_before_any_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str) -> None:
        raise OSError("no route")

    monkeypatch.setattr(hub, "_ask", offline)
    (place / "deep.yaml").write_text(ICE.replace("test_resnet, weights: random", '"hf-hub:who/Deep-L"'))
    missing = project(place, "experiments: [ice, deep]", work="offline")
    with pytest.raises(WhaleidError, match=r"put config\.json and model\.safetensors there") as caught:
        run(missing, "ladder")
    assert str(place / "weights" / "Deep-L") in str(caught.value) and "\n" not in str(caught.value)
    assert not missing.workspace.images.exists() and not missing.workspace.folds.exists()


def test_the_size_is_the_networks_own_where_none_is_given(place: Path) -> None:
    (place / "own.yaml").write_text("extends: frozen\nmodel: {backbone: test_resnet, weights: random}\n")
    image = project(place, "experiments: [own]", work="sized").experiments[0].image
    assert (image.width, image.height) == (160, 160)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["train.epochs=0"], "go together"),
        (["head={name: none}"], "go together"),
        (["train.epochs=0", "head={name: none}"], "would stay random"),
        (["head={name: sum, parts: [{head: {name: none}}]}"], "a part of a sum needs a loss"),
        (["head={name: divide, learner: {name: none}}"], "the learner of divide needs a loss"),
    ],
)
def test_what_cannot_be_frozen_is_refused(changes: list[str], expected: str) -> None:
    given: dict[str, Any] = parse_overrides(changes)
    with pytest.raises(WhaleidError, match=expected):
        load_experiment("default", given)


# ---------------------------------------------------------------------------------------------------- adapters


def test_adapters_are_trained_on_features_that_were_extracted_once(place: Path) -> None:
    one = project(place, "experiments: [ice, warm]", work="adapters")
    figures = figures_of(one)
    assert one.workspace.stamp(one.workspace.features("ice", None))["key"]
    assert [path.name for path in (one.workspace.root / "cache").iterdir() if path.is_dir()] == ["64x32-raw-m0.05"]
    assert {rung["name"].split()[0] for rung in figures["ladder"]["rungs"]} >= {"ice", "warm"}
    weights = load_file(one.workspace.run("warm", 1) / "checkpoint.safetensors")
    assert not [name for name in weights if not name.startswith(("embedder.neck.", "head.", "class_sizes"))]

    frozen = np.load(one.workspace.features("ice", None) / "embeddings.npy").astype(np.float64)
    scaled = frozen / np.linalg.norm(frozen, axis=1, keepdims=True) * np.sqrt(frozen.shape[1])
    neck = {name.rpartition(".")[2]: value.numpy() for name, value in weights.items() if ".neck.2." in name}
    linear = scaled @ weights["embedder.neck.1.weight"].numpy().T
    expected = (linear - neck["running_mean"]) / np.sqrt(neck["running_var"] + 1e-5) * neck["weight"] + neck["bias"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    made = np.load(one.workspace.features("warm", 1) / "embeddings.npy")
    np.testing.assert_allclose(made, expected, atol=2e-3)

    images = read_cache(one.workspace, one.experiment("ice")).read_many(np.arange(len(made)))
    identities = pd.read_csv(one.workspace.folds, dtype=str)["identity"].unique()
    seen = load_extractor(one.workspace.run("warm", 1), identities).embed(images)  # as a kernel does: from the images
    np.testing.assert_allclose(seen[0], made, atol=2e-3)
    assert seen[1].shape == np.load(one.workspace.features("warm", 1) / "logits.npy").shape


def test_an_adapter_does_not_see_the_length_of_features() -> None:
    """Features from a file are rounded to half precision; from images, they are not unit rows to the last digit."""
    adapter = build_adapter(load_experiment("default").model, 12, 1).eval()
    features = torch.rand(3, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapter(features), adapter(features * torch.tensor([[0.5], [1.0], [3.0]])))


@pytest.mark.parametrize(
    "head",
    [
        "{name: softmax}",
        "{name: divide, clusters: 2, learner: {name: arcface}}",
    ],
)
def test_an_adapter_of_a_fold_knows_no_label_of_the_fold(head: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    identity = np.repeat([f"whale {number}" for number in range(6)], 6)
    names = [f"{number}.jpg" for number in range(36)]
    images = pd.DataFrame({"image": names, "split": "train", "identity": identity})
    folds = pd.DataFrame({"image": names, "identity": identity, "fold": np.arange(36) % 3})
    np.save(tmp_path / "embeddings.npy", rng.normal(size=(36, 12)).astype(np.float32))
    images[["image"]].to_csv(tmp_path / "rows.csv", index=False)
    other = images.assign(identity=identity.copy())
    inside = (folds["fold"] == 1).to_numpy()
    other.loc[inside, "identity"] = np.roll(other["identity"].to_numpy()[inside], 5)
    (tmp_path / "ice.yaml").write_text(ICE)
    (tmp_path / "warm.yaml").write_text(WARM.replace("{name: softmax}", head))
    warm = load_experiment("warm", {"train.epochs": 4}, tmp_path)

    def trained(table: pd.DataFrame, fold: int) -> dict[str, torch.Tensor]:
        out = tmp_path / f"run{fold}" / str(table is images)
        rows = FeatureRows(open_embeddings(tmp_path, table))
        train_run(warm, fold, table, folds, rows, out, None, tmp_path)
        return load_file(out / "checkpoint.safetensors")

    one, two = trained(images, 1), trained(other, 1)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    one, two = trained(images, 0), trained(other, 0)
    assert not all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("experiments", "changes", "expected"),
    [
        ("[warm]", "", "warm is an adapter of ice, which is no frozen experiment of the recipe"),
        ("[ice, warm]", "image: {height: 64}", "warm: image differs from that of ice"),
        ("[ice, warm]", "features: {mirror: false}", "warm: features differs from that of ice"),
        ("[ice, warm]", "image: {mirror_identities: true}", "mirror_identities must be off"),
        ("[ice, warm]", "train: {epochs: 0}\nhead: {name: none}\nmodel: {neck: none}", "an adapter is trained"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(experiments: str, changes: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "ice.yaml").write_text(ICE)
    kept = [line for line in WARM.splitlines() if line.partition(":")[0] not in changes]
    (tmp_path / "warm.yaml").write_text("\n".join([*kept, changes]))
    (tmp_path / "recipe.yaml").write_text(f"folds: 3\nexperiments: {experiments}\n")
    with pytest.raises(WhaleidError, match=expected):
        load_recipe(str(tmp_path / "recipe.yaml"))
