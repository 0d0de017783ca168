"""Features in shards: the same bytes as in one go, and only what is missing is made again."""

import shutil
from pathlib import Path

import pytest
from drawn import draw_sample
from hypothesis import given
from hypothesis import strategies as st
from test_runner import COMPETITION, EXPERIMENT, Recorder

from whaleid.features import shards
from whaleid.features.shards import IMAGES, shard_slices
from whaleid.pipeline import plan
from whaleid.pipeline.plan import count_images, estimate_minutes
from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.run_stages import feature_tasks, shard_tasks
from whaleid.pipeline.runner import Only, run, tasks_to_do
from whaleid.pipeline.tasks import Task


@given(st.integers(0, 5 * IMAGES), st.integers(1, 2000))
def test_shards_are_whole_batches_that_cover_every_row_once(images: int, batch: int) -> None:
    slices = shard_slices(images, batch)
    assert [row for part in slices for row in range(part.start, part.stop)] == list(range(images))
    assert all(part.stop - part.start <= IMAGES for part in slices)
    assert all(part.start % batch == 0 for part in slices)
    assert (len(slices) > 1) == (images > IMAGES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run of 44 + 16 images, with its features in one go."""
    folder = tmp_path_factory.mktemp("trained")
    draw_sample(folder / "data", identities=10, train_images=44, test_images=16)
    (folder / "drawn.yaml").write_text(COMPETITION)
    (folder / "tiny.yaml").write_text(EXPERIMENT + "features: {batch: 8}\n")
    (folder / "recipe.yaml").write_text("folds: 2\ntrain_folds: [0]\nexperiments: [tiny]\n")
    project = open_project(str(folder / "drawn.yaml"), str(folder / "recipe.yaml"), folder / "work")
    run(project, "features")
    return project


@pytest.fixture
def sharded(trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The same run where 20 images are many, without its features."""
    monkeypatch.setattr(shards, "IMAGES", 20)
    shutil.copytree(trained.workspace.root, tmp_path / "drawn")
    shutil.rmtree(tmp_path / "drawn" / "features")
    place = trained.competition.root.parent
    return open_project(str(place / "drawn.yaml"), str(place / "recipe.yaml"), tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_joined_shards_are_the_features_of_one_go(trained: Project, sharded: Project) -> None:
    done = run(sharded, "features")
    assert [task.name for task in done] == [
        *(f"shards/tiny/fold0/{number:05d}" for number in range(4)),  # of 16, 16, 16 and 12 images
        "features/tiny/fold0",
    ]
    (features,) = feature_tasks(sharded)
    assert contents(features.output) == contents(trained.workspace.features("tiny", 0))
    assert not sharded.workspace.shards("tiny", 0).exists()
    assert run(sharded, "features") == []


def test_only_shards_that_are_missing_are_made(sharded: Project) -> None:
    run(sharded, "shards", only=Only("tiny", 0, shard=2))
    assert [task.name for task in tasks_to_do(sharded, "features")] == [
        *(f"shards/tiny/fold0/{number:05d}" for number in (0, 1, 3)),
        "features/tiny/fold0",
    ]


def test_a_shard_has_a_command_of_its_own_and_the_rest_is_done_here(sharded: Project) -> None:
    task = shard_tasks(sharded)[3]
    words = ["whaleid", "features", "--experiment", "tiny", "--fold", "0", "--shard", "3"]
    assert task.words([]) == words
    assert [task.command for task in feature_tasks(sharded)] == [None]


def test_a_process_that_trains_leaves_the_shards_to_others(sharded: Project) -> None:
    shutil.rmtree(sharded.workspace.run("tiny", 0))

    class Stopped(Recorder):
        def run(self, tasks: list[Task]):
            self.commands += [(task.name, task.command) for task in tasks]
            return iter(())

    recorder = Stopped()
    run(sharded, "features", recorder)
    assert recorder.commands[0] == ("train/tiny/fold0", "train")
    assert ("features/tiny/fold0", None) in recorder.commands


def test_shards_are_estimated_as_the_features_that_they_are(
    trained: Project, sharded: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    census = count_images(sharded, None, None)
    parts = estimate_minutes(sharded, census, [*shard_tasks(sharded), *feature_tasks(sharded)])
    monkeypatch.setattr(shards, "IMAGES", 10_000)
    whole = estimate_minutes(sharded, census, feature_tasks(sharded))
    assert parts[0] == pytest.approx(whole[0])
    slow = 10 * plan.slowness()
    monkeypatch.setattr(plan, "slowness", lambda: slow)
    assert estimate_minutes(sharded, census, feature_tasks(sharded))[0] == pytest.approx(10 * whole[0])
