"""The inference kernel: from the mounted test images and the carried weights to `submission.csv`.

A work folder as at home is put together in scratch space: labelled rows come from the data set, the test images'
rows are made here, and then the project's own stages answer (`answers.submission_stage`). Whatever those stages
learn to do at home, they do here.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from whaleid.config.settings import WEIGHTS, Settings
from whaleid.data.competition import inspect_rows, named, read_table
from whaleid.data.fingerprints import fingerprint_images
from whaleid.data.images_table import images_table, readable, unreadable_line
from whaleid.data.pseudo import read_pseudo_labels, write_pseudo_labels
from whaleid.ensemble.summary import ladder_lines
from whaleid.kaggle.kernel.budget import Budget, Cost, Plan, make_plan
from whaleid.kaggle.kernel.embed import Test, embed_test, gpus, make_room, probe
from whaleid.kaggle.kernel.places import Places, read_json, say
from whaleid.kaggle.kernel.rows import join_rows, keep_rows
from whaleid.pipeline.carried import (
    MASKS,
    ORDERS,
    PROJECT,
    PSEUDO,
    copy_stamps,
    open_carried,
    ordered_by,
    with_images_key,
    without_sources,
)
from whaleid.pipeline.project import Project
from whaleid.pipeline.stages import local_stage
from whaleid.pipeline.submission import submission_stage
from whaleid.pipeline.workspace import Workspace, source_of
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, write_json

SUBMISSION = "submission.csv"
NOTES = "kernel.json"


def run_inference(places: Places, budget: Budget) -> Path:
    """Write `submission.csv` and `kernel.json` (what was done, dropped and left out) into the working folder."""
    content = read_json(places.assets / PROJECT)
    boxes, masks = places.assets / "boxes.csv", places.assets / MASKS
    scratch = places.scratch
    settings = Settings(
        raw=places.competition,
        work=scratch / "work",
        weights=places.assets / WEIGHTS,
        submissions=scratch / "submissions",
    )
    shutil.rmtree(settings.work, ignore_errors=True)
    project = open_carried(
        content,
        places.competition,
        settings,
        boxes if boxes.is_file() else None,
        masks if masks.is_dir() else None,
    )
    labelled = pd.read_parquet(places.assets / project.workspace.images.name)
    images, unreadable = test_rows(project)
    _lay_out(project, places, content, labelled, images)
    _describe(project, places, content["carried"]["local"], images)
    identities = labelled["identity"].dropna().astype(str).unique()
    test = Test(images, places.competition, len(labelled), identities, places.scratch / "images")
    plan = embed_all(project, places, content, test, budget)
    project = without_sources(project, plan.dropped)
    if project.recipe.combine.stack is not None:
        if plan.dropped:
            say("the stack is taught again: it learnt at home from sources that are dropped here")
        else:
            project = ordered_by(project, places.assets / ORDERS)
    say(f"combining {len(project.experiments)} sources, {budget.left() / 3600:.2f} h left of the limit")
    written = submission_stage(project, 1, [])
    target = places.working / SUBMISSION
    with atomic_path(target) as temporary:
        shutil.copyfile(written, temporary)
    figures = _figures(project)
    say("\n".join(ladder_lines(figures)))
    notes = {
        "recipe": project.recipe.name,
        "commit": content["commit"],
        "cv": figures["ladder"]["rungs"][-1]["map"],
        "cv_at_home": content["cv"],
        "test_images": len(images),
        "unreadable": unreadable,
        "sources": list(plan.kept),
        "without_views": sorted(plan.plain),
        "dropped": list(plan.dropped),
        "seconds": round(budget.clock() - budget.started, 1),
    }
    write_json(places.working / NOTES, notes)
    say(f"submission: {target}")
    return target


def _figures(project: Project) -> dict[str, Any]:
    from whaleid.pipeline.metrics import read_figures

    figures = read_figures(project)
    assert figures is not None  # submission_stage has just written them
    return figures


# ----------------------------------------------------------------------------------------------- the test images


def test_rows(project: Project) -> tuple[pd.DataFrame, list[str]]:
    """The test images' rows of images.parquet, and the names of those that are not there or cannot be read and have
    none, in the order in which they are listed.
    """
    competition = project.competition
    rows, problems = inspect_rows(competition)
    serious = [problem.message for problem in problems if problem.kind != "missing"]
    if serious:
        raise WhaleidError(serious[0])
    assert competition.test is not None  # without it there is no kernel
    listed = read_table(competition.root / competition.test.csv, [competition.test.image])[competition.test.image]
    rows = rows[rows["split"] == "test"].reset_index(drop=True)
    absent = listed[~listed.isin(rows["image"])].tolist()
    if absent:
        which = f"{len(absent):,} of {len(listed):,} listed test images are not there: {named(absent)}"
        say(f"warning: {competition.root}: {which}; their rows are filled by the prior")
    found = fingerprint_images(competition.root, rows["path"].tolist())
    bad = found.problem != ""
    if bad.any():
        say(f"warning: {unreadable_line(competition.root, rows, found)}; their rows are filled by the prior")
    left_out = {*absent, *rows["image"][bad]}
    rows, found = rows[~bad].reset_index(drop=True), readable(found)
    if rows.empty:
        raise WhaleidError(f"{competition.root}: none of {len(listed):,} listed test images can be read")
    say(f"{len(rows):,} test images")
    return images_table(competition, rows, found), [name for name in listed if name in left_out]


def _lay_out(
    project: Project, places: Places, content: dict[str, Any], labelled: pd.DataFrame, images: pd.DataFrame
) -> None:
    """Tables, runs, foreign features and keys where the stages look for them."""
    workspace, reads = project.workspace, content["carried"]
    workspace.root.mkdir(parents=True)
    both = pd.concat([labelled, images.astype(labelled.dtypes.to_dict(), errors="ignore")], ignore_index=True)
    both.to_parquet(workspace.images, index=False)
    shutil.copyfile(places.assets / workspace.folds.name, workspace.folds)
    if workspace.round:
        labels = read_pseudo_labels(places.assets / PSEUDO)
        write_pseudo_labels(labels, workspace.pseudo_labels(project.recipe.name))
    (workspace.root / "runs").symlink_to(places.assets / "runs")
    outputs = [Path(name) for name in [*reads["runs"], *reads["features"], *reads["local"]]]
    tables = [Path(workspace.images.name), Path(workspace.folds.name)]
    copy_stamps(places.assets / "stamps", workspace.root / ".stamps", [*outputs, *tables])
    for name, leaves in reads["foreign"].items():
        folder = workspace.root / "sources" / name
        for leaf in leaves:
            keep_rows(places.assets / "sources" / name / leaf, folder / leaf, both["image"])
        project.recipe.sources[name] = str(folder)


def _describe(project: Project, places: Places, local: list[str], images: pd.DataFrame) -> None:
    """Keypoints of the test images by the stage that makes them at home, joined to those of the labelled ones."""
    if not local:
        return
    workspace = Workspace(places.scratch / "test" / project.competition.name)
    shutil.rmtree(workspace.root, ignore_errors=True)
    workspace.root.mkdir(parents=True)
    images.to_parquet(workspace.images, index=False)
    workspace.mark_current(workspace.images, project.images_key)
    alone = replace(project, workspace=workspace)
    alone = with_images_key(alone, project.images_key, project.labelled_key, project.masks_key)
    began = time.monotonic()
    local_stage(alone)
    for name in local:
        join_rows([places.assets / name, workspace.root / name], project.workspace.root / name)
    shutil.rmtree(workspace.root)
    say(f"keypoints of {len(images):,} test images in {(time.monotonic() - began) / 60:.1f} min")


# ------------------------------------------------------------------------------------------------- the features


def embed_all(project: Project, places: Places, content: dict[str, Any], test: Test, budget: Budget) -> Plan:
    """Features of all images by every source that there is time for; returns what was kept and what was dropped."""
    runs = runs_of(content)
    devices = gpus()
    say(f"embedding on {f'{len(devices)} GPUs' if devices != [None] else 'the CPU'}")
    costs = [_cost(source, folders, content, places, test, len(devices)) for source, folders in runs.items()]
    order = [cost.source for cost in sorted(costs, key=lambda cost: -cost.score)]
    plan = make_plan(costs, budget.left())
    _tell(plan, Plan((), frozenset(), (), 0.0), budget)
    kept: list[str] = []
    plain: set[str] = set()
    while plan.kept:
        source, rest = plan.kept[0], plan.kept[1:]
        began = time.monotonic()
        _embed_source(source, runs[source], places, project, test, plan.full(source), devices)
        kept.append(source)
        plain |= plan.plain & {source}
        expected = next(cost.plain if source in plan.plain else cost.views for cost in costs if cost.source == source)
        slower = max(1.0, (time.monotonic() - began) / max(expected, 1e-9))
        waiting = [cost for cost in costs if cost.source in rest]
        again = [replace(cost, plain=cost.plain * slower, views=cost.views * slower) for cost in waiting]
        after = make_plan(again, budget.left(), must=False)
        _tell(after, replace(plan, kept=rest), budget)
        plan = after
    return Plan(tuple(kept), frozenset(plain), tuple(name for name in order if name not in kept), 0.0)


def runs_of(content: dict[str, Any]) -> dict[str, list[str]]:
    """Source -> its folders of features, as carried."""
    runs: dict[str, list[str]] = {}
    for folder in content["carried"]["features"]:
        runs.setdefault(source_of(Path(folder).parts[1]), []).append(folder)
    return runs


def _run_of(features: str) -> Path:
    """`runs/<source>/<fold>` of `features/<source>/<fold>`."""
    return Path("runs", *Path(features).parts[1:])


def _cost(source: str, folders: list[str], content: dict[str, Any], places: Places, test: Test, devices: int) -> Cost:
    """A source's cost, found with its first run on a few images."""
    plain, views = probe(places.assets / _run_of(folders[0]), test)
    turns = -(-len(folders) // devices) * len(test.images)
    return Cost(source, content["scores"].get(source, 0.0), plain * turns, views * turns)


def _embed_source(
    source: str,
    folders: list[str],
    places: Places,
    project: Project,
    test: Test,
    full: bool,
    devices: list[int | None],
) -> None:
    """All runs of a source, one on each GPU at a time; the labelled rows are joined to each."""
    make_room(test)
    began = time.monotonic()

    def work(place: int, device: int | None) -> None:
        for folder in folders[place :: len(devices)]:
            alone = places.scratch / "test" / folder
            run = places.assets / _run_of(folder)
            embed_test(run, test, alone, full, f"{source} {Path(folder).name}", device)
            join_rows([places.assets / folder, alone], project.workspace.root / folder)
            shutil.rmtree(alone)

    with ThreadPoolExecutor(len(devices)) as pool:
        for job in [pool.submit(work, place, device) for place, device in enumerate(devices)]:
            job.result()
    seconds = time.monotonic() - began
    speed = len(folders) * len(test.images) / max(seconds, 1e-9)
    say(f"{source}: {len(folders)} runs in {seconds / 60:.1f} min, {speed:,.0f} images/s{'' if full else ', one view'}")


def _tell(plan: Plan, before: Plan, budget: Budget) -> None:
    """Say what the plan gives up that the one before had kept."""
    if plan.kept:
        say(f"time: {budget.left() / 3600:.2f} h left, {plan.seconds / 3600:.2f} h of embedding expected")
    views = sorted(plan.plain - before.plain)
    if views:
        say(f"time budget: without test-time views: {', '.join(views)}")
    dropped = [name for name in plan.dropped if name not in before.dropped]
    if dropped:
        say(f"time budget: dropped, the weakest first: {', '.join(reversed(dropped))}")
    if plan.seconds > budget.left() > 0 and len(plan.kept) == 1:
        say(f"time budget: {plan.kept[0]} alone may take longer than there is; it is embedded all the same")
