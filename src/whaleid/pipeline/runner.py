"""The runner: goes down the list of stages and does the tasks that are not current."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from whaleid.data.competition import first_few
from whaleid.pipeline.data_stages import require_local
from whaleid.pipeline.executors import Executor
from whaleid.pipeline.executors.local import LocalExecutor
from whaleid.pipeline.metrics import require_figures, write_figures
from whaleid.pipeline.preflight import require, settings_checks
from whaleid.pipeline.project import Project
from whaleid.pipeline.stages import STAGES, Step, stage_times, steps
from whaleid.pipeline.tasks import Task, environment_line
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import remove_abandoned
from whaleid.utils.progress import duration, say

BEFORE_KEYPOINTS = ("images", "folds", "cache")
"""Stages that need no weights of local matching; with any other, missing weights end the run before it starts."""
WORTH_A_LINE = 1.0
"""Seconds from which on the end of a stage is told."""


@dataclass(frozen=True)
class Only:
    """Which runs of the target stage; the stages before it do what these need.

    Attributes
    ----------
    experiment : str, optional
        Runs of this experiment.
    fold : int, optional
        Runs of this fold.
    full : bool
        Runs on all labelled images.
    round : int, optional
        Runs of this round of pseudo-labels.
    shard : int, optional
        Shards of features with this number.
    """

    experiment: str | None = None
    fold: int | None = None
    full: bool = False
    round: int | None = None
    shard: int | None = None

    def wants(self, task: Task) -> bool:
        """Whether a task is among them."""
        if task.run is None:
            return True
        experiment, fold = task.run
        return (
            self.experiment in (None, experiment)
            and self.round in (None, task.workspace.round)
            and self.shard in (None, task.shard)
            and (fold is None if self.full else self.fold in (None, fold))
        )


def run(
    project: Project, until: str = "score", executor: Executor | None = None, only: Only | None = None
) -> list[Task]:
    """Bring a stage's outputs up to date, and before that all that they need.

    Parameters
    ----------
    project : Project
    until : str
        Name of a stage in `STAGES`.
    executor : Executor, optional
        Does the tasks; default: one after the other in this process.
    only : Only, optional
        Which of the stage's runs; default: all.

    Returns
    -------
    list of Task
        What was done; empty where everything was current.
    """
    executor = executor or LocalExecutor()
    remove_abandoned(project.workspace.root)
    if until not in BEFORE_KEYPOINTS:
        require_local(project.local_matching, project.settings.weights)
    to_do = tasks_to_do(project, until, only)
    needed = {task.name for task in to_do}
    if needed:
        require(settings_checks(project))
        if any(task.command is not None for task in to_do):
            executor.check()
        if line := environment_line(_read(project, to_do)):
            say(line)
    for step in steps(project):
        if step.stage.prepare is not None and (tasks := _stale(step, needed)):
            step.stage.prepare(step.project, tasks)
    done: list[Task] = []
    for step in steps(project):
        done += _do(step, _stale(step, needed), needed, executor)
    if any(task.stage in ("ladder", "submission") for task in done):
        write_figures(project, {**require_figures(project), "times": stage_times(project)})
    return done


def _read(project: Project, to_do: list[Task]) -> list[tuple[str, dict[str, Any]]]:
    """Name and stamp of every current output that the tasks read."""
    names = {name for task in to_do for name in task.reads}
    stages = {name.partition("/")[0] for name in names}
    tasks = [
        task for step in steps(project) if step.stage.name in stages for task in step.tasks() if task.name in names
    ]
    inside = [task for task in tasks if task.current and task.output.is_relative_to(task.workspace.root)]
    return [(task.name, task.workspace.stamp(task.output)) for task in inside]


def _do(step: Step, tasks: list[Task], needed: set[str], executor: Executor) -> list[Task]:
    """Do a step's tasks, and say so in a line; of an interrupt, where the same command will go on."""
    if not tasks:
        return []
    if step.stage.check is not None:
        step.stage.check(step.project)
    began, done = time.monotonic(), []
    try:
        for task in executor.run(_with_features(tasks, needed)):
            done.append(task)
    except KeyboardInterrupt as stop:
        finished = {task.name for task in done}
        stop.add_note(stopped_line(step.stage.name, [task for task in tasks if task.name not in finished], len(done)))
        raise
    seconds = time.monotonic() - began
    if seconds >= WORTH_A_LINE:
        say(f"{step.stage.name}: {len(done)} done in {duration(seconds)}")
    return done


