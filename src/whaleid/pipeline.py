"""The main road, stage by stage: each makes its file if that is not up to date, and the stages it needs before.

images table -> folds -> caches -> (pretraining) -> runs and features (jobs) -> candidates -> submission -> score.
A stage is up to date when its key (its settings and its inputs' keys) is the one noted when it was made.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from whaleid.config import Competition, Experiment, ExperimentBase, PretextExperiment, Recipe
from whaleid.configfiles import load_competition, load_pretext, load_recipe_with, parse_overrides, repository_root
from whaleid.data.folds import make_folds
from whaleid.data.images_table import build_images, images_key, labelled_key
from whaleid.data.masks import masks_key
from whaleid.errors import WhaleidError
from whaleid.jobs import Job, run_jobs
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

    @cached_property
    def masks_key(self) -> str:
        """Of the masks, which keypoints alone depend on; empty where the recipe or the competition does without."""
        return "" if self.recipe.combine.local is None else masks_key(self.competition)

    def local_key(self, name: str) -> str:
        masks = [self.masks_key] if self.masks_key else []
        return digest("local", FORMAT, self.images_key, name, "x y size direction", *masks)

    def run_key(self, experiment: Experiment, fold: int) -> str:
        """Everything that the trained weights depend on; not how many processes prepare the images."""
        start = [self.pretrain_key] if self.starts_pretrained(experiment) else []
        return digest("run", FORMAT, self.folds_key, _training_settings(experiment), fold, *start)

    def starts_pretrained(self, experiment: Experiment) -> bool:
        """Whether an experiment starts from the backbone that `pretrain` trains."""
        return self.pretext is not None and not experiment.model.names_file

    def with_start(self, experiment: Experiment) -> Experiment:
        """The experiment as it is trained: its weights those of the pretraining, where it starts from them."""
        if not self.starts_pretrained(experiment):
            return experiment
        weights = Path("weights", f"{self.pretrained_name}.safetensors").as_posix()
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

    def features_key(self, experiment: Experiment, fold: int) -> str:
        settings = experiment.features.model_dump(mode="json", exclude={"batch"})
        return digest("features", FORMAT, self.images_key, self.run_key(experiment, fold), settings)

    def ensemble_key(self) -> str:
        own = [self.features_key(item, fold) for item in self.experiments for fold in self.folds]
        foreign = {name: _listing(Path(folder)) for name, folder in self.recipe.sources.items()}
        protocol = self.competition.model_dump(mode="json", include={"unknown", "unknown_share", "k"})
        names = [item.name for item in self.experiments]
        images = [self.images_key, self.folds_key, *([self.masks_key] if self.masks_key else [])]
        return digest("ensemble", FORMAT, images, names, own, foreign, protocol, self.combine_settings())

    def combine_settings(self) -> dict[str, Any]:
        return {"combine": self.recipe.combine.model_dump(mode="json"), "seed": self.recipe.seed}


def open_project(
    competition: str, recipe: str, work: Path, pairs: list[str] | None = None, skip_unreadable: bool = False
) -> Project:
    """Project from what the command line says; nothing is read but YAML."""
    contest = load_competition(competition)
    loaded, experiments = load_recipe_with(recipe, parse_overrides(pairs or []))
    pretext = load_pretext(recipe, loaded, experiments)
    return Project(contest, loaded, tuple(experiments), Workspace(work / contest.name), skip_unreadable, pretext)


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

        table = build_images(competition, read_rows(competition), skip_unreadable)
        with atomic_path(workspace.images) as temporary:
            table.to_parquet(temporary, index=False)
        workspace.mark_current(workspace.images, key)
    return pd.read_parquet(workspace.images)


def folds_stage(project: Project) -> pd.DataFrame:
    """The fold of every labelled image (`folds.csv`)."""
    workspace = project.workspace
    if not workspace.is_current(workspace.folds, project.folds_key):
        images = images_stage(project)
        table = make_folds(images, project.recipe.folds, project.competition.unknown, project.recipe.seed)
        with atomic_path(workspace.folds) as temporary:
            table.to_csv(temporary, index=False)
        workspace.mark_current(workspace.folds, project.folds_key)
    return pd.read_csv(workspace.folds, dtype={"image": str, "identity": str, "fold": int}, keep_default_na=False)


def cache_stage(project: Project, experiment: ExperimentBase) -> ImageCache:
    """The resized images that an experiment reads."""
    from whaleid.data.cache import build_cache, cache_name, open_cache
    from whaleid.data.images import input_size

    images = images_stage(project)
    labelled = images[images["split"] == "train"]  # what is trained on: a new test set keeps the size
    size = input_size(experiment.image, labelled[["x0", "y0", "x1", "y1"]].to_numpy(float))
    name = cache_name(experiment.image, size)
    folder = project.workspace.cache(name)
    key = project.cache_key(name)
    if not project.workspace.is_current(folder, key):
        _begin(project.workspace, folder, key)
        build_cache(images, project.competition.root, folder, size, experiment.image)
        project.workspace.mark_current(folder, key, begun=key)
    return open_cache(folder)


def local_stage(project: Project) -> Path | None:
    """The keypoints' descriptors of all images; None where the recipe does without local matching."""
    local = project.recipe.combine.local
    if local is None:
        return None
    from whaleid.data.masks import masks_of
    from whaleid.retrieval.keypoints import describe_images, local_name

    folder = project.workspace.local(local_name(local))
    key = project.local_key(folder.name)
    if not project.workspace.is_current(folder, key):
        images, competition = images_stage(project), project.competition
        describe_images(images, competition.root, folder, local, masks=masks_of(competition, images))
        project.workspace.mark_current(folder, key)
    return folder


