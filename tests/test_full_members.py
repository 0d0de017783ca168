"""Full-data members: they answer the test set beside the folds' models, and out of fold nothing knows of them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import draw_sample
from ladder_world import World, make_world, recipe, write_sources
from pipeline_world import current, figures_of
from safetensors.torch import load_file
from test_cli import COMPETITION, EXPERIMENT
from training_world import same, small, stop_after

from whaleid.cli import main as cli
from whaleid.config import Recipe
from whaleid.ensemble.ablation import ablate
from whaleid.ensemble.ladder import combine, protocol_of, rank_all
from whaleid.ensemble.lists import average
from whaleid.ensemble.protocol import FULL_DATA
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.ensemble.results import LadderResult
from whaleid.ensemble.summary import ladder_lines
from whaleid.pipeline import keys as keys_module
from whaleid.pipeline.keys import run_key
from whaleid.pipeline.plan import Census, plan_lines, recipe_needs
from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.runner import Only, run, target_tasks, tasks_to_do
from whaleid.training.schedule import full_data_experiment
from whaleid.utils.errors import WhaleidError

EVERYTHING = {
    "rerank": {"expansion": {"neighbours": [2], "alpha": [1.0]}, "reciprocal": None, "labels": None},
    "stack": {"num_iterations": 10, "groups": 2, "seeds": 1, "min_data_in_leaf": 5, "first": 8, "candidates": 15},
}

# --------------------------------------------------------------------------------------------------- the ladder


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(identities=30, seed=4)


@pytest.fixture(scope="module")
def sources(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Two networks; the first has a model of all labelled images."""
    return write_sources(world, tmp_path_factory.mktemp("features"), count=2, full=1)


def without_full(sources: list[Source]) -> list[Source]:
    return [replace(source, full=None) for source in sources]


def ranked(world: World, sources: list[Source], **combine) -> list[Ranking]:
    protocol = protocol_of(world.images, world.folds, world.competition, sources)
    return rank_all(sources, world.images, protocol, recipe(**combine).combine, 0)


def climbed(world: World, sources: list[Source], out: Path) -> LadderResult:
    return combine(world.images, world.folds, sources, recipe(**EVERYTHING), world.competition, out)


def test_out_of_fold_nothing_knows_of_them(world: World, sources: list[Source], tmp_path: Path) -> None:
    """Every out-of-fold figure, list, weight and threshold is bit for bit that of the ensemble without them."""
    plain, given = climbed(world, without_full(sources), tmp_path / "a"), climbed(world, sources, tmp_path / "b")
    assert [rung.name for rung in given.rungs] == [rung.name for rung in plain.rungs]
    for one, other in zip(plain.rungs, given.rungs, strict=True):
        assert (one.score, one.gain, one.below, one.weight, one.weights) == (
            other.score,
            other.gain,
            other.below,
            other.weight,
            other.weights,
        )
        assert one.thresholds.tuned == other.thresholds.tuned and one.thresholds.by_fold == other.thresholds.by_fold
        for lists, others in zip(one.oof, other.oof, strict=True):
            np.testing.assert_array_equal(lists.codes, others.codes)
            np.testing.assert_array_equal(lists.scores, others.scores)
        if one.name != "net1" and one.name != "net1 logits":
            assert not np.array_equal(one.test.scores, other.test.scores), one.name
    assert (plain.full, given.full) == ((), ("net0",))
    assert (tmp_path / "a" / "oof.parquet").read_bytes() == (tmp_path / "b" / "oof.parquet").read_bytes()


def test_every_ranking_answers_once_more(world: World, sources: list[Source]) -> None:
    plain = {one.name: one for one in ranked(world, without_full(sources), **EVERYTHING)}
    for one in ranked(world, sources, **EVERYTHING):
        folds = plain[one.name].test
        assert (len(folds), len(one.test), len(one.oof)) == (3, 4, 3)
        for lists, others in zip(folds, one.test, strict=False):
            np.testing.assert_array_equal(lists.codes, others.codes)
            np.testing.assert_array_equal(lists.scores, others.scores)
        mean = average(folds, one.test[3].codes.shape[1])
        of_folds = np.array_equal(mean.codes, one.test[3].codes) and np.array_equal(mean.scores, one.test[3].scores)
        assert of_folds == (one.name in ("net1", "net1 logits")), one.name


def test_a_source_without_one_is_stood_in_for_by_its_first_folds_model(world: World, sources: list[Source]) -> None:
    given = [sources[0], replace(sources[1], full=sources[1].folds[0])]
    joint = [one for one in ranked(world, sources) if one.kind in ("concat", "classifier")]
    told = {one.name: one for one in ranked(world, given)}
    assert len(joint) == 2
    for one in joint:
        np.testing.assert_array_equal(one.test[3].codes, told[one.name].test[3].codes)
        np.testing.assert_array_equal(one.test[3].scores, told[one.name].test[3].scores)


