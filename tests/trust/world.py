"""A competition of drawn images that every stage takes part in, small enough to run in seconds; commands run in it."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from drawn import draw_sample

from whaleid.config.settings import VARIABLE

COMPETITION = """
name: drawn
root: data
train: {csv: train.csv, images: train, image: Image, identity: Id}
test: {csv: sample_submission.csv, images: test, image: Image}
unknown: new_whale
solution: solution.csv
"""
EXPERIMENT = """
extends: default
model: {backbone: test_resnet, weights: random, embedding: 16}
image: {width: 64, height: 32}
train: {epochs: 2, batch: 16}
"""
RECIPE = """
folds: 2
experiments: [tiny]
combine:
  concat: {whiten: 8}
  classifier: {epochs: 2, seeds: 1}
  full_gallery: false
  local_matching: {keypoints: 60, verify: {images: 5}}
  stack: {num_iterations: 10, seeds: 1, min_data_in_leaf: 5, first: 6, candidates: 10}
"""
OPTIONS = ("--competition", "drawn.yaml", "--recipe", "recipe.yaml", "--work", "work")

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["whaleid.cli.main", "torch", "timm", "faiss", "lightgbm", "accelerate", "cv2", "pandas"]
)
"""Imports take longer than a command in this world: every command is a fork of one process that has done them."""


def make_world(folder: Path) -> Path:
    """The competition, its recipe and its experiment in a folder."""
    draw_sample(folder / "data", identities=10, train_images=45, test_images=13)
    settings = {"WEIGHTS_DIR": "weights", "SUBMISSION_DIR": "submissions"}
    files = {"drawn.yaml": COMPETITION, "tiny.yaml": EXPERIMENT, "recipe.yaml": RECIPE}
    for name, text in {**files, "SETTINGS.json": json.dumps(settings)}.items():
        (folder / name).write_text(text)
    return folder


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (-9: killed), and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Started:
    """A command that runs as a process, in a group of its own."""

    process: ForkServerProcess
    folder: Path
    log: Path

    def kill(self) -> None:
        """kill -9 of the process and of all that it started."""
        if self.process.pid is not None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> Ended | None:
        """How it ended; None where it still runs after so many seconds."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            return None
        printed = [self.log.with_suffix(suffix).read_text(errors="replace") for suffix in (".out", ".err")]
        return Ended(self.process.exitcode, *printed)


def start(folder: Path, words: list[str], log: Path, before: Callable[[], None] | None = None) -> Started:
    """Start `whaleid` in a folder.

    Parameters
    ----------
    folder : Path
        A world.
    words : list of str
        Command and options.
    log : Path
        Where what it prints goes, with the suffixes .out and .err.
    before : callable, optional
        Called in the process before the command: makes a fault.
    """
    process = _SERVER.Process(target=_command, args=(folder, words, log, before))
    process.start()
    return Started(process, folder, log)


def forked(target: Callable[..., None], arguments: tuple[object, ...]) -> ForkServerProcess:
    """A process, not started yet, that has done the imports and nothing else."""
    return _SERVER.Process(target=target, args=arguments)


def run(folder: Path, words: list[str], log: Path, before: Callable[[], None] | None = None) -> Ended:
    """Run `whaleid` in a folder to its end."""
    ended = start(folder, words, log, before).wait()
    assert ended is not None
    return ended


def _command(folder: Path, words: list[str], log: Path, before: Callable[[], None] | None) -> None:
    os.setsid()
    os.chdir(folder)
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    os.environ[VARIABLE] = str(folder / "SETTINGS.json")
    sys.argv = ["whaleid", *words]
    from whaleid.cli import main as cli

    if before is not None:
        before()
    cli.main()


def contents(folder: Path) -> dict[str, str]:
    """Path -> digest of every file below a folder; of a checkpoint its weights, for its header holds seconds."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(_content(path)).hexdigest() for path in files}


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :] if path.suffix == ".safetensors" else content


def left_behind(folder: Path) -> list[str]:
    """Hidden files and folders below `folder`: temporary files, locks; the stamps of what is current are none."""
    hidden = [path.relative_to(folder) for path in folder.rglob("*") if path.name.startswith(".")]
    locks = [path.relative_to(folder) for path in folder.rglob("*.lock")]
    return [path.as_posix() for path in {*hidden, *locks} if path.name != ".stamps"]
