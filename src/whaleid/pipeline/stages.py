"""The main road, stage by stage: each makes its file if that is not up to date, and the stages it needs before.

images table -> folds -> caches -> (pretraining) -> runs and features (jobs) -> candidates -> submission -> score.
A stage is up to date when its key (its settings and its inputs' keys) is the one noted when it was made.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from whaleid.config import Competition, Experiment, ExperimentBase
from whaleid.data.folds import make_folds
from whaleid.data.images_table import build_images
from whaleid.data.masks import masks_of
from whaleid.data.pseudo import labels_of
from whaleid.pipeline.executors import Job, run_jobs
from whaleid.pipeline.project import Project, scores_pairs
from whaleid.pipeline.workspace import Workspace
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path
from whaleid.utils.machine import machine_line, measured

if TYPE_CHECKING:
    from whaleid.data.cache import ImageCache
    from whaleid.ensemble.ladder import Source

# --------------------------------------------------------------------------------------------------- the data


def images_stage(project: Project) -> pd.DataFrame:
    """The images table (`images.parquet`)."""
    return images_table(project.competition, project.workspace, project.images_key, project.skip_unreadable)


def images_table(competition: Competition, workspace: Workspace, key: str, skip_unreadable: bool) -> pd.DataFrame:
    """Read `images.parquet`, made first where it is missing or out of date."""
    if not workspace.is_current(workspace.images, key):
        from whaleid.data.competition import read_rows

        began = time.monotonic()
        table = build_images(competition, read_rows(competition), skip_unreadable)
        with atomic_path(workspace.images) as temporary:
            table.to_parquet(temporary, index=False)
        workspace.mark_current(workspace.images, key, **measured(began))
    return pd.read_parquet(workspace.images)


def folds_stage(project: Project) -> pd.DataFrame:
    """The fold of every labelled image (`folds.csv`)."""
    workspace = project.workspace
    if not workspace.is_current(workspace.folds, project.folds_key):
        images = images_stage(project)
        began = time.monotonic()
        table = make_folds(images, project.recipe.folds, project.competition.unknown, project.recipe.seed)
        with atomic_path(workspace.folds) as temporary:
            table.to_csv(temporary, index=False)
        workspace.mark_current(workspace.folds, project.folds_key, **measured(began))
    return pd.read_csv(workspace.folds, dtype={"image": str, "identity": str, "fold": int}, keep_default_na=False)


def cache_stage(project: Project, experiment: ExperimentBase) -> ImageCache:
    """The resized images that an experiment reads."""
    from whaleid.data.cache import build_cache, open_cache

    name, size = cache_place(project, experiment)
    folder = project.workspace.cache(name)
    key = project.cache_key(name)
    if not project.workspace.is_current(folder, key):
        began = time.monotonic()
        _begin(project.workspace, folder, key)
        build_cache(images_stage(project), project.competition.root, folder, size, experiment.image)
        project.workspace.mark_current(folder, key, begun=key, **measured(began))
    return open_cache(folder)


def cache_place(project: Project, experiment: ExperimentBase) -> tuple[str, tuple[int, int]]:
    """Name of the resized images that an experiment reads, and their (width, height)."""
    from whaleid.data.cache import cache_name
    from whaleid.data.images import input_size

    images = images_stage(project)
    labelled = images[images["split"] == "train"]  # what is trained on: a new test set keeps the size
    size = input_size(experiment.image, labelled[["x0", "y0", "x1", "y1"]].to_numpy(float))
    return cache_name(experiment.image, size), size


def local_stage(project: Project) -> Path | None:
    """The keypoints' descriptors of all images; None where the recipe does without local matching."""
    local = project.recipe.combine.local_matching
    if local is None:
        return None
    from whaleid.local_matching.keypoints import describe_images, local_name

    folder = project.workspace.local(local_name(local))
    key = project.local_key(folder.name)
    if not project.workspace.is_current(folder, key):
        require_local(project)
        images, competition, began = images_stage(project), project.competition, time.monotonic()
        masks = masks_of(competition, images)
        describe_images(images, competition.root, folder, local, masks=masks, weights=project.settings.weights)
        project.workspace.mark_current(folder, key, **measured(began))
    return folder


