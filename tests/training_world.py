"""A small case to train on, and ways to train it: to the end, interrupted, killed, by two processes."""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file

from whaleid.config import Experiment
from whaleid.config.files import load_experiment
from whaleid.data.cache import build_cache, open_cache
from whaleid.training import loop, run
from whaleid.training.checkpoint import CHECKPOINT, storable
from whaleid.training.run import RunSummary, train_run

SIZE = (64, 32)
IDENTITIES, EACH = 8, 5
ARCFACE = {"name": "arcface", "scale": 16.0, "margin": 0.2}
SOFTMAX = {"name": "softmax"}
SMALL = {
    "model.backbone": "test_resnet",
    "model.weights": "random",
    "model.embedding": 16,
    "image.width": SIZE[0],
    "image.height": SIZE[1],
    "train.epochs": 3,
    "train.batch": 8,
    "train.lr": 5e-3,
}


def small(**settings: Any) -> Experiment:
    """The default experiment at a size for tests; `train_epochs=2` stands for `train.epochs=2`."""
    return load_experiment("default", {**SMALL, **{key.replace("_", ".", 1): value for key, value in settings.items()}})


def write_case(folder: Path) -> None:
    """Images of eight identities, each a colour and a stripe, with their tables and their cache."""
    generator = np.random.default_rng(0)
    colours = generator.integers(40, 216, (IDENTITIES, 3))
    rows = []
    for identity in range(IDENTITIES):
        for number in range(EACH):
            pixels = np.full((SIZE[1], SIZE[0], 3), colours[identity])
            pixels[:, 6 * identity + 4 : 6 * identity + 10] = 255 - colours[identity]
            pixels = (pixels + generator.normal(0, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
            name = f"{identity}_{number}.png"
            Image.fromarray(pixels).save(folder / name)
            rows.append(
                {"image": name, "path": name, "split": "train", "identity": f"whale {identity}", "digest": name}
            )
    images = pd.DataFrame(rows).assign(
        digest=[row["image"] for row in rows],
        width=SIZE[0],
        height=SIZE[1],
        x0=0.0,
        y0=0.0,
        x1=float(SIZE[0]),
        y1=float(SIZE[1]),
    )
    images.to_parquet(folder / "images.parquet")
    images[["image", "identity"]].assign(fold=np.tile(np.arange(EACH), IDENTITIES)).to_csv(
        folder / "folds.csv", index=False
    )
    build_cache(images, folder, folder / "cache", SIZE, small().image, workers=1)


def train(case: Path, out: Path, experiment: Experiment, **settings: Any) -> RunSummary:
    images, folds = pd.read_parquet(case / "images.parquet"), pd.read_csv(case / "folds.csv")
    given: dict[str, Any] = {"fold": 0, "unknown": None, "weights": case, **settings}
    return train_run(experiment, images=images, folds=folds, cache=open_cache(case / "cache"), out=out, **given)


def checkpoint(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / CHECKPOINT)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log_lines(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    plain = loop.take_step

    def take_step(session, *arguments):
        if session.progress.step == steps:
            raise KeyboardInterrupt
        return plain(session, *arguments)

    monkeypatch.setattr(loop, "take_step", take_step)


def in_children(works: list[Callable[[], None]]) -> list[int]:
    """Carry out each work in a fork of this process, all at once; their exit statuses (-9: killed)."""
    started = []
    for work in works:
        child = os.fork()
        if child == 0:
            try:
                work()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        started.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started]


def train_as_rank(case: Path, out: Path, rank: int, port: int, settings: dict[str, Any]) -> None:
    """One of two processes of a run; leaves its weights as `rank<r>.safetensors` in `out`."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a fork knows of the one process that trained before it
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sessions = []
    plain = run.finish

    def finish(task, session):
        sessions.append(session)
        return plain(task, session)

    run.finish = finish
    train(case, out, small(**settings))
    save_file(storable(sessions[0].module.state_dict()), out / f"rank{rank}.safetensors")


def two_processes(case: Path, out: Path, settings: dict[str, Any]) -> list[int]:
    """A run by two processes on this machine; their exit statuses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return in_children([partial(train_as_rank, case, out, rank, port, settings) for rank in range(2)])
