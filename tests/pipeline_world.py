"""What tests ask of the pipeline: a stage's result, made where it is not current."""

from pathlib import Path
from typing import Any

from whaleid.pipeline.data_stages import keypoints_folder
from whaleid.pipeline.metrics import require_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run, target_tasks
from whaleid.pipeline.submission import latest_submission


def figures_of(project: Project) -> dict[str, Any]:
    """The recipe's part of metrics.json."""
    run(project, "ladder")
    return require_figures(project)


def submission_of(project: Project) -> Path:
    """The recipe's submission."""
    run(project, "submission")
    return latest_submission(project)


def keypoints_of(project: Project) -> Path | None:
    """Folder of the keypoints."""
    run(project, "keypoints")
    return keypoints_folder(project)


def current(project: Project, stage: str) -> dict[str, bool]:
    """Item -> whether it is current."""
    return {task.item: task.current for task in target_tasks(project, stage)}
