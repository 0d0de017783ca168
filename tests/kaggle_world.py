"""A small competition of a Kaggle of our own, for the tests that run the real client."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from drawn import draw_sample
from kaggle_server import KEY, TOKEN, USER, FakeKaggle, ForkedClient

from whaleid.cli import main as cli
from whaleid.cli.context import Context
from whaleid.kaggle import client
from whaleid.pipeline.project import Project
from whaleid.utils.manifest import write_manifest

SLUG = "whales-of-the-test"
EXPERIMENT = """
extends: default
model: {backbone: test_resnet, weights: random, embedding: 16}
image: {width: 64, height: 32}
train: {epochs: 2, batch: 8}
"""
RECIPE = "folds: 2\nexperiments: [tiny]\ncombine: {concat: {whiten: 8}, classifier: {epochs: 2, seeds: 1}}\n"
COMPETITION = f"""
name: drawn
root: {{root}}
train: {{csv: train.csv, images: train, image: Image, identity: Id}}
test: {{csv: sample_submission.csv, images: test, image: Image}}
unknown: new_whale
unknown_share: 0.276
kaggle: {SLUG}
"""
ANSWER = "abcdef1234567890"
"""Key of the answer that `answered` makes."""


def lay_out(folder: Path) -> None:
    """The YAML files of the competition, a recipe and its experiment."""
    (folder / "drawn.yaml").write_text(COMPETITION.replace("{root}", str(folder / "data")))
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    (folder / "recipe.yaml").write_text(RECIPE)


def project(folder: Path) -> Project:
    return Context(str(folder / "drawn.yaml"), str(folder / "recipe.yaml"), folder / "work").project


def draw(folder: Path) -> None:
    """The competition's data, in its place."""
    draw_sample(folder / "data", identities=10, train_images=40, test_images=12)


def archive(data: Path, inner: bool = True) -> bytes:
    """What Kaggle serves of it: the CSVs and the images, these in archives of their own or not."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as whole:
        for name in ("train.csv", "sample_submission.csv"):
            whole.write(data / name, name, zipfile.ZIP_DEFLATED)
        for part in ("train", "test"):
            images = sorted((data / part).iterdir())
            if not inner:
                for path in images:
                    whole.write(path, f"{part}/{path.name}")
                continue
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as zipped:
                for path in images:
                    zipped.write(path, path.name)
            whole.writestr(f"{part}.zip", packed.getvalue())
    return out.getvalue()


def answered(folder: Path, score: float = 0.9) -> Path:
    """A finished recipe, without its training: its figures, and its submission (new_whale everywhere)."""
    made = project(folder)
    rung = {"map": score, "low": score - 0.01, "high": score + 0.01, "queries": 400}
    figures = {"key": ANSWER, "commit": "1a2b3c4", "ladder": {"k": 5, "rungs": [rung]}}
    made.workspace.metrics.parent.mkdir(parents=True, exist_ok=True)
    made.workspace.metrics.write_text(json.dumps({made.recipe.name: figures}))
    path = folder / "submissions" / f"drawn_{made.recipe.name}_{ANSWER[:8]}.csv"
    path.parent.mkdir(exist_ok=True)
    rows = (folder / "data" / "sample_submission.csv").read_text().splitlines()
    path.write_text("\n".join([rows[0], *(f"{row.split(',')[0]},new_whale" for row in rows[1:])]) + "\n")
    return path


def bundle(folder: Path, name: str = "recipe") -> Path:
    """A folder as `make kernel` makes it: one data set with a sub-folder, and the kernel."""
    home = folder / "work" / "drawn" / "kernel" / name
    data_set, kernel = home / "datasets" / "whale-code", home / "kernel"
    (data_set / "package").mkdir(parents=True)
    (data_set / "package" / "code.py").write_text("print('whale')\n")
    write_manifest(data_set, "code")
    metadata = {"id": f"{USER}/whale-code", "title": "whale code", "licenses": [{"name": "CC0-1.0"}]}
    (data_set / "dataset-metadata.json").write_text(json.dumps(metadata))
    kernel.mkdir()
    (kernel / "run.py").write_text("print('run')\n")
    metadata = {
        "id": f"{USER}/whale-kernel",
        "title": "whale kernel",
        "code_file": "run.py",
        "language": "python",
        "kernel_type": "script",
        "is_private": True,
        "enable_gpu": True,
        "enable_internet": False,
        "machine_shape": "NvidiaTeslaT4",
        "dataset_sources": [f"{USER}/whale-code"],
        "competition_sources": [SLUG],
        "kernel_sources": [],
        "model_sources": [],
    }
    (kernel / "kernel-metadata.json").write_text(json.dumps(metadata))
    return home


@contextlib.contextmanager
def at_kaggle(monkeypatch: pytest.MonkeyPatch, folder: Path, **more: str) -> Iterator[FakeKaggle]:
    """This process, and every client that it starts, stand in `folder` and speak to a Kaggle of their own."""
    home = folder / "home"
    (home / "cfg").mkdir(parents=True)
    lay_out(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(client, "WAITS", (0.01,))
    monkeypatch.setattr(client, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(client, "subprocess", SimpleNamespace(Popen=ForkedClient, DEVNULL=subprocess.DEVNULL))
    with FakeKaggle() as server:
        wanted = server.environment(home, **more)
        for name in set(os.environ) - set(wanted):
            monkeypatch.delenv(name)
        for name, value in wanted.items():
            monkeypatch.setenv(name, value)
        yield server


def whaleid(monkeypatch: pytest.MonkeyPatch, folder: Path, command: str, *words: str) -> int:
    """Exit code of a command, run in this process."""
    options = ["--competition", str(folder / "drawn.yaml")]
    if command != "data download":
        options += ["--recipe", str(folder / "recipe.yaml"), "--work", str(folder / "work")]
    monkeypatch.setattr(sys, "argv", ["whaleid", *command.split(), *options, *words])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command which failed said on standard error, without what progress bars draw."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    no_secret(lines[0])
    return lines[0]


def no_secret(text: str) -> None:
    for secret in (KEY, TOKEN, "X-Signature=signed"):
        assert secret not in text


def no_secret_in(folder: Path) -> None:
    """No file below holds a marked secret."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content, path
            assert TOKEN.encode() not in content, path
