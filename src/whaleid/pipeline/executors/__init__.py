"""Executors: who does the tasks of a stage. Another engine is one more class with `run`, and a line in EXECUTORS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from whaleid.pipeline.executors.local import LocalExecutor
from whaleid.pipeline.executors.ray_cluster import RayExecutor
from whaleid.pipeline.executors.slurm import SlurmExecutor
from whaleid.pipeline.tasks import Task
from whaleid.utils.errors import WhaleidError


class Executor(Protocol):
    """Does tasks that do not depend on each other. Tasks without a command are done in this process by all executors.

    What is done stays done where the process ends early: it is in files, and the next run leaves it out.
    """

    def check(self) -> None:
        """Raise WhaleidError where the engine cannot be used: before the first stage, which may take hours."""
        ...

    def run(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """Do the tasks; yield each when it is done. Raises WhaleidError where one fails."""
        ...


EXECUTORS: dict[str, Callable[[int, list[str]], Executor]] = {
    "local": LocalExecutor,
    "ray": RayExecutor,
    "slurm": SlurmExecutor,
}
"""Name -> (jobs, options) -> executor. jobs: tasks at the same time, 0 = as many as fit. options: words
of a task's command line that name competition, recipe, work folder and overrides."""


def make_executor(name: str, jobs: int, options: list[str]) -> Executor:
    """The executor of a name in EXECUTORS."""
    if name not in EXECUTORS:
        raise WhaleidError(f"--executor '{name}' not found; executors: {', '.join(EXECUTORS)}")
    return EXECUTORS[name](jobs, options)
