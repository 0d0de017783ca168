"""Where the platform mounts a kernel's inputs: the layout of 2026, the one before it, or wherever they are found.

`/kaggle/input/competitions/<slug>` and `/kaggle/input/datasets/<owner>/<slug>`, before that `/kaggle/input/<slug>`
for both. Standard library alone: this is the first thing that a kernel does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from whaleid.utils.errors import WhaleidError
from whaleid.utils.manifest import MANIFEST, read_manifest

_SHOWN = 40  # lines of the tree that a message is preceded by
_DEPTH = 6  # folders deep that is searched: a competition may hold a hundred thousand files, but no deep tree


def dataset_folder(root: Path, slug: str, name: str) -> Path:
    """Mounted folder of the data set `slug` (any owner) whose manifest has the role `name`.

    Searched where it should be, then wherever a MANIFEST.json of that role lies. Prints the tree and raises
    WhaleidError when there is none.
    """
    for place in [*sorted(root.glob(f"datasets/*/{slug}")), root / slug]:
        if (place / MANIFEST).is_file():
            return place
    for place in folders(root):
        if (place / MANIFEST).is_file() and read_manifest(place).name == name:
            return place
    _show(root)
    raise WhaleidError(
        f"{root}: data set '{slug}' is not mounted (no {MANIFEST} of '{name}' below it): add it to the kernel's inputs"
    )


def competition_folder(root: Path, slug: str, listing: str) -> Path:
    """Mounted folder of a competition's data.

    listing: path, relative to it, of the CSV of test images; it tells a competition's folder from others.
    """
    places = [root / "competitions" / slug, *sorted(root.glob(f"datasets/*/{slug}")), root / slug]
    for place in [*places, *folders(root)]:
        if (place / listing).is_file():
            return place
    _show(root)
    raise WhaleidError(
        f"{root}: competition '{slug}' is not mounted (no {listing} below it): add it to the kernel's inputs"
    )


def folders(root: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Folders below `root`, the upper ones first, by name."""
    level = [root]
    for _ in range(depth):
        level = [Path(entry.path) for place in level for entry in _entries(place) if entry.is_dir()]
        yield from level


def tree(root: Path, most: int = _SHOWN) -> list[str]:
    """What lies below `root`, two levels of it and then counts, at most `most` lines."""
    lines = [f"{root}" if root.is_dir() else f"{root}: no such folder"]
    for place in [root, *folders(root, 3)]:
        entries = _entries(place)
        names = ", ".join(entry.name for entry in entries[:4])
        more = f" and {len(entries) - 4:,} more" if len(entries) > 4 else ""
        lines.append(f"  {place.relative_to(root).as_posix()}/: {names}{more}")
    return lines if len(lines) <= most else [*lines[:most], f"  ... and {len(lines) - most} more folders"]


def _entries(place: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _show(root: Path) -> None:
    print("\n".join(tree(root)), flush=True)
