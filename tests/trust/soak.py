"""The soak: the pipeline again and again, in one process and as processes in a row; what they use must not grow."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from unittest import mock

import psutil
from trust.fuzz import called
from trust.kills import LEADERBOARD
from trust.world import forked

from whaleid.config.settings import VARIABLE

WARM = 2
"""Runs after which caches are full, and pools of threads have been started."""
SLACK = {"memory": 40, "threads": 1}
"""By how much two runs may differ: megabytes, for freed memory lies between what is held; a thread, for the pool of a
library may start one late."""


@dataclass(frozen=True)
class Use:
    """What a run left.

    Attributes
    ----------
    memory : float
        Megabytes that the process holds after the run; of a process of its own, its most.
    files, threads : int
        Open files and threads of the process after the run; of a process of its own, its children that are left.
    temporary : float
        Megabytes in the folder of temporary files after the run.
    """

    memory: float
    files: int
    threads: int
    temporary: float


def in_one_process(world: Path, folder: Path, times: int) -> list[Use]:
    """Run the pipeline so many times in one process, each time in a new copy of the world.

    Parameters
    ----------
    world : Path
        In which nothing was run.
    folder : Path
        For the copies and the temporary files.
    times : int
    """
    out = folder / "uses.json"
    process = forked(_soak, (world, folder, times, out))
    process.start()
    process.join()
    assert process.exitcode == 0, f"the process of the soak ended with code {process.exitcode}"
    return [Use(**one) for one in json.loads(out.read_text())]


def processes_in_a_row(world: Path, folder: Path, times: int) -> list[Use]:
    """The same as so many processes, one after the other."""
    return [_process(place, temporary) for place, temporary in _copies(world, folder, times)]


def growth(uses: list[Use]) -> list[str]:
    """What grows from run to run, in words; empty where nothing does.

    The last run is compared with the first warm one; less than SLACK is no growth.
    """
    first, last = uses[min(WARM, len(uses)) - 1], uses[-1]
    found = []
    for field in fields(Use):
        before, after = getattr(first, field.name), getattr(last, field.name)
        if after > before + SLACK.get(field.name, 0):
            found.append(f"{field.name} grows from {before:g} to {after:g}")
    return found


def soak_rows(name: str, uses: list[Use]) -> list[str]:
    """Rows of the page's table: the first run, the first warm one, and the last."""
    rows = []
    for number in sorted({1, min(WARM, len(uses)), len(uses)}):
        one = uses[number - 1]
        rows.append(f"| {name} | {number} | {one.memory:,.0f} | {one.files} | {one.threads} | {one.temporary:.1f} |")
    return rows


def _copies(world: Path, folder: Path, times: int) -> Iterator[tuple[Path, Path]]:
    """A copy of the world and an empty folder of temporary files, so many times; the copy is removed afterwards."""
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    for number in range(times):
        place = folder / f"copy{number}"
        shutil.copytree(world, place)
        yield place, temporary
        shutil.rmtree(place)


def _soak(world: Path, folder: Path, times: int, out: Path) -> None:
    uses = []
    for place, temporary in _copies(world, folder, times):
        with mock.patch.object(tempfile, "tempdir", str(temporary)):
            code, err, exception = called(place, tuple(LEADERBOARD))
        assert code == 0, err + exception
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
        time.sleep(0.5)  # threads that were told to end do so
        own = psutil.Process()
        megabytes = own.memory_info().rss / 1e6
        uses.append(Use(megabytes, own.num_fds(), own.num_threads(), _megabytes(temporary)))
    out.write_text(json.dumps([asdict(one) for one in uses]))


def _process(place: Path, temporary: Path) -> Use:
    """Run a process of its own to its end; the kernel says how much memory it held at most."""
    environment = os.environ | {VARIABLE: str(place / "SETTINGS.json"), "TMPDIR": str(temporary)}
    before = len(psutil.Process().children(recursive=True))
    words = [sys.executable, "-m", "whaleid", *LEADERBOARD]
    with (place.with_suffix(".log")).open("w") as log:
        started = subprocess.Popen(words, cwd=place, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(started.pid, 0)
    started.returncode = os.waitstatus_to_exitcode(status)
    assert started.returncode == 0, place.with_suffix(".log").read_text()[-500:]
    left = len(psutil.Process().children(recursive=True)) - before
    return Use(usage.ru_maxrss * 1024 / 1e6, 0, left, _megabytes(temporary))


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
