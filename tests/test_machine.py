"""The machine: what control groups leave of its memory."""

import sys
from pathlib import Path
from threading import Barrier, local

import cv2
import psutil
import pytest

from whaleid.utils import machine
from whaleid.utils.machine import changes, environment


def group(folder: Path, limit: str, usage: str, values: tuple[str, str], stat: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit).write_text(f"{values[0]}\n")
    (folder / usage).write_text(f"{values[1]}\n")
    (folder / "memory.stat").write_text(stat)


def second(folder: Path, most: str, used: str, inactive: int) -> None:
    """A group of version 2."""
    group(folder, "memory.max", "memory.current", (most, used), f"anon 5\ninactive_file {inactive}\n")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that names this process's groups; the groups are below `cgroup`."""
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
    return tmp_path / "own"


def test_the_smallest_limit_above_a_process_counts(own: Path) -> None:
    root = own.parent / "cgroup"
    second(root / "slurm" / "job", "9000", "4000", 100)
    second(root / "slurm", "6000", "4000", 500)
    own.write_text("0::/slurm/job\n")
    assert machine.free_memory() == 2500
    second(root / "slurm", "max", "4000", 500)
    assert machine.free_memory() == 5100


def test_a_container_sees_its_own_group_as_the_root(own: Path) -> None:
    """`own` gives the path that the host knows, which is not there."""
    second(own.parent / "cgroup", "7000", "7400", 300)
    own.write_text("0::/docker/0123\n")
    assert machine.free_memory() == 0


def test_version_1_has_a_tree_for_memory(own: Path) -> None:
    stat = "inactive_file 1\ntotal_inactive_file 50\n"
    folder = own.parent / "cgroup" / "memory"
    group(folder / "box", "memory.limit_in_bytes", "memory.usage_in_bytes", ("3000", "1000"), stat)
    own.write_text("5:devices:/\n4:memory:/box\n0::/\n")
    assert machine.free_memory() == 2050


def test_without_control_groups_the_system_says_what_is_free(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 77}))
    assert machine.free_memory() == 77
    assert machine._left(own.parent, "memory.max", "memory.current", "inactive_file") == sys.maxsize


def test_cores_are_those_of_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert machine.cores() == 1


def test_a_core_is_compared_by_the_least_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.05 < machine.slowness() < 50
    monkeypatch.setattr(machine, "cores", lambda: 1)
    took = iter(second for start, seconds in enumerate([9, 0.5, 7]) for second in (start, start + seconds))
    monkeypatch.setattr("time.thread_time", lambda: next(took))
    assert machine.busy_seconds(lambda: None, 3) == 0.5


def test_a_core_is_compared_while_all_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 3)
    together = Barrier(3, timeout=60)
    assert machine.busy_seconds(together.wait, 2) >= 0.0


def test_one_core_may_be_disturbed_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 3)
    turn, of_thread = iter([1.0, 8.0, 2.0]), local()
    together = Barrier(3, timeout=60)  # so that each core has its own thread

    def clock() -> float:
        if not hasattr(of_thread, "step"):
            of_thread.step, of_thread.seconds = next(turn), 0.0
        return of_thread.seconds

    def work() -> None:
        together.wait()
        of_thread.seconds += of_thread.step

    monkeypatch.setattr("time.thread_time", clock)
    assert machine.busy_seconds(work, 2) == 2.0


def test_comparing_a_core_leaves_threads_as_they_were() -> None:
    before = cv2.getNumThreads()
    machine.slowness.cache_clear()
    assert machine.slowness() > 0 and cv2.getNumThreads() == before


def test_nobody_else_counts_cores() -> None:
    """The host's cores are not those of a container: one place knows."""
    source = Path(machine.__file__).resolve().parents[1]
    others = [path for path in source.rglob("*.py") if path.name != "machine.py"]
    assert others and [path.name for path in others if "cpu_count(" in path.read_text()] == []


def test_the_environment_names_what_numbers_depend_on() -> None:
    found = environment()
    assert {"processor", "python", "torch", "lightgbm", "numpy"} <= set(found)
    assert any(name.startswith("faiss") for name in found)
    assert changes(found, environment()) == ""
    other = {name: value for name, value in found.items() if name != "lightgbm"} | {"torch": "1.0"}
    assert changes(found, other) == f"torch {found['torch']}, now 1.0; lightgbm {found['lightgbm']}, now none"
    assert changes({"GPU": "one"}, {}) == changes({}, {"GPU": "one"}) == "", "known only where torch is loaded"
    assert changes({"GPU": "one"}, {"GPU": "two"}) == "GPU one, now two"
