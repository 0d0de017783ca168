"""Where Kaggle mounts a kernel's inputs. Standard library only: this is the first thing that a kernel needs.

Since 2026 ``/kaggle/input/competitions/<slug>`` and ``/kaggle/input/datasets/<owner>/<slug>``, before that
``/kaggle/input/<slug>`` for both. An input at neither place is searched for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from whaleid.utils.errors import WhaleidError
from whaleid.utils.manifest import MANIFEST, read_manifest

DEPTH = 6
"""Levels of folders that are searched: a competition may hold 100,000 files, but no deep tree."""
SHOWN = 40
"""Folders that are listed before the error about a missing input."""


@dataclass(frozen=True)
class KernelFolders:
    """Folders of a running kernel.

    Attributes
    ----------
    assets, competition : Path
        Mounted inputs, read-only.
    working : Path
        The kernel's output.
    scratch : Path
        Everything else that is written.
    """

    assets: Path
    competition: Path
    working: Path
    scratch: Path


def dataset_folder(root: Path, slug: str, name: str) -> Path:
    """Mounted folder of a data set.

    Parameters
    ----------
    root : Path
        ``/kaggle/input``.
    slug : str
        The data set's slug, of whatever owner.
    name : str
        Name in its manifest, by which it is searched for at other places.

    Raises
    ------
    WhaleidError
        If it is not mounted; the folders that are mounted are printed.
    """
    places = [*sorted(root.glob(f"datasets/*/{slug}")), root / slug]
    found = _first(places, lambda place: (place / MANIFEST).is_file())
    found = found or _first(
        folders(root), lambda place: (place / MANIFEST).is_file() and read_manifest(place).name == name
    )
    return found or _missing(root, f"data set '{slug}' is not mounted (no {MANIFEST} of '{name}' below it)")


def competition_folder(root: Path, slug: str, listing: str) -> Path:
    """Mounted folder of a competition's data: the one that holds `listing`, the CSV of test images.

    Raises
    ------
    WhaleidError
        If it is not mounted; the folders that are mounted are printed.
    """
    places = [root / "competitions" / slug, *sorted(root.glob(f"datasets/*/{slug}")), root / slug]
    found = _first(places, lambda place: (place / listing).is_file())
    found = found or _first(folders(root), lambda place: (place / listing).is_file())
    return found or _missing(root, f"competition '{slug}' is not mounted (no {listing} below it)")


def folders(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Folders below `root`, level by level, sorted by name."""
    level = [root]
    for _ in range(depth):
        level = [path for place in level for path in _subfolders(place)]
        yield from level


def log(line: str) -> None:
    """Print a line of the kernel's log without delay."""
    print(line, flush=True)


def _subfolders(place: Path) -> list[Path]:
    try:
        with os.scandir(place) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []


def _first(places: Iterable[Path], accepted: Callable[[Path], bool]) -> Path | None:
    return next((place for place in places if accepted(place)), None)


def _missing(root: Path, problem: str) -> Path:
    found = [path.relative_to(root).as_posix() for path in folders(root, 3)]
    more = [f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    log("\n  ".join([f"folders below {root}:", *found[:SHOWN], *more]))
    raise WhaleidError(f"{root}: {problem}: add it to the kernel's inputs")
