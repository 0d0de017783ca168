"""Unpacking an archive that somebody else made: nothing leaves the folder, nothing grows beyond what it declares."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import require_space

LARGEST_GROWTH = 20
"""Bytes that a byte of an archive may become. Photographs hardly shrink, CSVs shrink to a tenth; a bomb's thousand."""
SMALL = 1 << 28
"""Bytes that any archive may grow to, however small it is (a few CSVs that shrink well)."""
MOST_FILES = 1_000_000
INNER = 2
"""Archives inside the archive are unpacked too, to this depth."""
CHUNK = 1 << 20
ANOTHER_ROOT = "give the competition's YAML another root"
"""What to do where the disk is too small for a competition's data."""


@dataclass(frozen=True)
class Contents:
    """What an archive says that it holds, checked."""

    files: tuple[zipfile.ZipInfo, ...]
    size: int
    """Bytes of all files together."""

    def only(self, wanted: Callable[[str], bool]) -> Contents:
        files = tuple(info for info in self.files if wanted(info.filename))
        return Contents(files, sum(info.file_size for info in files))


def unpack(
    archive: Path,
    folder: Path,
    progress: Callable[[int], None] | None = None,
    depth: int = INNER,
    budget: int | None = None,
    only: Callable[[str], bool] = lambda _: True,
) -> int:
    """Unpack a zip and the zips in it into an empty or new folder; returns the number of files that lie there then.

    A zip named `train.zip` becomes the folder `train`, and `train.csv.zip` the file `train.csv`, however its own
    paths are given. progress: told the bytes of each part written. budget: bytes that may come out at the most,
    inner archives included; None: as many as the archive's size allows. only: by their names, which files are wanted
    (all are looked at, and an archive with a bad one is refused). Raises WhaleidError for a path that leads
    out of the folder, a link, a size that is not as declared or out of proportion, a damaged file, a disk too small.
    """
    allowed = allowance(archive) if budget is None else budget
    with _opened(archive) as opened:
        contents = inspect(opened, archive, allowed).only(only)
        inner = [info for info in contents.files if depth > 0 and info.filename.lower().endswith(".zip")]
        # an inner archive lies beside what comes out of it, until that is complete
        needed = contents.size + sum(info.file_size for info in inner)
        require_space(folder, needed, f"unpacking {archive.name}", ANOTHER_ROOT)
        for info in contents.files:
            _write(opened, info, folder / info.filename, archive, progress)
    count = len(contents.files) - len(inner)
    rest = allowed - contents.size
    for info in inner:
        path = folder / info.filename
        found, used = _unpack_inner(path, progress, depth - 1, rest)
        count, rest = count + found, rest - used
    return count


def allowance(archive: Path) -> int:
    """Bytes that may come out of an archive."""
    return max(SMALL, LARGEST_GROWTH * archive.stat().st_size)


def inspect(opened: zipfile.ZipFile, archive: Path, allowed: int) -> Contents:
    """The archive's files; raises WhaleidError where one must not be unpacked. allowed: bytes of all together."""
    files: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    size = 0
    for info in opened.infolist():
        _check_entry(info, archive)
        name = info.filename
        folders.update(parent.as_posix() for parent in PurePosixPath(name).parents)
        if info.is_dir():
            continue
        if name in files:
            raise WhaleidError(f"{archive}: {name} is in it twice; get the archive anew")
        files[name] = info
        size += info.file_size
        if size > allowed or len(files) > MOST_FILES:
            raise WhaleidError(
                f"{archive}: declares more than {len(files) - 1:,} files of {allowed / 1e6:,.0f} MB, out of proportion "
                f"to its {archive.stat().st_size / 1e6:,.1f} MB; it is not unpacked"
            )
    both = sorted(files.keys() & folders)
    if both:
        raise WhaleidError(f"{archive}: {both[0]} is a file and a folder in it; get the archive anew")
    return Contents(tuple(files.values()), size)


def _check_entry(info: zipfile.ZipInfo, archive: Path) -> None:
    name = info.filename
    path = PurePosixPath(name)
    # zipfile cuts a name at its NUL: orig_filename is what the archive says
    climbs = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in info.orig_filename
    if climbs or not path.parts:
        raise WhaleidError(f"{archive}: entry {name!r} would lie outside of the folder; the archive is not unpacked")
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise WhaleidError(f"{archive}: entry {name!r} is a link or a device; the archive is not unpacked")
    if info.flag_bits & 0x1:
        raise WhaleidError(f"{archive}: entry {name!r} is encrypted; the archive is not unpacked")


def _write(
    opened: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    path: Path,
    archive: Path,
    progress: Callable[[int], None] | None,
) -> None:
    """One file, with its checksum looked at, and never more bytes than it declares."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    try:
        with opened.open(info) as source, path.open("xb") as target:
            while chunk := source.read(CHUNK):
                written += len(chunk)
                if written > info.file_size:
                    break
                target.write(chunk)
                if progress is not None:
                    progress(len(chunk))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, zlib.error) as error:
        raise WhaleidError(
            f"{archive}: {info.filename} is damaged ({error}); remove the archive and get it anew"
        ) from error
    if written != info.file_size:
        raise WhaleidError(f"{archive}: {info.filename} is not as long as declared; remove the archive and get it anew")


def _unpack_inner(path: Path, progress: Callable[[int], None] | None, depth: int, budget: int) -> tuple[int, int]:
    """Unpack an archive that came out of another, and remove it. Returns the files that came out, and their bytes."""
    stem = path.with_suffix("")
    place = path.with_name(f".{path.name}.unpacked")
    count = unpack(path, place, progress, depth, min(budget, allowance(path)))
    used = sum(item.stat().st_size for item in place.rglob("*") if item.is_file())
    path.unlink()
    tops = list(place.iterdir())
    content = tops[0] if len(tops) == 1 and tops[0].name == stem.name else place
    if stem.exists():
        raise WhaleidError(f"{path.name}: {stem.name} is in the archive twice, unpacked and packed; get it anew")
    content.rename(stem)
    if place.exists():
        shutil.rmtree(place)
    return count, used


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise WhaleidError(f"{archive}: not a whole zip archive ({error}); remove it and get it anew") from error