def require_local(project: Project) -> None:
    """Raise WhaleidError where local matching needs weights, or a part of OpenCV, that are not here."""
    local = project.recipe.combine.local_matching
    if local is None:
        return
    from whaleid.local_matching.registry import require_parts

    require_parts(local, project.settings.weights)


def pretrain_stage(project: Project) -> Path:
    """The backbone that the recipe's experiments start from: `weights/<competition>-<experiment>-<key>.safetensors`."""
    pretext, pretrain = project.pretext, project.recipe.pretrain
    if pretext is None or pretrain is None:
        raise WhaleidError(
            f"recipe {project.recipe.name} has no pretraining; add e.g. `pretrain: {{experiment: self/rotation}}`"
        )
    folder = project.settings.weights
    target = folder / f"{project.pretrained_name}.safetensors"
    workspace, out, key = project.workspace, project.workspace.root / "pretrain" / target.stem, project.pretrain_key
    if target.is_file() and workspace.is_current(out, key):
        return target
    from whaleid.models.weights import ensure_weights
    from whaleid.training.pretext import pretrain_run

    _begin(workspace, out, key)
    out.mkdir(parents=True, exist_ok=True)
    ensure_weights(pretext.model.backbone, pretext.model.weights, folder)
    cache = cache_stage(project, pretext)
    summary = pretrain_run(pretext, images_stage(project), pretrain.test, cache, out, target, folder, key)
    workspace.mark_current(out, key, begun=key, summary=asdict(summary), machine=machine_line())
    return target


# ------------------------------------------------------------------------------------------ runs and features


def job_list(project: Project, stage: str) -> list[Job]:
    """Jobs of the recipe up to `stage` (train or features), the current ones marked."""
    return [
        Job(experiment.name, fold, stage, _job_is_current(project, experiment, fold, stage))
        for experiment in project.experiments
        for fold in project.folds_of(experiment)
    ]


def select_jobs(
    project: Project, stage: str, experiment: str | None, fold: int | None, full: bool = False
) -> list[Job]:
    """Jobs of the recipe, or of one experiment or fold of it. full: those on all labelled images alone."""
    if experiment is not None:
        project.experiment(experiment)
    if full:
        return _full_jobs(project, stage, experiment, fold)
    if fold is not None and fold not in project.folds:
        raise WhaleidError(f"--fold {fold}: recipe {project.recipe.name} trains folds {project.folds}")
    return [
        job for job in job_list(project, stage) if experiment in (None, job.experiment) and fold in (None, job.fold)
    ]


def _full_jobs(project: Project, stage: str, experiment: str | None, fold: int | None) -> list[Job]:
    if fold is not None:
        raise WhaleidError(f"--full trains on the images of all folds, --fold {fold} without some: give one of them")
    found = [job for job in job_list(project, stage) if job.fold is None and experiment in (None, job.experiment)]
    if not found:
        raise WhaleidError(
            f"--full: recipe {project.recipe.name} does not train {experiment or 'anything'} on all labelled images; "
            "add `full: true`, or `full:` with a list of experiments"
        )
    return found


def jobs_stage(project: Project, stage: str, at_once: int, options: list[str], jobs: list[Job] | None = None) -> int:
    """Do the recipe's jobs (or those given) up to `stage`; returns how many there were to do."""
    jobs = job_list(project, stage) if jobs is None else jobs
    waiting = {job.experiment for job in jobs if not job.current}
    if not waiting:
        return 0
    from whaleid.models.weights import ensure_weights

    folds_stage(project)
    untrained = {job.experiment for job in job_list(project, "train") if not job.current}
    for experiment in project.experiments:
        if experiment.name in waiting:
            cache_stage(project, experiment)
            if experiment.name not in untrained:
                continue  # its own weights are all that is needed
            if project.starts_pretrained(experiment):
                pretrain_stage(project)
            else:
                ensure_weights(experiment.model.backbone, experiment.model.weights, project.settings.weights)

    def do(job: Job) -> None:
        train_stage(project, project.experiment(job.experiment), job.fold)
        if stage == "features":
            features_stage(project, project.experiment(job.experiment), job.fold)

    if project.workspace.round:
        options = [*options, "--round", str(project.workspace.round)]
    logs = project.workspace.root / "logs"
    of_folds, full = ([job for job in jobs if (job.fold is None) is whole] for whole in (False, True))
    return run_jobs(of_folds, do, options, at_once, logs) + run_jobs(full, do, options, at_once, logs)


