"""Digests of files: an image is known by its content, so that a copy with new times is the same image."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from whaleid.utils.files import atomic_path
from whaleid.utils.progress import progress_bar

PORTION = 5_000  # files after which the table is written: a run that was killed continues from there

Known = dict[str, tuple[int, int, str]]
"""Absolute path -> size, time of change (ns), digest."""
NOTHING = (-1, -1, "")


def content_digest(content: bytes) -> str:
    """Short digest of a file's bytes, 20 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:20]


def file_digests(paths: Sequence[Path], table: Path | None = None) -> list[str]:
    """Digest of the content of each file.

    Parameters
    ----------
    paths : sequence of Path
        Files to read.
    table : Path, optional
        Parquet file of known digests. A file whose path, size and time of change stand there is not read again.
        New digests are added to it; a missing or damaged table is made anew.

    Returns
    -------
    list of str
        Digests in the order of `paths`, each of 20 hexadecimal digits; '' for a file that cannot be read.
    """
    known = {} if table is None else _read_table(table)
    states = {str(path.absolute()): _state(path) for path in paths}
    changed = {name: state for name, state in states.items() if state and known.get(name, NOTHING)[:2] != state}
    names = list(changed)
    with ThreadPoolExecutor() as pool, progress_bar("digests", len(changed), images=True) as bar:
        for start in range(0, len(changed), PORTION):
            part = names[start : start + PORTION]
            for name, digest in zip(part, pool.map(_read_digest, part), strict=True):
                known[name] = (*changed[name], digest)
                bar.advance()
            if table is not None:
                _write_table(known, table)
    return [known[name][2] if states[name] else "" for name in (str(path.absolute()) for path in paths)]


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of change; None for what is not a file."""
    try:
        state = path.stat()
    except OSError:
        return None
    return (state.st_size, state.st_mtime_ns) if stat.S_ISREG(state.st_mode) else None


def _read_digest(name: str) -> str:
    try:
        return content_digest(Path(name).read_bytes())
    except OSError:
        return ""  # whoever opens the image reports it


def _read_table(path: Path) -> Known:
    try:
        table = pd.read_parquet(path)
        facts = zip(table["size"].tolist(), table["time"].tolist(), table["digest"].tolist(), strict=True)
        return dict(zip(table["path"].tolist(), facts, strict=True))
    except (OSError, ValueError, KeyError):  # missing, damaged or of another version
        return {}


def _write_table(known: Known, path: Path) -> None:
    rows = [(name, *facts) for name, facts in known.items() if facts[2]]
    with atomic_path(path) as temporary:
        pd.DataFrame(rows, columns=["path", "size", "time", "digest"]).to_parquet(temporary, index=False)
