"""A file for sbatch: the runs of a recipe as an array of jobs, for clusters whose login nodes keep no process."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from whaleid.pipeline.executors.local import MEMORY_OF_A_RUN
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run, tasks_to_do
from whaleid.pipeline.tasks import Task
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

SPARE = 2.0
"""Time limit of a job over the estimated hours of a run."""

_TEXT = """#!/bin/bash
# The runs of the recipe {recipe} on {competition}, and their features: a job for each. Add what your cluster wants to
# know (partition, account, GPUs) and run `sbatch {file}`. A job that is done again continues where it stopped.
# When all have ended: whaleid leaderboard {options}
#SBATCH --job-name=whaleid-{competition}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={gpus}
#SBATCH --mem={memory}G
#SBATCH --time={hours}:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={logs}/slurm-%A_%a.log
##SBATCH --gpus={gpus}
set -euo pipefail
cd {folder}
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
case "$SLURM_ARRAY_TASK_ID" in
{cases}
  *) echo "no run $SLURM_ARRAY_TASK_ID: this file has 0 to {last}" >&2; exit 2 ;;
esac
"""


def write_sbatch(project: Project, options: list[str], hours: float, path: Path) -> int:
    """Write the file for the runs that are not done, and build the cache that they read.

    Parameters
    ----------
    project : Project
    options : list of str
        Of the jobs' command lines: they name competition, recipe, work folder and overrides.
    hours : float
        Estimate for the longest run.
    path : Path

    Returns
    -------
    int
        Number of jobs.
    """
    for stage in ("folds", "cache"):
        run(project, stage)
    tasks = _runs(project)
    if not tasks:
        raise WhaleidError(f"{path}: nothing to write, all runs of recipe {project.recipe.name} are done")
    lines = [shlex.join([sys.executable, "-m", *task.words(options)]) for task in tasks]
    gpus = max(task.gpus for task in tasks)
    logs = (project.workspace.root / "logs").absolute()
    logs.mkdir(parents=True, exist_ok=True)  # SLURM starts no job whose log has no folder
    text = _TEXT.format(
        recipe=project.recipe.name,
        competition=project.competition.name,
        file=path.name,
        options=shlex.join(options),
        last=len(tasks) - 1,
        memory=math.ceil(gpus * MEMORY_OF_A_RUN / 2**30),
        gpus=gpus,
        hours=max(1, math.ceil(hours * SPARE)),
        logs=logs,
        folder=shlex.quote(str(Path.cwd())),
        cases="\n".join(f"  {number}) exec {line} ;;" for number, line in enumerate(lines)),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text)
    return len(tasks)


def _runs(project: Project) -> list[Task]:
    """The first round's runs whose checkpoint or features are missing, as tasks that do both."""
    tasks = [task for task in tasks_to_do(project, "features") if task.command is not None]
    runs: dict[tuple[str, int | None], Task] = {}
    for task in tasks:
        if task.run is not None and not task.workspace.round:  # a run's training comes first, with its GPUs
            runs.setdefault(task.run, replace(task, command="features", shard=None))
    return list(runs.values())
