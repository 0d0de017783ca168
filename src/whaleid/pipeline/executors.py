"""A recipe as a list of jobs (train and embed one experiment on one fold), and the runner that does them.

Each job is also a command line (`Job.command`), which is all that a runner needs: in turn in this process,
several at once as processes (one a GPU), or on a cluster whose engine submits the same commands.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from whaleid.pipeline.workspace import fold_name
from whaleid.utils.errors import WhaleidError
from whaleid.utils.progress import PROGRESS_FILE, follow_bars

MEMORY_OF_A_RUN = 3 * 2**30
"""Bytes that a run on a CPU is given room for; small networks at small sizes take about half."""


@dataclass(frozen=True)
class Job:
    """One experiment on one fold, from training to features; `current` when nothing is left to do."""

    experiment: str
    fold: int | None
    """None: on all labelled images."""
    stage: str
    """`train` or `features` (which trains first where that is missing)."""
    current: bool

    @property
    def title(self) -> str:
        return f"{self.experiment} {'full' if self.fold is None else f'fold {self.fold}'}"

    @property
    def file_name(self) -> str:
        """What its files are called."""
        return f"{self.experiment}.{fold_name(self.fold)}"

    def command(self, options: list[str]) -> list[str]:
        """Command line that does this job alone; `options` name competition, recipe, work folder and SET."""
        part = ["--full"] if self.fold is None else ["--fold", str(self.fold)]
        only = ["--experiment", self.experiment, *part]
        return [sys.executable, "-m", "whaleid", self.stage, *options, *only]


def run_jobs(jobs: list[Job], do: Callable[[Job], None], options: list[str], at_once: int, logs: Path) -> int:
    """Do every job that is not current; returns how many were done.

    at_once: 1 calls `do(job)` here; more starts that many processes of `job.command(options)`, each with its
        share of the cores and its own GPU, its output in `logs/<experiment>.<fold>.log`; 0 chooses (`sensible`).
    Raises WhaleidError when a job fails: those still running are ended, and what they had done is kept.
    """
    waiting = [job for job in jobs if not job.current]
    at_once = min(at_once or sensible(), len(waiting))
    if at_once > 1:
        _run_processes(waiting, options, at_once, logs)
        return len(waiting)
    for number, job in enumerate(waiting, start=1):
        Console(stderr=True).print(f"[{number}/{len(waiting)}] {job.stage} {job.title}", markup=False)
        do(job)
    return len(waiting)


def sensible() -> int:
    """As many runs at once as there are GPUs; without one, as many as cores and free memory carry.

    On CPUs, runs of one thread each use the cores better than one run of many threads (two idle cores,
    EfficientNet-Lite0 at 128 x 64: 127 images a second instead of 82), and do not wait for one another when
    something else uses a core.
    """
    gpus = _gpu_count()
    if gpus:
        return gpus
    return max(1, min(os.cpu_count() or 1, psutil.virtual_memory().available // MEMORY_OF_A_RUN))


def share_of_cores(at_once: int) -> int:
    """Threads for each of `at_once` processes."""
    return max(1, (os.cpu_count() or 1) // at_once)


def _run_processes(waiting: list[Job], options: list[str], at_once: int, logs: Path) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    gpus = _gpu_count()
    free_places = list(range(at_once))
    running: dict[int, tuple[subprocess.Popen[bytes], Job, float]] = {}
    queue = list(waiting)
    done = 0
    with follow_bars() as bars, ExitStack() as stack:
        stack.callback(lambda: [process.terminate() for process, _, _ in running.values()])
        while queue or running:
            while queue and free_places:
                place, job = free_places.pop(0), queue.pop(0)
                running[place] = (_start(job, options, at_once, place, gpus, logs), job, time.monotonic())
                bars.print(f"started {job.stage} {job.title} (log: {_log_path(logs, job)})")
            for place, (process, job, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[place]
                free_places.append(place)
                _raise_if_failed(process.returncode, job, logs)
                done += 1
                minutes = (time.monotonic() - began) / 60
                bars.print(f"[{done}/{len(waiting)}] {job.stage} {job.title} in {minutes:.1f} min")
            bars.show([_progress_path(logs, job) for _, job, _ in running.values()])
            time.sleep(0.5)


def _start(job: Job, options: list[str], at_once: int, place: int, gpus: int, logs: Path) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, OMP_NUM_THREADS=str(share_of_cores(at_once)))
    environment[PROGRESS_FILE] = str(_progress_path(logs, job))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = str(place % gpus)
    with _log_path(logs, job).open("ab") as log:
        return subprocess.Popen(job.command(options), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _log_path(logs: Path, job: Job) -> Path:
    return logs / f"{job.file_name}.log"


def _progress_path(logs: Path, job: Job) -> Path:
    return logs / f"{job.file_name}.progress"


def _raise_if_failed(code: int, job: Job, logs: Path) -> None:
    if code == 0:
        return
    log = _log_path(logs, job)
    lines = log.read_text(errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("error: ") if lines else "no output"
    raise WhaleidError(f"{job.stage} {job.title} ended with code {code}: {last} (whole log: {log})")


def _gpu_count() -> int:
    """GPUs to spread the processes over: those of CUDA_VISIBLE_DEVICES, else all."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
