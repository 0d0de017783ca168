"""Commands for what winners are asked for: the archive of a project, and its submission built again."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from whaleid.cli.options import (
    CompetitionOption,
    JobsOption,
    RecipeOption,
    SetOption,
    SkipOption,
    WorkOption,
    options_of,
    project_of,
)
from whaleid.utils.errors import WhaleidError


class StartChoice(StrEnum):
    predictions = "predictions"
    weights = "weights"
    train = "train"


ArchiveOption = Annotated[
    Path | None, typer.Option("--archive", help="the archive; default: <work>/<competition>/archive/<recipe>.zip")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("archive")(archive)
    app.command("rebuild")(rebuild)


def archive(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    skip_unreadable: SkipOption = False,
    to: ArchiveOption = None,
) -> None:
    """Pack what the submission can be built from again (predictions, weights, checksums) into one file."""
    from whaleid.pipeline.archive import archive_path, write_archive

    project = project_of(competition, recipe, work, set_, skip_unreadable)
    path = to or archive_path(project)
    manifest = write_archive(project, path)
    print(f"archive: {path}: {len(manifest.files)} files, {path.stat().st_size / 1e6:,.1f} MB")


def rebuild(
    start: Annotated[StartChoice, typer.Option("--from", help="saved predictions, saved weights, or training anew")],
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    jobs: JobsOption = 0,
    skip_unreadable: SkipOption = False,
    archive: ArchiveOption = None,
) -> None:
    """Build the submission again from an archive, or by training anew, and compare it with the archive's."""
    from whaleid.pipeline.archive import archive_path, rebuild_folder
    from whaleid.pipeline.archive import rebuild as build

    project = project_of(competition, recipe, work, set_, skip_unreadable)
    out = rebuild_folder(project, start.value)
    options = options_of(competition, recipe, out, set_, skip_unreadable)
    result = build(project, start.value, archive or archive_path(project), out, jobs, options)
    if result.same is False and start is StartChoice.predictions:
        raise WhaleidError(f"{result.path}: {result.comparison}; run make archive again")
    print(result.comparison)
    if result.same is False:
        print("another processor, GPU or version of a library changes scores in their last digits, and so some orders")
    print(f"submission: {result.path}")
