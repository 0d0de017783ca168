"""The training kernel: one run of a recipe, trained by the stages of the local pipeline.

The local tables and keys come along, so what is trained here counts as up to date there: copy ``runs/``,
``features/`` and ``.stamps/`` of the output into ``work/<competition>/`` and go on.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from whaleid.config.settings import WEIGHTS, Settings
from whaleid.kaggle.kernel.assets import BOXES, MASKS, STAMPED
from whaleid.kaggle.kernel.inputs import KernelFolders, log
from whaleid.pipeline.runner import Only, run
from whaleid.pipeline.transfer import PROJECT, STAMPS, copy_stamps, project_from_json


def run_training(folders: KernelFolders, experiment: str, fold: int) -> None:
    """Train an experiment on a fold, extract its features, and leave both in the working folder."""
    content = json.loads((folders.assets / PROJECT).read_text())
    boxes, masks = folders.assets / BOXES, folders.assets / MASKS
    settings = Settings(raw=folders.competition, work=folders.scratch / "work", weights=folders.assets / WEIGHTS)
    project = project_from_json(
        content, folders.competition, settings, boxes if boxes.is_file() else None, masks if masks.is_dir() else None
    )
    workspace = project.workspace
    workspace.root.mkdir(parents=True, exist_ok=True)
    for table in (workspace.images, workspace.folds):
        shutil.copyfile(folders.assets / table.name, table)
    copy_stamps(folders.assets / STAMPED, workspace.root / STAMPS, content["outputs"])
    for output in content["outputs"]:
        if Path(output).parts[0] == "pretrain":  # its weights are in the data set, its log is not
            (workspace.root / output).mkdir(parents=True, exist_ok=True)
    run(project, "features", only=Only(experiment, fold))
    for folder in (workspace.run(experiment, fold), workspace.features(experiment, fold)):
        relative = folder.relative_to(workspace.root)
        shutil.copytree(folder, folders.working / relative, dirs_exist_ok=True)
        copy_stamps(workspace.root / STAMPS, folders.working / STAMPS, [relative])
        log(f"output: {folders.working / relative}")
