"""The kill matrix: what a command leaves that is stopped in every way, and what the same command makes of it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trust.faults import ClockJumpsBack, KillAtRename
from trust.world import OPTIONS, Ended, contents, left_behind, make_world, run, start

LEADERBOARD = ["leaderboard", *OPTIONS, "--jobs", "1"]
SPREAD = ["leaderboard", *OPTIONS, "--jobs", "2"]
VARIES = re.compile(
    r"/(metrics\.json|figures\.json|digests\.parquet|log\.csv|log\.jsonl)$|/(\.stamps|logs|tensorboard|score)/"
)
"""Files that hold times, seconds or absolute paths; the figures in metrics.json are compared by themselves."""

KILLS_UNDER_OTHER_SETTINGS = 25
"""About half of a run: tables, caches and networks are those of the other settings, candidates still of the first."""


@dataclass(frozen=True)
class Case:
    """One way of stopping a command.

    Attributes
    ----------
    name : str
    tried : int
        How often it was stopped.
    problems : list of str
        What was not as it must be; empty where all was.
    """

    name: str
    tried: int
    problems: list[str]


@dataclass(frozen=True)
class Matrix:
    """Worlds below a folder, and what an undisturbed run makes in one."""

    folder: Path
    world: Path
    expected: dict[str, str]
    figures: object

    def copy(self, name: str) -> Path:
        """A world in which nothing was run."""
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.world, place, ignore=shutil.ignore_patterns("work", "submissions"))
        return place

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def problems(self, place: Path, ended: Ended) -> list[str]:
        """How a finished run differs from the undisturbed one."""
        if ended.code != 0:
            return [f"the same command ended with code {ended.code}: {ended.err[-300:]}"]
        found = [f"left behind: {name}" for name in left_behind(place)]
        made = steady(place)
        names = sorted(made.keys() | self.expected.keys())
        found += [f"differs: {name}" for name in names if made.get(name) != self.expected.get(name)]
        return found + ([] if figures(place) == self.figures else ["other figures in metrics.json"])


def steady(place: Path) -> dict[str, str]:
    """Digest of every file of a world that equal runs make equal."""
    return {name: digest for name, digest in contents(place).items() if not VARIES.search(name)}


def figures(place: Path) -> object:
    """The scores in metrics.json."""
    return json.loads((place / "work" / "drawn" / "metrics.json").read_text())["recipe"]["ladder"]


def undisturbed(folder: Path) -> Matrix:
    """The competition, run once without a fault."""
    world = make_world(folder / "world")
    ended = run(world, LEADERBOARD, folder / "world.log")
    assert ended.code == 0, ended.err
    assert left_behind(world) == []
    return Matrix(folder, world, steady(world), figures(world))


# ------------------------------------------------------------------------------------------------------- the cases


def killed_at_every_rename(matrix: Matrix) -> Case:
    """Killed before the first rename, started again, killed before the next one, and so on to the end."""
    place, killed = matrix.copy("renames"), matrix.folder / "renames.txt"
    killed.unlink(missing_ok=True)
    while (ended := run(place, LEADERBOARD, matrix.log("renames"), KillAtRename(killed))).code == -signal.SIGKILL:
        pass
    return Case("kill -9 before every rename", len(killed.read_text().splitlines()), matrix.problems(place, ended))


def killed_at_random(matrix: Matrix, times: int, seconds: float, seed: int = 0) -> Case:
    """The whole process group killed at random moments, within so many seconds of each start, with two processes."""
    rng, place, killed = random.Random(seed), matrix.copy("random"), 0
    while killed < times:
        started = start(place, SPREAD, matrix.log("random"))
        if started.wait(rng.uniform(0.3, seconds)) is not None:
            break
        started.kill()
        started.wait()
        killed += 1
    return Case("kill -9 at random moments", killed, matrix.problems(place, run(place, SPREAD, matrix.log("random"))))


def other_settings_and_back(matrix: Matrix) -> Case:
    """Finished; killed at every rename under other settings; then the first settings again."""
    place, killed = matrix.copy("settings"), matrix.folder / "settings.txt"
    killed.unlink(missing_ok=True)
    shutil.copytree(matrix.world / "work", place / "work")
    shutil.copytree(matrix.world / "submissions", place / "submissions")
    other = [*LEADERBOARD, "--set", "combine.concat.whiten=4", "--set", "seed=1"]
    for _ in range(KILLS_UNDER_OTHER_SETTINGS):
        run(place, other, matrix.log("settings"), KillAtRename(killed))
    turn = len(killed.read_text().splitlines())
    ended = run(place, LEADERBOARD, matrix.log("settings"))
    for path in (place / "submissions").glob("*.csv"):  # that of the other settings, if it came so far
        if path.name not in {Path(name).name for name in matrix.expected} | {"log.csv"}:
            path.unlink()
    return Case("kill -9 under other settings, then the first ones again", turn, matrix.problems(place, ended))


def two_at_once(matrix: Matrix) -> Case:
    """The same command twice at the same time in one work folder: both succeed."""
    place = matrix.copy("twice")
    both = [start(place, LEADERBOARD, matrix.log(f"twice{number}")) for number in range(2)]
    ended = [one.wait() for one in both]
    failed = [f"one of two ended with {one.code}: {one.err[-300:]}" for one in ended if one is not None and one.code]
    rows = len((place / "submissions" / "log.csv").read_text().splitlines()) if not failed else 2
    lost = [] if rows == 2 else [f"{rows - 1} rows in the log, not 1"]
    again = matrix.problems(place, run(place, LEADERBOARD, matrix.log("twice")))
    return Case("two runs at once in one work folder", 1, [*failed, *lost, *again])


def clock_back(matrix: Matrix) -> Case:
    """The clock and the files' times go back by hours all the time."""
    place = matrix.copy("clock")
    ended = run(place, LEADERBOARD, matrix.log("clock"), ClockJumpsBack(3600))
    problems = matrix.problems(place, ended)
    again = run(place, LEADERBOARD, matrix.log("clock"))
    return Case("a clock that goes back", 1, [*problems, *([] if again.code == 0 else [again.err[-300:]])])


