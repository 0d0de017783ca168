"""`make kernel`: a folder that holds all that a Kaggle kernel needs, and nothing that it does not.

    kernel/                    kernel-metadata.json, a thin script, the same as a notebook
    datasets/code/             the package and configs/, pure Python
    datasets/wheels/           wheels of what Kaggle's image lacks
    datasets/assets/           inference: runs, features of the labelled images, tables, weights of networks that match
                               keypoints; training: tables, weights

Of the logits only those rows are carried that the ensemble is fitted on: each labelled image's by the model of its own
fold, out of fold. All of them would be five times as many, and more than the rest together where identities are many.
Every data set has its dataset-metadata.json and a MANIFEST.json. The kernel runs the project's own stages
(`inference.py`): there is no second implementation that could answer otherwise.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from whaleid.config.files import repository_root
from whaleid.config.settings import WEIGHTS
from whaleid.data.pseudo import write_pseudo_labels
from whaleid.ensemble.stack_models import STACK_FOLDER
from whaleid.kaggle.kernel.rows import keep_rows
from whaleid.kaggle.kernel.script import notebook, script
from whaleid.kaggle.kernel.size import LOGITS, KernelSize, finished_size
from whaleid.kaggle.kernel.wheels import collect_wheels, needed_wheels
from whaleid.kaggle.metadata import PLACEHOLDER, dataset_metadata, kernel_metadata, slug_of
from whaleid.pipeline.carried import (
    MASKS,
    ORDERS,
    PROJECT,
    PSEUDO,
    Carried,
    carried,
    copy_masks,
    copy_stamps,
    project_content,
)
from whaleid.pipeline.project import Project
from whaleid.pipeline.pseudo_labels import answered
from whaleid.pipeline.stages import folds_stage, images_stage
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, write_json
from whaleid.utils.manifest import write_manifest

CODE, WHEELS, ASSETS = "code", "wheels", "assets"
STAMPS = "stamps"
"""The work folder's `.stamps`, by a name that no upload passes over."""
RUN_FILES = ("checkpoint.safetensors", "config.yaml", "classes.txt")
_BIG = 160 * 160
"""Pixels of an input from which a kernel asks for GPUs; smaller ones take minutes on its four cores."""


@dataclass(frozen=True)
class KernelOptions:
    """owner: Kaggle user. hours: the limit. gpu: None chooses by the size of the images. notebook: push that form.

    experiment, fold: the training kernel's; both None for inference.
    """

    owner: str = PLACEHOLDER
    hours: float = 12.0
    gpu: bool | None = None
    notebook: bool = False
    experiment: str | None = None
    fold: int | None = None

    @property
    def mode(self) -> str:
        return "inference" if self.experiment is None else "training"


@dataclass(frozen=True)
class Bundle:
    """What was made. sizes: bytes of each data set, by its folder's name."""

    folder: Path
    kernel: str
    sizes: dict[str, int]


def bundle_folder(project: Project, experiment: str | None = None, fold: int | None = None) -> Path:
    """`work/<competition>/kernel/<recipe>/`; the kernel that trains a run has a folder of its own beside it.

    Raises WhaleidError for an experiment without a fold, or the other way round, or that the recipe does not have.
    """
    name = project.recipe.name
    if (experiment is None) != (fold is None):
        raise WhaleidError("--experiment and --fold go together: they name the run that a training kernel makes")
    if experiment is not None:
        name = f"{name}-{project.experiment(experiment).name}-fold{fold}"
    return project.workspace.root / "kernel" / name


def make_bundle(project: Project, options: KernelOptions, wheels: Path) -> Bundle:
    """Write the bundle of a project whose ensemble (inference) or tables (training) are made.

    wheels: folder where downloaded wheels are kept. The folder appears whole, or not at all.
    Raises WhaleidError for a run that is missing, names or a size that Kaggle refuses, wheels not to be had.
    """
    folder = bundle_folder(project, options.experiment, options.fold)
    slugs = dataset_slugs(project, options)
    settings = kernel_settings(project, options, slugs)
    if options.experiment is None:
        inference_size(project).require_fit(project.recipe.name)
    with atomic_path(folder) as out:
        _write_code(out / "datasets" / CODE)
        collect_wheels(needed_wheels(_package()), wheels, out / "datasets" / WHEELS)
        assets = out / "datasets" / ASSETS
        assets.mkdir(parents=True)
        if options.experiment is None:
            _write_inference(project, assets)
        else:
            _write_training(project, options, assets)
        sizes = {}
        for role, slug in slugs.items():
            place = out / "datasets" / role
            sizes[role] = write_manifest(place, role).size
            write_json(place / "dataset-metadata.json", dataset_metadata(options.owner, slug))
        _write_kernel(project, options, slugs, settings, out / "kernel")
    return Bundle(folder, f"{options.owner}/{kernel_slug(project, options)}", sizes)


