"""The inference kernel: read the bundle, extract features of the test images, rank, write the submission.

A work folder like the local one is put together in scratch space: the labelled images' rows come from the data set of
assets, the test images' rows are made here. Ranking is the project's own code, so it answers as the local pipeline
does; nothing is trained but what the recipe fits on saved features.
"""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from whaleid.config.settings import WEIGHTS, Settings
from whaleid.data.competition import first_few, inspect_rows, listed_names
from whaleid.data.images_table import fingerprint_rows, images_table, unreadable_line
from whaleid.data.listing import read_listed
from whaleid.data.masks import masks_of
from whaleid.data.pseudo import read_pseudo_labels, write_pseudo_labels
from whaleid.ensemble.summary import Figures, ladder_lines
from whaleid.features.rows import join_rows, keep_rows
from whaleid.kaggle.kernel.assets import BOXES, MASKS, PSEUDO, REVIEWS, SOURCES, STACK
from whaleid.kaggle.kernel.budget import Budget, Cost, Plan, make_plan
from whaleid.kaggle.kernel.extraction import TestImages, extract_test_features, free_disk, gpus, time_per_image
from whaleid.kaggle.kernel.inputs import KernelFolders, log
from whaleid.pipeline.ladder import rank_features
from whaleid.pipeline.project import Project
from whaleid.pipeline.submission import write_answer
from whaleid.pipeline.transfer import PROJECT, project_from_json, without_experiments
from whaleid.pipeline.workspace import source_of
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import write_json

SUBMISSION = "submission.csv"
NOTES = "kernel.json"


def run_inference(folders: KernelFolders, budget: Budget) -> Path:
    """Write the submission.

    Parameters
    ----------
    folders : KernelFolders
    budget : Budget
        If it is too short, test-time augmentation and then whole experiments are left out.

    Returns
    -------
    Path
        ``submission.csv`` in the working folder; ``kernel.json`` beside it says what was left out.
    """
    project, content = open_bundle(folders)
    images, unreadable = test_rows(project)
    project, plan, figures = rank_images(project, folders, content, images, budget)
    target = folders.working / SUBMISSION
    write_answer(project, target)
    log("\n".join(ladder_lines(figures)))
    notes = {
        "recipe": project.recipe.name,
        "commit": content["commit"],
        "cv": figures["ladder"]["rungs"][-1]["map"],
        "local_cv": content["cv"],
        "test_images": len(images),
        "unreadable": unreadable,
        "experiments": list(plan.kept),
        "without_views": sorted(plan.one_view),
        "dropped": list(plan.dropped),
        "seconds": round(budget.elapsed(), 1),
    }
    write_json(folders.working / NOTES, notes)
    log(f"submission: {target}")
    return target


def open_bundle(folders: KernelFolders) -> tuple[Project, dict[str, Any]]:
    """The project of a data set of assets, with its work folder in scratch space, and what its project.json holds."""
    content = json.loads((folders.assets / PROJECT).read_text())
    boxes, masks, reviews = (folders.assets / name for name in (BOXES, MASKS, REVIEWS))
    settings = Settings(
        raw=folders.competition,
        work=folders.scratch / "work",
        weights=folders.assets / WEIGHTS,
        submissions=folders.scratch / "submissions",
    )
    shutil.rmtree(settings.work, ignore_errors=True)
    project = project_from_json(
        content,
        folders.competition,
        settings,
        boxes if boxes.is_file() else None,
        masks if masks.is_dir() else None,
        reviews if reviews.is_file() else None,
    )
    return project, content


def rank_images(
    project: Project, folders: KernelFolders, content: dict[str, Any], images: pd.DataFrame, budget: Budget | None
) -> tuple[Project, Plan, Figures]:
    """Rank images as the recipe ranks its test images; the candidates lie in the project's work folder.

    Parameters
    ----------
    project, content
        As from `open_bundle`.
    folders : KernelFolders
    images : DataFrame
        Rows of images.parquet, of split "test".
    budget : Budget or None
        None: there is no time limit.

    Returns
    -------
    Project
        Without the experiments for which there was no time.
    Plan
        What was extracted.
    Figures
        Of the ladder, ranked again.
    """
    labelled = pd.read_parquet(folders.assets / project.workspace.images.name)
    _fill_work_folder(project, folders, content["inputs"], labelled, images)
    _describe_keypoints(project, folders, content["inputs"]["local"], images)
    identities = labelled["identity"].dropna().astype(str).unique()
    masks = masks_of(project.competition, images) if project.removes_background else None
    test = TestImages(images, folders.competition, len(labelled), identities, folders.scratch / "images", masks)
    plan = extract_features(project, folders, content, test, budget)
    project = _project_to_rank(project, folders, plan)
    log(f"ranking with {len(project.experiments)} experiments{'' if budget is None else f', {_left(budget)}'}")
    return project, plan, rank_features(project, project.workspace.candidates(project.recipe.name), checks=False)


