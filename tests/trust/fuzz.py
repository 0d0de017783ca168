"""Spoilt inputs: whatever a file holds, a command ends with exit code 0, or 2 and one clear line, and loses nothing."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from trust.world import OPTIONS, contents, left_behind

from whaleid.cli import main as cli
from whaleid.config.settings import VARIABLE

WORDS = (
    "", " ", "null", "true", "0", "-1", "3.5", "1e999", ".nan", "9" * 40, "[]", "{}", "[1, [2]]", "{a: {b: 1}}", "a b",
    "../../outside", "/etc/hostname", "~", '"a\\0b"', "C:\\x", "\0", "\ufeff", "\u202e", "🐋", "x" * 5000, '"', "'",
    ",", "\n", ":", "${oc.env:HOME}", "${a", "*a", "&a", "!!python/name:os.system", "%s", "{0}", "=1+1", "-", "#",
)  # fmt: skip
"""What takes the place of a word in a text."""


def spoilt_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bits turned, a part cut out, doubled, zeroed or put in, or an end cut off."""
    size = len(content)
    start = rng.randrange(size + 1)
    end = min(size, start + rng.choice([1, 4, 64, 1024, size]))
    head, part, tail = content[:start], content[start:end], content[end:]
    turned = bytearray(content)
    for _ in range(rng.choice([1, 3, 30]) if size else 0):
        turned[rng.randrange(min(size, rng.choice([64, size])))] ^= 1 << rng.randrange(8)
    choices = [bytes(turned), head, head + tail, head + part + part + tail, head + bytes(len(part)) + tail,
               head + rng.randbytes(rng.choice([1, 8, 300])) + part + tail]  # fmt: skip
    return rng.choice(choices)


def spoilt_text(content: bytes, rng: random.Random) -> bytes:
    """A word replaced, a line dropped, doubled or moved; sometimes as bytes."""
    if rng.random() < 0.2:
        return spoilt_bytes(content, rng)
    lines = content.decode().split("\n")
    for _ in range(rng.choice([1, 1, 2])):
        place = rng.randrange(len(lines))
        match rng.randrange(4):
            case 0:
                lines.insert(rng.randrange(len(lines)), lines[place])
            case 1 if len(lines) > 1:
                lines.pop(place)
            case _:
                lines[place] = _with_word(lines[place], rng)
    return "\n".join(lines).encode()


def _with_word(line: str, rng: random.Random) -> str:
    marks = [place for place, mark in enumerate(line) if mark in " ,:{}[]"]
    start = rng.choice([0, *(mark + 1 for mark in marks)])
    end = next((mark for mark in marks if mark > start), len(line))
    return line[:start] + rng.choice(WORDS) + line[end:]


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes
    ----------
    name : str
    files : tuple of str
        Paths in the world, with wildcards; one of them is spoilt at a time.
    spoil : callable
    command : tuple of str
        What reads it.
    remove : tuple of str
        What is removed before, so that the command does its work.
    """

    name: str
    files: tuple[str, ...]
    spoil: Callable[[bytes, random.Random], bytes]
    command: tuple[str, ...]
    remove: tuple[str, ...] = ()

    @property
    def needs_results(self) -> bool:
        """Whether its files are made by the pipeline."""
        return any(name.startswith((WORK, "foreign", "packed")) for name in self.files)

    @property
    def reader(self) -> str:
        """The command without its options."""
        return " ".join(self.command[: 2 if self.command[0] == "data" else 1])


WORK = "work/drawn"
NEAREST = ("--competition", "drawn.yaml", "--recipe", "nearest.yaml", "--work", "work")
"""A recipe of features by another program, whose ensemble takes no time."""
TARGETS = (
    Target("table of guesses or truth", ("guesses.csv", "data/solution.csv"), spoilt_text,
           ("score", "guesses.csv", "data/solution.csv")),
    Target("table of images", ("data/train.csv", "data/sample_submission.csv"), spoilt_text,
           ("data", "folds", *OPTIONS)),
    Target("competition, recipe, experiment", ("drawn.yaml", "recipe.yaml", "tiny.yaml"), spoilt_text,
           ("data", "folds", *OPTIONS)),
    Target("image", ("data/train/*.jpg", "data/test/*.jpg"), spoilt_bytes,
           ("data", "build", *OPTIONS[:2], *OPTIONS[4:])),
    Target("checkpoint", (f"{WORK}/runs/tiny/fold0/checkpoint.safetensors", f"{WORK}/runs/tiny/fold0/c*.*"),
           spoilt_bytes, ("features", *OPTIONS, "--fold", "0", "--jobs", "1"), (f"{WORK}/features/tiny/fold0",)),
    Target("features", ("foreign/fold*/*.*",), spoilt_bytes, ("ensemble", *NEAREST)),
    Target("images.parquet and folds.csv", (f"{WORK}/images.parquet", f"{WORK}/folds.csv"), spoilt_bytes,
           ("ensemble", *NEAREST), (f"{WORK}/candidates/nearest",)),
    Target("candidates and figures", (f"{WORK}/candidates/recipe/*.*", f"{WORK}/metrics.json"), spoilt_bytes,
           ("submission", *OPTIONS), ("submissions/drawn_*.csv",)),
    Target("archive", ("packed.zip",), spoilt_bytes,
           ("rebuild", *OPTIONS, "--from", "predictions", "--archive", "packed.zip")),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What was wrong after one spoilt file."""

    target: str
    seed: int
    file: str
    problem: str


