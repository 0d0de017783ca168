"""What tests ask of the pipeline: a stage's result, made where it is not current."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from unittest import mock

import pytest

from whaleid.cli import main as cli
from whaleid.pipeline.data_stages import keypoints_folder
from whaleid.pipeline.executors import local
from whaleid.pipeline.metrics import require_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run, target_tasks
from whaleid.pipeline.submission import latest_submission


def figures_of(project: Project) -> dict[str, Any]:
    """The recipe's part of metrics.json."""
    run(project, "ladder")
    return require_figures(project)


def submission_of(project: Project) -> Path:
    """The recipe's submission."""
    run(project, "submission")
    return latest_submission(project)


def keypoints_of(project: Project) -> Path | None:
    """Folder of the keypoints."""
    run(project, "keypoints")
    return keypoints_folder(project)


def current(project: Project, stage: str) -> dict[str, bool]:
    """Item -> whether it is current."""
    return {task.item: task.current for task in target_tasks(project, stage)}


def without_processes(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let this process carry out the commands that several jobs are: each new process would import torch again.

    Returns the list that the commands' words are added to, in which a test finds what would have been started.
    """
    started: list[list[str]] = []

    class Done:
        def __init__(self, words: list[str], *, stdout: BinaryIO, env: dict[str, str], **_: object) -> None:
            started.append(words)
            log, self.returncode = io.StringIO(), 0
            with (
                contextlib.redirect_stdout(log),
                contextlib.redirect_stderr(log),
                mock.patch.dict(os.environ, env, clear=True),
                mock.patch.object(sys, "argv", ["whaleid", *words[3:]]),
            ):
                try:
                    cli.main()
                except SystemExit as ended:
                    self.returncode = int(ended.code or 0)
            stdout.write(log.getvalue().encode())

        def poll(self) -> int:
            return self.returncode

    patch.setattr(local, "subprocess", SimpleNamespace(Popen=Done, DEVNULL=subprocess.DEVNULL))
    return started
