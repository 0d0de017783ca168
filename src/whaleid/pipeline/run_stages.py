"""Stages of the networks: pretraining without labels, frozen networks, training, features."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whaleid.config import Experiment
from whaleid.config.settings import WEIGHTS
from whaleid.data.pseudo import labels_of
from whaleid.pipeline import keys
from whaleid.pipeline.data_stages import count_rows, read_cache
from whaleid.pipeline.project import Project
from whaleid.pipeline.rounds import Round, round_state
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.workspace import read_folds, read_images
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest

if TYPE_CHECKING:
    from whaleid.data.cache import Inputs


def pretrain_tasks(project: Project) -> list[Task]:
    """The backbone that the experiments start from, trained without labels: a file in the folder of weights."""
    pretext, pretrain, workspace = project.pretext, project.recipe.pretrain, project.workspace
    if pretext is None or pretrain is None:
        return []
    key, folder = keys.pretrain_key(project), project.settings.weights
    target, out = pretrained_path(project), workspace.root / "pretrain" / keys.pretrained_name(project)

    def make() -> dict[str, Any]:
        from whaleid.models.weights import ensure_weights
        from whaleid.training.pretrain import pretrain_run

        out.mkdir(parents=True, exist_ok=True)
        ensure_weights(pretext.model.backbone, pretext.model.weights, folder)
        images, cache = read_images(workspace), read_cache(workspace, pretext)
        return {"summary": asdict(pretrain_run(pretext, images, pretrain.test, cache, out, target, folder, key))}

    def check() -> bool:
        return target.is_file() and workspace.is_current(out, key)

    reads = ("images", f"cache/{pretext.name}")
    return [Task("pretrain", "", workspace, out, key, make, reads, check, resumes=True)]


def require_pretraining(project: Project) -> Path:
    """`pretrained_path`; raises WhaleidError where the recipe has no pretraining."""
    if project.pretext is None:
        raise WhaleidError(
            f"recipe {project.recipe.name} has no pretraining; add e.g. `pretrain: {{experiment: self/rotation}}`"
        )
    return pretrained_path(project)


def pretrained_path(project: Project) -> Path:
    """The file of the pretrained backbone's weights."""
    return project.settings.weights / f"{keys.pretrained_name(project)}.safetensors"


# ---------------------------------------------------------------------------------------------- frozen networks


def frozen_tasks(project: Project) -> list[Task]:
    """The features of every image by each network that is used as it is: one task, whatever the number of folds."""
    return [_frozen_task(project, item) for item in project.experiments if item.frozen]


def _frozen_task(project: Project, experiment: Experiment) -> Task:
    workspace, out = project.place_of(experiment), project.features_folder(experiment, None)
    key, run = keys.features_key(project, experiment, None), project.run_folder(experiment, None)

    def make() -> None:
        from whaleid.features.extraction import extract_features
        from whaleid.training.frozen import write_frozen_run

        cache, own_key = read_cache(workspace, experiment), keys.run_key(project, experiment, None)
        write_frozen_run(_as_trained(project, experiment, None), cache.size, run, project.settings.weights, own_key)
        extract_features(run, read_images(workspace), cache, out, experiment.name)

    reads = ["images", f"cache/{experiment.name}"]
    if project.starts_pretrained(experiment):
        reads.append("pretrain")
    return Task(
        "frozen",
        experiment.name,
        workspace,
        out,
        key,
        make,
        tuple(reads),
        resumes=True,
        run=(experiment.name, None),
        command="features",
    )


# -------------------------------------------------------------------------------------------------- training


def train_tasks(project: Project) -> list[Task]:
    """A run of every experiment on every fold: checkpoint, configuration, log."""
    return _of_runs(project, _train_task, [(item, fold) for item in project.trained for fold in project.folds])


def full_tasks(project: Project) -> list[Task]:
    """The runs on all labelled images, as long as the folds' runs on average."""
    return _of_runs(project, _train_task, [(item, None) for item in project.full_experiments])


def _of_runs(project: Project, task: Any, runs: list[tuple[Experiment, int | None]]) -> list[Task]:
    state = round_state(project)
    return [] if state is Round.CLOSED else [task(project, item, fold, state) for item, fold in runs]


