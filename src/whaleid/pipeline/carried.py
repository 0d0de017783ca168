"""A project carried to another machine: its settings and keys as one JSON file, the files of its work folder by path.

The stages of the road decide by keys what is up to date. The keys are carried along, so that on the other machine
the very same stages run, find their inputs up to date, and go on from there: no stage is written twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from whaleid.config import Competition, Experiment, PretextExperiment, Recipe
from whaleid.config.settings import Settings
from whaleid.data.masks import mask_name, masks_of
from whaleid.pipeline.project import Project
from whaleid.pipeline.stages import job_list, local_stage, sources
from whaleid.pipeline.workspace import Workspace

PROJECT = "project.json"
STAMPS = ".stamps"
PSEUDO = "pseudo.csv"
"""The pseudo-labels that the carried runs were taught by, where they were by any: their keys are made of these."""
MASKS = "masks"
ORDERS = "stack"
"""What the stack learnt at home, where the recipe has one."""


@dataclass(frozen=True)
class Carried:
    """Folders of the work folder that the ensemble reads, relative to it.

    runs, features: features[i] are those that runs[i] gave; both `<room>/<source>/<fold>`. local: descriptors.
    foreign: source -> folders of features that no run of ours gave (absolute).
    """

    runs: tuple[Path, ...]
    features: tuple[Path, ...]
    local: tuple[Path, ...]
    foreign: dict[str, tuple[Path, ...]]


def carried(project: Project) -> Carried:
    """What the ensemble of a project reads, found by following the paths in what it is given."""
    root = project.workspace.root
    features: list[Path] = []
    foreign: dict[str, list[Path]] = {}
    for source in sources(project):
        for path in paths_in(source):
            if not path.is_relative_to(root):
                foreign.setdefault(source.name, []).append(path)
            elif path.is_relative_to(root / "features"):
                features.append(path.relative_to(root))
    features += [_features_of(job.experiment, job.fold, project) for job in job_list(project, "features")]
    features = list(dict.fromkeys(features))
    runs = [Path("runs", *path.parts[1:]) for path in features]
    local = [path.relative_to(root) for path in paths_in(local_stage(project))]
    return Carried(tuple(runs), tuple(features), tuple(local), {name: tuple(paths) for name, paths in foreign.items()})


def _features_of(experiment: str, fold: int | None, project: Project) -> Path:
    return project.workspace.features(experiment, fold).relative_to(project.workspace.root)


def paths_in(value: Any) -> Iterator[Path]:
    """Every path in a value, its containers and its dataclasses."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from paths_in(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from paths_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from paths_in(getattr(value, field.name))


def project_content(project: Project) -> dict[str, Any]:
    """Settings and key of a project as JSON values; its competition without the solution and its place here."""
    competition = project.competition.model_dump(mode="json", exclude={"solution"})
    return {
        "competition": {**competition, "root": "."},
        "recipe": project.recipe.model_dump(mode="json"),
        "experiments": [experiment.model_dump(mode="json") for experiment in project.experiments],
        "pretext": None if project.pretext is None else project.pretext.model_dump(mode="json"),
        "images_key": project.images_key,
        "labelled_key": project.labelled_key,
        "round": project.workspace.round,
        "masks_key": project.masks_key,
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
    project = Project(
        competition,
        Recipe.model_validate(content["recipe"]),
        tuple(Experiment.model_validate(item) for item in content["experiments"]),
        Workspace(settings.work / competition.name, content["round"]),
        skip_unreadable=True,
        pretext=None if pretext is None else PretextExperiment.model_validate(pretext),
        settings=settings,
    )
    return with_images_key(project, content["images_key"], content["labelled_key"], content["masks_key"])


def with_images_key(project: Project, key: str, labelled: str, masks: str) -> Project:
    """The same project, its keys of the images given instead of found: those of other files would not be the same.

    key: of all images. labelled: of the labelled ones. masks: of the masks.
    """
    vars(project)["images_key"] = key  # where cached_property keeps what it has found
    vars(project)["labelled_key"] = labelled
    vars(project)["masks_key"] = masks
    return project


def without_sources(project: Project, dropped: tuple[str, ...]) -> Project:
    """The project without some experiments: combined as if the recipe had never named them."""
    if not dropped:
        return project
    kept = [place for place, item in enumerate(project.experiments) if item.name not in dropped]
    settings = _without_keys(project.recipe.model_dump(mode="json"), set(dropped))
    settings["experiments"] = [project.recipe.experiments[place] for place in kept]
    settings["full"] = [entry for entry in settings["experiments"] if entry in project.recipe.full_members]
    smaller = Project(
        project.competition,
        Recipe.model_validate(settings),
        tuple(project.experiments[place] for place in kept),
        project.workspace,
        project.skip_unreadable,
        project.pretext,
        project.settings,
    )
    return with_images_key(smaller, project.images_key, project.labelled_key, project.masks_key)


def ordered_by(project: Project, orders: Path) -> Project:
    """The project whose stack orders the test set as was learnt at home."""
    found = replace(project, orders=orders)
    return with_images_key(found, project.images_key, project.labelled_key, project.masks_key)


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
