"""Atomic files, digests, JSON, and free space on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from whaleid.utils.errors import WhaleidError

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
    """Temporary path beside `path`, for a file or a folder; it replaces `path` when the block ends without an error.

    After an error the temporary file is removed, and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk's error need not say which file it was
        raise
    finally:
        _remove(temporary)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, keys in the given order."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=_plain) + "\n")


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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