def pretrain_stage(project: Project) -> Path:
    """The backbone that the recipe's experiments start from: `weights/<competition>-<experiment>-<key>.safetensors`."""
    pretext, pretrain = project.pretext, project.recipe.pretrain
    if pretext is None or pretrain is None:
        raise WhaleidError(
            f"recipe {project.recipe.name} has no pretraining; add e.g. `pretrain: {{experiment: self/rotation}}`"
        )
    folder = repository_root() / "weights"
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
    workspace.mark_current(out, key, begun=key, summary=asdict(summary))
    return target


# ------------------------------------------------------------------------------------------ runs and features


def job_list(project: Project, stage: str) -> list[Job]:
    """Jobs of the recipe up to `stage` (train or features), the current ones marked."""
    return [
        Job(experiment.name, fold, stage, _job_is_current(project, experiment, fold, stage))
        for experiment in project.experiments
        for fold in project.folds
    ]


def select_jobs(project: Project, stage: str, experiment: str | None, fold: int | None) -> list[Job]:
    """Jobs of the recipe, or of one experiment or fold of it."""
    if experiment is not None:
        project.experiment(experiment)
    if fold is not None and fold not in project.folds:
        raise WhaleidError(f"--fold {fold}: recipe {project.recipe.name} trains folds {project.folds}")
    return [
        job for job in job_list(project, stage) if experiment in (None, job.experiment) and fold in (None, job.fold)
    ]


def jobs_stage(project: Project, stage: str, at_once: int, options: list[str], jobs: list[Job] | None = None) -> int:
    """Do the recipe's jobs (or those given) up to `stage`; returns how many there were to do."""
    jobs = job_list(project, stage) if jobs is None else jobs
    waiting = {job.experiment for job in jobs if not job.current}
    if not waiting:
        return 0
    from whaleid.model.weights import ensure_weights

    folds_stage(project)
    for experiment in project.experiments:
        if experiment.name in waiting:
            cache_stage(project, experiment)
            if project.starts_pretrained(experiment):
                pretrain_stage(project)
            else:
                ensure_weights(experiment.model.backbone, experiment.model.weights, repository_root() / "weights")

    def do(job: Job) -> None:
        train_stage(project, project.experiment(job.experiment), job.fold)
        if stage == "features":
            features_stage(project, project.experiment(job.experiment), job.fold)

    return run_jobs(jobs, do, options, at_once, project.workspace.root / "logs")


def train_stage(project: Project, experiment: Experiment, fold: int) -> None:
    """One run: checkpoint, configuration, log."""
    workspace, out = project.workspace, project.workspace.run(experiment.name, fold)
    key = project.run_key(experiment, fold)
    if workspace.is_current(out, key):
        return
    from whaleid.training.run import train_run

    if scores_pairs(experiment):  # the head that ranks again and the features that it ranks are of one training
        workspace.mark_current(workspace.features(experiment.name, fold), "")
    _begin(workspace, out, key)
    cache = cache_stage(project, experiment)
    images, folds = images_stage(project), folds_stage(project)
    summary = train_run(
        project.with_start(experiment),
        fold,
        images,
        folds,
        cache,
        out,
        project.competition.unknown,
        repository_root() / "weights",
        key,
    )
    workspace.mark_current(out, key, begun=key, summary=asdict(summary))


def features_stage(project: Project, experiment: Experiment, fold: int) -> None:
    """The features of one run, of every image."""
    workspace, out = project.workspace, project.workspace.features(experiment.name, fold)
    key = project.features_key(experiment, fold)
    if workspace.is_current(out, key):
        return
    from whaleid.retrieval.features import embed_run

    _begin(workspace, out, key)
    run = workspace.run(experiment.name, fold)
    embed_run(run, images_stage(project), cache_stage(project, experiment), out, experiment.name)
    workspace.mark_current(out, key, begun=key)


def sources(project: Project) -> list[Source]:
    """Features to combine: the recipe's experiments, then its foreign features."""
    from whaleid.ensemble.ladder import Source

    own = [
        Source(
            item.name,
            {fold: project.workspace.features(item.name, fold) for fold in project.folds},
            optimistic=item.train.select == "best",
            pairs={fold: project.workspace.run(item.name, fold) for fold in project.folds if scores_pairs(item)},
        )
        for item in project.experiments
    ]
    foreign = [
        Source(name, {fold: Path(folder) / f"fold{fold}" for fold in project.folds})
        for name, folder in project.recipe.sources.items()
    ]
    return own + foreign


def _training_settings(experiment: ExperimentBase) -> dict[str, Any]:
    """Settings that trained weights depend on: not how many processes prepare the images."""
    return experiment.model_dump(mode="json", exclude={"name": True, "features": True, "train": {"workers"}})


def scores_pairs(experiment: Experiment) -> bool:
    """Whether the experiment's head is a similarity of pairs, by which candidates can be ranked again."""
    return experiment.head.name == "siamese"


def _job_is_current(project: Project, experiment: Experiment, fold: int, stage: str) -> bool:
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
