"""The stages of the pipeline in their order, as data: `STAGES`.

Each stage lists its tasks: independent pieces of work, each with one output. No stage calls another one; it reads
the files that the stages before it wrote. `runner.py` goes down the list, `keys.py` says what an output depends on,
`versions.py` holds the versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from whaleid.pipeline.ablation import ablation_tasks
from whaleid.pipeline.context import context_tasks
from whaleid.pipeline.data_stages import cache_tasks, fold_tasks, image_tasks, keypoint_tasks
from whaleid.pipeline.ladder import candidate_tasks, ladder_tasks
from whaleid.pipeline.project import Project
from whaleid.pipeline.pseudo_labels import gain_tasks, label_tasks
from whaleid.pipeline.rounds import rounds
from whaleid.pipeline.run_stages import (
    check_training,
    feature_tasks,
    frozen_tasks,
    full_tasks,
    prepare_training,
    pretrain_tasks,
    shard_tasks,
    train_tasks,
)
from whaleid.pipeline.score import score_tasks
from whaleid.pipeline.submission import submission_tasks
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.versions import VERSION


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes
    ----------
    name : str
        Its name in messages, and for `run(until=...)`.
    reads : tuple of str
        Stages whose outputs it reads.
    tasks : callable
        Project -> the stage's tasks; none where the project has no use for it.
    part_of : str, optional
        The stage that names it as a target, too.
    prepare : callable, optional
        (Project, tasks) -> None: what is done once for its tasks, before any stage starts.
    check : callable, optional
        (Project) -> None: refuses what the stage reads, where it cannot be used, before the first of its tasks.
    """

    name: str
    reads: tuple[str, ...]
    tasks: Callable[[Project], list[Task]]
    part_of: str | None = None
    prepare: Callable[[Project, list[Task]], None] | None = None
    check: Callable[[Project], None] | None = None

    @property
    def version(self) -> int | None:
        """Version of its output; None where the output is a copy or a table of others'."""
        return VERSION.get(self.part_of or self.name)


DATA = (
    Stage("images", (), image_tasks),
    Stage("folds", ("images",), fold_tasks),
    Stage("cache", ("images",), cache_tasks),
    Stage("keypoints", ("images",), keypoint_tasks),
    Stage("pretrain", ("images", "cache"), pretrain_tasks),
    Stage(
        "frozen",
        ("images", "cache", "pretrain"),
        frozen_tasks,
        part_of="features",
        prepare=prepare_training,
    ),
)
_RUN = ("images", "folds", "cache", "pretrain", "frozen", "labels")
ROUND = (
    Stage("labels", ("images", "folds", "keypoints", "frozen", "train", "full", "features"), label_tasks),
    Stage("train", _RUN, train_tasks, prepare=prepare_training, check=check_training),
    Stage("full", (*_RUN, "train"), full_tasks, part_of="train", prepare=prepare_training, check=check_training),
    Stage("shards", ("images", "cache", "frozen", "train", "full"), shard_tasks),
    Stage("features", ("images", "cache", "frozen", "train", "full", "shards"), feature_tasks),
    Stage("candidates", ("images", "folds", "keypoints", "frozen", "train", "full", "features"), candidate_tasks),
    Stage("gain", ("candidates",), gain_tasks),
)
"""Of every round of pseudo-labels. A round's labels read the features of the round before; round 0 has none."""
ANSWER = (
    Stage("ladder", ("labels", "candidates", "gain"), ladder_tasks),
    Stage(
        "ablation", ("images", "folds", "keypoints", "frozen", "train", "full", "features", "ladder"), ablation_tasks
    ),
    Stage("context", ("images", "folds", "frozen", "train", "ladder"), context_tasks),
    Stage("submission", ("ladder",), submission_tasks),
    Stage("score", ("submission",), score_tasks),
)
STAGES = (*DATA, *ROUND, *ANSWER)


@dataclass(frozen=True)
class Step:
    """A stage in one round of pseudo-labels."""

    stage: Stage
    project: Project

    def tasks(self) -> list[Task]:
        return self.stage.tasks(self.project)


def steps(project: Project) -> Iterator[Step]:
    """The stages in order, those of the rounds of pseudo-labels round after round."""
    yield from (Step(stage, project) for stage in DATA)
    yield from (Step(stage, one) for one in rounds(project) for stage in ROUND)
    yield from (Step(stage, project) for stage in ANSWER)


def stage_times(project: Project) -> list[dict[str, Any]]:
    """What each output of the pipeline took, as noted when it was made.

    Returns
    -------
    list of dict
        `stage`, `item`, `seconds` (a run's: of its training loop, over all the times that it was resumed) and
        `machine`. Outputs that were made at the same time shared the machine.
    """
    times = {}
    for step in steps(project):
        for task in step.tasks():
            stamp = task.workspace.stamp(task.output) if task.output.is_relative_to(task.workspace.root) else {}
            if stamp.get("key"):
                seconds = (stamp.get("summary") or {}).get("seconds", stamp.get("seconds"))
                line = {"stage": task.stage, "item": task.item, "seconds": seconds, "machine": stamp.get("machine")}
                times[task.output] = line
    return list(times.values())
