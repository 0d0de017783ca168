"""What the commands share: their options, and the project that these name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from whaleid.pipeline.executors import Executor
    from whaleid.pipeline.project import Project

COMPETITION_HELP = "name (configs/competitions) or path of a competition's YAML"
CompetitionOption = Annotated[str, typer.Option("--competition", "-c", help=COMPETITION_HELP)]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", "-r", help="name (configs/recipes) or path; default: sample for the sample, else cpu"),
]
WorkOption = Annotated[
    Path | None, typer.Option("--work", "-w", help="folder of everything made on the way; default: SETTINGS.json's")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="key=value laid over every experiment, e.g. train.epochs=20; repeatable"),
]
SkipOption = Annotated[bool, typer.Option("--skip-unreadable", help="go on without the images that cannot be decoded")]
JobsOption = Annotated[
    int, typer.Option("--jobs", "-j", min=0, help="runs at once, each its own process; 0: one a GPU, else one a core")
]
ExperimentOption = Annotated[str | None, typer.Option("--experiment", help="this experiment alone")]
FoldOption = Annotated[int | None, typer.Option("--fold", help="this fold alone")]
RoundOption = Annotated[int, typer.Option("--round", min=0, help="of pseudo-labels; 0: before them (recipe: pseudo)")]
FullOption = Annotated[bool, typer.Option("--full", help="the runs on all labelled images alone (recipe: full)")]


def recipe_name(competition: str, recipe: str | None) -> str:
    return recipe or ("sample" if competition == "sample" else "cpu")


def project_of(
    competition: str, recipe: str | None, work: Path | None, pairs: list[str] | None, skip_unreadable: bool
) -> Project:
    """The project of a command's options, SETTINGS.json read for it once. work: None: the WORK_DIR that it names."""
    from whaleid.config.settings import read_settings
    from whaleid.pipeline.project import open_project

    settings = read_settings()
    name = recipe_name(competition, recipe)
    return open_project(competition, name, work or settings.work, pairs, skip_unreadable, settings)


def executor_of(
    jobs: int,
    competition: str,
    recipe: str | None,
    work: Path | None,
    pairs: list[str] | None,
    skip_unreadable: bool,
) -> Executor:
    """What does the pipeline's tasks: `jobs` processes of these options on this machine."""
    from whaleid.pipeline.executors import EXECUTORS

    return EXECUTORS["local"](jobs, options_of(competition, recipe, work, pairs, skip_unreadable))


def options_of(
    competition: str, recipe: str | None, work: Path | None, pairs: list[str] | None, skip_unreadable: bool
) -> list[str]:
    """The same options again, for the command lines of jobs; these inherit SETTINGS.json, too."""
    options = [
        "--competition",
        competition,
        "--recipe",
        recipe_name(competition, recipe),
        *([] if work is None else ["--work", str(work)]),
    ]
    for pair in pairs or []:
        options += ["--set", pair]
    return options + (["--skip-unreadable"] if skip_unreadable else [])
