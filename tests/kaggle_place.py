"""A small competition of Kaggle's for the tests, its archive, and the command line run against the fake server."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from kaggle_server import FakeKaggle, ForkedClient

from whaleid.cli import main as cli
from whaleid.kaggle import client

SLUG = "whale-names"
TRAIN, TEST = 12, 6
COMPETITION = """
name: whales
root: {root}
train: {{csv: train.csv, images: train, image: Image, identity: Id}}
test: {{csv: sample_submission.csv, images: test, image: Image}}
unknown: new_whale
kaggle: whale-names
"""
RECIPE = "folds: 2\nexperiments: [tiny]\n"
EXPERIMENT = """
extends: default
model: {backbone: test_resnet, weights: random, embedding: 16}
image: {width: 64, height: 32}
train: {epochs: 2, batch: 8}
"""


def contents(size: int = 40_000) -> dict[str, bytes]:
    """Files of the competition: path -> bytes; its pictures are noise of so many bytes."""
    rng = np.random.default_rng(0)
    train = "Image,Id\n" + "".join(f"a{i}.jpg,w_{i % 4}\n" for i in range(TRAIN))
    test = "Image,Id\n" + "".join(f"b{i}.jpg,new_whale w_1 w_2 w_3 w_0\n" for i in range(TEST))
    files = {"train.csv": train.encode(), "sample_submission.csv": test.encode()}
    files |= {f"train/a{i}.jpg": rng.bytes(size) for i in range(TRAIN)}
    return files | {f"test/b{i}.jpg": rng.bytes(size) for i in range(TEST)}


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip of them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


class World:
    """A folder to stand in, and a server to speak to. `said` collects all that was ever printed."""

    def __init__(self, folder: Path, server: FakeKaggle):
        self.folder, self.server, self.state = folder, server, server.state
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        (folder / "whales.yaml").write_text(COMPETITION.format(root=folder / "data"))
        (folder / "recipe.yaml").write_text(RECIPE)
        (folder / "tiny.yaml").write_text(EXPERIMENT)
        self.root = folder / "data"
        self.said = ""

    def words(self, *words: str) -> list[str]:
        named = ["--competition", str(self.folder / "whales.yaml")]
        if words[:2] != ("data", "download"):
            named += ["--recipe", str(self.folder / "recipe.yaml")]
        return [sys.executable, "-m", "whaleid", *words, *named]

    def environment(self, **more: str) -> dict[str, str]:
        return self.server.environment(self.home, **more)

    def pauses(self) -> list[float]:
        """Seconds of every pause that the client asked for between its tries."""
        return self.server.pauses(self.home)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ours in this process; the client is a process of its own."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.dict(os.environ, self.environment(**environment), clear=True),
            mock.patch.object(sys, "argv", ["whaleid", *self.words(*words)[3:]]),
            mock.patch.object(client, "subprocess", SimpleNamespace(Popen=ForkedClient, DEVNULL=subprocess.DEVNULL)),
        ):
            try:
                cli.main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        self.said += out.getvalue() + err.getvalue()
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    def refused(self, *words: str, **environment: str) -> str:
        """The one line of a command that must fail."""
        done = self.run(*words, **environment)
        line = done.stderr.strip()
        assert done.returncode == 2, done.stdout + done.stderr
        assert line.startswith("error: "), line
        assert "\n" not in line
        assert "X-Signature" not in line
        return line

    def holds(self, secret: str) -> list[str]:
        """Where a secret stands: in what was printed, or in a file under the folder."""
        places = ["what was printed"] if secret in self.said else []
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return places + [str(path) for path in files if secret.encode() in path.read_bytes()]
