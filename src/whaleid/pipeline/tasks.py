"""One piece of work of the pipeline: what it reads, what it makes, and whether that is current."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whaleid.data.competition import first_few
from whaleid.pipeline.workspace import Workspace
from whaleid.utils.locks import locked
from whaleid.utils.machine import changes, environment, measured
from whaleid.utils.progress import doing, say

LISTED = 3  # tasks that a line names


@dataclass(frozen=True)
class Task:
    """One output of a stage. Tasks of one stage are independent of each other, and doing one twice changes nothing.

    Attributes
    ----------
    stage : str
        Name of the stage.
    item : str
        Which of the stage's outputs: `tiny/fold0`.
    workspace : Workspace
        Where the output's key is noted.
    output : Path
        File or folder that is written, whole or not at all.
    key : str
        Digest of all that the output depends on; empty while an input that decides it is missing.
    make : callable
        Writes the output; returns notes to keep beside the key, or None.
    reads : tuple of str
        Names of the tasks whose outputs it reads.
    check : callable, optional
        Whether the output is current, where the noted key alone does not say so.
    resumes : bool
        Whether `make` continues what a killed process left beside the output.
    run : tuple, optional
        Experiment and fold of the run that it belongs to; fold None: the run on all labelled images.
    shard : int, optional
        Number of the shard, where it is one of the run's features.
    gpus : int
        GPUs, or without any processes, that do it together.
    command : str, optional
        Command of `whaleid` that does this task alone; None: done only in the process of the pipeline.
    """

    stage: str
    item: str
    workspace: Workspace
    output: Path
    key: str
    make: Callable[[], dict[str, Any] | None]
    reads: tuple[str, ...] = ()
    check: Callable[[], bool] | None = None
    resumes: bool = False
    run: tuple[str, int | None] | None = None
    shard: int | None = None
    gpus: int = 1
    command: str | None = None

    @property
    def name(self) -> str:
        """`<stage>/<item>`, by which other tasks name it in `reads`; the stage alone where it has one output."""
        return f"{self.stage}/{self.item}" if self.item else self.stage

    @property
    def current(self) -> bool:
        """Whether the output is there and was made from what the key stands for."""
        if not self.key:
            return False
        return self.workspace.is_current(self.output, self.key) if self.check is None else self.check()

    def arguments(self, options: list[str]) -> list[str]:
        """Command line that does this task alone, on this machine; `options` as in `words`."""
        return [sys.executable, "-m", *self.words(options)]

    def words(self, options: list[str]) -> list[str]:
        """What follows `python -m` in the command line that does this task alone.

        Parameters
        ----------
        options : list of str
            Those that name competition, recipe, work folder and overrides.
        """
        assert self.run is not None and self.command is not None
        experiment, fold = self.run
        part = ["--full"] if fold is None else ["--fold", str(fold)]
        number = ["--round", str(self.workspace.round)] if self.workspace.round else []
        shard = [] if self.shard is None else ["--shard", str(self.shard)]
        return ["whaleid", self.command, *options, "--experiment", experiment, *part, *number, *shard]


def do(task: Task) -> None:
    """Make a task's output and note its key, unless it is current. Of two processes at once the second one waits."""
    if task.current:
        return
    with _alone(task):
        if not task.current:
            _make(task)


def environment_line(stamps: list[tuple[str, dict[str, Any]]]) -> str | None:
    """What is other now than where some outputs were made, for people; None where nothing is, or nothing was noted.

    stamps: name of the task that made an output, and what was noted of it (`Workspace.stamp`).
    """
    now, of_change = environment(), dict[str, list[str]]()
    for name, stamp in stamps:
        if change := changes(stamp.get("environment") or now, now):
            of_change.setdefault(change, []).append(name)
    if not of_change:
        return None
    parts = [f"{first_few(names, LISTED)}: {change}" for change, names in of_change.items()]
    return f"note: what goes on here began elsewhere, so that last digits may differ: {' | '.join(parts)}"


def together() -> bool:
    """Whether this is one of the processes of an `accelerate launch`, which do a task together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _alone(task: Task) -> AbstractContextManager[object]:
    """Lock of a task's output; none for processes that do it together."""
    return nullcontext() if together() else locked(task.workspace.lock(task.output))


def _make(task: Task) -> None:
    if together() and os.environ.get("RANK", "0") != "0":  # the first process notes what they all make
        task.make()
        return
    began = time.monotonic()
    begin(task)
    with doing(task.stage, task.item):
        notes = task.make() or {}
    task.workspace.mark_current(task.output, task.key, **_resumed(task), **measured(began), **notes)


def begin(task: Task) -> None:
    """Remove what other settings left at the output's place, and note what is being made there."""
    if task.resumes:
        before = task.workspace.stamp(task.output)
        if before.get("begun") != task.key:
            _clear(task.output)
        elif line := environment_line([(task.name, before)]):
            say(line)
    # a kill between output and key must not leave an earlier key
    task.workspace.mark_current(task.output, "", **_resumed(task), environment=environment())


def _resumed(task: Task) -> dict[str, str]:
    return {"begun": task.key} if task.resumes else {}


def _clear(output: Path) -> None:
    """Remove what other settings left at the output's place, and beside it."""
    for path in (output, *output.parent.glob(f".{output.name}.*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
