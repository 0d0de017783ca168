"""What every notebook begins with: the project that it is about, opened from wherever the notebook was started."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from whaleid.auto.opening import open_project
from whaleid.config.settings import read_settings, repository_root
from whaleid.pipeline.project import Project

FOLDER = "notebooks"
"""Folder of the repository that holds them: Jupyter starts each in its own folder."""


def notebook_project(
    environment: Mapping[str, str], competition: str = "sample", recipe: str | None = None, work: str | None = None
) -> Project:
    """The project of a notebook: what its first cell says, unless the environment says otherwise.

    environment: COMPETITION, RECIPE, MINUTES, WORK and SET, as `make` passes them on; each may be missing or empty.
    recipe: None: `sample` for the sample, else `auto`. work: None: the WORK_DIR of SETTINGS.json.
    Goes to the repository's root where the process stands in the notebooks' folder: `work/` and `submissions/` lie
    there, and the command line finds the same files.
    """
    if Path.cwd() == repository_root() / FOLDER:
        os.chdir(repository_root())
    contest = environment.get("COMPETITION") or competition
    # a competition given by make has its own usual recipe, not the one that this notebook's cell names for another
    wanted = environment.get("RECIPE") or (recipe if contest == competition else None)
    pairs = shlex.split(environment.get("SET", ""))
    settings = read_settings()
    folder = Path(environment.get("WORK") or work or settings.work)
    minutes = int(environment["MINUTES"]) if environment.get("MINUTES") else None
    return open_project(contest, wanted, folder, pairs, settings=settings, minutes=minutes)
