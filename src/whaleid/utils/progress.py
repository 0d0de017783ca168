"""Progress bars, drawn on stderr where it is a terminal.

A task that runs as a process of its own writes its bar to the file that PROGRESS_FILE names; the executor draws the
bars of all its processes.
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
"""Environment variable with the file that a process writes its bar to."""

EVERY = 1.0
"""Seconds between two writes of that file."""


class Bar:
    """A running progress bar."""

    def __init__(self, progress: Progress, task: TaskID, title: str):
        self._progress, self._task, self._title = progress, task, title
        self._file = Path(os.environ[PROGRESS_FILE]) if os.environ.get(PROGRESS_FILE) else None
        self._written = 0.0

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Advance by `steps`; `note` (a loss, images per second) is shown behind the bar."""
        self._progress.update(self._task, advance=steps, note=note)
        self._write(note)

    def move_to(self, done: int) -> None:
        """Set the number of steps that are done."""
        self._progress.update(self._task, completed=done)
        self._write("")

    def _write(self, note: str) -> None:
        if self._file is None or time.monotonic() - self._written < EVERY:
            return
        self._written = time.monotonic()
        task = self._progress.tasks[self._progress.task_ids.index(self._task)]
        content = {"title": self._title, "done": task.completed, "total": task.total, "note": note}
        self._file.write_text(json.dumps(content))


@contextmanager
def progress_bar(title: str, total: int, start: int = 0) -> Iterator[Bar]:
    """A bar with count, elapsed time and remaining time; nothing is drawn where stderr is a log file."""
    with _drawn() as progress:
        yield Bar(progress, progress.add_task(title, total=total, completed=start, note=""), title)


class FollowedBars:
    """The bars of several processes."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._tasks: dict[Path, TaskID] = {}

    def show(self, files: list[Path]) -> None:
        """Draw the bars that processes write to `files`, and no others."""
        for path in [path for path in self._tasks if path not in files]:
            self._progress.remove_task(self._tasks.pop(path))
            path.unlink(missing_ok=True)
        for path in files:
            try:
                bar = json.loads(path.read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                continue  # not begun, or just being written: read it next time
            if path not in self._tasks:
                self._tasks[path] = self._progress.add_task("", note="")
            self._progress.update(
                self._tasks[path],
                description=f"{path.stem}: {bar['title']}",
                completed=bar["done"],
                total=bar["total"],
                note=bar["note"],
            )

    def print(self, line: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def follow_bars() -> Iterator[FollowedBars]:
    """Bars of other processes."""
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
