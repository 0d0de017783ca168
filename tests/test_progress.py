"""What a long task says: lines where no bar is drawn, events of the JSON log, and where an interrupted one goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file

from whaleid.cli.stopping import NOTHING_BEGUN, stoppable
from whaleid.pipeline.runner import stopped_line
from whaleid.pipeline.tasks import Task, do
from whaleid.pipeline.workspace import Workspace
from whaleid.training.resume import STATE, saved_step
from whaleid.utils import events, progress
from whaleid.utils.errors import WhaleidError
from whaleid.utils.machine import used_memory
from whaleid.utils.progress import State, doing, duration, follow_bars, progress_bar


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    with events.json_log(tmp_path / "log.jsonl"):
        yield tmp_path / "log.jsonl"


def lines_of(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def wait_for(capsys: pytest.CaptureFixture[str], text: str) -> str:
    """What was said on stderr until the text was."""
    said, end = "", time.monotonic() + 10
    while text not in said and time.monotonic() < end:
        said += capsys.readouterr().err
        time.sleep(0.01)
    return said


def test_a_step_of_minutes_does_not_silence_a_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    with doing("ladder", ""):
        assert "ladder: 0 s so far, " in wait_for(capsys, "ladder")
        with progress_bar("ranking", 8, start=2, images=True) as bar:
            bar.advance(3, "blend")
            said = wait_for(capsys, "ranking").splitlines()[-1]
    assert said.startswith("ranking: 5 of 8 (62%), blend, ") and " images/s, " in said
    assert said.endswith(" GB of memory") and " left, " in said


def test_a_short_task_says_nothing(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    with doing("folds", ""), progress_bar("reading", 2) as bar:
        bar.advance(2)
    assert capsys.readouterr().err == ""
    assert [line["event"] for line in lines_of(log)] == ["started", "done"]


def test_every_event_is_a_line_with_all_fields(
    log: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)

    def make() -> None:
        with progress_bar("embed net", 40) as bar:
            bar.move_to(10)
            wait_for(capsys, "embed net")
            time.sleep(0.01)
        raise WhaleidError("no\nwhale")

    one = Task("features", "net/fold0", Workspace(tmp_path), tmp_path / "out", "key", make)
    with pytest.raises(WhaleidError):
        do(one)
    found = lines_of(log)
    assert all(tuple(line) == events.FIELDS for line in found)
    assert {(line["stage"], line["task"]) for line in found} == {("features", "net/fold0")}
    first, *between, last = found
    assert (first["event"], last["event"], last["error"]) == ("started", "failed", "WhaleidError: no whale")
    assert {line["event"] for line in between} == {"progress"}
    assert (between[0]["title"], between[0]["done"], between[0]["total"]) == ("embed net", 10, 40)
    assert 10**6 < float(str(last["memory"])) <= 4 * used_memory()
    assert datetime.fromisoformat(str(last["time"])).tzinfo is not None
    assert 0 <= float(str(first["seconds"])) < float(str(last["seconds"])) < 20


def test_the_log_ends_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(events.JSON_LOG, raising=False)
    with events.json_log(None):
        assert not events.wanted()
    monkeypatch.chdir(tmp_path)
    with events.json_log(Path("a.jsonl")):
        assert os.environ[events.JSON_LOG] == str(tmp_path / "a.jsonl")  # a child may have another folder
    assert not events.wanted()
    with pytest.raises(WhaleidError, match=r"--json-log none/a\.jsonl: No such file or directory; name a file"):
        events.json_log(Path("none", "a.jsonl")).__enter__()


def test_bars_of_processes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"net.fold{fold}.progress" for fold in range(3)]
    monkeypatch.setenv(progress.PROGRESS_FILE, str(files[1]))
    with progress_bar("train net, fold 1", 9) as bar:
        bar.advance(3, "loss 0.5  84 images/s")
    files[2].write_text('{"title": "half')
    with follow_bars() as bars:
        bars.show(files)
        assert capsys.readouterr().err == ""  # not yet
        monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
        bars.show(files)
        said = capsys.readouterr().err
    parts = said.strip().split("; ")
    assert parts[0] == "net.fold0: not begun" and parts[2] == "net.fold2: not begun"
    assert parts[1].startswith("train net, fold 1: 3 of 9 (33%), loss 0.5, 84 images/s, ")
    assert parts[3].endswith(" GB of memory") and len(parts) == 4


def test_time_left_is_that_of_the_speed_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress_bar("cache", 100, start=60, images=True) as bar:
        assert bar.state == State("cache", 60, 100)
        now = 105.0
        bar.advance(10)
        assert bar.state == State("cache", 70, 100, "2 images/s", 15.0)  # what was there before took no time
    assert State("cache", 0, 0).line == "cache: 0 of 0"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99.0, "99 s"), (240, "4.0 min"), (5999, "100.0 min"), (9000, "2.5 h")]
)
def test_lengths_of_time(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# --------------------------------------------------------------------------------------------------- interrupted


def save_step(path: Path, step: int) -> None:
    path.parent.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, path, metadata={"progress": json.dumps({"step": step, "epoch": 1})})


def test_an_interrupt_says_where_the_same_command_goes_on(tmp_path: Path) -> None:
    def task(stage: str, item: str, resumes: bool = True) -> Task:
        return Task(stage, item, Workspace(tmp_path), tmp_path / stage / item, "k", pytest.fail, resumes=resumes)

    save_step(tmp_path / "train" / "a" / STATE, 1840)
    (tmp_path / "features" / ".a.part").mkdir(parents=True)
    assert saved_step(tmp_path / "train" / "a" / STATE) == 1840
    left = [task("train", name) for name in "abcd"]
    assert stopped_line("train", left, 3) == (
        "stopped in train, 3 of 7 done; the same command goes on there: a from step 1,840, b from its beginning "
        "and 2 more"
    )
    parts = [task("features", "a"), task("features", "b")]
    assert stopped_line("features", parts, 0).endswith(": a from its saved part, b from its beginning")
    assert stopped_line("ladder", [task("ladder", "", resumes=False)], 0).endswith(": ladder from its beginning")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_with_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    given = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores Ctrl-C
    try:
        with pytest.raises(typer.Exit) as ended, stoppable():
            os.kill(os.getpid(), number)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, given)
    assert ended.value.exit_code == 128 + number
    assert capsys.readouterr().err == NOTHING_BEGUN + "\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_note_of_the_pipeline_is_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), stoppable():
        stop = KeyboardInterrupt()
        stop.add_note("stopped in train")
        raise stop
    assert capsys.readouterr().err == "stopped in train\n"


def test_a_handler_of_a_clusters_worker_stays() -> None:
    def own(*_: object) -> None:
        caught.append("own")

    caught: list[str] = []
    before = signal.signal(signal.SIGTERM, own)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught == ["own"] and signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