def _left(budget: Budget) -> str:
    return f"{budget.left() / 3600:.2f} h left"


def _project_to_rank(project: Project, folders: KernelFolders, plan: Plan) -> Project:
    """The project without dropped experiments. A stack comes fitted; without some of its inputs it is fitted here."""
    kept = without_experiments(project, plan.dropped)
    if kept.recipe.combine.stack is None:
        return kept
    if not plan.dropped:
        return replace(project, stack_models=folders.assets / STACK, data_keys=project.keys)
    log("the stack is fitted again: the saved one was fitted on experiments that are dropped here")
    return kept


# ----------------------------------------------------------------------------------------------- the test images


def test_rows(project: Project) -> tuple[pd.DataFrame, list[str]]:
    """The test images that can be read.

    Returns
    -------
    DataFrame
        Their rows of images.parquet.
    list of str
        Names of the missing and unreadable images, in the order of the CSV. The submission gives them the most
        frequent labels.
    """
    competition = project.competition
    rows, problems = inspect_rows(competition)
    serious = [problem.message for problem in problems if problem.kind != "missing"]
    if serious:
        raise WhaleidError(serious[0])
    assert competition.test is not None  # `bundle.kernel_settings` checks it
    listed = read_listed(competition.root, competition.test)[competition.test.image]
    rows = rows[rows["split"] == "test"].reset_index(drop=True)
    names = pd.Series(listed_names(competition, rows["image"]))
    missing = listed[~listed.isin(names)].tolist()
    if missing:
        which = f"{len(missing):,} of {len(listed):,} listed test images are missing: {first_few(missing)}"
        log(f"warning: {competition.root}: {which}; they get the most frequent labels")
    found = fingerprint_rows(competition, rows)
    if not found.readable.all():
        log(f"warning: {unreadable_line(competition.root, rows, found)}; they get the most frequent labels")
    left_out = {*missing, *names[~found.readable]}
    rows, found = rows[found.readable].reset_index(drop=True), found.subset(found.readable)
    if rows.empty:
        raise WhaleidError(f"{competition.root}: none of {len(listed):,} listed test images can be read")
    log(f"{len(rows):,} test images")
    return images_table(competition, rows, found), [name for name in listed if name in left_out]


def _fill_work_folder(
    project: Project, folders: KernelFolders, inputs: dict[str, Any], labelled: pd.DataFrame, images: pd.DataFrame
) -> None:
    """Tables, runs and foreign features where the ranking looks for them."""
    workspace = project.workspace
    workspace.root.mkdir(parents=True)
    both = pd.concat([labelled, images.astype(labelled.dtypes.to_dict(), errors="ignore")], ignore_index=True)
    both.to_parquet(workspace.images, index=False)
    shutil.copyfile(folders.assets / workspace.folds.name, workspace.folds)
    if workspace.round:
        labels = read_pseudo_labels(folders.assets / PSEUDO)
        write_pseudo_labels(labels, workspace.pseudo_labels(project.recipe.name))
    (workspace.root / "runs").symlink_to(folders.assets / "runs")
    for name, parts in inputs["foreign"].items():
        target = workspace.root / SOURCES / name
        for part in parts:
            keep_rows(folders.assets / SOURCES / name / part, target / part, both["image"])
        project.recipe.sources[name] = str(target)


def _describe_keypoints(project: Project, folders: KernelFolders, local: list[str], images: pd.DataFrame) -> None:
    """Keypoints of the test images, joined to those of the labelled ones."""
    config, competition, workspace = project.local_matching, project.competition, project.workspace
    if config is None:
        return
    from whaleid.local_matching.keypoints import describe_images

    began = time.monotonic()
    for name in local:
        out, target = folders.scratch / "test" / name, workspace.root / name
        shutil.rmtree(out, ignore_errors=True)
        masks = masks_of(competition, images)
        describe_images(images, competition.root, out, config, masks=masks, weights=project.settings.weights)
        join_rows([folders.assets / name, out], target)
        shutil.rmtree(out)
    log(f"keypoints of {len(images):,} test images in {(time.monotonic() - began) / 60:.1f} min")


