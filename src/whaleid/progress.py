"""Progress bars for long work: one way to draw them, silent where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

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


class Bar:
    """Handle of one running bar."""

    def __init__(self, progress: Progress, task_id: TaskID):
        self._progress = progress
        self._task = task_id

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on by `steps`; `note` (a loss, images a second) is shown behind the bar."""
        self._progress.update(self._task, advance=steps, note=note)

    def move_to(self, done: int) -> None:
        """Show that `done` steps of the total are done."""
        self._progress.update(self._task, completed=done)


@contextmanager
def progress_bar(title: str, total: int, start: int = 0) -> Iterator[Bar]:
    """A bar with count, elapsed time and time left, drawn on stderr when it is a terminal.

    In a log file (stderr is no terminal) nothing is drawn: the stage's own lines are enough there.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=total, completed=start, note="")
        yield Bar(progress, task)
