"""A project carried to another machine: its settings and keys as one JSON file, the files of its work folder by path.

The pipeline decides by keys what is current. The keys are carried along, so that on the other machine the same stages
find their inputs current and continue from there: no stage is written twice.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from whaleid.config import Competition, Experiment, PretextExperiment, Recipe
from whaleid.config.settings import Settings
from whaleid.data.masks import mask_name, masks_of
from whaleid.pipeline.data_stages import keypoints_folder
from whaleid.pipeline.project import DataKeys, Project
from whaleid.pipeline.sources import sources
from whaleid.pipeline.workspace import Workspace

PROJECT = "project.json"
STAMPS = ".stamps"
PSEUDO = "pseudo.csv"
"""The pseudo-labels that the carried runs were trained on, where there are any: their keys are made of these."""
MASKS = "masks"
STACK = "stack"
"""The stack fitted at home, where the recipe has one."""


@dataclass(frozen=True)
class Carried:
    """Folders that the ensemble reads.

    Attributes
    ----------
    runs, features : tuple of Path
        Relative to the work folder; features[i] are those of runs[i].
    local : tuple of Path
        Keypoints, relative to the work folder.
    foreign : dict
        Source -> folders of features of other programs, absolute.
    """

    runs: tuple[Path, ...]
    features: tuple[Path, ...]
    local: tuple[Path, ...]
    foreign: dict[str, tuple[Path, ...]]


def carried(project: Project) -> Carried:
    """What the ensemble of a project reads."""
    root, workspace = project.workspace.root, project.workspace
    pairs = [(item.name, fold) for item in project.experiments for fold in project.folds_of(item)]
    foreign = {source.name: tuple(source.folds.values()) for source in sources(project)[len(project.experiments) :]}
    keypoints = keypoints_folder(project)
    return Carried(
        tuple(workspace.run(*pair).relative_to(root) for pair in pairs),
        tuple(workspace.features(*pair).relative_to(root) for pair in pairs),
        () if keypoints is None else (keypoints.relative_to(root),),
        foreign,
    )


def project_content(project: Project) -> dict[str, Any]:
    """Settings and key of a project as JSON values; its competition without the solution and its place here."""
    competition = project.competition.model_dump(mode="json", exclude={"solution"})
    return {
        "competition": {**competition, "root": "."},
        "recipe": project.recipe.model_dump(mode="json"),
        "experiments": [experiment.model_dump(mode="json") for experiment in project.experiments],
        "pretext": None if project.pretext is None else project.pretext.model_dump(mode="json"),
        "data_keys": asdict(project.keys),
        "round": project.workspace.round,
    }


def open_carried(
    content: dict[str, Any], root: Path, settings: Settings, boxes: Path | None = None, masks: Path | None = None
) -> Project:
    """The project again, its data at `root`, its other folders as `settings` says; unreadable images are left out.

    boxes, masks: places of them, where the competition has some.
    """
    competition = Competition.model_validate({**content["competition"], "root": root})
    if boxes is not None:
        competition = competition.model_copy(update={"boxes": str(boxes)})
    if masks is not None:
        competition = competition.model_copy(update={"masks": str(masks)})
    pretext = content["pretext"]
    return Project(
        competition,
        Recipe.model_validate(content["recipe"]),
        tuple(Experiment.model_validate(item) for item in content["experiments"]),
        Workspace(settings.work / competition.name, content["round"]),
        skip_unreadable=True,
        pretext=None if pretext is None else PretextExperiment.model_validate(pretext),
        settings=settings,
        data_keys=DataKeys(**content["data_keys"]),
    )


def without_sources(project: Project, dropped: tuple[str, ...]) -> Project:
    """The project without some experiments: combined as if the recipe had never named them."""
    if not dropped:
        return project
    kept = [place for place, item in enumerate(project.experiments) if item.name not in dropped]
    settings = _without_keys(project.recipe.model_dump(mode="json"), set(dropped))
    settings["experiments"] = [project.recipe.experiments[place] for place in kept]
    settings["full"] = [entry for entry in settings["experiments"] if entry in project.recipe.full_members]
    experiments = tuple(project.experiments[place] for place in kept)
    return replace(project, recipe=Recipe.model_validate(settings), experiments=experiments)


def _without_keys(value: Any, names: set[str]) -> Any:
    """Settings without what they say of these sources (weights of a concatenation, ...)."""
    if isinstance(value, dict):
        return {key: _without_keys(item, names) for key, item in value.items() if key not in names}
    return value


def copy_stamps(source: Path, target: Path, outputs: list[Path]) -> None:
    """Copy the stamps of some outputs from one work folder (or bundle) to another. outputs: relative paths."""
    for output in outputs:
        stamp = source / f"{output.as_posix()}.json"
        if stamp.is_file():
            place = target / f"{output.as_posix()}.json"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(stamp, place)


def copy_masks(competition: Competition, images: pd.DataFrame, out: Path) -> None:
    """Copy the masks of some images to the folder `out`, under their names; nothing where the competition has none."""
    for mask, split, path in zip(masks_of(competition, images) or [], images["split"], images["path"], strict=False):
        place = out / mask_name(competition, split, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(mask.path, place)
