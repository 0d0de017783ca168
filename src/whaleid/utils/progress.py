"""What a long task says while it runs: bars on a terminal, a plain line now and then elsewhere, JSON for programs.

Where stderr is a terminal, a task's bar is drawn there. Elsewhere one line says every LINE_SECONDS how far it is. With
`--json-log FILE` every process appends its events to that file (`events`).

A task that runs as a process of its own writes its bar to the file that PROGRESS_FILE names; the executor shows the
bars of all its processes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from whaleid.utils import events
from whaleid.utils.machine import used_memory

PROGRESS_FILE = "WHALEID_PROGRESS_FILE"
"""Environment variable with the file that a process writes its bar to."""

EVERY = 1.0
"""Seconds between two writes of that file."""

LINE_SECONDS = 30.0
"""Seconds between two lines, or two events, of a task that is still running."""


def say(line: str) -> None:
    """Print a line on stderr, as it is."""
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


# ------------------------------------------------------------------------------------------------------- one bar


@dataclass(frozen=True)
class State:
    """How far a bar is.

    Attributes
    ----------
    title : str
    done, total : int
        Steps.
    note : str
        A loss, images a second.
    left : float or None
        Seconds that the rest takes at the speed so far; None before the first step.
    """

    title: str
    done: int
    total: int
    note: str = ""
    left: float | None = None

    @property
    def line(self) -> str:
        """In words: `embed lite0: 1,200 of 4,000 (30 %), 84 images/s, 33 s left`."""
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        parts = [f"{self.title}: {self.done:,} of {self.total:,}{share}"]
        parts += [", ".join(self.note.split("  "))] if self.note else []
        parts += [] if self.left is None else [f"{duration(self.left)} left"]
        return ", ".join(parts)


class Bar:
    """A running progress bar."""

    def __init__(self, title: str, total: int, start: int, images: bool, progress: Progress):
        self._title, self._total, self._start, self._images = title, total, start, images
        self._progress = progress
        self._task = progress.add_task(title, total=total, completed=start, note="")
        self._file = Path(os.environ[PROGRESS_FILE]) if os.environ.get(PROGRESS_FILE) else None
        self._done, self._note, self._began, self._written = start, "", time.monotonic(), 0.0

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Advance by `steps`; `note` (a loss) is shown behind the bar."""
        self._move(self._done + steps, note)

    def move_to(self, done: int) -> None:
        """Set the number of steps that are done."""
        self._move(done, "")

    @property
    def state(self) -> State:
        """How far it is."""
        made, seconds = self._done - self._start, max(time.monotonic() - self._began, 1e-9)
        left = (self._total - self._done) * seconds / made if made > 0 else None
        rate = f"{made / seconds:.0f} images/s" if self._images and made > 0 else ""
        note = "  ".join(part for part in (self._note, rate) if part)
        return State(self._title, self._done, self._total, note, left)

    def _move(self, done: int, note: str) -> None:
        self._done, self._note = done, note
        self._progress.update(self._task, completed=done, note=self.state.note)
        if self._file is None or time.monotonic() - self._written < EVERY:
            return
        self._written = time.monotonic()
        self._file.write_text(json.dumps(asdict(self.state)))


@contextmanager
def progress_bar(title: str, total: int, start: int = 0, images: bool = False) -> Iterator[Bar]:
    """A bar with count, elapsed and remaining time, and memory. images: its steps are images, whose rate is shown."""
    with _activity(title, "") as activity, _drawn() as progress:
        bar = Bar(title, total, start, images, progress)
        activity.bars.append(bar)
        try:
            yield bar
        finally:
            activity.bars.remove(bar)


# ---------------------------------------------------------------------------------------------- the task around it


