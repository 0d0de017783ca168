"""The data set of assets: what an inference or a training kernel reads of a finished local project.

Of the logits only out-of-fold rows are carried (each labelled image's by the run of its own fold), for nothing else
is fitted on them. All rows would be as many times more as there are folds.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from whaleid.config.settings import WEIGHTS
from whaleid.data.pseudo import write_pseudo_labels
from whaleid.data.reviews import reviews_path
from whaleid.ensemble.stack_models import STACK_FOLDER
from whaleid.features.rows import keep_rows
from whaleid.kaggle.kernel.size import LOGITS, KernelSize, carried_bytes
from whaleid.pipeline.metrics import read_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.rounds import in_used_round
from whaleid.pipeline.run_stages import pretrained_path
from whaleid.pipeline.transfer import PROJECT, STAMPS, copy_masks, copy_stamps, ensemble_inputs, project_to_json
from whaleid.pipeline.workspace import read_folds, read_images
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import write_json

RUN_FILES = ("checkpoint.safetensors", "config.yaml", "classes.txt")
BOXES, MASKS, PSEUDO, REVIEWS = "boxes.csv", "masks", "pseudo.csv", "reviews.csv"
SOURCES, STACK = "sources", "stack"
STAMPED = "stamps"
"""The work folder's `.stamps`, by a name that an upload does not skip."""


def write_inference_assets(project: Project, out: Path) -> None:
    """Runs, labelled images' features and keypoints, tables, networks of local matching, the fitted stack.

    Parameters
    ----------
    project : Project
        Its submission is made. Of several rounds of pseudo-labels the one that is used is taken.
    out : Path
        Existing folder.

    Raises
    ------
    WhaleidError
        If a file of a run or the fitted stack is missing.
    """
    project = in_used_round(project)
    images, folds, inputs = read_images(project.workspace), read_folds(project.workspace), ensemble_inputs(project)
    labelled, test = labelled_rows(images), images[images["split"] == "test"]
    root = project.workspace.root
    for run in inputs.runs:
        _link_run(root / run, out / run)
    for folder in inputs.features:
        keep_rows(root / folder, out / folder, labelled["image"], {LOGITS: _out_of_fold(folds, folder)})
    for folder in inputs.local:
        keep_rows(root / folder, out / folder, labelled["image"])
    for name, paths in inputs.foreign.items():
        for path in paths:
            logits = pd.concat([_out_of_fold(folds, path), test["image"]])
            keep_rows(path, out / SOURCES / name / path.name, images["image"], {LOGITS: logits})
    _write_tables(project, labelled, folds, out)
    if project.recipe.combine.stack is not None:
        _copy_stack(project.workspace.candidates(project.recipe.name), out / STACK)
    if project.pseudo_labels is not None:
        write_pseudo_labels(project.pseudo_labels, out / PSEUDO)
    for path in project.local_weights:
        (out / WEIGHTS).mkdir(exist_ok=True)
        shutil.copyfile(path, out / WEIGHTS / path.name)
    if inputs.local or project.removes_background:
        copy_masks(project.competition, test, out / MASKS)
    write_json(out / PROJECT, {**project_to_json(project), **_scores(project), "inputs": inputs.as_json()})


def inference_size(project: Project) -> KernelSize:
    """Size of what `write_inference_assets` will write, calculated from the sizes of the local files."""
    project = in_used_round(project)
    images, folds, inputs = read_images(project.workspace), read_folds(project.workspace), ensemble_inputs(project)
    root, labelled, count = project.workspace.root, len(labelled_rows(images)), len(images)
    weights = [*(root / run / name for run in inputs.runs for name in RUN_FILES), *project.local_weights]
    size = KernelSize(weights=float(sum(path.stat().st_size for path in weights if path.is_file())))
    for folder in inputs.features:
        own = len(_out_of_fold(folds, folder))
        embeddings, logits = carried_bytes(root / folder, labelled / count, own / count)
        size += KernelSize(embeddings=embeddings, logits=logits)
    for path in (path for paths in inputs.foreign.values() for path in paths):
        own = len(_out_of_fold(folds, path)) + count - labelled
        size += KernelSize(other=sum(carried_bytes(path, 1.0, own / count)))
    for folder in inputs.local:
        size += KernelSize(other=sum(carried_bytes(root / folder, labelled / count, 0.0)))
    return size


