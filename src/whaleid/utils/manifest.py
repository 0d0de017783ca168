"""MANIFEST.json: what a data set of the kernel must hold, so that a half-uploaded or damaged one is named at once.

It is also the marker by which a data set is found, wherever the platform mounts it. Nothing but the standard
library is imported here: a kernel reads it before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from whaleid.utils.errors import WhaleidError

MANIFEST = "MANIFEST.json"
FORMAT = 1
NOT_LISTED = (MANIFEST, "dataset-metadata.json")
"""Files of a data set's folder that its manifest does not list: the client keeps the second for itself."""


@dataclass(frozen=True)
class Manifest:
    """name: of the data set's role (`code`, `wheels`, `assets`). files: path -> (bytes, sha256)."""

    name: str
    files: dict[str, tuple[int, str]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())

    def text(self) -> str:
        """As MANIFEST.json holds it."""
        files = {name: {"size": size, "sha256": digest} for name, (size, digest) in self.files.items()}
        return json.dumps({"format": FORMAT, "name": self.name, "files": files}, indent=1) + "\n"


def write_manifest(folder: Path, name: str) -> Manifest:
    """List every file below `folder` in its MANIFEST.json."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    listed = [(name, path) for name, path in zip(names, paths, strict=True) if name not in NOT_LISTED]
    manifest = Manifest(name, {name: (path.stat().st_size, sha256(path)) for name, path in listed})
    (folder / MANIFEST).write_text(manifest.text())
    return manifest


def read_manifest(folder: Path, again: str = "make the kernel again and push it") -> Manifest:
    """The manifest of a data set's folder; WhaleidError where it is missing or not one of ours.

    again: what the user is told to do then.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
        files = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in content["files"].items()}
        known = content["format"] == FORMAT
        manifest = Manifest(str(content["name"]), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WhaleidError(f"{path}: not a readable manifest ({error}); {again}") from error
    if not known:
        raise WhaleidError(f"{path}: of another version of whaleid; {again}")
    return manifest


def check_manifest(
    folder: Path,
    again: str = "push the data set again (make kernel-push)",
    only: Callable[[str], bool] = lambda _: True,
) -> Manifest:
    """Compare a data set with its manifest; raises WhaleidError naming the first file that is not as listed.

    again: what the user is told to do then. only: which of the listed files are looked at.
    Sizes first, so that what is missing or cut short is told before minutes of reading.
    """
    manifest = read_manifest(folder)
    listed = {name: entry for name, entry in manifest.files.items() if only(name)}
    for name, (size, _) in listed.items():
        path = folder / name
        if not path.is_file():
            raise WhaleidError(f"{path}: missing, though {MANIFEST} lists it; {again}")
        found = path.stat().st_size
        if found != size:
            raise WhaleidError(f"{path}: {found:,} bytes, but {MANIFEST} lists {size:,}: cut short or changed; {again}")
    for name, (_, digest) in listed.items():
        if sha256(folder / name) != digest:
            raise WhaleidError(f"{folder / name}: its checksum is not the one in {MANIFEST}: damaged; {again}")
    return manifest


def sha256(path: Path) -> str:
    """Checksum of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
