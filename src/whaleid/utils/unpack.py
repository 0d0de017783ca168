"""Unpacking zip archives from elsewhere: no file leaves the target folder, and a zip bomb is refused.

`zipfile` itself checks each file's checksum and never writes more bytes than the archive declares for it.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import require_space

LARGEST_RATIO = 20
"""Unpacked bytes for each byte of an archive. Photographs hardly shrink, CSVs to a tenth; a bomb to a thousandth."""
SMALL = 1 << 28
"""Unpacked bytes that every archive may have, however small it is."""
OTHER_FOLDER = "choose another folder (root in the competition's YAML, or WORK=)"
DEPTH = 2
"""Levels of archives inside archives that are unpacked too."""


def unpack(
    archive: Path,
    folder: Path,
    progress: Callable[[int], None] | None = None,
    depth: int = DEPTH,
    names: Collection[str] | None = None,
) -> int:
    """Unpack a zip, and the zips inside it, into an empty or new folder.

    An inner ``train.zip`` becomes the folder ``train``, and ``train.csv.zip`` the file ``train.csv``.

    Parameters
    ----------
    archive, folder : Path
    progress : callable, optional
        Called with the number of bytes of each file that was written.
    depth : int
        Levels of inner archives to unpack; 0 leaves them as files.
    names : collection of str, optional
        The entries to unpack; all by default. All are checked in any case.

    Returns
    -------
    int
        Number of files written.

    Raises
    ------
    WhaleidError
        For an entry that would lie outside of the folder, a link, an encrypted or damaged file, an unpacked size out
        of proportion to the archive's, or too small a disk.
    """
    with _opened(archive) as opened:
        entries = [info for info in _checked(opened, archive) if names is None or info.filename in names]
        inner = [info for info in entries if depth > 0 and info.filename.lower().endswith(".zip")]
        # an inner archive takes space beside its content until that is complete
        require_space(
            folder, sum(info.file_size for info in [*entries, *inner]), f"unpacking {archive.name}", OTHER_FOLDER
        )
        for info in entries:
            _extract(opened, info, folder, archive)
            if progress is not None:
                progress(info.file_size)
    count = len(entries) - len(inner)
    return count + sum(_unpack_inner(folder / info.filename, progress, depth - 1) for info in inner)


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise WhaleidError(f"{archive}: not a whole zip archive ({error}); remove it and download it again") from error


def _checked(opened: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    """The files of an archive; refused as a whole if one of them must not be unpacked."""
    entries = opened.infolist()
    for info in entries:
        _check_entry(info, archive)
    size, packed = sum(info.file_size for info in entries), archive.stat().st_size
    if size > max(SMALL, LARGEST_RATIO * packed):
        raise WhaleidError(
            f"{archive}: {packed / 1e6:,.1f} MB would become {size / 1e6:,.0f} MB, which is out of proportion; "
            "it is not unpacked"
        )
    return [info for info in entries if not info.is_dir()]


def _check_entry(info: zipfile.ZipInfo, archive: Path) -> None:
    name = info.filename
    path = PurePosixPath(name)
    # zipfile cuts a name at a NUL byte; orig_filename is the whole name
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in info.orig_filename
    if outside or not path.parts:
        raise WhaleidError(f"{archive}: entry {name!r} would lie outside of the folder; the archive is not unpacked")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise WhaleidError(f"{archive}: entry {name!r} is a link or a device; the archive is not unpacked")
    if info.flag_bits & 0x1:
        raise WhaleidError(f"{archive}: entry {name!r} is encrypted; the archive is not unpacked")


def _extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path, archive: Path) -> None:
    try:
        opened.extract(info, folder)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, zlib.error) as error:
        raise WhaleidError(
            f"{archive}: {info.filename} is damaged ({error}); remove the archive and download it again"
        ) from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise WhaleidError(f"{archive}: {info.filename} is a file and a folder; download the archive again") from error


def _unpack_inner(path: Path, progress: Callable[[int], None] | None, depth: int) -> int:
    """Replace an inner archive by its content; returns the number of files."""
    target, place = path.with_suffix(""), path.with_name(f".{path.name}.unpacked")
    count = unpack(path, place, progress, depth)
    path.unlink()
    if target.exists():
        raise WhaleidError(f"{path}: the archive holds {target.name} twice, packed and unpacked; download it again")
    entries = list(place.iterdir())
    own_folder = len(entries) == 1 and entries[0].name == target.name
    (entries[0] if own_folder else place).rename(target)
    shutil.rmtree(place, ignore_errors=True)
    return count
