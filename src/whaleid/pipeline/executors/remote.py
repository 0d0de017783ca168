"""What a node of a cluster is sent: the command line of a task, and the folders that it must see."""

from __future__ import annotations

import os
import runpy
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from whaleid.config.settings import VARIABLE
from whaleid.pipeline.executors.local import last_line, log_files
from whaleid.pipeline.tasks import Task, do
from whaleid.training.tracker import TRACKER
from whaleid.training.tracker import VARIABLES as TRACKER_VARIABLES
from whaleid.utils.errors import WhaleidError
from whaleid.utils.events import JSON_LOG
from whaleid.utils.progress import PROGRESS_FILE


@dataclass(frozen=True)
class RemoteCommand:
    """The command of a task. Node and sender share the current folder, those of SETTINGS.json, and the Python.

    Attributes
    ----------
    words : tuple of str
        What follows `python -m`.
    folder : Path
        Current folder of the sender: relative paths count from it.
    log, progress : Path
        In the work folder. The log is there before the command is sent: a node that does not see it has another folder.
    variables : dict
        Environment of the sender that the command depends on.
    """

    words: tuple[str, ...]
    folder: Path
    log: Path
    progress: Path
    variables: dict[str, str]

    def __call__(self) -> str | None:
        """Do it in this process. Returns None, or what failed and where."""
        unseen = next((path for path in (self.folder, self.log) if not path.exists()), None)
        if unseen is not None:
            return f"on node {socket.gethostname()}: {unseen}: not found; all nodes must share this folder"
        os.chdir(self.folder)
        os.environ.update(self.variables)
        os.environ[PROGRESS_FILE] = str(self.progress)
        try:
            with self.log.open("a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
                code = _run_module(self.words)
        except OSError as error:  # the disk is full, and the log cannot say so
            return f"on node {socket.gethostname()}: {self.log}: {error.strerror}"
        return None if code == 0 else self.failed(code)

    def failed(self, code: int) -> str:
        """What is said of it where its process ended with an exit code."""
        return f"on node {socket.gethostname()} ended with code {code}: {last_line(self.log)}"


def _run_module(words: Sequence[str]) -> int:
    """Exit code of `python -m`."""
    sys.argv = list(words)
    try:
        runpy.run_module(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def command_of(task: Task, options: list[str]) -> RemoteCommand:
    """A task as it is sent. Its log is made."""
    log, progress = log_files(task)
    log.touch()
    variables = {name: str(Path(os.environ[name]).absolute()) for name in (VARIABLE, JSON_LOG) if os.environ.get(name)}
    if os.environ.get(TRACKER):
        variables |= {name: os.environ[name] for name in TRACKER_VARIABLES if name in os.environ}
    return RemoteCommand(tuple(task.words(options)), Path.cwd(), log.absolute(), progress.absolute(), variables)


def load_engine(package: str, executor: str) -> Any:
    """The module of an engine. Raises WhaleidError where it is not installed."""
    if find_spec(package) is None:
        raise WhaleidError(
            f"--executor {executor} needs the package {package}: pip install 'whaleid[cluster]' (from a checkout: "
            "pip install -e '.[cluster]') here and on every node"
        )
    return import_module(package)


def do_here(tasks: Sequence[Task]) -> Iterator[Task]:
    """Do the tasks without a command, one after the other in this process."""
    for task in tasks:
        if task.command is None:
            do(task)
            yield task


def failed(task: Task, problem: str) -> WhaleidError:
    """The error of a task that a node could not do."""
    return WhaleidError(f"{task.stage} {task.item} {problem} (whole log: {log_files(task)[0]})")
