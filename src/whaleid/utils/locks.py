"""One lock for work that two processes must not do at once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whaleid.utils.errors import WhaleidError


@contextmanager
def locked(folder: Path, busy: str | None = None) -> Iterator[int]:
    """Hold the lock of a folder; the system releases it when the process dies.

    Parameters
    ----------
    folder : Path
        Created if missing.
    busy : str, optional
        Message of the WhaleidError that is raised if another process holds the lock; None: wait for it.

    Yields
    ------
    int
        File descriptor of the lock; a child process that inherits it holds the lock, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if busy is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
    except BlockingIOError as error:
        raise WhaleidError(f"{folder}: {busy}") from error
    finally:
        os.close(lock)