def _train_task(project: Project, experiment: Experiment, fold: int | None, state: Round) -> Task:
    workspace, out = project.workspace, project.workspace.run(experiment.name, fold)
    key = keys.run_key(project, experiment, fold) if state is Round.OPEN else ""

    def make() -> dict[str, Any]:
        from whaleid.training.run import train_run

        if experiment.head.scores_pairs:  # its head reads features of the same training
            workspace.mark_current(workspace.features(experiment.name, fold), "")
        labels = project.pseudo_labels
        summary = train_run(
            _as_trained(project, experiment, fold),
            fold,
            read_images(workspace),
            read_folds(workspace),
            _input(project, experiment),
            out,
            project.competition.unknown,
            project.settings.weights,
            key,
            labels=None if labels is None else labels_of(labels, fold),
        )
        return {"summary": asdict(summary)}

    reads = ["images", "folds", _input_name(experiment), *round_reads(project)]
    if project.starts_pretrained(experiment):
        reads.append("pretrain")
    if fold is None:
        reads += [f"train/{workspace.run_item(experiment.name, number)}" for number in project.folds]
    return Task(
        "train" if fold is not None else "full",
        workspace.run_item(experiment.name, fold),
        workspace,
        out,
        key,
        make,
        tuple(reads),
        resumes=True,
        run=(experiment.name, fold),
        gpus=experiment.train.gpus,
        command="train",
    )


def _input(project: Project, experiment: Experiment) -> Inputs:
    """What an experiment's runs read: its cache of images or, as an adapter, the features of a frozen network."""
    if experiment.adapter_of is None:
        return read_cache(project.workspace, experiment)
    from whaleid.features.files import FeatureRows, open_embeddings

    folder = project.features_folder(project.experiment(experiment.adapter_of), None)
    return FeatureRows(open_embeddings(folder, read_images(project.workspace)))


def _input_name(experiment: Experiment) -> str:
    """Name of the task that makes what an experiment's runs read."""
    return f"cache/{experiment.name}" if experiment.adapter_of is None else f"frozen/{experiment.adapter_of}"


def run_name(project: Project, experiment: Experiment, fold: int | None) -> str:
    """Name of the task that makes a run."""
    if experiment.frozen:
        return f"frozen/{experiment.name}"
    return f"{'full' if fold is None else 'train'}/{project.workspace.run_item(experiment.name, fold)}"


def round_reads(project: Project) -> list[str]:
    """The task that gives the round's pseudo-labels; none before the first round."""
    return [f"labels/round{project.workspace.round}"] if project.workspace.round else []


def _as_trained(project: Project, experiment: Experiment, fold: int | None) -> Experiment:
    """The experiment with the weights that it starts from and, on all images, with the length of the folds' runs."""
    from whaleid.training.schedule import full_data_experiment

    if project.starts_pretrained(experiment):
        weights = Path(WEIGHTS, pretrained_path(project).name).as_posix()
        experiment = experiment.model_copy(update={"model": experiment.model.model_copy(update={"weights": weights})})
    if fold is not None or experiment.frozen:
        return experiment
    workspace = project.workspace
    runs = [workspace.run(experiment.name, number) for number in project.folds]
    return full_data_experiment(experiment, [workspace.stamp(run)["summary"] for run in runs])


def check_training(project: Project) -> None:
    """Refuse what no run or ranking can use; images and folds are there."""
    from whaleid.pipeline.preflight import require, run_checks

    if not project.workspace.round:
        require(run_checks(project, read_images(project.workspace), read_folds(project.workspace)))


def prepare_training(project: Project, tasks: list[Task]) -> None:
    """Have the weights that the runs start from on this machine, before any work and before several processes look."""
    from whaleid.models.weights import ensure_weights

    names = {task.run[0] for task in tasks if task.run is not None}
    for experiment in project.experiments:
        if experiment.name in names and _starts_from_published(project, experiment):
            ensure_weights(experiment.model.backbone, experiment.model.weights, project.settings.weights)


