"""Stages of the data: images table, folds, caches of resized images, keypoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from whaleid.config import Competition, ExperimentBase, LocalConfig
from whaleid.pipeline import keys
from whaleid.pipeline.project import Project, all_images_key
from whaleid.pipeline.tasks import Task, do
from whaleid.pipeline.workspace import Workspace, read_images
from whaleid.utils.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

    from whaleid.data.cache import ImageCache


def image_tasks(project: Project) -> list[Task]:
    """The images table, `images.parquet`."""
    return [_images_task(project.competition, project.workspace, project.keys.images, project.skip_unreadable)]


def build_images_table(competition: Competition, workspace: Workspace, skip_unreadable: bool) -> pd.DataFrame:
    """The images table of a competition, made where it is not current; no recipe is needed."""
    do(_images_task(competition, workspace, all_images_key(competition, workspace, skip_unreadable), skip_unreadable))
    return read_images(workspace)


def _images_task(competition: Competition, workspace: Workspace, key: str, skip_unreadable: bool) -> Task:

    def make() -> None:
        from whaleid.data.competition import read_rows
        from whaleid.data.images_table import build_images

        table = build_images(competition, read_rows(competition), skip_unreadable)
        with atomic_path(workspace.images) as temporary:
            table.to_parquet(temporary, index=False)

    return Task("images", "", workspace, workspace.images, key, make)


def count_rows(project: Project) -> int:
    """Images of the table; before it is made those of the CSVs, which are more where some cannot be read."""
    import pyarrow.parquet as pq

    from whaleid.data.competition import inspect_rows

    if project.workspace.is_current(project.workspace.images, project.keys.images):
        return pq.read_metadata(project.workspace.images).num_rows
    return len(inspect_rows(project.competition)[0])


def fold_tasks(project: Project) -> list[Task]:
    """The fold of every labelled image, `folds.csv`."""
    workspace, recipe, unknown = project.workspace, project.recipe, project.competition.unknown

    def make() -> None:
        from whaleid.data.folds import make_folds

        table = make_folds(read_images(workspace), recipe.folds, unknown, recipe.seed)
        with atomic_path(workspace.folds) as temporary:
            table.to_csv(temporary, index=False)

    return [Task("folds", "", workspace, workspace.folds, keys.folds_key(project), make, ("images",))]


def cache_tasks(project: Project) -> list[Task]:
    """The resized images that each experiment reads; experiments of one image size share them."""
    pretext = [] if project.pretext is None else [project.pretext]
    seeing = [experiment for experiment in project.experiments if not experiment.is_adapter]
    return [_cache_task(project, experiment) for experiment in [*pretext, *seeing]]


def _cache_task(project: Project, experiment: ExperimentBase) -> Task:
    workspace, root = project.workspace, project.competition.root
    if not workspace.is_current(workspace.images, project.keys.images):  # the size depends on the images' boxes
        return Task("cache", experiment.name, workspace, workspace.cache(""), "", _not_known, ("images",))
    name, size = cache_place(workspace, experiment)
    folder = workspace.cache(name)

    def make() -> None:
        from whaleid.data.cache import build_cache
        from whaleid.data.masks import masks_of

        images = read_images(workspace)
        masks = masks_of(project.competition, images) if experiment.image.needs_masks else None
        build_cache(images, root, folder, size, experiment.image, masks=masks)

    key = keys.cache_key(project, name, experiment.image.needs_masks)
    return Task("cache", experiment.name, workspace, folder, key, make, ("images",), resumes=True)


def cache_place(workspace: Workspace, experiment: ExperimentBase) -> tuple[str, tuple[int, int]]:
    """Name of the cache that an experiment reads, and the (width, height) of its images."""
    from whaleid.data.cache import cache_name
    from whaleid.data.images import input_size

    images = read_images(workspace)
    labelled = images[images["split"] == "train"]  # a new test set does not change the size
    size = input_size(experiment.image, labelled[["x0", "y0", "x1", "y1"]].to_numpy(float))
    return cache_name(experiment.image, size), size


def read_cache(workspace: Workspace, experiment: ExperimentBase) -> ImageCache:
    """The resized images that an experiment reads."""
    from whaleid.data.cache import open_cache

    return open_cache(workspace.cache(cache_place(workspace, experiment)[0]))


def keypoint_tasks(project: Project) -> list[Task]:
    """Keypoints and descriptors of all images, where the recipe matches them."""
    local, workspace, competition = project.local_matching, project.workspace, project.competition
    folder = keypoints_folder(project)
    if local is None or folder is None:
        return []

    def make() -> None:
        from whaleid.data.masks import masks_of
        from whaleid.local_matching.keypoints import describe_images

        require_local(local, project.settings.weights)
        images = read_images(workspace)
        masks = masks_of(competition, images)
        describe_images(images, competition.root, folder, local, masks=masks, weights=project.settings.weights)

    key = keys.keypoints_key(project, folder.name)
    return [Task("keypoints", "", workspace, folder, key, make, ("images",))]


def keypoints_folder(project: Project) -> Path | None:
    """Folder of the keypoints; None where the recipe does not match them."""
    if project.local_matching is None:
        return None
    from whaleid.local_matching.keypoints import local_name

    return project.workspace.local(local_name(project.local_matching))


def require_local(local: LocalConfig | None, weights: Path) -> None:
    """Fetch the weights that local matching needs; WhaleidError where they, or a part of OpenCV, cannot be had."""
    if local is None:
        return
    from whaleid.local_matching.registry import require_parts

    require_parts(local, weights)


def _not_known() -> None:
    raise AssertionError("the images table is made before the caches")
