"""A recipe's `pretrain` as a stage: what it makes, who starts from it, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn import draw_sample

from whaleid.config import files as configfiles
from whaleid.config.settings import Settings
from whaleid.pipeline.keys import pretrain_key, run_key
from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.run_stages import pretrained_path, require_pretraining
from whaleid.pipeline.runner import run
from whaleid.utils.errors import WhaleidError

COMPETITION = """
name: drawn
root: data
train: {csv: train.csv, images: train, image: Image, identity: Id}
test: {csv: sample_submission.csv, images: test, image: Image}
unknown: new_whale
"""
BASE = """
extends: default
model: {backbone: test_resnet, weights: random, embedding: 16}
image: {width: 64, height: 32}
train: {epochs: 1, batch: 16}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    draw_sample(folder / "data", identities=10, train_images=40, test_images=12)
    (folder / "drawn.yaml").write_text(COMPETITION)
    (folder / "tiny.yaml").write_text(BASE)
    (folder / "own.yaml").write_text("extends: tiny\nmodel: {weights: mine.safetensors}\n")
    (folder / "other.yaml").write_text("extends: tiny\nmodel: {backbone: resnet18}\n")
    (folder / "turns.yaml").write_text("extends: tiny\nhead: {name: rotation}\n")
    return folder


def project(place: Path, recipe: str, *pairs: str) -> Project:
    path = place / "recipe.yaml"
    path.write_text(f"folds: 2\n{recipe}\n")
    folders = Settings(weights=place / "weights")
    return open_project(str(place / "drawn.yaml"), str(path), place / "work", list(pairs), settings=folders)


PRETRAIN = "pretrain: {experiment: turns, test: true}\nexperiments: [tiny]"


def test_a_recipe_pretrains_once_and_its_runs_start_from_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    one = project(place, PRETRAIN)
    assert [task.stage for task in run(one, "train")] == [
        "images",
        "folds",
        "cache",
        "cache",
        "pretrain",
        "train",
        "train",
    ]
    path = place / "weights" / f"drawn-turns-{pretrain_key(one)[:8]}.safetensors"
    written = path.stat().st_mtime_ns
    stamp = one.workspace.stamp(one.workspace.root / "pretrain" / path.stem)
    assert stamp["summary"]["images"] == 52  # 40 of train, 12 of test
    config = configfiles.read_yaml(one.workspace.run("tiny", 0) / "config.yaml")
    assert config["model"]["weights"] == f"weights/{path.name}"
    again = project(place, PRETRAIN)
    assert run(again, "train") == run(again, "pretrain") == []
    assert pretrained_path(again) == path
    assert path.stat().st_mtime_ns == written
    elsewhere = project(place, PRETRAIN, "train.seed=3")
    assert pretrain_key(elsewhere) != pretrain_key(one)


def test_what_the_pretraining_depends_on_the_runs_depend_on(place: Path) -> None:
    def keys(recipe: str, *pairs: str) -> tuple[str, str]:
        found = project(place, recipe, *pairs)
        return run_key(found, found.experiments[0], 0), run_key(found, found.experiments[-1], 0)

    own = PRETRAIN.replace("[tiny]", "[tiny, own]")
    plain = keys("experiments: [tiny, own]")
    first = keys(own)
    assert first[0] != plain[0]
    assert first[1] == plain[1]  # it names its own start
    assert keys(own.replace("true", "false"))[0] != first[0]
    (place / "turns.yaml").write_text("extends: tiny\nhead: {name: rotation}\ntrain: {lr: 0.001}\n")
    assert keys(own)[0] != first[0]
    assert keys(own)[1] == first[1]
    (place / "turns.yaml").write_text("extends: tiny\nhead: {name: rotation}\n")
    assert keys(own) == first
    assert keys(own, "head.margin=0.1")[0] != first[0]  # the experiment's head, not the pretext's


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("experiments: [turns]", "rotation trains without labels: name this experiment under the recipe's `pretrain`"),
        ("pretrain: {experiment: tiny}\nexperiments: [tiny]", "arcface needs labels; an experiment under `pretrain`"),
        (
            "pretrain: {experiment: turns}\nexperiments: [other]",
            "experiment other has backbone resnet18, but `pretrain` trains test_resnet",
        ),
        ("pretrain: {experiment: turns}\nexperiments: [own]", "`pretrain` would be of no use: the model.weights"),
        ("pretrain: {experiment: nowhere}\nexperiments: [tiny]", "experiment 'nowhere' not found"),
        ("pretrain: {test: true}\nexperiments: [tiny]", "key 'pretrain.experiment' is missing"),
    ],
)
def test_a_wrong_pretraining_is_one_clear_line(place: Path, recipe: str, said: str) -> None:
    with pytest.raises(WhaleidError, match=said) as caught:
        project(place, recipe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("image.mirror_identities=true", r"image\.mirror_identities must be off"),
    ],
)
def test_settings_that_need_labels_are_refused(place: Path, pair: str, said: str) -> None:
    with pytest.raises(WhaleidError, match=said):
        project(place, PRETRAIN, pair)


def test_a_recipe_without_pretraining_has_nothing_to_pretrain(place: Path) -> None:
    with pytest.raises(WhaleidError, match="recipe recipe has no pretraining"):
        require_pretraining(project(place, "experiments: [tiny]"))


@pytest.mark.parametrize("name", ["rotation", "jigsaw", "deepcluster"])
def test_the_shipped_experiments_load(name: str) -> None:
    recipe, experiments = configfiles.load_recipe("self")
    assert recipe.pretrain is not None
    asked = recipe.pretrain.model_copy(update={"experiment": f"self/{name}"})
    found = configfiles.load_pretext("self", recipe.model_copy(update={"pretrain": asked}), experiments)
    assert found is not None
    assert found.head.name == name
