"""The folders of features that a recipe combines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from whaleid.config import Experiment
from whaleid.pipeline.project import Project

if TYPE_CHECKING:
    from whaleid.ensemble.ladder import Source


def sources(project: Project) -> list[Source]:
    """Features to combine: those of the recipe's experiments, then those of other programs (`sources`)."""
    from whaleid.ensemble.ladder import Source

    foreign = [
        Source(name, {fold: Path(folder) / f"fold{fold}" for fold in project.folds})
        for name, folder in project.recipe.sources.items()
    ]
    return [_source_of(project, experiment) for experiment in project.experiments] + foreign


def _source_of(project: Project, experiment: Experiment) -> Source:
    from whaleid.ensemble.ladder import Source
    from whaleid.ensemble.protocol import FULL_DATA

    runs = project.folds_of(experiment)
    pairs = {FULL_DATA if fold is None else fold: project.run_folder(experiment, fold) for fold in runs}
    return Source(
        experiment.name,
        {fold: project.features_folder(experiment, fold) for fold in project.folds},
        pairs=pairs if experiment.head.scores_pairs else {},
        full=project.features_folder(experiment, None) if experiment in project.full_experiments else None,
    )