NEAREST_RECIPE = """
folds: 2
sources: {foreign: foreign}
combine: {full_gallery: false, concat: {whiten: null}, classifier: null, logits: 0, knn: {neighbours: 20}}
"""


def fuzzed_world(finished: Path, place: Path) -> Path:
    """A copy of a world with its results, features by another program, and an archive."""
    shutil.copytree(finished, place)
    for fold in range(2):
        shutil.copytree(place / WORK / "features" / "tiny" / f"fold{fold}", place / "foreign" / f"fold{fold}")
    (place / "nearest.yaml").write_text(NEAREST_RECIPE)
    shutil.copyfile(next((place / "submissions").glob("drawn_*.csv")), place / "guesses.csv")
    for words in (("ensemble", *NEAREST), ("archive", *OPTIONS, "--output", "packed.zip")):
        code, err, exception = called(place, words)
        assert code == 0, err + exception
    return place


def called(place: Path, words: tuple[str, ...]) -> tuple[int | None, str, str]:
    """Run a command in this process: exit code (None: an exception reached the user), last lines, the exception."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(place),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ, {VARIABLE: str(place / "SETTINGS.json")}),
        mock.patch.object(sys, "argv", ["whaleid", *words]),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0), err.getvalue(), ""
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            ours = [one for one in traceback.extract_tb(error.__traceback__) if "whaleid" in one.filename][-1]
            place_of = f"{Path(ours.filename).name}:{ours.lineno}"
            return None, err.getvalue(), f"{type(error).__name__}: {error} ({place_of}, {Path(where.filename).name})"
    return 0, err.getvalue(), ""


def fuzz(pristine: Path, place: Path, target: Target, seed: int) -> Found | None:
    """Spoil one file of a copy of a world, run the command that reads it, and look at what came of it."""
    rng = random.Random(f"{target.name} {seed}")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(pristine, place)
    for pattern in target.remove:
        for path in place.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    pattern = rng.choice(target.files)
    file = rng.choice(sorted(path for path in place.glob(pattern) if path.is_file()))
    file.write_bytes(target.spoil(file.read_bytes(), rng))
    given = contents(place)
    problem = problem_of(*called(place, target.command)) or _lost(place, given)
    return None if problem is None else Found(target.name, seed, file.relative_to(place).as_posix(), problem)


def problem_of(code: int | None, err: str, exception: str) -> str | None:
    """What is wrong with how a command ended: exit code (None: an exception reached the user), stderr, exception."""
    if code is None:
        return exception
    if code not in (0, 2):
        return f"exit code {code}: {err[-200:]}"
    lines = err.rstrip("\n").split("\n")
    errors = [line for line in lines if line.startswith("error: ")]
    return None if code == 0 or errors == lines[-1:] else f"not one line of error at the end: {err[-300:]}"


def _lost(place: Path, given: dict[str, str]) -> str | None:
    """What was there is not what it was, outside of the work folder; or something half-written stays."""
    made = contents(place)
    changed = [
        name for name in given if not name.startswith(("work/", "submissions/")) and made.get(name) != given[name]
    ]
    if changed:
        return f"changed: {changed[0]}"
    left = [name for name in left_behind(place) if not name.endswith((".part", ".partial"))]
    return f"left behind: {left[0]}" if left else None
