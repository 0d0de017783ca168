"""The runner: which processes do which tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from drawn import draw_sample

from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.runner import Only, run
from whaleid.pipeline.tasks import Task, do
from whaleid.pipeline.workspace import Workspace
from whaleid.utils.errors import WhaleidError

COMPETITION = """
name: drawn
root: data
train: {csv: train.csv, images: train, image: Image, identity: Id}
test: {csv: sample_submission.csv, images: test, image: Image}
unknown: new_whale
"""
EXPERIMENT = """
extends: default
model: {backbone: test_resnet, weights: random, embedding: 16}
image: {width: 64, height: 32}
train: {epochs: 1, batch: 16}
"""


class Recorder:
    """Does nothing that has a command of its own; notes the command."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, str | None]] = []

    def check(self) -> None:
        pass

    def run(self, tasks: Sequence[Task]) -> Iterator[Task]:
        for task in tasks:
            self.commands.append((task.name, task.command))
            if task.command is None:
                do(task)
            yield task


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    draw_sample(folder / "data", identities=10, train_images=40, test_images=12)
    (folder / "drawn.yaml").write_text(COMPETITION)
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    (folder / "recipe.yaml").write_text("folds: 2\nexperiments: [tiny]\n")
    return open_project(str(folder / "drawn.yaml"), str(folder / "recipe.yaml"), folder / "work")


@pytest.mark.parametrize(("until", "command"), [("train", "train"), ("features", "features")])
def test_a_process_that_trains_computes_the_features_too_where_they_are_needed(
    project: Project, until: str, command: str
) -> None:
    recorder = Recorder()
    run(project, until, recorder)
    trained = dict(found for found in recorder.commands if found[0].startswith("train/"))
    assert trained == {"train/tiny/fold0": command, "train/tiny/fold1": command}


def test_of_one_run_only_that_one(project: Project) -> None:
    recorder = Recorder()
    run(project, "features", recorder, Only(experiment="tiny", fold=1))
    assert [found for found in recorder.commands if found[1] is not None] == [
        ("train/tiny/fold1", "features"),
        ("features/tiny/fold1", "features"),
    ]


class Interrupted(Recorder):
    """Does the first task, and is interrupted in the second."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Task]:
        for number, task in enumerate(tasks):
            if number == 1:
                raise KeyboardInterrupt
            if task.command is None:
                do(task)
            yield task


def test_an_interrupted_run_notes_where_it_goes_on(project: Project) -> None:
    with pytest.raises(KeyboardInterrupt) as stop:
        run(project, "train", Interrupted())
    assert stop.value.__notes__ == [
        "stopped in train, 1 of 2 done; the same command goes on there: tiny/fold1 from its beginning"
    ]


class Missing(Recorder):
    """An engine that is not there."""

    def check(self) -> None:
        raise WhaleidError("no cluster")


def test_an_engine_that_is_missing_is_told_before_the_first_stage(project: Project) -> None:
    fresh = replace(project, workspace=Workspace(project.workspace.root.with_name("other")))
    with pytest.raises(WhaleidError, match="no cluster"):
        run(fresh, "train", Missing())
    assert not fresh.workspace.images.exists()
    run(fresh, "images", Missing())  # which needs no engine
    assert fresh.workspace.images.exists()
