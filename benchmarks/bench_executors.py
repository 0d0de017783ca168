"""What the executors add to tasks that only sleep: by 1, 2 and 4 workers, by the clock.

    .venv/bin/python benchmarks/bench_executors.py [--seconds 10] [--executors local ray] [--out ...]

A task is a process that sleeps and writes a file. Sleeping takes no processor, so that more workers than cores leave
the engine's own cost to be seen. It is what the executor takes more than a bare loop in the same run: as many threads
as workers, each of which starts one process after the other. To start a process takes longer on a busy machine, also
in the bare loop; the time over the sleep alone is given too. A run of whaleid loads its libraries besides, which is not
in this: `local` does so for each run, and Ray once for each of its workers, before its first run. One task for each
worker that does not sleep goes ahead and takes that time (`first_s`). Ray is started beforehand, as one node with a
core for each worker; one local worker does the tasks in this process. What is not measured keeps its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from whaleid.pipeline.executors import make_executor
from whaleid.pipeline.executors.local import MEMORY_OF_A_RUN
from whaleid.pipeline.executors.remote import load_engine
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.workspace import Workspace
from whaleid.utils.device import gpu_count
from whaleid.utils.files import write_json


@dataclass(frozen=True)
class SleepingTask(Task):
    """A task whose command sleeps."""

    seconds: float = 0.0

    def words(self, options: list[str]) -> list[str]:
        return ["sleeping", str(self.seconds), str(self.output)]


def sleep(seconds: float, output: Path) -> None:
    time.sleep(seconds)
    output.touch()


def tasks_of(root: Path, count: int, seconds: float) -> list[Task]:
    return [
        SleepingTask(
            "train",
            name,
            Workspace(root),
            root / name,
            "key",
            partial(sleep, seconds, root / name),
            command="train",
            seconds=seconds,
        )
        for name in map(str, range(count))
    ]


@contextmanager
def engine(name: str, workers: int) -> Iterator[None]:
    """What an executor needs to be there before it begins."""
    if name != "ray":
        yield
        return
    ray = load_engine("ray", "ray")
    room = {"object_store_memory": 80 << 20, "_memory": workers * MEMORY_OF_A_RUN}
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **room)
    try:
        yield
    finally:
        ray.shutdown()


def bare_loop(workers: int, each: int, seconds: float) -> float:
    """Seconds of the same processes, started by threads."""
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(workers) as pool:
        commands = [task.arguments([]) for task in tasks_of(Path(place), workers * each, seconds)]
        begin = time.perf_counter()
        list(pool.map(partial(subprocess.run, check=True), commands))
        return time.perf_counter() - begin


def spread(name: str, workers: int, count: int, seconds: float) -> float:
    """Seconds that an executor takes for so many tasks."""
    with tempfile.TemporaryDirectory() as place:
        tasks = tasks_of(Path(place), count, seconds)
        begin = time.perf_counter()
        done = sum(1 for _ in make_executor(name, 2 * workers if name == "ray" else workers, []).run(tasks))
        taken = time.perf_counter() - begin
        assert done == len(tasks) and all(task.output.exists() for task in tasks)
    return taken


def measure(name: str, workers: int, each: int, seconds: float) -> dict[str, Any]:
    """Seconds of so many tasks for each worker, and what the engine adds to the bare loop."""
    bare = bare_loop(workers, each, seconds)
    with engine(name, workers):
        first, taken = (spread(name, workers, *sort) for sort in ((workers, 0.0), (workers * each, seconds)))
    added, above_sleep = taken / bare - 1, taken / (each * seconds) - 1
    times = f"{added:+.1%} of the bare loop, {above_sleep:+.1%} of the sleep; {first:.1f} s before the first"
    print(f"{name:6} {workers} workers, {workers * each:2} tasks of {seconds:.0f} s: {times}", flush=True)
    return {
        "executor": name,
        "workers": workers,
        "tasks": workers * each,
        "task_s": seconds,
        "load": os.getloadavg()[0],
        "first_s": first,
        "seconds": taken,
        "bare_s": bare,
        "added": added,
        "above_sleep": above_sleep,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executors", nargs="+", default=["local", "ray"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=10.0, help="of a task")
    parser.add_argument("--each", type=int, default=3, help="tasks for each worker")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/executors.json"))
    given = parser.parse_args()
    out = given.out.absolute()
    os.chdir(Path(__file__).parent)  # `python -m sleeping` is found in the current folder
    rows = json.loads(out.read_text())["rows"] if out.is_file() else []
    gpu_count()  # loads torch, once for a process
    for name in given.executors:
        for workers in given.workers:
            new = measure(name, workers, given.each, given.seconds)
            rows = [row for row in rows if (row["executor"], row["workers"]) != (name, workers)] + [new]
            write_json(out, {"cpus": os.cpu_count(), "rows": rows})


if __name__ == "__main__":
    main()
