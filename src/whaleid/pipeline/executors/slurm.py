"""The executor of a SLURM cluster: the runs are an array of jobs, given to sbatch by submitit.

sbatch reads its own environment variables: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, SBATCH_GPUS and the
others of its manual override what is asked for here, a core and the memory of a small run.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from whaleid.pipeline.executors.local import MEMORY_OF_A_RUN, log_files
from whaleid.pipeline.executors.remote import RemoteCommand, command_of, do_here, failed, load_engine
from whaleid.pipeline.tasks import Task
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import write_json
from whaleid.utils.progress import follow_bars

MINUTES = 24 * 60
"""Time limit of a job. A job that reaches it is queued again, and its run continues where it stopped."""
AT_ONCE = 256
"""Jobs of an array at the same time, where `--jobs` says nothing; submitit's own default."""
EVERY = 1.0
"""Seconds between two looks at the jobs' results; submitit asks SLURM itself more seldom."""


@dataclass(frozen=True)
class SlurmExecutor:
    """Does tasks as jobs of SLURM. Jobs go on where this process dies; the same command then waits for them.

    Attributes
    ----------
    jobs : int
        Jobs at the same time; 0: as many as SLURM starts, at most AT_ONCE.
    options : list of str
        Of the tasks' command lines.
    cluster : str
        submitit's name of the engine: slurm, or local for processes of this machine.
    """

    jobs: int = 0
    options: list[str] = field(default_factory=list)
    cluster: str = "slurm"

    def check(self) -> None:
        """Raise WhaleidError where submitit, or SLURM, is not here."""
        self._engine()

    def run(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """Do the tasks; jobs that are left are cancelled where one fails."""
        sent = [task for task in tasks if task.command is not None]
        if sent:
            yield from self._send(sent)
        yield from do_here(tasks)

    def _send(self, tasks: list[Task]) -> Iterator[Task]:
        waiting = self._submit(tasks, self._engine())
        progress = {task.name: log_files(task)[1] for task in tasks}
        done = 0
        with follow_bars() as bars:
            try:
                for task, job in waiting:
                    bars.print(f"{task.stage} {task.item}: job {job.job_id} (log: {log_files(task)[0]})")
                while waiting:
                    for task, job in [pair for pair in waiting if pair[1].done()]:
                        waiting.remove((task, job))
                        _raise_if_failed(task, job)
                        done += 1
                        bars.print(f"[{done}/{len(tasks)}] {task.stage} {task.item} (job {job.job_id})")
                        yield task
                    bars.show([progress[task.name] for task, _ in waiting])
                    time.sleep(EVERY)
            finally:
                for _, job in waiting:
                    job.cancel(check=False)

    def _engine(self) -> Any:
        """The module `submitit`. Raises WhaleidError where it, or SLURM, is not here."""
        submitit = load_engine("submitit", "slurm")
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise WhaleidError(
                "--executor slurm: sbatch is not found on this machine; run on a login node of the cluster, "
                "or write a file for one with `whaleid plan --sbatch FILE`"
            )
        return submitit

    def _submit(self, tasks: list[Task], submitit: Any) -> list[tuple[Task, Any]]:
        """Each task with its job: that of an earlier process where SLURM still has it, else a new one."""
        folder = (tasks[0].workspace.root / "logs" / self.cluster).absolute()
        earlier = partial(_earlier_job, submitit, folder) if self.cluster == "slurm" else lambda _: None
        found = [(task, job) for task in tasks if (job := earlier(task)) is not None]
        kept = [task.name for task, _ in found]
        new = [task for task in tasks if task.name not in kept]
        for gpus in sorted({task.gpus for task in new}):
            found += self._new_jobs([task for task in new if task.gpus == gpus], gpus, folder, submitit)
        return found

    def _new_jobs(self, tasks: list[Task], gpus: int, folder: Path, submitit: Any) -> list[tuple[Task, Any]]:
        """An array of jobs, each for a run of so many GPUs."""
        engine = submitit.AutoExecutor(folder=folder, cluster=self.cluster)
        memory = gpus * MEMORY_OF_A_RUN / 2**30
        engine.update_parameters(name="whaleid", timeout_min=MINUTES, cpus_per_task=gpus, mem_gb=memory)
        if self.cluster == "slurm":
            engine.update_parameters(slurm_array_parallelism=self.jobs or AT_ONCE)
            if gpus > 1:  # whether a run of one has a GPU is for SBATCH_GPUS to say
                engine.update_parameters(slurm_additional_parameters={"gpus": gpus})
        with engine.batch():
            jobs = [engine.submit(_Resumable(command_of(task, self.options))) for task in tasks]
        for task, job in zip(tasks, jobs, strict=True):
            write_json(_note(task), {"key": task.key, "job": job.job_id})
        return list(zip(tasks, jobs, strict=True))


@dataclass(frozen=True)
class _Resumable:
    """A command that submitit queues again, as it is, where the job reaches its time limit or is preempted."""

    command: RemoteCommand

    def __call__(self) -> str | None:
        return self.command()

    def checkpoint(self) -> Any:
        return load_engine("submitit", "slurm").helpers.DelayedSubmission(self)


def _note(task: Task) -> Path:
    """File that says which job does a task."""
    return log_files(task)[0].with_suffix(".job")


def _earlier_job(submitit: Any, folder: Path, task: Task) -> Any | None:
    """The job of an earlier process that still does the same task, or None."""
    if not _note(task).is_file():
        return None
    note = json.loads(_note(task).read_text())
    job = submitit.SlurmJob(folder, note["job"])
    return job if note["key"] == task.key and not job.done(force_check=True) else None


def _raise_if_failed(task: Task, job: Any) -> None:
    """Raise WhaleidError for a command that failed, and for a job that ended without a result."""
    errors = load_engine("submitit", "slurm").core.utils
    try:
        problem = job.result()
    except (errors.FailedJobError, errors.UncompletedJobError) as error:
        raise failed(task, f"has no result from job {job.job_id}, {job.state} ({job.paths.stderr})") from error
    if problem is not None:
        raise failed(task, problem)
