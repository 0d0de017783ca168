"""What every stage of a project took, gathered from the stamps: a part of `metrics.json`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from whaleid.pipeline.project import Project
from whaleid.pipeline.stages import cache_place, job_list
from whaleid.pipeline.workspace import Workspace

STAGES = ("images", "folds", "cache", "keypoints", "pretrain", "train", "features", "ensemble", "submission")
"""In their order."""


@dataclass(frozen=True)
class StageTime:
    """what: which of the stage's outputs. seconds, machine: None where nothing was measured.

    seconds: a run's are those of its training loop, over all the times that it was resumed; others' are of the last
    go. They are times on the clock: outputs that were made at once (JOBS) shared the machine.
    """

    stage: str
    what: str
    seconds: float | None
    machine: str | None


def stage_times(project: Project) -> list[StageTime]:
    """A line for every output of the project's stages that is there, in the stages' order."""
    workspace = project.workspace
    lines = [_line(stage, output, workspace) for stage, output in _outputs(project) if _is_noted(output, workspace)]
    return sorted(lines, key=lambda line: STAGES.index(line.stage))


def submission_note(project: Project) -> Path:
    """Output whose stamp holds what the submission took (the file itself lies outside of the work folder)."""
    return project.workspace.root / "submission" / project.recipe.name


def _outputs(project: Project) -> Iterator[tuple[str, Path]]:
    """Stage and output of everything that the recipe makes, some of it perhaps not made yet."""
    workspace, local = project.workspace, project.recipe.combine.local_matching
    yield "images", workspace.images
    yield "folds", workspace.folds
    if workspace.is_current(workspace.images, project.images_key):  # else its sizes are not those of now
        names = [cache_place(project, experiment)[0] for experiment in project.experiments]
        yield from (("cache", workspace.cache(name)) for name in dict.fromkeys(names))
    if local is not None:
        from whaleid.local_matching.keypoints import local_name

        yield "keypoints", workspace.local(local_name(local))
    if project.pretext is not None:
        yield "pretrain", workspace.root / "pretrain" / project.pretrained_name
    for one in _rounds(project):
        for job in job_list(one, "features"):
            yield "train", one.workspace.run(job.experiment, job.fold)
            yield "features", one.workspace.features(job.experiment, job.fold)
        name, rounds = project.recipe.name, project.recipe.pseudo is not None
        yield "ensemble", one.workspace.round_candidates(name) if rounds else workspace.candidates(name)
    yield "submission", submission_note(project)


def _rounds(project: Project) -> list[Project]:
    """The project in each round that was begun, the ones that are not used too: they took their time."""
    pseudo = project.recipe.pseudo
    if pseudo is None:
        return [project]
    given = [project.at_round(number) for number in range(pseudo.rounds + 1)]
    return [one for one in given if not one.workspace.round or one.workspace.pseudo_labels(one.recipe.name).is_file()]


def _is_noted(output: Path, workspace: Workspace) -> bool:
    return bool(workspace.stamp(output).get("key"))


def _line(stage: str, output: Path, workspace: Workspace) -> StageTime:
    stamp = workspace.stamp(output)
    summary = stamp.get("summary") or {}
    what = output.relative_to(workspace.root)
    what = what.relative_to(what.parts[0]).as_posix() if len(what.parts) > 1 else what.name
    return StageTime(stage, what, summary.get("seconds", stamp.get("seconds")), stamp.get("machine"))
