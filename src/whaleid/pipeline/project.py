"""One competition, one recipe, one work folder, and the key of everything that is made of them.

A stage is up to date when its key (its settings and its inputs' keys) is the one noted when it was made
(`pipeline.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from whaleid.config import Competition, Experiment, ExperimentBase, PretextExperiment, Recipe
from whaleid.config.files import load_competition, load_pretext, load_recipe, parse_overrides
from whaleid.config.settings import WEIGHTS, Settings, read_settings
from whaleid.data.images_table import images_key, labelled_key
from whaleid.data.masks import masks_key
from whaleid.data.pseudo import labels_of, read_pseudo_labels
from whaleid.local_matching.weights import weights_files, weights_key
from whaleid.pipeline.workspace import Workspace
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest

FORMAT = 1
"""Raised when a stage's output changes its form or its meaning: what older versions made is then made anew."""
SECOND_LEVEL = 2
"""Raised when the same features are ranked otherwise: rankings are then made anew, and no network is trained."""


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
    orders: Path | None = None
    """Folder of what the stack learnt elsewhere from the same rankings (`ensemble/stack_models.py`): the test set is
    ordered
    by it."""

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
        for name in ("images_key", "labelled_key", "masks_key"):
            if name in vars(self):  # found before, or given (pipeline/transfer.py)
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
        return images_key_of(self.competition, self.workspace, self.skip_unreadable)

    @cached_property
    def labelled_key(self) -> str:
        """Of the labelled images alone: what folds and runs depend on, so that a new test set trains nothing."""
        return digest("labelled", FORMAT, labelled_key(self.competition, self.workspace.digests), self.skip_unreadable)

    @cached_property
    def folds_key(self) -> str:
        return digest("folds", FORMAT, self.labelled_key, self.competition.unknown, self.recipe.folds, self.recipe.seed)

    def cache_key(self, name: str) -> str:
        return digest("cache", FORMAT, self.images_key, name)

    @cached_property
    def masks_key(self) -> str:
        """Of the masks, which keypoints alone depend on; empty where the recipe or the competition does without."""
        return "" if self.recipe.combine.local_matching is None else masks_key(self.competition, self.workspace.digests)

    @cached_property
    def detector_key(self) -> str:
        """Of the weights of the network that describes keypoints; empty where none does."""
        local = self.recipe.combine.local_matching
        alone = None if local is None else local.model_copy(update={"verify": None})
        return "" if alone is None else weights_key(alone, self.settings.weights)

    @cached_property
    def networks_key(self) -> str:
        """Of the weights of all networks of local matching; empty where there is none."""
        local = self.recipe.combine.local_matching
        return "" if local is None else weights_key(local, self.settings.weights)

    @property
    def local_weights(self) -> list[Path]:
        """The weights' files of the networks of local matching. Raises WhaleidError where one is missing."""
        local = self.recipe.combine.local_matching
        return [] if local is None else weights_files(local, self.settings.weights)

    def local_key(self, name: str) -> str:
        """name: of the descriptors' folder, which says their kind, the picture's size and how many there are."""
        more = [key for key in (self.masks_key, self.detector_key) if key]
        return digest("local", FORMAT, self.images_key, name, "x y size direction", *more)

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
        images = [self.images_key, self.folds_key, *(key for key in (self.masks_key, self.networks_key) if key)]
        return digest("ensemble", FORMAT, SECOND_LEVEL, images, names, own, foreign, protocol, self.combine_settings())

    def combine_settings(self) -> dict[str, Any]:
        combine = self.recipe.combine.model_dump(mode="json")
        return {"combine": _without_later(combine), "seed": self.recipe.seed}


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
    loaded, experiments = load_recipe(recipe, parse_overrides(pairs or []))
    pretext = load_pretext(recipe, loaded, experiments)
    workspace = Workspace(work / contest.name)
    return Project(contest, loaded, tuple(experiments), workspace, skip_unreadable, pretext, settings)


# --------------------------------------------------------------------------------------------- what keys are made of


def images_key_of(competition: Competition, workspace: Workspace, skip_unreadable: bool) -> str:
    """Key of the images table: the CSVs, the images' names and contents, and the settings."""
    return digest("images", FORMAT, images_key(competition, workspace.digests), skip_unreadable)


def _training_settings(experiment: ExperimentBase) -> dict[str, Any]:
    """Settings that trained weights depend on: not how many processes prepare the images."""
    return experiment.model_dump(mode="json", exclude={"name": True, "features": True, "train": {"workers"}})


def _without_later(combine: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that came later, where they say what was so before: what is there is not made again."""
    local = combine["local_matching"]
    if local is not None:
        local = {key: value for key, value in local.items() if (key, value) != ("features", "rootsift")}
        verify = local["verify"]
        if verify is not None:
            verify = {key: value for key, value in verify.items() if (key, value) != ("matcher", "mutual")}
        local["verify"] = verify
    return {**combine, "local_matching": local}


def scores_pairs(experiment: Experiment) -> bool:
    """Whether the experiment's head is a similarity of pairs, by which candidates can be ranked again."""
    return experiment.head.name == "siamese"


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files below a folder of foreign features."""
    if not folder.is_dir():
        raise WhaleidError(f"{folder}: folder of foreign features not found; mend `sources` in the recipe")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
