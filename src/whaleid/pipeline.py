"""The main road, stage by stage: each makes its file if that is not up to date, and the stages it needs before.

images table -> folds -> caches -> (pretraining) -> runs and features (jobs) -> candidates -> submission -> score.
A stage is up to date when its key (its settings and its inputs' keys) is the one noted when it was made.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from whaleid.config import Competition, Experiment, ExperimentBase, PretextExperiment, Recipe
from whaleid.configfiles import load_competition, load_pretext, load_recipe_with, parse_overrides
from whaleid.data.folds import make_folds
from whaleid.data.images_table import build_images, images_key, labelled_key
from whaleid.data.pseudo import labels_of, read_pseudo_labels
from whaleid.errors import WhaleidError
from whaleid.jobs import Job, run_jobs
from whaleid.machine import machine_line, measured
from whaleid.settings import WEIGHTS, Settings, read_settings
from whaleid.workspace import Workspace, atomic_path, digest

if TYPE_CHECKING:
    from whaleid.data.cache import ImageCache
    from whaleid.ensemble.ladder import Source

FORMAT = 1
"""Raised when a stage's output changes its form or its meaning: what older versions made is then made anew."""


@dataclass(frozen=True)
class Project:
    """One competition, one recipe, one work folder: what every stage is asked about."""

    competition: Competition
    recipe: Recipe
    experiments: tuple[Experiment, ...]
    workspace: Workspace
    skip_unreadable: bool = False
    pretext: PretextExperiment | None = None
    """What is trained before the experiments, without labels (the recipe's `pretrain`)."""
    settings: Settings = field(default_factory=Settings)

    @property
    def folds(self) -> list[int]:
        """The folds whose runs are trained."""
        return self.recipe.train_folds or list(range(self.recipe.folds))

    def experiment(self, name: str) -> Experiment:
        """Experiment of the recipe by name."""
        for experiment in self.experiments:
            if experiment.name == name:
                return experiment
        known = ", ".join(item.name for item in self.experiments)
        raise WhaleidError(f"recipe {self.recipe.name} has no experiment '{name}'; it has: {known}")

    def at_round(self, number: int) -> Project:
        """The same project in a round of pseudo-labels: its runs and features are that round's. 0: before them."""
        return self.with_settings(self.recipe, replace(self.workspace, round=number))

    def with_settings(self, recipe: Recipe, workspace: Workspace | None = None) -> Project:
        """The same project under a recipe changed in other things than its experiments."""
        found = replace(self, recipe=recipe, workspace=workspace or self.workspace)
        for name in ("images_key", "labelled_key"):
            if name in vars(self):  # found before, or given (kaggle/carried.py)
                vars(found)[name] = vars(self)[name]
        return found

    @cached_property
    def pseudo_labels(self) -> pd.DataFrame | None:
        """The test images that join training in this round, for every fold; None before the first round."""
        if not self.workspace.round:
            return None
        return read_pseudo_labels(self.workspace.pseudo_labels(self.recipe.name))

    @property
    def full_experiments(self) -> list[Experiment]:
        """The experiments that are trained on all labelled images, too."""
        chosen = self.recipe.full_members
        entries = zip(self.recipe.experiments, self.experiments, strict=True) if chosen else ()
        return [experiment for entry, experiment in entries if entry in chosen]

    def folds_of(self, experiment: Experiment) -> list[int | None]:
        """The experiment's runs: its folds and, for a full-data member, None for that on all labelled images."""
        return [*self.folds, *([None] if experiment in self.full_experiments else [])]

    @cached_property
    def images_key(self) -> str:
        """Of all images: what caches, features and answers depend on."""
        return images_key_of(self.competition, self.skip_unreadable)

    @cached_property
    def labelled_key(self) -> str:
        """Of the labelled images alone: what folds and runs depend on, so that a new test set trains nothing."""
        return digest("labelled", FORMAT, labelled_key(self.competition), self.skip_unreadable)

    @cached_property
    def folds_key(self) -> str:
        return digest("folds", FORMAT, self.labelled_key, self.competition.unknown, self.recipe.folds, self.recipe.seed)

    def cache_key(self, name: str) -> str:
        return digest("cache", FORMAT, self.images_key, name)

    def local_key(self, name: str) -> str:
        return digest("local", FORMAT, self.images_key, name, "x y size direction")

    def run_key(self, experiment: Experiment, fold: int | None) -> str:
        """Everything that the trained weights depend on; not how many processes prepare the images.

        fold: None for the run on all labelled images, which takes its length from the folds' runs.
        """
        if fold is None:
            folds = [self.run_key(experiment, number) for number in self.folds]
            return digest("full run", FORMAT, folds, _training_settings(experiment), *self._taught(None))
        start = [self.pretrain_key] if self.starts_pretrained(experiment) else []
        return digest("run", FORMAT, self.folds_key, _training_settings(experiment), fold, *start, *self._taught(fold))

    def _taught(self, fold: int | None) -> list[str]:
        """Key of the pseudo-labels that the run of `fold` is taught by: whose they are, not how sure they are."""
        if self.pseudo_labels is None:
            return []
        return [digest(self.images_key, labels_of(self.pseudo_labels, fold)[["image", "identity"]].to_numpy().tolist())]

    def starts_pretrained(self, experiment: Experiment) -> bool:
        """Whether an experiment starts from the backbone that `pretrain` trains."""
        return self.pretext is not None and not experiment.model.names_file

    def with_start(self, experiment: Experiment) -> Experiment:
        """The experiment as it is trained: its weights those of the pretraining, where it starts from them."""
        if not self.starts_pretrained(experiment):
            return experiment
        weights = Path(WEIGHTS, f"{self.pretrained_name}.safetensors").as_posix()
        return experiment.model_copy(update={"model": experiment.model.model_copy(update={"weights": weights})})

    @cached_property
    def pretrain_key(self) -> str:
        """Everything that the pretrained backbone depends on."""
        assert self.pretext is not None
        assert self.recipe.pretrain is not None
        images = self.images_key if self.recipe.pretrain.test else self.labelled_key
        return digest("pretrain", FORMAT, images, _training_settings(self.pretext), self.recipe.pretrain.test)

    @property
    def pretrained_name(self) -> str:
        """`<competition>-<experiment>-<key>`: of the pretrained weights and of the folder of their log."""
        assert self.recipe.pretrain is not None
        name = self.recipe.pretrain.experiment
        name = Path(name).stem if name.endswith((".yaml", ".yml")) else name.replace("/", "-")
        return f"{self.competition.name}-{name}-{self.pretrain_key[:8]}"

    def features_key(self, experiment: Experiment, fold: int | None) -> str:
        settings = experiment.features.model_dump(mode="json", exclude={"batch"})
        return digest("features", FORMAT, self.images_key, self.run_key(experiment, fold), settings)

    def ensemble_key(self) -> str:
        own = [self.features_key(item, fold) for item in self.experiments for fold in self.folds_of(item)]
        foreign = {name: _listing(Path(folder)) for name, folder in self.recipe.sources.items()}
        protocol = self.competition.model_dump(mode="json", include={"unknown", "unknown_share", "k"})
        names = [item.name for item in self.experiments]
        images = [self.images_key, self.folds_key]
        return digest("ensemble", FORMAT, images, names, own, foreign, protocol, self.combine_settings())

    def combine_settings(self) -> dict[str, Any]:
        return {"combine": self.recipe.combine.model_dump(mode="json"), "seed": self.recipe.seed}