def test_the_whole_has_no_queries_and_every_labelled_image(world: World, sources: list[Source]) -> None:
    protocol = protocol_of(world.images, world.folds, world.competition, sources)
    assert protocol.full_data is not None and protocol.full_data.fold == FULL_DATA
    assert not len(protocol.full_data.rows) and len(protocol.parts) == 3 and len(protocol.test_parts) == 4
    labelled = np.flatnonzero((world.images["split"] == "train").to_numpy())
    np.testing.assert_array_equal(protocol.full_data.training, labelled)
    np.testing.assert_array_equal(protocol.full_data.gallery, protocol.gallery)
    assert protocol_of(world.images, world.folds, world.competition, without_full(sources)).full_data is None


def test_without_test_images_there_is_nothing_for_them_to_answer(world: World, tmp_path: Path) -> None:
    keep = (world.images["split"] == "train").to_numpy()
    alone = replace(world, images=world.images[keep].reset_index(drop=True), latent=world.latent[keep])
    given = write_sources(alone, tmp_path / "features", count=2, full=2, logits=False)
    result = climbed(alone, given, tmp_path / "out")
    assert result.final.test is None and result.full == ("net0", "net1")


def test_the_ablation_can_leave_the_only_one_out(world: World, sources: list[Source]) -> None:
    stacked = recipe(classifier=None, stack={"num_iterations": 5, "groups": 2, "min_data_in_leaf": 5, "seeds": 1})
    rows = ablate(world.images, world.folds, sources, stacked, world.competition).rows
    assert "network net0" in [row.name for row in rows]


def test_a_folder_that_is_missing(world: World, sources: list[Source], tmp_path: Path) -> None:
    given = [replace(sources[0], full=tmp_path / "nowhere"), *sources[1:]]
    with pytest.raises(WhaleidError, match=r"source 'net0': .*nowhere: no such folder"):
        combine(world.images, world.folds, given, recipe(), world.competition, tmp_path / "out")


# --------------------------------------------------------------------------------------------------- the recipe


def test_settings_that_make_no_sense() -> None:
    plain = {"name": "x", "folds": 3, "experiments": ["a", "b"]}
    with pytest.raises(ValueError, match="'c' is none of the recipe's experiments"):
        Recipe.model_validate(plain | {"full": ["c"]})
    assert Recipe.model_validate(plain | {"full": True}).full_members == ["a", "b"]
    assert Recipe.model_validate(plain | {"full": ["b"]}).full_members == ["b"]
    assert Recipe.model_validate(plain).full_members == []


def test_as_many_epochs_as_the_folds_took() -> None:
    seen = small(train_epochs=None, train_images_seen=100)
    trained = full_data_experiment(seen, [{"epochs": epochs} for epochs in (3, 4, 7)]).train
    assert (trained.epochs, trained.images_seen) == (5, None)
    last = full_data_experiment(small(), [{"epochs": 2}, {"epochs": 3}])
    assert last.train.epochs == 3  # halves go up
    assert full_data_experiment(small(), [{"epochs": 3}] * 2) == small()


# ------------------------------------------------------------------------------------------------ the whole pipeline


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw_sample(folder / "data", identities=8, train_images=40, test_images=10)
    (folder / "drawn.yaml").write_text(COMPETITION.format(root="data"))
    (folder / "one.yaml").write_text(EXPERIMENT)
    (folder / "two.yaml").write_text(EXPERIMENT.replace("epochs: 2", "epochs: 3"))
    return folder


def opened(folder: Path, full: str = "", work: str = "work") -> Project:
    combined = "combine: {full_gallery: false, concat: {whiten: 8}, classifier: {epochs: 2, seeds: 1}}\n"
    (folder / "recipe.yaml").write_text(f"folds: 2\nexperiments: [one, two]\n{full}{combined}")
    return open_project(str(folder / "drawn.yaml"), str(folder / "recipe.yaml"), folder / work)