@dataclass
class _Activity:
    """What this process is doing: a task of a stage, or a command's work outside of one, and its running bars."""

    stage: str
    item: str
    began: float = field(default_factory=time.monotonic)
    bars: list[Bar] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def state(self) -> State | None:
        return self.bars[-1].state if self.bars else None

    def tell(self) -> None:
        """Say that it is still running: a line where no bar is drawn, and an event."""
        state = self.state
        if not sys.stderr.isatty():
            line = f"{self.stage} {self.item}".strip() + f": {duration(self.seconds)} so far"
            say(f"{line if state is None else state.line}, {memory(used_memory())}")
        self.log("progress", state)

    def log(self, event: str, state: State | None = None, **more: str) -> None:
        """Append an event of it to the JSON log, if there is one."""
        shown = {} if state is None else asdict(state)
        events.write(self.stage, self.item, event, self.seconds, **shown, **more)


_CURRENT: ContextVar[_Activity | None] = ContextVar("activity", default=None)
"""The activity of this process, which bars below it belong to."""


@contextmanager
def doing(stage: str, item: str) -> Iterator[None]:
    """Tell of a task while it runs: lines, and events of the JSON log."""
    with _activity(stage, item):
        yield


@contextmanager
def _activity(stage: str, item: str) -> Iterator[_Activity]:
    """The activity that is running, or else a new one for this block."""
    running = _CURRENT.get()
    if running is not None:
        yield running
        return
    made = _Activity(stage, item)
    token = _CURRENT.set(made)
    made.log("started")
    try:
        with _repeated(made.tell):
            yield made
    except BaseException as error:
        made.log("failed", error=" ".join(f"{type(error).__name__}: {error}".split()))
        raise
    finally:
        _CURRENT.reset(token)
    made.log("done")


@contextmanager
def _repeated(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` every LINE_SECONDS while the block runs, in a thread: a step itself may take minutes."""
    if sys.stderr.isatty() and not events.wanted():
        yield
        return
    ended = Event()

    def beat() -> None:
        while not ended.wait(LINE_SECONDS):
            tell()

    thread = Thread(target=beat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# ------------------------------------------------------------------------------------------ bars of other processes


class FollowedBars:
    """The bars of several processes."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._tasks: dict[Path, TaskID] = {}
        self._said = time.monotonic()

    def show(self, files: list[Path]) -> None:
        """Show the bars that processes write to `files`, and no others."""
        for path in [path for path in self._tasks if path not in files]:
            self._progress.remove_task(self._tasks.pop(path))
            path.unlink(missing_ok=True)
        states = {path: state for path in files if (state := _read_state(path)) is not None}
        for path, state in states.items():
            if path not in self._tasks:
                self._tasks[path] = self._progress.add_task("", note="")
            self._progress.update(
                self._tasks[path],
                description=f"{path.stem}: {state.title}",
                completed=state.done,
                total=state.total,
                note=state.note,
            )
        self._say([states[path].line if path in states else f"{path.stem}: not begun" for path in files])

    def print(self, line: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _say(self, lines: list[str]) -> None:
        """One line of all bars every LINE_SECONDS, where none is drawn."""
        if sys.stderr.isatty() or not lines or time.monotonic() - self._said < LINE_SECONDS:
            return
        self._said = time.monotonic()
        self.print("; ".join([*lines, memory(used_memory())]))


def _read_state(path: Path) -> State | None:
    """What a process wrote of its bar; None where it has not begun, or is just writing: it is read the next time."""
    try:
        return State(**json.loads(path.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


@contextmanager
def follow_bars() -> Iterator[FollowedBars]:
    """Bars of other processes."""
    with _drawn() as progress:
        bars = FollowedBars(progress)
        try:
            yield bars
        finally:
            bars.show([])


# -------------------------------------------------------------------------------------------------------- in words


def duration(seconds: float) -> str:
    """A length of time in words: `12 s`, `4.1 min`, `2.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def memory(size: int) -> str:
    """Memory in words. size: bytes."""
    return f"{size / 1e9:.1f} GB of memory"


class _MemoryColumn(ProgressColumn):
    """The memory of this process and of those that it started."""

    max_refresh = 2.0

    def render(self, task: Task) -> Text:
        return Text(f"{used_memory() / 1e9:.1f} GB", style="progress.data.speed")


def _drawn() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        _MemoryColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
