"""Atomic files, digests, JSON, and free space on the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from whaleid.utils.errors import WhaleidError
from whaleid.utils.locks import locked

_LOCK = "lock"
"""Lock file in a folder of temporary files."""
OTHER_WORK = "put the work elsewhere with WORK="


def digest(*parts: Any) -> str:
    """Digest of JSON-like values, 20 hexadecimal digits: equal values give equal digests, on any machine."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def file_digest(path: Path) -> str:
    """Digest of a file's bytes, 20 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Temporary path of a file or a folder, which replaces `path` when the block ends without an error.

    It is in the folder `.<name>.tmp` beside `path`. Of two processes that write one path the second waits for the
    first; what a killed process left is removed by the next one. After an error `path` is as it was.
    """
    place = path.with_name(f".{path.name}.tmp")
    try:
        with locked(place / _LOCK):
            _clear(place, path)
            try:
                yield place / path.name
                replace_path(place / path.name, path)
            finally:
                _clear(place, path)
    except Exception as error:
        if _NO_SPACE.search(str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if isinstance(error, OSError) and error.errno is not None:  # without a number the name would hide the message
            error.filename = error.filename or str(path)  # arrow's errors do not say which file it was
        raise
    finally:
        with suppress(OSError):  # another process has begun to write there
            place.rmdir()


def replace_path(temporary: Path, path: Path) -> None:
    """Put a finished file or folder at `path`, on the same disk, in place of what is there.

    Its content is synced to the disk before it is renamed, and the name before this returns: whoever notes afterwards
    that `path` is complete is right even after a power failure.
    """
    for item in (*temporary.rglob("*"), temporary):
        _sync(item)
    if path.is_dir():
        old = _replaced(temporary)
        _remove(old)
        path.rename(old)
        temporary.rename(path)
        _remove(old)
    else:
        temporary.replace(path)
    _sync(path.parent)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files and locks below a folder whose processes were killed; those in use stay."""
    ignored = suppress(WhaleidError, OSError)  # in use, gone by now, or in a folder that may not be written
    for place in list(folder.rglob(".*.tmp")):
        with ignored:
            with locked(place / _LOCK, "in use"):
                _clear(place, place.with_name(place.name[1 : -len(".tmp")]))
            place.rmdir()
    for lock in list(folder.rglob("*.lock")):
        with ignored, locked(lock, "in use"):
            pass


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, keys in the given order."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises WhaleidError where the file is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WhaleidError(f"{path}: damaged ({error}); remove it, and the same command makes it again") from error


def load_array(path: Path) -> np.ndarray:
    """Array of a .npy file, memory-mapped; no pickle is read.

    Raises
    ------
    ValueError
        If the file is none: a damaged header makes numpy's parsers raise errors of many kinds.
    OSError
        If it cannot be opened.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(" ".join(str(error).split())) from error
    if not isinstance(array, np.ndarray):
        raise ValueError("a zip archive of arrays")
    return array


def forget_pages(array: np.ndarray) -> None:
    """Take what was read of a mapped file out of this process's memory; the system's cache keeps it. Nothing else."""
    mapping = getattr(array, "_mmap", None)  # numpy's name; there is no public one
    if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def require_space(folder: Path, needed: float, what: str, otherwise: str = OTHER_WORK) -> None:
    """Refuse before starting where the disk that holds `folder` has fewer than `needed` bytes free.

    what: needs them. otherwise: what the user can do besides freeing space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WhaleidError(
            f"{folder}: {what} needs {needed / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB free; "
            f"free some space, or {otherwise}"
        )


def bytes_text(size: float) -> str:
    """Bytes in the unit that fits: `1.2 GB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.1f} kB"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


_NO_SPACE = re.compile(rf"\b[Ee]rr(no|or) {errno.ENOSPC}\b|\d requested and \d+ written")
"""How the system, Rust (safetensors) and numpy say that the disk is full; only the first is an error with a number."""


def _replaced(temporary: Path) -> Path:
    """Where a folder is while the one at `temporary` takes its place."""
    return temporary.with_name(f"{temporary.name}.old")


def _clear(place: Path, path: Path) -> None:
    """Empty the place of temporary files; what a killed process was about to replace goes back."""
    old = _replaced(place / path.name)
    if old.is_dir() and not path.exists():
        old.rename(path)
    for item in place.iterdir():
        if item.name != _LOCK:
            _remove(item)


def _sync(path: Path) -> None:
    """Have the system write a file's content, or a folder's list of names, to the disk."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
