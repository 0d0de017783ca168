"""A competition's data from Kaggle: downloaded, unpacked, checked, and only then moved to its place.

The client resumes a download: beside an incomplete file it keeps `<file>.kaggle-partial` with the whole size. The
archive is unpacked into a folder of its own until every listed image is there, and the CSVs are moved last, so a root
with CSVs is complete.
"""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from whaleid.config import Competition
from whaleid.data.competition import inspect_rows
from whaleid.kaggle.client import kaggle
from whaleid.kaggle.credentials import WHERE_TO_GET, broken_files, find_credentials
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, require_space
from whaleid.utils.locks import locked
from whaleid.utils.progress import Bar, progress_bar
from whaleid.utils.unpack import OTHER_FOLDER, unpack

STALLED_SECONDS = 300.0
"""Without a new byte, after which the download is stopped; the client itself would wait forever."""
GROWTH = 1.05
"""Unpacked bytes for each byte of an archive of photographs, about; checked before the download."""
UNPACKED = ".unpacking"
_MB = 1_000_000


def fetch_data(competition: Competition, keep_archive: bool = False) -> Iterator[str]:
    """Download and unpack a competition's data unless its CSVs are at its root.

    Parameters
    ----------
    competition : Competition
    keep_archive : bool
        Keep the zip. A file ``<slug>.zip`` that is at the root already is unpacked without asking Kaggle.

    Yields
    ------
    str
        A line for each step.

    Raises
    ------
    WhaleidError
        An incomplete download stays and is continued next time; nothing stays of an incomplete unpacking.
    """
    if competition.kaggle is None or has_tables(competition):
        yield f"{competition.root}: {counted(competition)}"
        return
    root = competition.root
    archive = root / f"{competition.kaggle}.zip"
    if not is_whole(archive) and find_credentials() is None:
        raise WhaleidError(
            f"{root}: the data of {competition.kaggle} is not here, and no Kaggle credentials are "
            f"found{broken_files()}: {WHERE_TO_GET}; or download it in a browser and put the zip there as "
            f"{archive.name}"
        )
    root.mkdir(parents=True, exist_ok=True)
    try:
        with locked(
            archive.with_name(f"{archive.name}.lock"), "another download into it is under way; wait for it to end"
        ) as lock:
            if not is_whole(archive):
                begun = archive.stat().st_size if _marker(archive).is_file() and archive.is_file() else 0
                continued = f", continued after {begun / _MB:,.0f} MB" if begun else ""
                yield f"downloading {competition.kaggle} into {root}{continued}"
                _download(competition.kaggle, archive, lock)
            yield f"unpacking {archive} ({archive.stat().st_size / _MB:,.0f} MB)"
            _unpack(competition, archive)
    finally:
        if not any(root.iterdir()):
            root.rmdir()
    if not keep_archive:
        archive.unlink(missing_ok=True)
    yield f"{root}: {counted(competition)}"


def has_tables(competition: Competition) -> bool:
    """Whether the root has the CSVs that the competition's YAML names."""
    return all((competition.root / name).is_file() for name in _tables(competition))


def counted(competition: Competition) -> str:
    """`25,361 train images, 7,960 test images`; raises WhaleidError if one of them is missing."""
    rows, problems = inspect_rows(competition)
    missing = [problem for problem in problems if problem.kind in ("missing", "outside")]
    if missing:
        raise WhaleidError(missing[0].message)
    counts = rows["split"].value_counts()
    return ", ".join(f"{counts[split]:,} {split} images" for split in ("train", "test") if split in counts)


def is_whole(archive: Path) -> bool:
    """Whether the archive is complete (the list of a zip's files is at its end)."""
    return archive.is_file() and not _marker(archive).is_file() and zipfile.is_zipfile(archive)


def _tables(competition: Competition) -> list[str]:
    return [competition.train.csv] + ([competition.test.csv] if competition.test else [])


# ----------------------------------------------------------------------------------------------- the download


def _download(slug: str, archive: Path, lock: int) -> None:
    words = ["competitions", "download", slug, "-p", str(archive.parent), "-q"]
    with ExitStack() as stack:
        watch = _Watch(archive, stack)
        kaggle(words, f"download of {slug}", competition=slug, timeout=None, watch=watch.look, keep_open=[lock])
    if not is_whole(archive):
        raise WhaleidError(f"{archive}: the download ended before the archive was whole; run the same command again")


class _Watch:
    """Watches a running download: checks the disk space once the size is known, shows a bar, stops a stalled one."""

    def __init__(self, archive: Path, stack: ExitStack):
        self._archive, self._stack = archive, stack
        self._bar: Bar | None = None
        self._size, self._grew = -1, time.monotonic()

    def look(self) -> None:
        size = self._archive.stat().st_size if self._archive.is_file() else 0
        if size != self._size:
            self._size, self._grew = size, time.monotonic()
        if time.monotonic() - self._grew > STALLED_SECONDS:
            raise WhaleidError(
                f"{self._archive}: no byte came for {STALLED_SECONDS:.0f} s; run the same command again, it continues"
            )
        if self._bar is None:
            self._start(size)
        else:
            self._bar.move_to(size // _MB)

    def _start(self, size: int) -> None:
        whole = _whole_size(self._archive)
        if whole is None:
            return
        needed = whole - size + round(whole * GROWTH)
        require_space(
            self._archive.parent, needed, f"the archive ({whole / _MB:,.0f} MB) with its content", OTHER_FOLDER
        )
        self._bar = self._stack.enter_context(progress_bar("downloading (MB)", whole // _MB, size // _MB))


def _marker(archive: Path) -> Path:
    """The client's note beside an incomplete file."""
    return archive.with_name(f"{archive.name}.kaggle-partial")


def _whole_size(archive: Path) -> int | None:
    """Bytes of the whole archive, once the client has noted them."""
    try:
        size = json.loads(_marker(archive).read_text()).get("size")
    except (OSError, json.JSONDecodeError, AttributeError):
        return None
    return size if isinstance(size, int) else None


# ----------------------------------------------------------------------------------------------- the unpacking


def _unpack(competition: Competition, archive: Path) -> None:
    """The archive's content into the root, completely or not at all."""
    place = competition.root / UNPACKED
    shutil.rmtree(place, ignore_errors=True)  # left by a killed command
    done = 0
    try:
        with progress_bar("unpacking (MB)", archive.stat().st_size // _MB) as bar:

            def advance(count: int) -> None:
                nonlocal done
                done += count
                bar.move_to(done // _MB)

            unpack(archive, place, advance)
        try:
            counted(competition.model_copy(update={"root": place}))
        except WhaleidError as error:
            raise WhaleidError(f"{archive}: does not hold what the competition's YAML names: {error}") from error
        tables = _tables(competition)
        for item in sorted(place.iterdir(), key=lambda item: item.name in tables):
            with atomic_path(competition.root / item.name) as temporary:
                item.rename(temporary)
    finally:
        shutil.rmtree(place, ignore_errors=True)
