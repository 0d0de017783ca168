"""The training kernel: one run of a recipe, by the stages that train at home; its files go into the working folder.

The tables and keys of home are carried along, so what is trained here counts as up to date there: copy `runs/`,
`features/` and `.stamps/` of the output into `work/<competition>/` and go on.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from whaleid.config.settings import Settings
from whaleid.kaggle.kernel.places import Places, read_json, say
from whaleid.pipeline.carried import PROJECT, copy_stamps, open_carried
from whaleid.pipeline.stages import jobs_stage, select_jobs
from whaleid.utils.errors import WhaleidError


def run_training(places: Places, experiment: str, fold: int) -> None:
    """Train one experiment on one fold, embed every image with it, and leave both in the working folder."""
    content = read_json(places.assets / PROJECT)
    boxes = places.assets / "boxes.csv"
    settings = Settings(raw=places.competition, work=places.scratch / "work", weights=places.assets / "weights")
    project = open_carried(content, places.competition, settings, boxes if boxes.is_file() else None)
    workspace = project.workspace
    workspace.root.mkdir(parents=True, exist_ok=True)
    for table in (workspace.images, workspace.folds):
        shutil.copyfile(places.assets / table.name, table)
    outputs = [Path(name) for name in content["outputs"]]
    copy_stamps(places.assets / "stamps", workspace.root / ".stamps", outputs)
    for output in outputs:
        if output.parts[0] == "pretrain":  # its log stays at home, its weights are what is needed
            (workspace.root / output).mkdir(parents=True, exist_ok=True)
    jobs = select_jobs(project, "features", experiment, fold)
    if not jobs:
        raise WhaleidError(f"recipe {project.recipe.name} has no run of {experiment} on fold {fold}")
    jobs_stage(project, "features", 1, [], jobs)
    made = [workspace.run(experiment, fold), workspace.features(experiment, fold)]
    for folder in made:
        relative = folder.relative_to(workspace.root)
        shutil.copytree(folder, places.working / relative, dirs_exist_ok=True)
        copy_stamps(workspace.root / ".stamps", places.working / ".stamps", [relative])
        say(f"output: {places.working / relative}")
