"""One competition, one recipe, one work folder: what every stage of the pipeline is called with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from whaleid.config import Competition, Experiment, LocalConfig, PretextExperiment, Recipe
from whaleid.config.files import load_competition, load_pretext, load_recipe, parse_overrides
from whaleid.config.settings import Settings, read_settings
from whaleid.data.images_table import images_key, labelled_key
from whaleid.data.masks import labelled_masks_key, masks_key
from whaleid.data.pseudo import read_pseudo_labels
from whaleid.local_matching.registry import weights_files
from whaleid.pipeline.versions import VERSION
from whaleid.pipeline.workspace import Workspace
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest


@dataclass(frozen=True)
class DataKeys:
    """Digests of the competition's data.

    Attributes
    ----------
    images : str
        Of all images and their rows: caches, features and candidates depend on it.
    labelled : str
        Of the labelled images alone: folds and runs depend on it, so that a new test set trains nothing again.
    masks : str
        Of the masks, which keypoints and images without background depend on; empty where none are used.
    labelled_masks : str
        Of the labelled images' masks, which runs on images without background depend on; empty where there are none.
    """

    images: str
    labelled: str
    masks: str
    labelled_masks: str = ""


@dataclass(frozen=True)
class Project:
    """One competition, one recipe, one work folder."""

    competition: Competition
    recipe: Recipe
    experiments: tuple[Experiment, ...]
    workspace: Workspace
    skip_unreadable: bool = False
    pretext: PretextExperiment | None = None
    """Trained without labels before the experiments, which start from its backbone (the recipe's `pretrain`)."""
    settings: Settings = field(default_factory=Settings)
    stack_models: Path | None = None
    """Folder of a stack fitted on another machine (`ensemble/stack_models.py`): it ranks the test set."""
    data_keys: DataKeys | None = None
    """Those of another machine, where the work folder comes from there; None: computed from the files."""

    @cached_property
    def keys(self) -> DataKeys:
        """Digests of the data; reads every image whose digest is not known yet."""
        if self.data_keys is not None:
            return self.data_keys
        digests, version = self.workspace.digests, VERSION["images"]
        return DataKeys(
            all_images_key(self.competition, self.workspace, self.skip_unreadable),
            digest("labelled", version, labelled_key(self.competition, digests), self.skip_unreadable),
            masks_key(self.competition, digests) if self.local_matching or self.removes_background else "",
            labelled_masks_key(self.competition, digests) if self.removes_background else "",
        )

    @property
    def folds(self) -> list[int]:
        """The folds whose runs are trained."""
        return self.recipe.train_folds or list(range(self.recipe.folds))

    @property
    def local_matching(self) -> LocalConfig | None:
        """Settings of local matching, None where the recipe has none."""
        return self.recipe.combine.local_matching

    @property
    def removes_background(self) -> bool:
        """Whether a network sees the animals alone. Raises WhaleidError where it does and no masks are named."""
        for one in (*self.experiments, *([] if self.pretext is None else [self.pretext])):
            if one.image.needs_masks:
                if self.competition.masks is None:
                    raise WhaleidError(
                        f"experiment {one.name}: image.background: remove needs `masks` in the YAML of "
                        f"{self.competition.name}; whaleid masks makes some"
                    )
                return True
        return False

    @property
    def local_weights(self) -> list[Path]:
        """Files of the weights of local matching's networks. Raises WhaleidError where one is missing."""
        return [] if self.local_matching is None else weights_files(self.local_matching, self.settings.weights)

    def experiment(self, name: str) -> Experiment:
        """Experiment of the recipe by name."""
        for experiment in self.experiments:
            if experiment.name == name:
                return experiment
        known = ", ".join(item.name for item in self.experiments)
        raise WhaleidError(f"recipe {self.recipe.name} has no experiment '{name}'; it has: {known}")

    @property
    def trained(self) -> list[Experiment]:
        """The experiments that are trained: all but the frozen networks."""
        return [experiment for experiment in self.experiments if not experiment.frozen]

    @property
    def full_experiments(self) -> list[Experiment]:
        """The experiments that are trained on all labelled images, too."""
        entries = zip(self.recipe.experiments, self.experiments, strict=True) if self.recipe.full_members else ()
        return [item for entry, item in entries if entry in self.recipe.full_members and not item.frozen]

    def folds_of(self, experiment: Experiment) -> list[int | None]:
        """Folds of the experiment's runs; None stands for the run on all labelled images, or of a frozen network."""
        if experiment.frozen:
            return [None]
        return [*self.folds, *([None] if experiment in self.full_experiments else [])]

    def run_of(self, experiment: Experiment, fold: int | None) -> int | None:
        """The run that serves a fold: its own or, of a frozen network, the only one there is (None)."""
        return None if experiment.frozen else fold

    def place_of(self, experiment: Experiment) -> Workspace:
        """Where an experiment's runs and features lie: a frozen network is the same in all rounds of pseudo-labels."""
        return replace(self.workspace, round=0) if experiment.frozen else self.workspace

    def run_folder(self, experiment: Experiment, fold: int | None) -> Path:
        """Folder of the run that serves a fold."""
        return self.place_of(experiment).run(experiment.name, self.run_of(experiment, fold))

    def features_folder(self, experiment: Experiment, fold: int | None) -> Path:
        """Folder of the features by the run that serves a fold."""
        return self.place_of(experiment).features(experiment.name, self.run_of(experiment, fold))

    def starts_pretrained(self, experiment: Experiment) -> bool:
        """Whether an experiment starts from the backbone that the recipe pretrains."""
        return self.pretext is not None and not experiment.model.names_file

    @cached_property
    def pseudo_labels(self) -> pd.DataFrame | None:
        """The test images that join training in this round, for every fold; None before the first round."""
        if not self.workspace.round:
            return None
        return read_pseudo_labels(self.workspace.pseudo_labels(self.recipe.name))

    def at_round(self, number: int) -> Project:
        """The same project in a round of pseudo-labels, which has its own runs and features; 0: before the first."""
        return replace(self, workspace=replace(self.workspace, round=number), data_keys=self.keys)

    def with_combine(self, **changes: object) -> Project:
        """The same project with other settings of `combine`."""
        combine = self.recipe.combine.model_copy(update=changes)
        return replace(self, recipe=self.recipe.model_copy(update={"combine": combine}), data_keys=self.keys)


def open_project(
    competition: str,
    recipe: str,
    work: Path,
    pairs: list[str] | None = None,
    skip_unreadable: bool = False,
    settings: Settings | None = None,
) -> Project:
    """Open a project; only YAML files are read.

    Parameters
    ----------
    competition, recipe : str
        Name of a shipped configuration, or path of a YAML file.
    work : Path
        Work folder; the competition's files go to `work/<competition>/`.
    pairs : list of str, optional
        Overrides of settings, `key=value`.
    skip_unreadable : bool
        Leave out images that cannot be decoded instead of stopping.
    settings : Settings, optional
        Folders; default: those of SETTINGS.json.

    Returns
    -------
    Project
    """
    settings = settings or read_settings()
    contest = load_competition(competition, settings)
    loaded, experiments = load_recipe(recipe, parse_overrides(pairs or []))
    pretext = load_pretext(recipe, loaded, experiments)
    workspace = Workspace(work / contest.name)
    sized = tuple(_sized(item, settings.weights) for item in experiments)
    return Project(contest, loaded, sized, workspace, skip_unreadable, pretext, settings)


def _sized(experiment: Experiment, weights: Path) -> Experiment:
    """The experiment with the size that its network was pretrained at, where it says none. weights: their folder."""
    if experiment.image.has_size:
        return experiment
    from whaleid.models.backbone import pretrained_size  # timm takes seconds to import

    width, height = pretrained_size(experiment.model.backbone, weights)
    return experiment.model_copy(
        update={"image": experiment.image.model_copy(update={"width": width, "height": height})}
    )


def all_images_key(competition: Competition, workspace: Workspace, skip_unreadable: bool) -> str:
    """Digest of all images and their rows."""
    return digest("images", VERSION["images"], images_key(competition, workspace.digests), skip_unreadable)