def test_the_pipeline_with_full_members(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(drawn)
    plain = opened(drawn)
    before = figures_of(plain)
    project = opened(drawn, "full: [two]\n")
    assert current(project, "features") == {
        "one/fold0": True,
        "one/fold1": True,
        "two/fold0": True,
        "two/fold1": True,
        "two/full": False,
    }
    figures = figures_of(project)
    assert all(current(project, "features").values())
    assert figures["key"] != before["key"]
    assert [{**rung, "unknown": None} for rung in figures["ladder"]["rungs"]] == [
        {**rung, "unknown": None} for rung in before["ladder"]["rungs"]
    ]
    assert figures["ladder"]["full"] == ["two"] and before["ladder"]["full"] == []
    assert any("also trained on all labelled images: two" in line for line in ladder_lines(figures))
    assert not any("all labelled images" in line for line in ladder_lines(before))

    folds = [figures["runs"][f"two/fold{fold}"]["epochs"] for fold in range(2)]
    summary = figures["runs"]["two/full"]
    assert summary["epochs"] == int(sum(folds) / 2 + 0.5) and summary["fold"] is None
    folder = project.workspace.run("two", None)
    known = set(pd.read_csv(drawn / "data" / "train.csv").Id) - {"new_whale"}
    assert set((folder / "classes.txt").read_text().split()) == known
    names = pd.read_csv(project.workspace.features("two", None) / "rows.csv")["image"]
    assert len(names) == 50

    written = (folder / "checkpoint.safetensors").stat().st_mtime_ns
    assert figures_of(opened(drawn, "full: [two]\n"))["key"] == figures["key"]
    assert (folder / "checkpoint.safetensors").stat().st_mtime_ns == written
    assert figures_of(opened(drawn))["key"] == before["key"]


def test_its_key_is_made_of_its_folds_keys(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(full: str = "full: true\n") -> list[str]:
        project = opened(drawn, full)
        return [run_key(project, item, None) for item in project.experiments]

    plain = keys()
    assert len({*plain, run_key(opened(drawn), opened(drawn).experiments[0], 0)}) == 3
    assert keys("full: [one]\n") == plain  # who else is trained on everything has no part in it
    assert keys("full: true\nseed: 5\n") != plain  # other folds
    quick = keys("full: true\ntrain_folds: [1]\n")
    assert not set(quick) & set(plain)
    own = keys_module.run_key

    def changed(project, experiment, fold):
        return "another" if (experiment.name, fold) == ("two", 1) else own(project, experiment, fold)

    monkeypatch.setattr(keys_module, "run_key", changed)
    found = opened(drawn, "full: true\n")
    assert [own(found, item, None) == key for item, key in zip(found.experiments, plain, strict=True)] == [True, False]


def test_killed_it_goes_on_to_the_same_weights(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(drawn)
    whole = opened(drawn, "full: [one]\n", work="whole")
    full = Only(full=True)
    assert [task.item for task in target_tasks(whole, "train", full)] == ["one/full"]
    done = [task.item for task in run(whole, "train", only=full) if task.run]
    assert done == ["one/fold0", "one/fold1", "one/full"]  # its folds are trained first
    trained = current(whole, "train")
    assert trained == {
        "one/fold0": True,
        "one/fold1": True,
        "two/fold0": False,
        "two/fold1": False,
        "one/full": True,
    }

    broken = opened(drawn, "full: [one]\n", work="broken")
    for fold in range(2):
        run(broken, "train", only=Only("one", fold))
    monkeypatch.setattr("whaleid.training.log.EPOCH_SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            run(broken, "train", only=full)
    folder = broken.workspace.run("one", None)
    assert (folder / "state").is_dir() and not (folder / "checkpoint.safetensors").exists()
    assert not current(broken, "train")["one/full"]
    run(broken, "train", only=Only("one", full=True))
    kept = [load_file(place.workspace.run("one", None) / "checkpoint.safetensors") for place in (whole, broken)]
    assert same(*kept)


FULL_RUNS = [("one", None), ("two", None)]


def test_folds_come_first(drawn: Path) -> None:
    project = opened(drawn, "full: true\n", work="order")
    tasks = [task for task in tasks_to_do(project, "train") if task.run]
    assert [task.run for task in tasks] == [*((name, fold) for name in ("one", "two") for fold in (0, 1)), *FULL_RUNS]
    assert project.workspace.run("one", None).name == "full"
    assert tasks[-2].arguments([])[-3:] == ["--experiment", "one", "--full"]


def test_words_of_the_command_line(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(full: str, *words: str) -> str:
        opened(drawn, full)
        where = ["--competition", str(drawn / "drawn.yaml"), "--recipe", str(drawn / "recipe.yaml")]
        monkeypatch.setattr(sys, "argv", ["whaleid", "train", *where, "--work", str(drawn / "none"), *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        return capsys.readouterr().err.strip()

    assert "does not train anything on all labelled images" in refused("", "--full")
    assert "does not train two on all" in refused("full: [one]\n", "--full", "--experiment", "two")
    assert "--fold 1 without some" in refused("full: true\n", "--full", "--fold", "1")
    with pytest.raises(WhaleidError, match=r"recipe\.yaml: full: 'three' is none of the recipe's experiments"):
        opened(drawn, "full: [three]\n")


def test_the_plan_counts_them(drawn: Path) -> None:
    census = Census(1000, 100, 20, 300, 2.0, estimated=True)
    plain, given = opened(drawn), opened(drawn, "full: true\n")
    lines = "\n".join(plan_lines(given, census, 1.0, 8, None))
    assert "2 experiments x 2 folds + 2 on all labelled images = 6 runs" in lines
    assert "2 experiments x 2 folds = 4 runs" in "\n".join(plan_lines(plain, census, 1.0, 8, None))
    few, many = recipe_needs(plain, census, "cpu"), recipe_needs(given, census, "cpu")
    assert many.disk > few.disk
    assert 1.5 * few.hours < many.hours <= 2.0 * few.hours  # two folds see as many images as all of them once
