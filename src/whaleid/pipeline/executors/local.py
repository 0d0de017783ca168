"""The executor of this machine: one process after the other, or several at once."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from whaleid.pipeline.tasks import Task, do
from whaleid.utils.device import gpu_count
from whaleid.utils.errors import WhaleidError
from whaleid.utils.machine import cores, free_memory
from whaleid.utils.progress import PROGRESS_FILE, follow_bars, say

MEMORY_OF_A_RUN = 3 * 2**30
"""Bytes of the machine's memory reserved for a run; small networks at small sizes take about half on a CPU."""
EVERY = 0.1
"""Seconds between two looks at the processes: a place that became free waits half of it on average, 0.5 % of 10 s."""


@dataclass(frozen=True)
class LocalExecutor:
    """Does tasks on this machine.

    Attributes
    ----------
    jobs : int
        Runs at once: 1 does them in this process one after the other, more starts as many processes, each with its
        share of the cores and its own GPU; 0 chooses (`sensible`). Tasks without a command are always done here.
    options : list of str
        Of the processes' command lines: they name competition, recipe, work folder and overrides.
    """

    jobs: int = 1
    options: list[str] = field(default_factory=list)

    def run(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """Do the tasks; what is done is kept where one fails, and processes still running are ended."""
        spread = [task for task in tasks if task.command is not None]
        jobs = min(self.jobs or sensible(), len(spread)) if len(spread) > 1 else 1
        if jobs > 1:
            yield from self._processes(spread, jobs)
        for number, task in enumerate(tasks, start=1):
            if jobs > 1 and task.command is not None:
                continue
            if task.command is not None:
                say(f"[{number}/{len(tasks)}] {task.stage} {task.item}")
            do(task)
            yield task

    def _processes(self, tasks: list[Task], jobs: int) -> Iterator[Task]:
        gpus, places, queue = gpu_count(), list(range(jobs)), list(tasks)
        running: dict[int, _Process] = {}
        done = 0
        with follow_bars() as bars, ExitStack() as stack:
            stack.callback(lambda: [process.popen.terminate() for process in running.values()])
            while queue or running:
                while queue and places and (self.jobs or not running or free_memory() > MEMORY_OF_A_RUN):
                    place, task = places.pop(0), queue.pop(0)
                    running[place] = _start(task, self.options, jobs, place, gpus)
                    bars.print(f"started {task.stage} {task.item} (log: {running[place].log})")
                for place, process in list(running.items()):
                    if process.popen.poll() is None:
                        continue
                    del running[place]
                    places.append(place)
                    process.raise_if_failed()
                    done += 1
                    minutes = (time.monotonic() - process.began) / 60
                    bars.print(f"[{done}/{len(tasks)}] {process.task.stage} {process.task.item} in {minutes:.1f} min")
                    yield process.task
                bars.show([process.progress for process in running.values()])
                time.sleep(EVERY)


@dataclass(frozen=True)
class _Process:
    """A task that runs as a process of its own."""

    task: Task
    popen: subprocess.Popen[bytes]
    log: Path
    progress: Path
    began: float

    def raise_if_failed(self) -> None:
        code = self.popen.returncode
        if code == 0:
            return
        line = f"{self.task.stage} {self.task.item} ended with code {code}: {last_line(self.log)}"
        raise WhaleidError(f"{line} (whole log: {self.log})")


def _start(task: Task, options: list[str], jobs: int, place: int, gpus: int) -> _Process:
    log, progress = log_files(task)
    environment = dict(os.environ, OMP_NUM_THREADS=str(share_of_cores(jobs)))
    environment[PROGRESS_FILE] = str(progress)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = str(place % gpus)
    with log.open("ab") as file:
        words = task.arguments(options)
        popen = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
    return _Process(task, popen, log, progress, time.monotonic())


def log_files(task: Task) -> tuple[Path, Path]:
    """Files of the output and of the progress bar of a task's process, in `logs/` of the work folder."""
    logs = task.workspace.root / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    name = task.item.replace("/", ".")
    return logs / f"{name}.log", logs / f"{name}.progress"


def last_line(log: Path) -> str:
    """The last line of a log, which is the error of a process that failed."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "no output"


def sensible() -> int:
    """As many runs at once as there are GPUs, or without one cores, and as free memory carries.

    On CPUs, runs of one thread each use the cores better than one run of many threads (two idle cores,
    EfficientNet-Lite0 at 128 x 64: 127 images a second instead of 82), and do not wait for one another when
    something else uses a core.
    """
    return max(1, min(gpu_count() or cores(), free_memory() // MEMORY_OF_A_RUN))


def share_of_cores(jobs: int) -> int:
    """Threads for each of `jobs` processes."""
    return max(1, cores() // jobs)
