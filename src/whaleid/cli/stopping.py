"""Ctrl-C and SIGTERM: one line that says where the same command goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from whaleid.utils.progress import say

NOTHING_BEGUN = "stopped; the same command begins again, and leaves out what is done"


@contextmanager
def stoppable() -> Iterator[None]:
    """End the block at Ctrl-C or SIGTERM with one line on stderr and exit code 130 or 143.

    The line is the note of the exception, where the pipeline added one.
    """
    with _terminated_as_interrupted():
        try:
            yield
        except KeyboardInterrupt as stop:
            say(next(iter(getattr(stop, "__notes__", [])), NOTHING_BEGUN))
            raise typer.Exit(128 + (stop.args[0] if stop.args else signal.SIGINT)) from stop


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt here; a handler of whoever runs this process (a cluster's worker) stays."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
