"""A stage's output does not change under an unchanged version.

A tiny drawn competition runs through the stages that give the same numbers on every machine. `versions.json` keeps
a digest of each output with the stage's version; numbers are rounded, so that other builds of a library agree.
Training, features of trained networks and pseudo-labels are not part of it: their numbers depend on the processor.

    python tests/test_versions.py     writes versions.json again, after a version was raised
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from ladder_world import write_folder

from whaleid.config.files import load_experiment
from whaleid.config.settings import Settings
from whaleid.data.sample import make_sample
from whaleid.local_matching.keypoints import read_described
from whaleid.pipeline.data_stages import cache_place, keypoints_folder, read_cache
from whaleid.pipeline.leaderboard import announcement
from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.runner import run, tasks_to_do
from whaleid.pipeline.stages import ANSWER, DATA, ROUND, STAGES
from whaleid.pipeline.versions import VERSION
from whaleid.pipeline.workspace import read_folds, read_images
from whaleid.utils.files import digest

KEPT = Path(__file__).with_name("versions.json")
COMPETITION = """
name: drawn
root: data
train: {csv: train.csv, images: train, image: Image, identity: Id}
test: {csv: sample_submission.csv, images: test, image: Image}
unknown: new_whale
unknown_share: 0.276
solution: solution.csv
"""
RECIPE = """
folds: 2
sources: {foreign: foreign}
combine:
  concat: {whiten: 4}
  classifier: null
  local_matching: {keypoints: 40, size: 96}
"""
EXPERIMENT = """
extends: default
model: {backbone: test_resnet, weights: random}
image: {width: 32, height: 16}
"""


def open_drawn(place: Path) -> Project:
    """A drawn competition of 24 labelled and 8 test images, with features of another program."""
    make_sample(place / "data", identities=6, train_images=24, test_images=8, workers=1)
    (place / "drawn.yaml").write_text(COMPETITION)
    (place / "tiny.yaml").write_text(EXPERIMENT)
    truth = pd.concat([pd.read_csv(place / "data" / name) for name in ("train.csv", "solution.csv")])
    rng = np.random.default_rng(0)
    prototypes = {name: rng.normal(size=8) for name in np.unique(truth["Id"])}
    table = np.stack([prototypes[name] for name in truth["Id"]]) + 0.8 * rng.normal(size=(len(truth), 8))
    for fold in range(2):
        write_folder(place / "foreign" / f"fold{fold}", truth["Image"], table)
    (place / "recipe.yaml").write_text(RECIPE.replace("foreign: foreign", f"foreign: {place / 'foreign'}"))
    settings = Settings(submissions=place / "submissions")
    return open_project(str(place / "drawn.yaml"), str(place / "recipe.yaml"), place / "work", settings=settings)


def outputs(place: Path) -> dict[str, str]:
    """Digest of each stage's output."""
    project = open_drawn(place)
    run(project, "score")
    workspace, tiny = project.workspace, load_experiment(str(place / "tiny.yaml"))
    run(replace(project, experiments=(tiny,)), "cache")
    images, folder = read_images(workspace), keypoints_folder(project)
    cache = read_cache(workspace, tiny)
    assert folder is not None
    candidates = pd.read_parquet(workspace.candidates("recipe") / "oof.parquet")
    first = candidates[candidates["rank"] <= 2]
    score = json.loads((workspace.root / "score" / "recipe.json").read_text())
    means = [round(float(cache.read(row).mean()), 0) for row in range(len(cache))]
    return {
        "images": digest(images.drop(columns="digest").round(3).to_csv(index=False)),
        "folds": digest(read_folds(workspace).to_csv(index=False)),
        "cache": digest(cache_place(workspace, tiny)[0], means),
        "keypoints": digest(read_described(folder, images, "rootsift").counts(np.arange(len(images))).tolist()),
        "candidates": digest(first[["source", "fold", "query", "rank", "identity"]].astype(str).to_csv(index=False)),
        "score": digest(round(score["map"], 4), score["k"], score["queries"]),
    }


def test_an_output_changes_only_with_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = json.loads(KEPT.read_text())
    again = "write versions.json again: python tests/test_versions.py"
    for stage, found in outputs(tmp_path).items():
        assert kept[stage]["version"] == VERSION[stage], f"the version of stage '{stage}' was raised; {again}"
        assert kept[stage]["output"] == found, (
            f"the output of stage '{stage}' has changed: raise VERSION['{stage}'] in pipeline/versions.py, then {again}"
        )


def test_the_stages_read_only_stages_before_them() -> None:
    """A round's labels alone read the round before."""
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names) and set(VERSION) <= set(names)
    for place, stage in enumerate(STAGES):
        later = set(stage.reads) - set(names[:place])
        assert not later or (stage.name == "labels" and later <= {one.name for one in ROUND})
    assert (*DATA, *ROUND, *ANSWER) == STAGES


def test_a_task_reads_only_what_its_stage_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project = open_drawn(tmp_path)
    for stage in STAGES:
        for task in stage.tasks(project):
            assert {name.partition("/")[0] for name in task.reads} <= set(stage.reads), task.name


def test_a_second_run_does_nothing_and_a_missing_output_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project = open_drawn(tmp_path)
    expected = list(announcement(project, tasks_to_do(project, "score")))
    assert expected == [
        "recipe recipe on drawn: 24 labelled images of 6 identities, 8 test images",
        "to do: images, folds, keypoints, candidates, ladder, submission, score",
    ]
    first = [task.stage for task in run(project)]
    assert first == ["images", "folds", "keypoints", "candidates", "ladder", "submission", "score"]
    assert run(project) == []
    up_to_date = f"everything is up to date in {project.workspace.root}"
    assert list(announcement(project, tasks_to_do(project, "score"))) == [up_to_date]
    project.workspace.metrics.unlink()
    assert [task.stage for task in run(project)] == ["ladder"]
    (tmp_path / "data" / "solution.csv").write_text("Image,Id\n")
    project.workspace.folds.unlink()  # no later output has to be made again from it
    assert [task.stage for task in run(project, "submission")] == []


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        found = outputs(Path(folder))
    KEPT.write_text(json.dumps({name: {"version": VERSION[name], "output": found[name]} for name in found}, indent=2))
    print(f"{KEPT}: {len(found)} stages", file=sys.stderr)
