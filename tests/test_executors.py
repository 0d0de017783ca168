"""Executors: what is current is left alone, failures are reported and nothing is left running."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from whaleid.pipeline.executors import EXECUTORS, local
from whaleid.pipeline.executors.local import LocalExecutor
from whaleid.pipeline.tasks import Task, do
from whaleid.pipeline.workspace import Workspace
from whaleid.utils.errors import WhaleidError


@dataclass(frozen=True)
class ScriptTask(Task):
    """A task whose command line is a line of Python."""

    script: str = ""

    def arguments(self, options: list[str]) -> list[str]:
        return [sys.executable, "-c", self.script, *options]


def task(root: Path, item: str, make: Callable[[], None] = pytest.fail, **more: object) -> Task:
    workspace = Workspace(root)
    return Task("train", item, workspace, root / item, "key", make, command="train", **more)


def script(root: Path, item: str, text: str) -> ScriptTask:
    return ScriptTask("train", item, Workspace(root), root / item, "key", pytest.fail, command="train", script=text)


def test_a_task_is_done_once(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> dict[str, object]:
        made.append("a")
        (tmp_path / "a").write_text("")
        return {"summary": 3}

    one = task(tmp_path, "a", make)
    assert not one.current
    assert list(LocalExecutor().run([one])) == [one]
    do(one)
    assert made == ["a"] and one.current
    assert one.workspace.stamp(one.output)["summary"] == 3
    assert not Task("train", "a", one.workspace, one.output, "other", pytest.fail).current
    assert not Task("train", "a", one.workspace, one.output, "", pytest.fail).current


def test_what_other_settings_began_is_cleared_and_the_same_is_resumed(tmp_path: Path) -> None:
    def begin() -> None:
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / "state").write_text("")
        raise KeyboardInterrupt

    for key, kept in (("one", False), ("one", True), ("two", False)):
        found: list[bool] = []
        with pytest.raises(KeyboardInterrupt):
            do(
                Task(
                    "train",
                    "a",
                    Workspace(tmp_path),
                    tmp_path / "a",
                    key,
                    lambda found=found: (found.append((tmp_path / "a" / "state").exists()), begin())[1],
                    resumes=True,
                )
            )
        assert found == [kept]


def test_several_at_once_do_every_task(tmp_path: Path) -> None:
    tasks = [script(tmp_path, str(fold), f"open(r'{tmp_path}/{fold}', 'w').write('x')") for fold in range(5)]
    assert {one.item for one in EXECUTORS["local"](2, []).run(tasks)} == set("01234")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == list("01234")


def test_a_failed_task_is_reported_with_its_last_line(tmp_path: Path) -> None:
    bad = script(tmp_path, "bad", "import sys; sys.exit('error: no such backbone')")
    slow = script(tmp_path, "slow", f"import time; time.sleep(30); open(r'{tmp_path}/late', 'w')")
    with pytest.raises(WhaleidError, match="bad ended with code 1: no such backbone"):
        list(LocalExecutor(2).run([bad, slow]))
    assert not (tmp_path / "late").exists()


def test_where_one_fails_the_others_have_ended(tmp_path: Path) -> None:
    """Whoever begins their tasks next finds the locks free, and nobody who still writes."""
    ready, ended = tmp_path / "ready", tmp_path / "ended"
    bad = script(tmp_path, "bad", f"import os, time\nwhile not os.path.exists(r'{ready}'): time.sleep(0.02)\nexit(1)")
    end = f"lambda *_: (time.sleep(0.5), open(r'{ended}', 'w'), sys.exit())"
    wait = f"signal.signal(signal.SIGTERM, {end}); open(r'{ready}', 'w'); time.sleep(30)"
    with pytest.raises(WhaleidError, match="bad ended with code 1"):
        list(LocalExecutor(2).run([bad, script(tmp_path, "slow", f"import signal, sys, time; {wait}")]))
    assert ended.exists()


def test_a_process_that_could_not_say_why_had_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(WhaleidError, match="mute ended with code 1: the disk is full"):
        list(LocalExecutor(2).run([script(tmp_path, "mute", "import os; os._exit(1)") for _ in range(2)]))


def test_a_task_has_a_command_line_of_its_own(tmp_path: Path) -> None:
    one = Task(
        "features", "a/fold3", Workspace(tmp_path, 2), tmp_path, "key", pytest.fail, run=("a", 3), command="features"
    )
    words = one.arguments(["--work", "w"])
    assert words[1:] == ["-m", "whaleid", "features", "--work", "w", "--experiment", "a", "--fold", "3", "--round", "2"]


def test_another_run_starts_only_while_memory_is_left_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second task can end only after the first one, which it follows where memory is short."""
    monkeypatch.setattr(local, "sensible", lambda: 2)
    monkeypatch.setattr(local, "free_memory", lambda: local.MEMORY_OF_A_RUN - 1)
    first = script(tmp_path, "0", f"import time; time.sleep(1); open(r'{tmp_path}/0', 'w')")
    second = script(tmp_path, "1", f"import os, sys; sys.exit(not os.path.exists(r'{tmp_path}/0'))")
    assert [one.item for one in LocalExecutor(0).run([first, second])] == ["0", "1"]
