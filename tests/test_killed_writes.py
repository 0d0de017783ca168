"""Atomic writes and locks under kill -9, at every call to the system, and the order in which things reach the disk."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from whaleid.pipeline.tasks import Task, do
from whaleid.pipeline.workspace import Workspace, read_folds, read_images
from whaleid.utils import files
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, remove_abandoned, write_json
from whaleid.utils.locks import locked

pytestmark = pytest.mark.usefixtures("synced")
CALLS = ("open", "mkdir", "rename", "replace", "fsync", "unlink", "rmdir")


def in_child(work: Callable[[], object]) -> int:
    """Exit code of a fork that does some work; -9 where it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(step: int, work: Callable[[], object]) -> None:
    """Do some work, killed before its call number `step` to the system."""
    calls = 0

    def counted(plain: Any) -> Any:
        @wraps(plain)
        def called(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > step:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*arguments, **named)

        return called

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    work()


def write(path: Path, kind: str, content: str) -> None:
    with atomic_path(path) as temporary:
        if kind == "folder":
            temporary.mkdir()
            for name in ("a", "b"):
                (temporary / name).write_text(content)
        else:
            temporary.write_text(content)


def read(path: Path) -> str:
    if path.is_file():
        return path.read_text()
    return "".join(sorted({item.read_text() for item in path.iterdir()})) if path.is_dir() else "missing"


def write_and_fail(path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_path(path):
        raise RuntimeError


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_at_any_call_leaves_the_old_or_the_new(tmp_path: Path, kind: str) -> None:
    """The next write of the same path removes what the killed one left, and puts a folder back that it had moved."""
    step, code = -1, -signal.SIGKILL
    seen = set()
    while code == -signal.SIGKILL:
        step += 1
        path = tmp_path / str(step) / "out"
        write(path, kind, "old")
        code = in_child(partial(killed_at, step, partial(write, path, kind, "new")))
        seen.add(read(path))
        write_and_fail(path)
        assert read(path) in ("old", "new"), step
        write(path, kind, "third")
        assert read(path) == "third"
        assert [item.name for item in path.parent.iterdir()] == ["out"], step
    assert code == 0
    assert step > 8
    assert seen == {"old", "new", *(["missing"] if kind == "folder" else [])}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(tmp_path: Path, kind: str) -> None:
    for step in range(25):
        write(tmp_path / str(step) / "out", kind, "old")
        in_child(partial(killed_at, step, partial(write, tmp_path / str(step) / "out", kind, "new")))
    (tmp_path / "killed.lock").touch()
    assert [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".lock"))]
    with locked(tmp_path / "held.lock"), atomic_path(tmp_path / "out") as temporary:
        temporary.write_text("whole")
        remove_abandoned(tmp_path)
        assert (tmp_path / "held.lock").exists()
    assert (tmp_path / "out").read_text() == "whole"
    assert [path.name for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".lock", ".old"))] == []
    assert {read(tmp_path / str(step) / "out") for step in range(25)} == {"old", "new"}


def test_content_reaches_the_disk_before_its_name_and_its_name_before_the_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """file, folder, rename, folder of the name; only then is the output noted as current."""
    order: list[str] = []

    def seen(name: str) -> None:
        plain = getattr(os, name)

        def called(first: Any, *rest: Any) -> Any:
            path = Path(f"/proc/self/fd/{first}").readlink() if name == "fsync" else rest[0]
            order.append(f"{name} {os.path.relpath(path, tmp_path)}")
            return plain(first, *rest)

        monkeypatch.setattr(files.os, name, called)

    for name in ("fsync", "rename", "replace"):
        seen(name)
    workspace = Workspace(tmp_path)
    write(tmp_path / "out", "folder", "1")
    workspace.mark_current(tmp_path / "out", "key")
    place, note = ".out.tmp/out", ".stamps/.out.json.tmp/out.json"
    assert sorted(order[:2]) == [f"fsync {place}/a", f"fsync {place}/b"]
    assert order[2:] == [
        f"fsync {place}", "replace out", "fsync .", f"fsync {note}", "replace .stamps/out.json", "fsync .stamps",
    ]  # fmt: skip


def test_a_task_killed_between_output_and_note_is_current_under_no_settings(tmp_path: Path) -> None:
    """Else the note of earlier settings would vouch for the output of others."""
    workspace, output = Workspace(tmp_path), tmp_path / "out.json"

    def task(key: str, then: Callable[[], None]) -> Task:
        def make() -> None:
            write_json(output, key)
            then()

        return Task("made", "", workspace, output, key, make)

    do(task("first", lambda: None))
    assert task("first", lambda: None).current
    assert in_child(partial(do, task("other", lambda: os.kill(os.getpid(), signal.SIGKILL)))) == -signal.SIGKILL
    assert output.read_text() == '"other"\n'
    assert not task("first", lambda: None).current
    assert not task("other", lambda: None).current


def test_of_two_processes_one_does_a_task(tmp_path: Path) -> None:
    output = tmp_path / "out.txt"

    def make() -> None:
        with (tmp_path / "count.txt").open("a") as file:
            file.write("made\n")
        write(output, "file", "made")

    task = Task("made", "", Workspace(tmp_path), output, "key", make)
    children = []
    for _ in range(4):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                do(task)
                os._exit(0)
            finally:
                os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert (tmp_path / "count.txt").read_text() == "made\n"


def test_a_lock_ends_with_its_process_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "one.lock"

    def hold() -> None:
        with locked(path), pytest.raises(WhaleidError, match="folder: somebody is"), locked(path, "somebody is"):
            pass
        with locked(path):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(hold) == -signal.SIGKILL
    assert path.exists()
    with locked(path, "somebody is"):
        pass
    assert not path.exists()


def test_what_is_added_up_under_a_lock_by_many_processes_is_not_lost(tmp_path: Path) -> None:
    total = tmp_path / "total"
    total.write_text("0")

    def add() -> None:
        for _ in range(25):
            with locked(tmp_path / "total.lock"):
                total.write_text(str(int(total.read_text()) + 1))

    children = [os.fork() for _ in range(1)]
    if children[0] == 0:
        os._exit(in_child(add))
    add()
    assert os.waitpid(children[0], 0)[1] == 0
    assert total.read_text() == "50"
    assert not (tmp_path / "total.lock").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("8192 requested and 4096 written"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["the system's", "numpy's", "safetensors'"],
)
def test_every_librarys_full_disk_is_one_error_that_names_the_file(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "out"):
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no image") as caught, atomic_path(tmp_path / "out"):
        raise OSError("no image")
    assert caught.value.errno is None


def test_an_error_of_the_system_without_a_name_gets_that_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "out"):
        raise OSError(errno.EROFS, "Error writing bytes to file")
    assert caught.value.filename == str(tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1"])
def test_a_damaged_table_of_the_work_folder_is_named(tmp_path: Path, content: bytes) -> None:
    workspace = Workspace(tmp_path)
    for path, read in (
        (workspace.images, read_images),
        (workspace.folds, read_folds),
        (workspace.metrics, lambda workspace: files.read_json(workspace.metrics)),
    ):
        path.write_bytes(content)
        with pytest.raises(WhaleidError, match="damaged") as caught:
            read(workspace)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    workspace.mark_current(workspace.folds, "key")
    (tmp_path / ".stamps" / "folds.csv.json").write_bytes(content)
    assert not workspace.is_current(workspace.folds, "key")
