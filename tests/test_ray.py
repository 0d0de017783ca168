"""The executor of Ray on a cluster of three nodes: deaths of the sender and of a node change nothing in the result."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drawn import draw_sample

from whaleid.training.resume import STATE

pytest.importorskip("ray", reason="ray is not installed (the extra `cluster`)")

COMPETITION = """
name: drawn
root: data
train: {csv: train.csv, images: train, image: Image, identity: Id}
test: {csv: sample_submission.csv, images: test, image: Image}
unknown: new_whale
"""
EXPERIMENT = """
extends: default
model: {backbone: test_resnet, weights: random, embedding: 16}
image: {width: 64, height: 32}
train: {epochs: 40, batch: 16}
"""
PATIENCE = 1200
"""Seconds to wait for what a busy machine does slowly."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three nodes of one core. Ray gives a node's own processes 15 seconds to start."""
    from ray.cluster_utils import Cluster

    made = Cluster()
    try:
        for number in range(3):
            quiet = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True} if not number else {}
            made.add_node(num_cpus=1, object_store_memory=80 * 2**20, **quiet)
    except Exception as error:  # Ray raises no other class where a node is too slow
        made.shutdown()
        pytest.skip(f"Ray did not start its nodes here: {error}")
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    made.shutdown()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    draw_sample(tmp_path / "data", identities=10, train_images=60, test_images=12)
    (tmp_path / "drawn.yaml").write_text(COMPETITION)
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    (tmp_path / "recipe.yaml").write_text("folds: 3\nexperiments: [tiny]\ncombine: {concat: {whiten: 8}}\n")
    return tmp_path


def start(place: Path, work: str, *words: str) -> subprocess.Popen[bytes]:
    """`whaleid leaderboard` in the folder `place`; it writes to `<work>.txt`."""
    command = [sys.executable, "-m", "whaleid", "leaderboard", "-c", "drawn.yaml", "-r", "recipe.yaml", "-w", work]
    with (place / f"{work}.txt").open("ab") as log:
        return subprocess.Popen([*command, *words], cwd=place, stdout=log, stderr=log)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until something is so; the process has to be running until then."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)


def result(place: Path, work: str) -> tuple[Any, bytes]:
    """The ladder and the submission; the former without what differs from run to run."""
    figures = json.loads((place / work / "drawn" / "metrics.json").read_text())["recipe"]
    submissions = sorted((place / "submissions").glob("*.csv"), key=lambda path: path.stat().st_mtime)
    return figures["ladder"], submissions[-1].read_bytes()


def test_sender_and_node_die_and_the_result_is_that_of_one_machine(
    cluster: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert start(place, "local", "-j", "1").wait() == 0, (place / "local.txt").read_text()
    expected = result(place, "local")
    states = [place / "ray" / "drawn" / "runs" / "tiny" / f"fold{fold}" / STATE for fold in range(3)]

    sender = start(place, "ray", "--executor", "ray")
    wait_for(lambda: any(state.exists() for state in states), sender)
    os.kill(sender.pid, signal.SIGKILL)
    sender.wait()

    before = {state: state.stat().st_mtime if state.exists() else 0 for state in states}
    again = start(place, "ray", "--executor", "ray")
    wait_for(lambda: all(state.exists() and state.stat().st_mtime > before[state] for state in states), again)
    cluster.remove_node(sorted(cluster.worker_nodes, key=str)[0], allow_graceful=False)
    assert again.wait() == 0, (place / "ray.txt").read_text()
    assert result(place, "ray") == expected