def dataset_slugs(project: Project, options: KernelOptions) -> dict[str, str]:
    """Role of each data set -> its slug. Code and wheels are shared by all kernels of one user."""
    words = ["whaleid", project.competition.name, project.recipe.name]
    own = slug_of(*words) if options.experiment is None else slug_of(*words, "start")
    return {CODE: "whaleid-code", WHEELS: "whaleid-wheels", ASSETS: own}


def kernel_slug(project: Project, options: KernelOptions) -> str:
    """As the assets' slug says it, and what the kernel does."""
    words = ["whaleid", project.competition.name, project.recipe.name]
    if options.experiment is None:
        return slug_of(*words, "inference")
    return slug_of(*words, "train", options.experiment, f"fold{options.fold}")


def competition_slug(project: Project) -> str:
    """The competition's slug on Kaggle; for one that is not there, that of the data set its user makes of it."""
    return project.competition.kaggle or slug_of("whaleid", project.competition.name, "data")


def kernel_settings(project: Project, options: KernelOptions, slugs: dict[str, str]) -> dict[str, Any]:
    """What the script holds: where its inputs are, and what to do with them."""
    test = project.competition.test
    if test is None and options.experiment is None:
        raise WhaleidError(f"competition {project.competition.name} has no test images: add `test` to its YAML")
    table = project.competition.train if test is None else test
    return {
        "mode": options.mode,
        "datasets": slugs,
        "competition": competition_slug(project),
        "listing": table.csv,
        "hours": options.hours,
        "experiment": options.experiment,
        "fold": options.fold,
    }


def wants_gpu(project: Project, options: KernelOptions) -> bool:
    """Whether the kernel asks for GPUs."""
    if options.gpu is not None:
        return options.gpu
    sizes = [item.image.pixels or (item.image.width or 0) * (item.image.height or 0) for item in project.experiments]
    return options.mode == "training" or max(sizes, default=0) >= _BIG or bool(project.local_weights)


# ---------------------------------------------------------------------------------------------- the data sets


def _package() -> Path:
    return Path(__file__).resolve().parents[2]