def full_disk(matrix: Matrix, times: int, seed: int = 0) -> Case:
    """The work folder on a disk that is full after so many bytes; then it has space, and the same command goes on."""
    rng, place = random.Random(seed), matrix.copy("disk")
    used = sum(path.stat().st_size for path in (matrix.world / "work").rglob("*"))
    problems: list[str] = []
    with small_disk(place / "work") as resize:
        for size in sorted(int(rng.uniform(0.0, 1.0) * used) for _ in range(times)):
            resize(f"size={max(size, 8192)}")
            ended = run(place, LEADERBOARD, matrix.log("disk"))
            problems += [f"at {size:,} bytes: {problem}" for problem in refusal_problems(ended)]
            problems += [f"at {size:,} bytes: left {name}" for name in temporary(place)]
        resize("size=1g")
        problems += matrix.problems(place, run(place, LEADERBOARD, matrix.log("disk")))
    return Case("a disk that is full", times, problems)


def read_only(matrix: Matrix) -> Case:
    """A work folder that may not be written: empty, and finished."""
    place = matrix.copy("readonly")
    problems: list[str] = []
    with small_disk(place / "work") as resize:
        resize("size=1g,ro")
        problems += refusal_problems(run(place, LEADERBOARD, matrix.log("readonly")))
        resize("size=1g,rw")
        problems += matrix.problems(place, run(place, LEADERBOARD, matrix.log("readonly")))
        resize("size=1g,ro")
        for command in (LEADERBOARD, ["score", *OPTIONS], ["report", *OPTIONS]):
            ended = run(place, command, matrix.log("readonly"))
            problems += [] if ended.code == 0 else refusal_problems(ended)
        resize("size=1g,rw")
        problems += matrix.problems(place, run(place, LEADERBOARD, matrix.log("readonly")))
    return Case("a read-only folder", 4, problems)


def refusal_problems(ended: Ended) -> list[str]:
    """What is wrong with how a command ended that must be refused: exit code 2 and one line."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.code == 2 and len(lines) == 1 and "Traceback" not in ended.err:
        return []
    return [f"code {ended.code}: {ended.err[-600:]}"]


def temporary(place: Path) -> list[str]:
    """Temporary files; what a later run continues is none (`.part`, `.partial`)."""
    return [name for name in left_behind(place) if not name.endswith((".part", ".partial"))]


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[str], None]]:
    """A disk of its own at `folder`, in memory; yields what changes its options. Needs the rights of root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)], check=True)
    try:
        yield lambda options: _remount(folder, options)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _remount(folder: Path, options: str) -> None:
    for _ in range(20):  # busy while the process before is still ending
        if subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=False).returncode == 0:
            return
        time.sleep(0.2)
    raise RuntimeError(f"{folder}: cannot be mounted with {options}")


def all_cases(matrix: Matrix) -> Iterator[Case]:
    """All of them; those with a disk of their own only where the user is root."""
    yield killed_at_every_rename(matrix)
    yield killed_at_random(matrix, times=50, seconds=12)
    yield other_settings_and_back(matrix)
    yield two_at_once(matrix)
    yield clock_back(matrix)
    if os.geteuid() == 0:
        yield full_disk(matrix, times=12)
        yield read_only(matrix)