# ------------------------------------------------------------------------------------------------- the features


def extract_features(
    project: Project, folders: KernelFolders, content: dict[str, Any], test: TestImages, budget: Budget | None
) -> Plan:
    """Features of the test images by as many experiments as there is time for, strongest first.

    Returns
    -------
    Plan
        What was extracted and what was dropped.
    """
    runs: dict[str, list[str]] = {}
    for folder in content["inputs"]["features"]:
        runs.setdefault(source_of(Path(folder).parts[1]), []).append(folder)
    devices = gpus()
    log(f"extracting features on {f'{len(devices)} GPUs' if devices != [None] else 'the CPU'}")
    if budget is None:
        for name in runs:
            _extract_experiment(name, runs[name], folders, project, test, True, devices)
        return Plan(tuple(runs), frozenset(), (), 0.0)
    costs = {name: _cost(name, runs[name], content["scores"], folders, test, len(devices)) for name in runs}
    plan = make_plan(list(costs.values()), budget.left())
    kept: list[str] = []
    one_view: set[str] = set()
    while plan.kept:
        log(f"time: {_left(budget)}, {plan.seconds / 3600:.2f} h of extraction expected")
        name, waiting = plan.kept[0], plan.kept[1:]
        began = time.monotonic()
        _extract_experiment(name, runs[name], folders, project, test, name not in plan.one_view, devices)
        kept.append(name)
        one_view |= plan.one_view & {name}
        expected = costs[name].one_view if name in plan.one_view else costs[name].all_views
        slower = max(1.0, (time.monotonic() - began) / max(expected, 1e-9))
        rest = [costs[other] for other in waiting]
        rest = [replace(one, one_view=one.one_view * slower, all_views=one.all_views * slower) for one in rest]
        plan = make_plan(rest, budget.left(), keep_one=False)
    dropped = [cost.experiment for cost in sorted(costs.values(), key=lambda cost: -cost.score)]
    dropped = [name for name in dropped if name not in kept]
    if one_view:
        log(f"time limit: without test-time augmentation: {', '.join(sorted(one_view))}")
    if dropped:
        log(f"time limit: dropped, the weakest first: {', '.join(reversed(dropped))}")
    return Plan(tuple(kept), frozenset(one_view), tuple(dropped), 0.0)


def _cost(
    name: str, features: list[str], scores: dict[str, float], folders: KernelFolders, test: TestImages, devices: int
) -> Cost:
    """An experiment's cost, estimated with its first run."""
    one_view, all_views = time_per_image(folders.assets / _run_of(features[0]), test)
    images = -(-len(features) // devices) * len(test.images)
    return Cost(name, scores.get(name, 0.0), one_view * images, all_views * images)


def _run_of(features: str) -> Path:
    """`runs/<experiment>/<fold>` of `features/<experiment>/<fold>`."""
    return Path("runs", *Path(features).parts[1:])


def _extract_experiment(
    name: str,
    features: list[str],
    folders: KernelFolders,
    project: Project,
    test: TestImages,
    all_views: bool,
    devices: list[int | None],
) -> None:
    """Features by all runs of an experiment, one run on each GPU at a time, joined to the labelled images' rows."""
    free_disk(test)
    began = time.monotonic()

    def work(place: int, device: int | None) -> None:
        for folder in features[place :: len(devices)]:
            out = folders.scratch / "test" / folder
            run = folders.assets / _run_of(folder)
            extract_test_features(run, test, out, all_views, f"{name} {Path(folder).name}", device)
            join_rows([folders.assets / folder, out], project.workspace.root / folder)
            shutil.rmtree(out)

    with ThreadPoolExecutor(len(devices)) as pool:
        for job in [pool.submit(work, place, device) for place, device in enumerate(devices)]:
            job.result()
    minutes = (time.monotonic() - began) / 60
    log(f"{name}: {len(features)} runs in {minutes:.1f} min{'' if all_views else ', one view'}")
