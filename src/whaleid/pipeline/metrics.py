"""A recipe's figures: the ladder that gives them, and `metrics.json`, which keeps them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whaleid.config.settings import repository_root
from whaleid.ensemble.summary import Figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.stages import folds_stage, images_stage, local_stage, sources
from whaleid.pipeline.times import stage_times
from whaleid.pipeline.workspace import fold_name
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import write_json

if TYPE_CHECKING:
    from whaleid.ensemble.results import LadderResult


def combine_sources(project: Project, out: Path) -> tuple[LadderResult, Figures]:
    """Combine what is embedded: the ladder's files in the folder `out`, the ladder itself, and its figures."""
    from whaleid.ensemble.ladder import combine
    from whaleid.ensemble.stack_models import read_stack_models

    workspace = project.workspace
    result = combine(
        images_stage(project),
        folds_stage(project),
        sources(project),
        project.recipe,
        project.competition,
        out,
        local_stage(project),
        None if project.orders is None else read_stack_models(project.orders),
        weights_folder=project.settings.weights,
    )
    return result, {
        "key": project.ensemble_key(),
        "competition": project.competition.name,
        "recipe": project.recipe.name,
        "commit": commit(),
        "ladder": result.as_json(),
        "settings": {
            "recipe": project.recipe.model_dump(mode="json"),
            "experiments": [experiment.model_dump(mode="json") for experiment in project.experiments],
            "pretraining": None if project.pretext is None else project.pretext.model_dump(mode="json"),
        },
        "runs": {
            f"{experiment.name}/{fold_name(fold)}": workspace.stamp(workspace.run(experiment.name, fold)).get("summary")
            for experiment in project.experiments
            for fold in project.folds_of(experiment)
        },
    }


def write_figures(project: Project, figures: Figures) -> Figures:
    """Give `metrics.json` the recipe's figures, with what every stage took; returns them."""
    figures = {**figures, "times": [asdict(line) for line in stage_times(project)]}
    write_json(project.workspace.metrics, {**read_metrics(project), project.recipe.name: figures})
    return figures


def read_metrics(project: Project) -> dict[str, Any]:
    """`metrics.json`: recipe -> its figures; empty where there is none yet."""
    path = project.workspace.metrics
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise WhaleidError(f"{path}: not readable as JSON ({error}); remove it and run again") from error


def read_figures(project: Project) -> dict[str, Any] | None:
    """The recipe's part of `metrics.json`, None where it has not been combined yet."""
    return read_metrics(project).get(project.recipe.name)


def commit() -> str:
    """Short commit of the checkout, with + where files differ from it; empty outside git."""
    try:
        described = subprocess.run(
            [
                "git",
                "-C",
                str(repository_root()),
                "describe",
                "--always",
                "--dirty=+",
                "--abbrev=7",
                "--exclude=*",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return described.stdout.strip()
