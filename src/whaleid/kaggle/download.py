"""A competition's data from Kaggle: downloaded (or carried on with), unpacked, counted, and only then at its place.

The client itself resumes: beside a file that is not whole lies `<file>.kaggle-partial` with its whole size and the
server's mark of it. What comes out of the archive waits in a folder of its own until every image that the CSVs list
is there; the CSVs are moved last, so a root that has them is complete.
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
from whaleid.kaggle.credentials import WHERE_TO_GET, find_credentials
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, require_space
from whaleid.utils.locks import locked
from whaleid.utils.progress import Bar, progress_bar
from whaleid.utils.unpack import unpack

STALLED = 300.0
"""Seconds without a new byte after which the download is given up (the client itself would wait for ever)."""
GROWTH = 1.05
"""Bytes that come out of an archive of photographs for each of its own, about: looked at before the download."""
UNPACKED = ".unpacking"
_MB = 1_000_000


def fetch_data(competition: Competition, keep_archive: bool = False) -> Iterator[str]:
    """Have the data of a Kaggle competition at its root; yields what is done, a line each.

    Nothing is done where the root has the competition's CSVs. An archive `<slug>.zip` that lies in the root, from
    whatever source, is taken without asking Kaggle. Raises WhaleidError; a download then stays, to be carried on
    with, and of what was unpacked nothing stays.
    """
    if competition.kaggle is None or has_tables(competition):
        yield f"{competition.root}: {counted(competition)}"
        return
    root = competition.root
    archive = root / f"{competition.kaggle}.zip"
    if not is_whole(archive) and find_credentials() is None:
        raise WhaleidError(
            f"{root}: the data of {competition.kaggle} is not here, and no Kaggle credentials are found: "
            f"{WHERE_TO_GET}; or download it by hand and put the zip there as {archive.name}"
        )
    root.mkdir(parents=True, exist_ok=True)
    try:
        with locked(root, "another download into it is under way; wait for it to end") as lock:
            if not is_whole(archive):
                begun = archive.stat().st_size if archive.is_file() else 0
                carrying = f", carrying on after {begun / _MB:,.0f} MB" if begun and _marker(archive).is_file() else ""
                yield f"downloading {competition.kaggle} into {root}{carrying}"
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
    """`25,361 train images, 7,960 test images`, every one of them there; else raises WhaleidError."""
    rows, problems = inspect_rows(competition)
    absent = [problem for problem in problems if problem.kind in ("missing", "outside")]
    if absent:
        raise WhaleidError(absent[0].message)
    counts = rows["split"].value_counts()
    return ", ".join(f"{counts[split]:,} {split} images" for split in ("train", "test") if split in counts)


def is_whole(archive: Path) -> bool:
    """Whether the archive is there to its last byte (the list of a zip's files is its end)."""
    return archive.is_file() and not _marker(archive).is_file() and zipfile.is_zipfile(archive)


def _tables(competition: Competition) -> list[str]:
    return [competition.train.csv] + ([competition.test.csv] if competition.test else [])


# ----------------------------------------------------------------------------------------------- the download


def _download(slug: str, archive: Path, lock: int) -> None:
    with ExitStack() as stack:
        watch = _Watch(archive, stack)
        kaggle(
            ["competitions", "download", slug, "-p", str(archive.parent), "-q"],
            f"download of {slug}",
            competition=slug,
            within=None,
            watch=watch.look,
            keep_open=[lock],
        )
    if not is_whole(archive):
        raise WhaleidError(f"{archive}: the download ended before the archive was whole; run the same command again")


class _Watch:
    """Eyes on a running download: room on the disk as soon as its size is known, a bar, and whether it still grows."""

    def __init__(self, archive: Path, stack: ExitStack):
        self._archive, self._stack = archive, stack
        self._bar: Bar | None = None
        self._size = -1
        self._grew = time.monotonic()

    def look(self) -> None:
        size = self._archive.stat().st_size if self._archive.is_file() else 0
        if size != self._size:
            self._size, self._grew = size, time.monotonic()
        if time.monotonic() - self._grew > STALLED:
            raise WhaleidError(
                f"{self._archive}: no byte came for {STALLED:.0f} s; run the same command again, it carries on"
            )
        if self._bar is None:
            self._begin(size)
        else:
            self._bar.move_to(size // _MB)

    def _begin(self, size: int) -> None:
        whole = _whole_size(self._archive)
        if whole is None:
            return
        what = f"the archive ({whole / _MB:,.0f} MB) and what comes out of it"
        require_space(
            self._archive.parent,
            whole - size + round(whole * GROWTH),
            what,
            "choose another root in the competition's YAML",
        )
        self._bar = self._stack.enter_context(progress_bar("downloading (MB)", whole // _MB, size // _MB))


def _marker(archive: Path) -> Path:
    """The client's note beside a file that is not whole yet."""
    return archive.with_name(f"{archive.name}.kaggle-partial")


def _whole_size(archive: Path) -> int | None:
    """Bytes of the whole archive as the client noted them; None while it has not."""
    try:
        size = json.loads(_marker(archive).read_text()).get("size")
    except (OSError, json.JSONDecodeError, AttributeError):
        return None
    return size if isinstance(size, int) else None


# ----------------------------------------------------------------------------------------------- the unpacking


def _unpack(competition: Competition, archive: Path) -> None:
    """The archive's content into the root, complete or not at all."""
    place = competition.root / UNPACKED
    shutil.rmtree(place, ignore_errors=True)  # of a killed run
    try:
        _unpack_with_bar(archive, place)
        staged = competition.model_copy(update={"root": place})
        try:
            counted(staged)
        except WhaleidError as error:
            raise WhaleidError(f"{archive}: does not hold what the competition's YAML names: {error}") from error
        tables = _tables(competition)
        for item in sorted(place.iterdir(), key=lambda item: item.name in tables):
            with atomic_path(competition.root / item.name) as temporary:
                item.rename(temporary)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _unpack_with_bar(archive: Path, place: Path) -> None:
    done = 0
    with progress_bar("unpacking (MB)", archive.stat().st_size // _MB) as bar:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.move_to(done // _MB)

        unpack(archive, place, advance)
