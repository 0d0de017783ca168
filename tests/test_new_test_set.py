"""A trained project answers another test set: features and answers are made anew, nothing is trained again."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import draw_sample
from test_cli import COMPETITION, EXPERIMENT, RECIPE

from whaleid.evaluation.topk import read_guesses
from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.runner import run, target_tasks
from whaleid.pipeline.submission import latest_submission


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw_sample(tmp_path / "data", identities=8, train_images=40, test_images=10)
    (tmp_path / "drawn.yaml").write_text(COMPETITION.format(root="data"))
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(place: Path) -> Project:
    return open_project(str(place / "drawn.yaml"), str(place / "recipe.yaml"), place / "work")


def done(project: Project, stage: str) -> list[bool]:
    return [task.current for task in target_tasks(project, stage)]


def test_another_test_set_trains_nothing_and_another_labelled_image_does(place: Path) -> None:
    first = opened(place)
    run(first, "submission")
    before = latest_submission(first)
    checkpoints = sorted((first.workspace.root / "runs").rglob("checkpoint.safetensors"))
    written = [path.stat().st_mtime_ns for path in checkpoints]
    folds = first.workspace.folds.read_bytes()
    old = np.load(first.workspace.features("tiny", 0) / "embeddings.npy")
    assert len(checkpoints) == 2

    images = sorted((place / "data" / "test").iterdir())
    (place / "data" / "new").mkdir()
    for number, path in enumerate(images[:6]):
        (place / "data" / "new" / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    names = [path.name for path in sorted((place / "data" / "new").iterdir())]
    pd.DataFrame({"Image": names, "Id": "new_whale"}).to_csv(place / "data" / "new.csv", index=False)
    text = COMPETITION.format(root="data").replace(
        "csv: sample_submission.csv, images: test", "csv: new.csv, images: new"
    )
    (place / "drawn.yaml").write_text(text.replace("solution: solution.csv\n", ""))

    second = opened(place)
    assert done(second, "train") == [True, True]
    assert done(second, "features") == [False, False]
    run(second, "submission")
    after = latest_submission(second)
    assert after != before
    assert list(read_guesses(after).images) == names
    assert [path.stat().st_mtime_ns for path in checkpoints] == written
    assert second.workspace.folds.read_bytes() == folds
    new = np.load(second.workspace.features("tiny", 0) / "embeddings.npy")
    assert len(new) == len(old) - 10 + 6
    np.testing.assert_allclose(new[:40], old[:40], atol=1e-5)  # the labelled images, by the same weights
    np.testing.assert_allclose(new[40:], old[40:46], atol=1e-5)  # the same pictures under new names

    labelled = min((place / "data" / "train").iterdir())
    os.utime(labelled, (1, 1))
    assert done(opened(place), "train") == [True, True]  # the same image at another time
    labelled.write_bytes(max((place / "data" / "train").iterdir()).read_bytes())
    assert done(opened(place), "train") == [False, False]
