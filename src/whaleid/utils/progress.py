"""Progress bars for long work: one way to draw them, silent where nobody watches.

A job that runs as a process of its own has no terminal: it writes its bar into the file that PROGRESS_FILE names,
and the runner draws the bars of all its jobs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PROGRESS_FILE = "WHALEID_PROGRESS_FILE"
"""Environment variable that names the file a job's bar goes to."""

EVERY = 1.0
"""Seconds between two writes of that file."""


class Bar:
    """Handle of one running bar."""

    def __init__(self, progress: Progress, task: TaskID, title: str):
        self._progress, self._task, self._title = progress, task, title
        self._file = Path(os.environ[PROGRESS_FILE]) if os.environ.get(PROGRESS_FILE) else None
        self._written = 0.0

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on by `steps`; `note` (a loss, images a second) is shown behind the bar."""
        self._progress.update(self._task, advance=steps, note=note)
        self._tell(note)

    def move_to(self, done: int) -> None:
        """Show that `done` steps of the total are done."""
        self._progress.update(self._task, completed=done)
        self._tell("")

    def _tell(self, note: str) -> None:
        if self._file is None or time.monotonic() - self._written < EVERY:
            return
        self._written = time.monotonic()
        task = self._progress.tasks[self._progress.task_ids.index(self._task)]
        content = {"title": self._title, "done": task.completed, "total": task.total, "note": note}
        self._file.write_text(json.dumps(content))


@contextmanager
def progress_bar(title: str, total: int, start: int = 0) -> Iterator[Bar]:
    """A bar with count, elapsed time and time left, drawn on stderr when it is a terminal.

    In a log file (stderr is no terminal) nothing is drawn: the stage's own lines are enough there.
    """
    with _drawn() as progress:
        yield Bar(progress, progress.add_task(title, total=total, completed=start, note=""), title)


class FollowedBars:
    """The bars of jobs that run as processes."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._tasks: dict[Path, TaskID] = {}

    def show(self, files: list[Path]) -> None:
        """Draw the bars that are written in `files`, and no others."""
        for path in [path for path in self._tasks if path not in files]:
            self._progress.remove_task(self._tasks.pop(path))
            path.unlink(missing_ok=True)
        for path in files:
            try:
                told = json.loads(path.read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                continue  # not begun, or caught in the middle of a write: the next look will do
            if path not in self._tasks:
                self._tasks[path] = self._progress.add_task("", note="")
            self._progress.update(
                self._tasks[path],
                description=f"{path.stem}: {told['title']}",
                completed=told["done"],
                total=told["total"],
                note=told["note"],
            )

    def print(self, line: str) -> None:
        """A line above the bars."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def follow_bars() -> Iterator[FollowedBars]:
    """Bars of other processes, drawn as in `progress_bar`."""
    with _drawn() as progress:
        bars = FollowedBars(progress)
        try:
            yield bars
        finally:
            bars.show([])


def _drawn() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