def train_stage(project: Project, experiment: Experiment, fold: int | None) -> None:
    """One run: checkpoint, configuration, log. fold None: on all labelled images, after those of the folds."""
    workspace, out = project.workspace, project.workspace.run(experiment.name, fold)
    key = project.run_key(experiment, fold)
    if workspace.is_current(out, key):
        return
    from whaleid.training.full import with_epochs
    from whaleid.training.run import train_run

    trained = project.with_start(experiment)
    if fold is None:
        trained = with_epochs(trained, [_fold_summary(project, experiment, number) for number in project.folds])
    if scores_pairs(experiment):  # the head that ranks again and the features that it ranks are of one training
        workspace.mark_current(workspace.features(experiment.name, fold), "")
    _begin(workspace, out, key)
    cache = cache_stage(project, experiment)
    images, folds = images_stage(project), folds_stage(project)
    summary = train_run(
        trained,
        fold,
        images,
        folds,
        cache,
        out,
        project.competition.unknown,
        project.settings.weights,
        key,
        labels=None if project.pseudo_labels is None else labels_of(project.pseudo_labels, fold),
    )
    workspace.mark_current(out, key, begun=key, summary=asdict(summary), machine=machine_line())


def _fold_summary(project: Project, experiment: Experiment, fold: int) -> dict[str, Any]:
    """What came of a fold's run, which is trained first where it is missing."""
    train_stage(project, experiment, fold)
    return project.workspace.stamp(project.workspace.run(experiment.name, fold))["summary"]


def features_stage(project: Project, experiment: Experiment, fold: int | None) -> None:
    """The features of one run, of every image."""
    workspace, out = project.workspace, project.workspace.features(experiment.name, fold)
    key = project.features_key(experiment, fold)
    if workspace.is_current(out, key):
        return
    from whaleid.features.extraction import extract_features

    _begin(workspace, out, key)
    run = workspace.run(experiment.name, fold)
    images, cache, began = images_stage(project), cache_stage(project, experiment), time.monotonic()
    extract_features(run, images, cache, out, experiment.name)
    workspace.mark_current(out, key, begun=key, **measured(began))


def sources(project: Project) -> list[Source]:
    """Features to combine: the recipe's experiments, then its foreign features."""
    from whaleid.ensemble.ladder import Source

    own = [_own_source(project, item) for item in project.experiments]
    foreign = [
        Source(name, {fold: Path(folder) / f"fold{fold}" for fold in project.folds})
        for name, folder in project.recipe.sources.items()
    ]
    return own + foreign


def _own_source(project: Project, experiment: Experiment) -> Source:
    from whaleid.ensemble.ladder import Source
    from whaleid.ensemble.protocol import FULL_DATA

    name, workspace, runs = experiment.name, project.workspace, project.folds_of(experiment)
    pairs = {FULL_DATA if fold is None else fold: workspace.run(name, fold) for fold in runs}
    return Source(
        name,
        {fold: workspace.features(name, fold) for fold in project.folds},
        optimistic=experiment.train.select == "best",
        pairs=pairs if scores_pairs(experiment) else {},
        full=workspace.features(name, None) if None in runs else None,
    )


def _job_is_current(project: Project, experiment: Experiment, fold: int | None, stage: str) -> bool:
    workspace = project.workspace
    trained = workspace.is_current(workspace.run(experiment.name, fold), project.run_key(experiment, fold))
    if stage == "train":
        return trained
    embedded = workspace.is_current(workspace.features(experiment.name, fold), project.features_key(experiment, fold))
    return embedded and (trained or not scores_pairs(experiment))  # others' runs are not needed any more


def _begin(workspace: Workspace, output: Path, key: str) -> None:
    """Clear what an earlier, other configuration left at `output`; keep what the same one began."""
    if workspace.stamp(output).get("begun") == key:
        return
    for leftover in (output, *output.parent.glob(f".{output.name}.*")):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
    workspace.mark_current(output, "", begun=key)
