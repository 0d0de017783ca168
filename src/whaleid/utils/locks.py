"""One lock for work that two processes must not do at once."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whaleid.utils.errors import WhaleidError


@contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[int]:
    """Hold a lock file; the system releases it when the process dies, and the next holder removes the file.

    Parameters
    ----------
    path : Path
        The lock file, in a folder that is made if it is missing. It is removed at the end.
    busy : str, optional
        Message of the WhaleidError that is raised if another process holds the lock; None: say so and wait for it.

    Yields
    ------
    int
        File descriptor of the lock; a child process that inherits it holds the lock, too.
    """
    lock = _taken(path, busy)
    try:
        yield lock
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _taken(path: Path, busy: str | None) -> int:
    """Descriptor of the lock file, locked at once or after waiting for it."""
    while True:
        lock = _open(path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if busy is not None:
                os.close(lock)
                raise WhaleidError(f"{path.parent}: {busy}") from error
            print(f"waiting for another process, which holds {path}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_open_as(path, lock):
            return lock
        os.close(lock)  # its last holder has removed the file


def _open(path: Path) -> int:
    """Open the lock file, made where it is missing; again where its folder is removed at this moment."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue


def _is_open_as(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