def open_project(
    competition: str,
    recipe: str,
    work: Path,
    pairs: list[str] | None = None,
    skip_unreadable: bool = False,
    settings: Settings | None = None,
) -> Project:
    """Project from what the command line says; nothing is read but YAML, and SETTINGS.json where settings is None."""
    settings = settings or read_settings()
    contest = load_competition(competition, settings)
    loaded, experiments = load_recipe_with(recipe, parse_overrides(pairs or []))
    pretext = load_pretext(recipe, loaded, experiments)
    workspace = Workspace(work / contest.name)
    return Project(contest, loaded, tuple(experiments), workspace, skip_unreadable, pretext, settings)


# --------------------------------------------------------------------------------------------------- the data


def images_key_of(competition: Competition, skip_unreadable: bool) -> str:
    """Key of the images table: the CSVs, the pictures' names, sizes and times, and the settings."""
    return digest("images", FORMAT, images_key(competition), skip_unreadable)


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
    local = project.recipe.combine.local
    if local is None:
        return None
    from whaleid.retrieval.keypoints import describe_images, local_name

    folder = project.workspace.local(local_name(local))
    key = project.local_key(folder.name)
    if not project.workspace.is_current(folder, key):
        images, began = images_stage(project), time.monotonic()
        describe_images(images, project.competition.root, folder, local)
        project.workspace.mark_current(folder, key, **measured(began))
    return folder


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
    from whaleid.model.weights import ensure_weights
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
    from whaleid.model.weights import ensure_weights

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
    from whaleid.retrieval.features import embed_run

    _begin(workspace, out, key)
    run = workspace.run(experiment.name, fold)
    images, cache, began = images_stage(project), cache_stage(project, experiment), time.monotonic()
    embed_run(run, images, cache, out, experiment.name)
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
    from whaleid.ensemble.protocol import WHOLE

    name, workspace, runs = experiment.name, project.workspace, project.folds_of(experiment)
    pairs = {WHOLE if fold is None else fold: workspace.run(name, fold) for fold in runs}
    return Source(
        name,
        {fold: workspace.features(name, fold) for fold in project.folds},
        optimistic=experiment.train.select == "best",
        pairs=pairs if scores_pairs(experiment) else {},
        full=workspace.features(name, None) if None in runs else None,
    )


def _training_settings(experiment: ExperimentBase) -> dict[str, Any]:
    """Settings that trained weights depend on: not how many processes prepare the images."""
    return experiment.model_dump(mode="json", exclude={"name": True, "features": True, "train": {"workers"}})


def scores_pairs(experiment: Experiment) -> bool:
    """Whether the experiment's head is a similarity of pairs, by which candidates can be ranked again."""
    return experiment.head.name == "siamese"


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


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files below a folder of foreign features."""
    if not folder.is_dir():
        raise WhaleidError(f"{folder}: folder of foreign features not found; mend `sources` in the recipe")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
