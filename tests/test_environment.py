"""What goes on under another processor or library says so, in one line, and does its work all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from whaleid.pipeline import tasks
from whaleid.pipeline.tasks import Task, do, environment_line
from whaleid.pipeline.workspace import Workspace

HERE = {"processor": "one", "python": "3.11.2", "torch": "2.9.0"}
THERE = {"processor": "another", "python": "3.11.2", "torch": "2.10.0"}


def task_in(folder: Path, steps: list[str], fails: bool = False) -> Task:
    """A task that resumes; with `fails`, it is interrupted."""

    def make() -> None:
        steps.append("made")
        if fails:
            raise KeyboardInterrupt
        (folder / "out").write_text("whole")

    return Task("train", "tiny/fold0", Workspace(folder), folder / "out", "key", make, resumes=True)


def test_a_task_that_resumes_elsewhere_says_what_differs(tmp_path, monkeypatch, capsys):
    steps: list[str] = []
    monkeypatch.setattr(tasks, "environment", lambda: HERE)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            do(task_in(tmp_path, steps, fails=True))
    assert capsys.readouterr().err == "", "the same machine"
    monkeypatch.setattr(tasks, "environment", lambda: THERE)
    do(task_in(tmp_path, steps))
    err = capsys.readouterr().err
    assert err.startswith("note: ") and len(err.splitlines()) == 1
    assert "train/tiny/fold0: processor one, now another; torch 2.9.0, now 2.10.0" in err
    assert len(steps) == 3 and task_in(tmp_path, steps).current


def test_outputs_of_other_machines_are_named_once_for_each_difference(monkeypatch):
    monkeypatch.setattr(tasks, "environment", lambda: THERE)
    stamps = [(f"train/net/fold{fold}", {"environment": HERE}) for fold in range(5)]
    line = environment_line([("images", {"environment": THERE}), *stamps, ("folds", {"key": "of an older version"})])
    assert line is not None and "images" not in line and "folds" not in line
    assert line.count("torch 2.9.0, now 2.10.0") == 1 and "train/net/fold2 and 2 more: " in line
    assert environment_line([("images", {"environment": THERE})]) is None
