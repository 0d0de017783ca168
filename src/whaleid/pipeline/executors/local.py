"""The executor of this machine: one process after the other, or several at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from whaleid.pipeline.tasks import Task, begin, do, together
from whaleid.utils.device import gpu_count
from whaleid.utils.errors import WhaleidError
from whaleid.utils.locks import locked
from whaleid.utils.machine import cores, free_memory
from whaleid.utils.progress import PROGRESS_FILE, follow_bars, say

MEMORY_OF_A_RUN = 3 * 2**30
"""Bytes of the machine's memory reserved for a run; small networks at small sizes take about half on a CPU."""
PATIENCE = 60
"""Seconds for processes to end; accelerate's launcher kills those that it started after half of it."""
_LINE = 2**12
"""Bytes of free disk below which a process cannot say what went wrong."""
EVERY = 0.1
"""Seconds between two looks at the processes: a place that became free waits half of it on average, 0.5 % of 10 s."""


@dataclass(frozen=True)
class LocalExecutor:
    """Does tasks on this machine.

    Attributes
    ----------
    jobs : int
        Runs at once: 1 does them in this process one after the other, more starts as many processes, each with its
        share of the cores and its own GPUs; 0 chooses (`sensible`). Tasks without a command are always done here.
    options : list of str
        Of the processes' command lines: they name competition, recipe, work folder and overrides.
    """

    jobs: int = 1
    options: list[str] = field(default_factory=list)

    def check(self) -> None:
        """This machine is there."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """Do the tasks; what is done is kept where one fails, and processes still running are ended."""
        for gpus in sorted({task.gpus for task in tasks}):
            yield from self._run([task for task in tasks if task.gpus == gpus], gpus)

    def _run(self, tasks: list[Task], gpus: int) -> Iterator[Task]:
        """Do tasks that have so many GPUs each."""
        spread = [task for task in tasks if task.command is not None]
        jobs = min(self.jobs or max(1, sensible() // gpus), len(spread)) if len(spread) > 1 else 1
        if jobs > 1:
            yield from self._processes(spread, jobs, partial(_start, options=self.options, jobs=jobs))
        for number, task in enumerate(tasks, start=1):
            if jobs > 1 and task.command is not None:
                continue
            if task.command is not None:
                say(f"[{number}/{len(tasks)}] {task.stage} {task.item}")
            if gpus > 1 and not together():
                yield from self._together(task)
                continue
            do(task)
            yield task

    def _together(self, task: Task) -> Iterator[Task]:
        """Have a run trained by several processes, which accelerate starts."""
        require_gpus(task.gpus, self.options)
        with locked(task.workspace.lock(task.output)) as lock:
            if not task.current:
                begin(task)
                list(self._processes([task], 1, partial(_start_together, options=self.options, lock=lock)))
        yield task

    def _processes(self, tasks: list[Task], jobs: int, start: Callable[[Task, int], _Process]) -> Iterator[Task]:
        """Do tasks as processes. start: starts that of a task at a place, 0 to jobs - 1."""
        places, queue = list(range(jobs)), list(tasks)
        running: dict[int, _Process] = {}
        done = 0
        with follow_bars() as bars, ExitStack() as stack:
            stack.callback(lambda: _end([process.popen for process in running.values()]))
            while queue or running:
                while queue and places and (self.jobs or not running or free_memory() > MEMORY_OF_A_RUN):
                    place, task = places.pop(0), queue.pop(0)
                    running[place] = start(task, place)
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


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End processes; their locks are free when this returns."""
    for process in processes:
        process.terminate()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)


@dataclass(frozen=True)
class _Process:
    """A task that runs as a process of its own."""

    task: Task
    popen: subprocess.Popen[bytes]
    log: Path
    progress: Path
    begins: int
    """Where its output begins in the log."""
    began: float

    def raise_if_failed(self) -> None:
        code = self.popen.returncode
        if code == 0:
            return
        line = f"{self.task.stage} {self.task.item} ended with code {code}: {last_error(self.log, self.begins)}"
        raise WhaleidError(f"{line} (whole log: {self.log})")


def _start(task: Task, place: int, options: list[str], jobs: int) -> _Process:
    """The process of a task among `jobs`, with its share of the cores and its own GPUs."""
    environment = {"OMP_NUM_THREADS": str(share_of_cores(jobs))}
    if gpus := gpu_count():
        own = [(place * task.gpus + number) % gpus for number in range(task.gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
    return _started(task, task.arguments(options), environment)


def _start_together(task: Task, _: int, options: list[str], lock: int) -> _Process:
    """accelerate's launcher with the processes of a run; it holds the lock as long as one of them may live."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or cores())
    environment = {"OMP_NUM_THREADS": str(max(1, threads // task.gpus))}
    if not gpu_count():
        environment["ACCELERATE_USE_CPU"] = "true"
    return _started(task, launch_words(task, options), environment, (lock,))


def launch_words(task: Task, options: list[str]) -> list[str]:
    """Command line by which accelerate starts the processes that train a run, whatever the user's own settings of it.

    Without GPUs, too: its launcher for CPUs starts one process, or needs MPI.
    """
    settings = {"num_processes": task.gpus, "num_machines": 1, "main_process_port": 0}  # 0: one that is free
    settings |= {"mixed_precision": "no", "dynamo_backend": "no"}  # the run's own precision is set by itself
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *words]
    return [*launcher, "--module", *replace(task, command="train").words(options)]


def require_gpus(gpus: int, options: list[str]) -> None:
    """Raise WhaleidError where a run cannot have so many GPUs. options: of its processes' command lines."""
    there = gpu_count()
    if 0 < there < gpus:
        raise WhaleidError(f"train.gpus={gpus}: only {there} can be used here; set train.gpus to that, or ask for more")
    if not options:
        raise WhaleidError(f"train.gpus={gpus}: the commands of `whaleid` train by several GPUs, its functions do not")


def _started(task: Task, words: list[str], environment: dict[str, str], kept: tuple[int, ...] = ()) -> _Process:
    """A process that writes to the task's log. kept: descriptors that stay open in it."""
    log, progress = log_files(task)
    env = os.environ | environment | {PROGRESS_FILE: str(progress)}
    with log.open("ab") as file:
        begins = file.tell()
        popen = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, pass_fds=kept)
    return _Process(task, popen, log, progress, begins, time.monotonic())


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


def last_error(log: Path, begins: int) -> str:
    """The error of a process whose output begins there; behind it a launcher of processes says much else."""
    lines = log.read_bytes()[begins:].decode(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if not lines and shutil.disk_usage(log.parent).free < _LINE:
        return "the disk is full"
    return (errors or lines or ["no output"])[-1]


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
