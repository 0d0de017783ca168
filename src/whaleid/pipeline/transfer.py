"""A project on another machine: its settings and keys as one JSON file, and the files that its ensemble reads.

The stages decide by keys what is up to date. The keys are copied too, so that on the other machine the same stages
find their inputs up to date and go on from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from whaleid.config import Competition, Experiment, PretextExperiment, Recipe
from whaleid.config.settings import Settings
from whaleid.data.masks import mask_name, masks_of
from whaleid.pipeline.data_stages import keypoints_folder
from whaleid.pipeline.project import DataKeys, Project
from whaleid.pipeline.workspace import Workspace

PROJECT = "project.json"
STAMPS = ".stamps"


@dataclass(frozen=True)
class EnsembleInputs:
    """Folders that a recipe's ensemble reads; relative to the work folder unless said otherwise.

    Attributes
    ----------
    runs, features : tuple of Path
        ``features[i]`` was extracted by ``runs[i]``; both are ``<kind>/<experiment>/<fold>``.
    local : tuple of Path
        Keypoint descriptors; none or one folder.
    foreign : dict of str to tuple of Path
        Source -> absolute folders of features by other programs, one for each fold.
    """

    runs: tuple[Path, ...]
    features: tuple[Path, ...]
    local: tuple[Path, ...]
    foreign: dict[str, tuple[Path, ...]]

    def as_json(self) -> dict[str, Any]:
        return {
            "runs": [path.as_posix() for path in self.runs],
            "features": [path.as_posix() for path in self.features],
            "local": [path.as_posix() for path in self.local],
            "foreign": {name: [path.name for path in paths] for name, paths in self.foreign.items()},
        }


def ensemble_inputs(project: Project) -> EnsembleInputs:
    """The folders that the ensemble of a project reads."""
    workspace, keypoints = project.workspace, keypoints_folder(project)
    jobs = [(item, fold) for item in project.experiments for fold in project.folds_of(item)]
    return EnsembleInputs(
        tuple(project.run_folder(*job).relative_to(workspace.root) for job in jobs),
        tuple(project.features_folder(*job).relative_to(workspace.root) for job in jobs),
        () if keypoints is None else (keypoints.relative_to(workspace.root),),
        {
            name: tuple(Path(folder) / f"fold{fold}" for fold in project.folds)
            for name, folder in project.recipe.sources.items()
        },
    )


def project_to_json(project: Project) -> dict[str, Any]:
    """Settings and keys of a project as JSON values; its competition without the solution and without its place."""
    competition = project.competition.model_dump(mode="json", exclude={"solution"})
    return {
        "competition": {**competition, "root": "."},
        "recipe": project.recipe.model_dump(mode="json"),
        "experiments": [experiment.model_dump(mode="json") for experiment in project.experiments],
        "pretext": None if project.pretext is None else project.pretext.model_dump(mode="json"),
        "data_keys": asdict(project.keys),
        "round": project.workspace.round,
    }


def project_from_json(
    content: dict[str, Any],
    root: Path,
    settings: Settings,
    boxes: Path | None = None,
    masks: Path | None = None,
    reviews: Path | None = None,
) -> Project:
    """The project that `project_to_json` wrote, on this machine; it skips unreadable images.

    Parameters
    ----------
    content : dict
    root : Path
        Folder of the competition's data.
    settings : Settings
        Names all other folders.
    boxes, masks, reviews : Path, optional
        CSV of boxes, folder of masks and CSV of decisions, if they lie outside of `root`.
    """
    places = {"boxes": boxes, "masks": masks, "reviews": reviews}
    moved = {name: str(place) for name, place in places.items() if place is not None}
    competition = Competition.model_validate({**content["competition"], "root": root}).model_copy(update=moved)
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


def without_experiments(project: Project, dropped: Collection[str]) -> Project:
    """The project as if its recipe had never named some experiments."""
    if not dropped:
        return project
    kept = [place for place, item in enumerate(project.experiments) if item.name not in dropped]
    recipe = _without_keys(project.recipe.model_dump(mode="json"), dropped)
    recipe["experiments"] = [project.recipe.experiments[place] for place in kept]
    recipe["full"] = [entry for entry in recipe["experiments"] if entry in project.recipe.full_members]
    experiments = tuple(project.experiments[place] for place in kept)
    return replace(project, data_keys=project.keys, recipe=Recipe.model_validate(recipe), experiments=experiments)


def _without_keys(value: Any, names: Collection[str]) -> Any:
    """Settings without the entries of some sources, such as weights of a concatenation."""
    if isinstance(value, dict):
        return {key: _without_keys(item, names) for key, item in value.items() if key not in names}
    return value


def copy_stamps(source: Path, target: Path, outputs: Iterable[str | Path]) -> None:
    """Copy the stamps of some outputs (paths relative to the work folder) from one folder of stamps to another."""
    for output in outputs:
        name = f"{Path(output).as_posix()}.json"
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def copy_masks(competition: Competition, images: pd.DataFrame, out: Path) -> None:
    """Copy the masks of some images to the folder `out`; none if the competition has none."""
    for mask, split, path in zip(masks_of(competition, images) or [], images["split"], images["path"], strict=False):
        place = out / mask_name(competition, split, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(mask.path, place)