def _starts_from_published(project: Project, experiment: Experiment) -> bool:
    """Whether its runs read weights that this project does not make, and has not copied yet."""
    from whaleid.training.checkpoint import read_metadata

    if experiment.is_adapter or project.starts_pretrained(experiment):
        return False
    if not experiment.frozen:
        return True
    written = read_metadata(project.run_folder(experiment, None)) or {}
    return written.get("key") != keys.run_key(project, experiment, None)


# -------------------------------------------------------------------------------------------------- features


def shard_tasks(project: Project) -> list[Task]:
    """The shards of the features of many images; none where one extraction takes them all."""
    state = round_state(project)
    if state is Round.CLOSED:
        return []
    images = count_rows(project)
    return [task for item, fold in _all_runs(project) for task in _shard_tasks(project, item, fold, state, images)]


def feature_tasks(project: Project) -> list[Task]:
    """The features of every image by every run."""
    return _of_runs(project, partial(_feature_task, images=count_rows(project)), _all_runs(project))


def _all_runs(project: Project) -> list[tuple[Experiment, int | None]]:
    return [(item, fold) for item in project.trained for fold in project.folds_of(item)]


def _shard_tasks(project: Project, experiment: Experiment, fold: int | None, state: Round, images: int) -> list[Task]:
    from whaleid.features.shards import shard_slices

    slices = shard_slices(images, experiment.features.batch)
    if len(slices) == 1:
        return []
    return [_shard_task(project, experiment, fold, state, number, rows) for number, rows in enumerate(slices)]


def _shard_task(
    project: Project, experiment: Experiment, fold: int | None, state: Round, number: int, rows: slice
) -> Task:
    workspace, name = project.workspace, f"{number:05d}"
    out, run = workspace.shards(experiment.name, fold) / name, workspace.run(experiment.name, fold)
    key = digest(keys.features_key(project, experiment, fold), rows.start, rows.stop) if state is Round.OPEN else ""

    def make() -> None:
        from whaleid.features.extraction import extract_features

        title = f"{experiment.name} shard {number}"
        extract_features(run, read_images(workspace), _input(project, experiment), out, title, rows)

    return Task(
        "shards",
        f"{workspace.run_item(experiment.name, fold)}/{name}",
        workspace,
        out,
        key,
        make,
        ("images", _input_name(experiment), run_name(project, experiment, fold)),
        resumes=True,
        run=(experiment.name, fold),
        shard=number,
        command="features",
    )


def _feature_task(project: Project, experiment: Experiment, fold: int | None, state: Round, images: int) -> Task:
    workspace, out = project.workspace, project.workspace.features(experiment.name, fold)
    key = keys.features_key(project, experiment, fold) if state is Round.OPEN else ""
    run = workspace.run(experiment.name, fold)
    shards = _shard_tasks(project, experiment, fold, state, images)

    def make() -> None:
        from whaleid.features.extraction import extract_features

        extract_features(run, read_images(workspace), _input(project, experiment), out, experiment.name)

    def join() -> None:
        from whaleid.features.shards import join_shards

        join_shards([shard.output for shard in shards], out)
        shutil.rmtree(workspace.shards(experiment.name, fold))

    def check() -> bool:
        """Other heads' runs are not needed any more once the features are there."""
        trained = not experiment.head.scores_pairs or workspace.is_current(run, keys.run_key(project, experiment, fold))
        return trained and workspace.is_current(out, key)

    return Task(
        "features",
        workspace.run_item(experiment.name, fold),
        workspace,
        out,
        key,
        join if shards else make,
        ("images", _input_name(experiment), run_name(project, experiment, fold), *(one.name for one in shards)),
        check,
        resumes=not shards,
        run=(experiment.name, fold),
        command=None if shards else "features",
    )


def feature_reads(project: Project) -> list[str]:
    """The tasks whose outputs the ensemble reads of each experiment: its features and, to score pairs, its runs."""
    workspace, reads = project.workspace, [task.name for task in frozen_tasks(project)]
    for experiment in project.trained:
        for fold in project.folds_of(experiment):
            reads.append(f"features/{workspace.run_item(experiment.name, fold)}")
            if experiment.head.scores_pairs:
                reads.append(run_name(project, experiment, fold))
    return reads
