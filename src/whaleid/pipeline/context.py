"""The context ratio of the first experiment's run on the first fold, where the competition has masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from whaleid.data.masks import masks_key, masks_of
from whaleid.pipeline import keys
from whaleid.pipeline.metrics import read_figures, require_figures, write_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.run_stages import run_name
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.versions import VERSION
from whaleid.pipeline.workspace import fold_name, read_folds, read_images
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest, read_json, write_json


def context_tasks(project: Project) -> list[Task]:
    """`context/<recipe>.json`, and the same in metrics.json; none without masks or without an experiment."""
    if project.competition.masks is None or not project.experiments:
        return []
    workspace, experiment = project.workspace, project.experiments[0]
    fold = project.run_of(experiment, project.folds[0])
    path = workspace.root / "context" / f"{project.recipe.name}.json"
    masks = masks_key(project.competition, workspace.digests)
    key = digest("context", VERSION["context"], keys.run_key(project, experiment, fold), project.keys.images, masks)

    def make() -> None:
        if not workspace.is_current(path, key):
            write_json(path, {"run": f"{experiment.name}/{fold_name(fold)}", **_measured(project)})
        write_figures(project, {**require_figures(project), "context": read_json(path)})

    def check() -> bool:
        figures = read_figures(project) or {}
        return workspace.is_current(path, key) and figures.get("context") == read_json(path)

    reads = ("images", "folds", run_name(project, experiment, fold), "ladder")
    return [Task("context", "", workspace, path, key, make, reads, check)]


def context_line(context: dict[str, Any]) -> str:
    """The context ratio in words."""
    shares = f"whole images {context['whole']:.1%}, the animal alone {context['animal']:.1%}"
    ratio = (
        "none" if context["ratio"] is None else f"{context['ratio']:.2f} [{context['low']:.2f}, {context['high']:.2f}]"
    )
    return (
        f"context ratio {ratio}: top-1 of {context['run']} on {context['queries']:,} queries with {shares}, "
        f"the background alone {context['background']:.1%}"
    )


def require_masked(project: Project) -> None:
    """Raise WhaleidError where the project can have no context ratio."""
    if not context_tasks(project):
        raise WhaleidError(
            f"recipe {project.recipe.name} on {project.competition.name}: the context ratio needs `masks` in the "
            "competition's YAML (whaleid masks makes some) and an experiment in the recipe"
        )


def _measured(project: Project) -> dict[str, Any]:
    from whaleid.features.context import measure_context

    workspace, competition = project.workspace, project.competition
    experiment, fold = project.experiments[0], project.folds[0]
    images, folds = read_images(workspace), read_folds(workspace)
    masks = masks_of(competition, images)
    assert masks is not None
    known = folds[folds["identity"] != competition.unknown]
    own = known["fold"] == fold
    queries = known[own & known["identity"].isin(known["identity"][~own])]
    if queries.empty:
        raise WhaleidError(f"folds.csv: no identity of fold {fold} has an image in another fold: nothing can be scored")
    place = {name: row for row, name in enumerate(images["image"])}
    asked, gallery = (np.array([place[name] for name in part["image"]]) for part in (queries, known[~own]))
    run = project.run_folder(experiment, fold)
    return measure_context(run, images, asked, gallery, competition.root, masks).as_json()