def stopped_line(stage: str, left: list[Task], done: int) -> str:
    """Where the same command goes on after an interrupt. left: tasks of the stage to do; done: how many are done."""
    shown = first_few((f"{task.item or task.stage} {_begins(task)}" for task in left), 2)
    return f"stopped in {stage}, {done} of {done + len(left)} done; the same command goes on there: {shown}"


def _begins(task: Task) -> str:
    """Where a task begins when it is done the next time."""
    from whaleid.training.resume import STATE, saved_step

    if task.stage in ("train", "full") and (step := saved_step(task.output / STATE)) is not None:
        return f"from step {step:,}"
    parts = (task.output.with_name(f".{task.output.name}.{suffix}") for suffix in ("part", "partial"))
    return "from its saved part" if task.resumes and any(part.exists() for part in parts) else "from its beginning"


def _stale(step: Step, needed: set[str]) -> list[Task]:
    """The step's tasks that are needed and not current."""
    if not any(name.partition("/")[0] == step.stage.name for name in needed):
        return []
    return [task for task in step.tasks() if task.name in needed and not task.current]


def _with_features(tasks: list[Task], needed: set[str]) -> list[Task]:
    """The tasks; a process that trains a run also computes its features, where these are needed.

    Starting Python with torch takes longer than the features of a thousand small images. Shards are left to whoever is
    free.
    """
    sharded = {name.removeprefix("shards/").rpartition("/")[0] for name in needed if name.startswith("shards/")}
    return [
        replace(task, command="features")
        if task.command == "train" and f"features/{task.item}" in needed and task.item not in sharded
        else task
        for task in tasks
    ]


def tasks_to_do(project: Project, until: str, only: Only | None = None) -> list[Task]:
    """The tasks that `run` would do, in order; more where what a stage finds decides whether the next is needed."""
    tasks: list[Task] = []
    wanted = {task.name for task in target_tasks(project, until, only)}
    for step in reversed(list(steps(project))):
        if any(name.partition("/")[0] == step.stage.name for name in wanted):
            stale = [task for task in step.tasks() if task.name in wanted and not task.current]
            wanted.update(name for task in stale for name in task.reads)
            tasks = stale + tasks
    return tasks


def target_tasks(project: Project, until: str, only: Only | None = None) -> list[Task]:
    """The tasks of the target stage."""
    if until not in [stage.name for stage in STAGES]:
        raise WhaleidError(f"stage '{until}' not found; stages: {', '.join(stage.name for stage in STAGES)}")
    only = only or Only()
    _check(project, only)
    tasks = [task for step in steps(project) if until in (step.stage.name, step.stage.part_of) for task in step.tasks()]
    return [task for task in tasks if only.wants(task)]


def _check(project: Project, only: Only) -> None:
    """Raise WhaleidError for runs that the recipe does not have."""
    recipe = project.recipe.name
    if only.experiment is not None:
        project.experiment(only.experiment)
    if only.full and only.fold is not None:
        raise WhaleidError(
            f"--full trains on the images of all folds, --fold {only.fold} without some: give one of them"
        )
    if only.fold is not None and only.fold not in project.folds:
        raise WhaleidError(f"--fold {only.fold}: recipe {recipe} trains folds {project.folds}")
    named = [item for item in project.experiments if only.experiment in (None, item.name)]
    if only.fold is not None and only.experiment is not None and named[0].frozen:
        raise WhaleidError(f"--fold {only.fold}: {only.experiment} is frozen, the same for every fold; use --full")
    if only.full and not any(None in project.folds_of(item) for item in named):
        raise WhaleidError(
            f"--full: recipe {recipe} does not train {only.experiment or 'anything'} on all labelled images; "
            "add `full: true`, or `full:` with a list of experiments"
        )