def write_training_assets(project: Project, experiment_name: str, out: Path) -> None:
    """All rows of the tables, their keys, and the weights that the experiment starts from.

    Raises
    ------
    WhaleidError
        If the pretrained weights of the recipe are missing, or the experiment is frozen.
    """
    from whaleid.models.weights import ensure_weights, starting_files

    images, folds = read_images(project.workspace), read_folds(project.workspace)
    _write_tables(project, images, folds, out)
    outputs = [Path(project.workspace.images.name), Path(project.workspace.folds.name)]
    experiment = project.experiment(experiment_name)
    if experiment.frozen:
        raise WhaleidError(f"experiment {experiment.name} is frozen: there is nothing to train")
    if experiment.image.needs_masks:
        copy_masks(project.competition, images, out / MASKS)
    weights = project.settings.weights
    if project.starts_pretrained(experiment):
        file = pretrained_path(project)
        if not file.is_file():
            raise WhaleidError(f"{file}: missing; the experiment starts from it: run whaleid pretrain first")
        outputs.append(Path("pretrain", file.stem))
        files = {Path(file.name): file}
    else:
        start = experiment.model.backbone, experiment.model.weights, weights
        ensure_weights(*start)
        files = starting_files(*start)
    (out / WEIGHTS).mkdir()
    for place, file in files.items():
        (out / WEIGHTS / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out / WEIGHTS / place)
    (out / WEIGHTS / "README").write_text("Weights that training starts from; none if it starts at random.\n")
    copy_stamps(project.workspace.root / STAMPS, out / STAMPED, outputs)
    write_json(out / PROJECT, {**project_to_json(project), "outputs": [path.as_posix() for path in outputs]})


def labelled_rows(images: pd.DataFrame) -> pd.DataFrame:
    """The labelled rows of images.parquet, which come first: the kernel appends the test images' rows."""
    labelled = images["split"].to_numpy() == "train"
    if not labelled[: labelled.sum()].all():
        raise WhaleidError(
            "images.parquet: test images stand among the labelled ones; remove it and run whaleid data build"
        )
    return images[labelled]


def link_file(source: Path, target: Path) -> None:
    """A hard link to a file or, on another disk, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _out_of_fold(folds: pd.DataFrame, folder: Path) -> pd.Series:
    """Images of the fold that a folder `fold<k>` is named after; none for `full`."""
    return folds["image"]["fold" + folds["fold"].astype(str) == folder.name]


def _link_run(run: Path, out: Path) -> None:
    out.mkdir(parents=True)
    for name in RUN_FILES:
        if not (run / name).is_file():
            raise WhaleidError(f"{run / name}: missing; a kernel needs the weights: run whaleid train first")
        link_file(run / name, out / name)


def _copy_stack(candidates: Path, out: Path) -> None:
    """The stack as it was fitted: fitted on another machine it could rank a few queries otherwise."""
    folder = candidates / STACK_FOLDER
    if not folder.is_dir():
        raise WhaleidError(f"{folder}: missing; remove {candidates} and run whaleid submission again")
    shutil.copytree(folder, out)


def _write_tables(project: Project, images: pd.DataFrame, folds: pd.DataFrame, out: Path) -> None:
    images.to_parquet(out / project.workspace.images.name, index=False)
    folds.to_csv(out / project.workspace.folds.name, index=False)
    if project.competition.boxes is not None:
        shutil.copyfile(project.competition.root / project.competition.boxes, out / BOXES)
    if project.competition.reviews is not None and reviews_path(project.competition).is_file():
        shutil.copyfile(reviews_path(project.competition), out / REVIEWS)


def _scores(project: Project) -> dict[str, Any]:
    """Out-of-fold score of the submission, and of each experiment's best ranker."""
    figures = read_figures(project)
    if figures is None:
        raise WhaleidError(f"recipe {project.recipe.name} has no ensemble yet: run whaleid submission first")
    rungs = figures["ladder"]["rungs"]

    def best(name: str) -> float:
        own = [rung["map"] for rung in rungs if rung["name"] == name or rung["name"].startswith(f"{name} ")]
        return max(own, default=0.0)

    scores = {item.name: best(item.name) for item in project.experiments}
    return {"cv": rungs[-1]["map"], "scores": scores, "commit": figures["commit"]}
