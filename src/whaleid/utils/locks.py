"""One process at a time; the system releases a lock when its process dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whaleid.utils.errors import WhaleidError


@contextmanager
def exclusive(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock of a folder, which is made where it is missing.

    Parameters
    ----------
    folder : Path
        What is locked.
    busy : str, optional
        Message of the WhaleidError that is raised where another process holds the lock; None: wait for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if busy is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise WhaleidError(str(busy)) from error
    finally:
        os.close(handle)
