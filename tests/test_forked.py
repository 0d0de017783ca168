"""Commands in forks of a process with the libraries loaded: nothing of one reaches the next, and they die together."""

import json
import os
import signal
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
from cluster_world import copying, in_folder

from whaleid.pipeline.executors import forked
from whaleid.pipeline.executors.remote import RemoteCommand, command_of

STATE = """
import builtins, json, os, pathlib, random, sys
found = [os.getpid(), os.getcwd(), os.environ.get("LEFT"), getattr(builtins, "left", None), sys.argv[1:]]
pathlib.Path(sys.argv[1]).write_text(json.dumps(found))
os.environ["LEFT"] = builtins.left = "something"
os.chdir("/")
"""
VARIABLES = """
import os, pathlib, sys
pathlib.Path(sys.argv[1]).write_text(os.environ["CUDA_VISIBLE_DEVICES"] + os.environ["OMP_NUM_THREADS"])
"""
SUICIDE = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
LONG = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"


FEW = ["whaleid.pipeline.executors.forked"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(forked, "LOADED", FEW)
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    return in_folder(tmp_path / "here", monkeypatch)


def running(here: Path, text: str) -> RemoteCommand:
    """A command that runs a module of the current folder."""
    (here / "given.py").write_text(text)
    return replace(command_of(copying(Path("work"), "a"), []), words=("given", str(here / "out")))


def test_nothing_of_a_command_reaches_the_next(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, found = running(here, STATE), []
    for place in ("/", str(here)):
        monkeypatch.chdir(place)
        assert forked.do_forked(command) is None
        found.append(json.loads((here / "out").read_text()))
    assert len({os.getpid(), found[0][0], found[1][0]}) == 3
    assert found[0][1:] == found[1][1:] == [str(here), None, None, [str(here / "out")]]
    assert "LEFT" not in os.environ and str(Path.cwd()) == str(here)


def test_a_command_sees_the_environment_of_its_worker_at_the_time(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the threads, too, which libraries read when they are loaded: those are loaded anew."""
    command = running(here, VARIABLES)
    monkeypatch.setattr(forked, "_threads_of_server", lambda: "1")
    kinds: list[str] = []
    context = forked.get_context
    monkeypatch.setattr(forked, "get_context", lambda kind: (kinds.append(kind), context(kind))[1])
    for gpu, threads in (("0", "1"), ("3", "2")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu)
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert forked.do_forked(command) is None
        assert (here / "out").read_text() == gpu + threads
    assert kinds == ["forkserver", "spawn"]


def test_where_a_command_is_killed_its_worker_is(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine sees that a worker died, and does the command again."""
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *given: killed.append(given))
    forked.do_forked(running(here, SUICIDE))
    assert killed == [(os.getpid(), signal.SIGKILL)]


def work(command: RemoteCommand) -> None:
    """What a worker of an engine does."""
    forked.LOADED = FEW
    forked.do_forked(command)


def test_where_a_worker_is_killed_its_command_is(here: Path) -> None:
    worker = get_context("spawn").Process(target=work, args=(running(here, LONG),))
    worker.start()
    while not (here / "out").is_file() or not (here / "out").read_text():
        assert worker.is_alive()
        time.sleep(0.05)
    command = psutil.Process(int((here / "out").read_text()))
    worker.kill()
    end = time.monotonic() + 30
    while command.is_running() and command.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)
