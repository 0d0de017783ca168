"""Stages of the networks: pretraining without labels, training, features."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from whaleid.config import Experiment
from whaleid.config.settings import WEIGHTS
from whaleid.data.pseudo import labels_of
from whaleid.pipeline import keys
from whaleid.pipeline.data_stages import read_cache
from whaleid.pipeline.project import Project
from whaleid.pipeline.rounds import Round, round_state
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.workspace import Workspace, read_folds, read_images
from whaleid.utils.errors import WhaleidError


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


# -------------------------------------------------------------------------------------------------- training


def train_tasks(project: Project) -> list[Task]:
    """A run of every experiment on every fold: checkpoint, configuration, log."""
    return _of_runs(project, _train_task, [(item, fold) for item in project.experiments for fold in project.folds])


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
            read_cache(workspace, experiment),
            out,
            project.competition.unknown,
            project.settings.weights,
            key,
            labels=None if labels is None else labels_of(labels, fold),
        )
        return {"summary": asdict(summary)}

    reads = ["images", "folds", f"cache/{experiment.name}", *round_reads(project)]
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
        command="train",
    )


def run_name(workspace: Workspace, experiment: Experiment, fold: int | None) -> str:
    """Name of the task that trains a run."""
    return f"{'full' if fold is None else 'train'}/{workspace.run_item(experiment.name, fold)}"


def round_reads(project: Project) -> list[str]:
    """The task that gives the round's pseudo-labels; none before the first round."""
    return [f"labels/round{project.workspace.round}"] if project.workspace.round else []


def _as_trained(project: Project, experiment: Experiment, fold: int | None) -> Experiment:
    """The experiment with the weights that it starts from and, on all images, with the length of the folds' runs."""
    from whaleid.training.schedule import full_data_experiment

    if project.starts_pretrained(experiment):
        weights = Path(WEIGHTS, pretrained_path(project).name).as_posix()
        experiment = experiment.model_copy(update={"model": experiment.model.model_copy(update={"weights": weights})})
    if fold is not None:
        return experiment
    workspace = project.workspace
    runs = [workspace.run(experiment.name, number) for number in project.folds]
    return full_data_experiment(experiment, [workspace.stamp(run)["summary"] for run in runs])


def prepare_training(project: Project, tasks: list[Task]) -> None:
    """Refuse what no run or ranking can use, and have the weights on this machine before several processes look."""
    from whaleid.models.weights import ensure_weights
    from whaleid.pipeline.preflight import require, run_checks

    if not project.workspace.round:
        require(run_checks(project, read_images(project.workspace), read_folds(project.workspace)))

    names = {task.run[0] for task in tasks if task.run is not None}
    for experiment in project.experiments:
        if experiment.name in names and not project.starts_pretrained(experiment):
            ensure_weights(experiment.model.backbone, experiment.model.weights, project.settings.weights)


# -------------------------------------------------------------------------------------------------- features


def feature_tasks(project: Project) -> list[Task]:
    """The features of every image by every run."""
    runs = [(item, fold) for item in project.experiments for fold in project.folds_of(item)]
    return _of_runs(project, _feature_task, runs)


def _feature_task(project: Project, experiment: Experiment, fold: int | None, state: Round) -> Task:
    workspace, out = project.workspace, project.workspace.features(experiment.name, fold)
    key = keys.features_key(project, experiment, fold) if state is Round.OPEN else ""
    run = workspace.run(experiment.name, fold)

    def make() -> None:
        from whaleid.features.extraction import extract_features

        extract_features(run, read_images(workspace), read_cache(workspace, experiment), out, experiment.name)

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
        make,
        ("images", f"cache/{experiment.name}", run_name(workspace, experiment, fold)),
        check,
        resumes=True,
        run=(experiment.name, fold),
        command="features",
    )


def feature_reads(project: Project) -> list[str]:
    """The tasks whose outputs the ensemble reads of each experiment: its features and, to score pairs, its runs."""
    workspace, reads = project.workspace, []
    for experiment in project.experiments:
        for fold in project.folds_of(experiment):
            reads.append(f"features/{workspace.run_item(experiment.name, fold)}")
            if experiment.head.scores_pairs:
                reads.append(run_name(workspace, experiment, fold))
    return reads
