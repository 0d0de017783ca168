"""The JSON log: one object a line for each event of a task, appended by every process of a command (`--json-log`)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whaleid.utils.errors import WhaleidError
from whaleid.utils.machine import used_memory

JSON_LOG = "WHALEID_JSON_LOG"
"""Environment variable with the file, which the processes of tasks inherit."""
FIELDS = ("time", "stage", "task", "event", "seconds", "done", "total", "memory", "title", "note", "left", "error")
"""Of every line, null where there is nothing to say."""


@contextmanager
def json_log(path: Path | None) -> Iterator[None]:
    """Append the events of this process, and of those that it starts, to a file; None: to none that is new.

    Raises
    ------
    WhaleidError
        If the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        path.open("a").close()
    except OSError as error:
        raise WhaleidError(f"--json-log {path}: {error.strerror}; name a file in a folder that is there") from error
    before = os.environ.get(JSON_LOG)
    os.environ[JSON_LOG] = str(path.absolute())
    try:
        yield
    finally:
        del os.environ[JSON_LOG]
        if before is not None:
            os.environ[JSON_LOG] = before


def wanted() -> bool:
    """Whether there is a log to write to."""
    return bool(os.environ.get(JSON_LOG))


def write(stage: str, task: str, event: str, seconds: float, **more: Any) -> None:
    """Append an event to the log, if there is one.

    Parameters
    ----------
    stage, task : str
        The stage, and which of its outputs; the latter is empty where it has one.
    event : str
        started, progress, done or failed.
    seconds : float
        Since the task was started.
    **more
        Further fields of FIELDS.
    """
    if not wanted():
        return
    own = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "stage": stage, "task": task, "event": event}
    own |= {"seconds": round(seconds, 3), "memory": used_memory()} | more
    line = json.dumps({name: own.get(name) for name in FIELDS}) + "\n"
    # one write of an appending file: lines of several processes do not mix
    descriptor = os.open(os.environ[JSON_LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
