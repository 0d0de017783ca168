"""MANIFEST.json: size and checksum of every file of a folder, so that a damaged or incomplete copy is noticed.

Standard library only: a Kaggle kernel checks its data sets before any package is installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from whaleid.utils.errors import WhaleidError

MANIFEST = "MANIFEST.json"
FORMAT = 1
NOT_LISTED = (MANIFEST, "dataset-metadata.json")
"""Files that a manifest does not list: itself, and what the Kaggle client keeps for itself."""


@dataclass(frozen=True)
class Manifest:
    """The files of a folder.

    Attributes
    ----------
    name : str
        What the folder is: ``code``, ``wheels``, ``assets`` or ``archive``.
    files : dict of str to (int, str)
        Path relative to the folder -> size in bytes and SHA-256.
    """

    name: str
    files: dict[str, tuple[int, str]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())

    def text(self) -> str:
        """Content of MANIFEST.json."""
        files = {name: {"size": size, "sha256": digest} for name, (size, digest) in self.files.items()}
        return json.dumps({"format": FORMAT, "name": self.name, "files": files}, indent=1) + "\n"


def write_manifest(folder: Path, name: str) -> Manifest:
    """List every file below `folder` in its MANIFEST.json.

    Parameters
    ----------
    folder : Path
    name : str
        What the folder is; readers check it.

    Returns
    -------
    Manifest
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    listed = [name for name in names if name not in NOT_LISTED]
    manifest = Manifest(name, {name: ((folder / name).stat().st_size, sha256(folder / name)) for name in listed})
    (folder / MANIFEST).write_text(manifest.text())
    return manifest


def read_manifest(folder: Path, advice: str = "make the kernel again (whaleid kernel) and push it") -> Manifest:
    """Read the MANIFEST.json of a folder.

    Parameters
    ----------
    folder : Path
    advice : str
        Ends the error message: what the user should do.

    Raises
    ------
    WhaleidError
        If the file is missing, unreadable or of another format.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
        files = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in content["files"].items()}
        known = content["format"] == FORMAT
        manifest = Manifest(str(content["name"]), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WhaleidError(f"{path}: not a readable manifest ({error}); {advice}") from error
    if not known:
        raise WhaleidError(f"{path}: written by another version of whaleid; {advice}")
    return manifest


def check_manifest(
    folder: Path, advice: str = "push the data set again (whaleid kaggle push)", names: Collection[str] | None = None
) -> Manifest:
    """Compare the files of a folder with its manifest: first all sizes, then the checksums, which take longer.

    Parameters
    ----------
    folder : Path
    advice : str
        Ends the error message: what the user should do.
    names : collection of str, optional
        The listed files to check; all by default.

    Raises
    ------
    WhaleidError
        Names the first file that is missing, cut short or changed.
    """
    manifest = read_manifest(folder, advice)
    listed = {name: entry for name, entry in manifest.files.items() if names is None or name in names}
    for name, (size, _) in listed.items():
        path = folder / name
        if not path.is_file():
            raise WhaleidError(f"{path}: missing, but listed in {MANIFEST}; {advice}")
        found = path.stat().st_size
        if found != size:
            raise WhaleidError(
                f"{path}: {found:,} bytes, but {MANIFEST} lists {size:,}: cut short or changed; {advice}"
            )
    for name, (_, digest) in listed.items():
        if sha256(folder / name) != digest:
            raise WhaleidError(f"{folder / name}: its checksum differs from the one in {MANIFEST}: damaged; {advice}")
    return manifest


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