def _write_code(out: Path) -> None:
    """src/whaleid, configs and the licence; no bytecode."""
    package, root = _package(), repository_root()
    shutil.copytree(package, out / "src" / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    if (root / "configs").is_dir():
        shutil.copytree(root / "configs", out / "configs")
    if (root / "LICENSE").is_file():
        shutil.copyfile(root / "LICENSE", out / "LICENSE")


def _write_inference(project: Project, out: Path) -> None:
    """Runs, labelled features and descriptors, tables, keys; of several rounds those of the one that is used."""
    project = answered(project)
    images, folds = images_stage(project), folds_stage(project)
    labelled = labelled_rows(images)
    reads = carried(project)
    root = project.workspace.root
    for run in reads.runs:
        _link_run(root / run, out / run)
    for folder in reads.features:
        keep_rows(root / folder, out / folder, labelled["image"], {LOGITS: out_of_fold(folds, [folder])})
    for folder in reads.local:
        keep_rows(root / folder, out / folder, labelled["image"])
    test = images["image"][images["split"] == "test"]
    for name, paths in reads.foreign.items():
        for path in paths:
            few = {LOGITS: pd.concat([out_of_fold(folds, [path]), test])}
            keep_rows(path, out / "sources" / name / path.name, images["image"], few)
    _write_tables(project, labelled, folds, out)
    if project.recipe.combine.stack is not None:
        _copy_orders(project.workspace.candidates(project.recipe.name), out / ORDERS)
    if project.pseudo_labels is not None:
        write_pseudo_labels(project.pseudo_labels, out / PSEUDO)
    for path in project.local_weights:
        (out / WEIGHTS).mkdir(exist_ok=True)
        shutil.copyfile(path, out / WEIGHTS / path.name)
    if reads.local:
        copy_masks(project.competition, images[images["split"] == "test"], out / MASKS)
    outputs = [*reads.runs, *reads.features, *reads.local]
    copy_stamps(root / ".stamps", out / STAMPS, [*outputs, *_table_names(project)])
    write_json(out / PROJECT, {**project_content(project), **_strengths(project), "carried": _listing(reads)})


def _copy_orders(candidates: Path, out: Path) -> None:
    """What the stack learnt for the test set, so that the kernel orders it by what was validated at home."""
    folder = candidates / STACK_FOLDER
    if not folder.is_dir():
        raise WhaleidError(f"{folder}: missing; remove {candidates} and make submission again")
    shutil.copytree(folder, out)


def inference_size(project: Project) -> KernelSize:
    """What the kernel of a finished recipe will carry, by calculation."""
    project = answered(project)
    images, reads, root = images_stage(project), carried(project), project.workspace.root
    labelled = len(labelled_rows(images))
    return finished_size(
        [*(root / run / name for run in reads.runs for name in RUN_FILES), *project.local_weights],
        [root / folder for folder in reads.features],
        [path for paths in reads.foreign.values() for path in paths],
        [root / folder for folder in reads.local],
        labelled,
        len(images) - labelled,
        len(out_of_fold(folds_stage(project), list(reads.features))),
    )


def out_of_fold(folds: pd.DataFrame, folders: list[Path]) -> pd.Series:
    """Images of the folds that some folders `fold<k>` are of."""
    names = "fold" + folds["fold"].astype(str)
    return folds["image"][names.isin({folder.name for folder in folders})]


def labelled_rows(images: pd.DataFrame) -> pd.DataFrame:
    """The labelled rows of images.parquet, which come first: the test images' rows then follow as they do here."""
    labelled = images["split"].to_numpy() == "train"
    if not labelled[: labelled.sum()].all():
        raise WhaleidError("images.parquet: test images stand among the labelled ones; make data again")
    return images[labelled]


def _listing(reads: Carried) -> dict[str, Any]:
    return {
        "runs": [path.as_posix() for path in reads.runs],
        "features": [path.as_posix() for path in reads.features],
        "local": [path.as_posix() for path in reads.local],
        "foreign": {name: [path.name for path in paths] for name, paths in reads.foreign.items()},
    }


def _strengths(project: Project) -> dict[str, Any]:
    """Out-of-fold score of the answer, and of each source by itself (its best single rung)."""
    from whaleid.pipeline.metrics import read_figures

    figures = read_figures(project)
    if figures is None:
        raise WhaleidError(f"recipe {project.recipe.name} has not been combined yet: make submission first")
    rungs = figures["ladder"]["rungs"]
    scores = {
        item.name: max(
            (rung["map"] for rung in rungs if rung["name"] == item.name or rung["name"].startswith(f"{item.name} ")),
            default=0.0,
        )
        for item in project.experiments
    }
    return {"cv": rungs[-1]["map"], "scores": scores, "commit": figures["commit"]}


def _link_run(run: Path, out: Path) -> None:
    """The files of a finished run, without a second copy on the disk where that can be had."""
    out.mkdir(parents=True)
    for name in RUN_FILES:
        if not (run / name).is_file():
            raise WhaleidError(f"{run / name}: missing; a kernel embeds with the weights themselves: make train first")
        link_file(run / name, out / name)


def link_file(source: Path, target: Path) -> None:
    """A second name of a file, else (another disk) a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write_tables(project: Project, images: pd.DataFrame, folds: pd.DataFrame, out: Path) -> None:
    images.to_parquet(out / project.workspace.images.name, index=False)
    folds.to_csv(out / project.workspace.folds.name, index=False)
    if project.competition.boxes is not None:
        shutil.copyfile(project.competition.root / project.competition.boxes, out / "boxes.csv")


def _table_names(project: Project) -> list[Path]:
    return [Path(project.workspace.images.name), Path(project.workspace.folds.name)]


def _write_training(project: Project, options: KernelOptions, out: Path) -> None:
    """All rows of the tables, keys, and the weights that the experiment starts from."""
    from whaleid.models.weights import ensure_weights, find_weights

    images, folds = images_stage(project), folds_stage(project)
    _write_tables(project, images, folds, out)
    outputs = _table_names(project)
    experiment = project.experiment(str(options.experiment))
    weights = project.settings.weights
    if project.starts_pretrained(experiment):
        file = weights / f"{project.pretrained_name}.safetensors"
        folder = Path("pretrain", file.stem)
        if not file.is_file():
            raise WhaleidError(f"{file}: missing; the experiment starts from it: make pretrain first")
        outputs.append(folder)
    else:
        ensure_weights(experiment.model.backbone, experiment.model.weights, weights)
        file = find_weights(experiment.model.backbone, experiment.model.weights, weights)
    (out / WEIGHTS).mkdir()
    if file is not None:
        name = file.name if file.is_relative_to(weights) else f"{experiment.model.backbone}.safetensors"
        shutil.copyfile(file, out / WEIGHTS / name)
    (out / WEIGHTS / "README").write_text("Weights that training starts from; empty where it starts at random.\n")
    copy_stamps(project.workspace.root / ".stamps", out / STAMPS, outputs)
    write_json(out / PROJECT, {**project_content(project), "outputs": [path.as_posix() for path in outputs]})


# -------------------------------------------------------------------------------------------------- the kernel


def _write_kernel(
    project: Project, options: KernelOptions, slugs: dict[str, str], settings: dict[str, Any], out: Path
) -> None:
    """kernel-metadata.json, the script and the notebook."""
    slug = kernel_slug(project, options)
    datasets = list(slugs.values())
    competitions = [project.competition.kaggle] if project.competition.kaggle else []
    if not competitions:
        datasets.append(competition_slug(project))
    form = "ipynb" if options.notebook else "py"
    metadata = kernel_metadata(
        options.owner, slug, f"{slug}.{form}", datasets, competitions, wants_gpu(project, options)
    )
    out.mkdir()
    (out / f"{slug}.py").write_text(script(metadata["title"], settings))
    (out / f"{slug}.ipynb").write_text(notebook(metadata["title"], settings))
    write_json(out / "kernel-metadata.json", metadata)
