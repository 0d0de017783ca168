"""The options that commands share, declared once, and the project that they name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from whaleid.cli.stopping import stoppable
from whaleid.utils.events import json_log

if TYPE_CHECKING:
    from whaleid.config import Competition
    from whaleid.config.settings import Settings
    from whaleid.pipeline.executors import Executor
    from whaleid.pipeline.project import Project


def _shared(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Shared options", **more)


@dataclass(frozen=True)
class Context:
    """What the shared options say. A command names those that it takes (`command`)."""

    competition: Annotated[
        str, _shared("--competition", "-c", help="name (configs/competitions) or path of the competition's YAML")
    ] = "sample"
    recipe: Annotated[
        str | None,
        _shared("--recipe", "-r", help="name (configs/recipes) or path; default: sample for the sample, else auto"),
    ] = None
    work: Annotated[
        Path | None, _shared("--work", "-w", help="folder for all results; overrides WORK_DIR of SETTINGS.json")
    ] = None
    minutes: Annotated[
        int | None, _shared("--minutes", "-m", min=1, help="what the recipe auto may take in all; default: 60")
    ] = None
    overrides: Annotated[
        list[str] | None,
        _shared(
            "--set",
            "-s",
            help="key=value; overrides a setting of all experiments (train.epochs=20) or of the recipe "
            "(combine.stack=null); may be repeated",
            metavar="KEY=VALUE",
        ),
    ] = None
    jobs: Annotated[
        int, _shared("--jobs", "-j", min=0, help="runs at the same time; 0: one for each GPU, else for each core")
    ] = 0
    engine: Annotated[
        str, _shared("--executor", help="what does the runs: local (this machine), ray or slurm (docs/clusters.md)")
    ] = "local"
    json_log: Annotated[
        Path | None,
        _shared("--json-log", metavar="FILE", help="append what happens to this file, one JSON object a line"),
    ] = None
    tracker: Annotated[
        str | None,
        _shared("--tracker", metavar="wandb|mlflow", help="also log the training there; offline (docs/report.md)"),
    ] = None
    skip_unreadable: Annotated[
        bool, _shared("--skip-unreadable", help="continue without the images that cannot be decoded")
    ] = False

    @cached_property
    def settings(self) -> Settings:
        """The folders of SETTINGS.json, read once for each command."""
        from whaleid.config.settings import read_settings

        return read_settings()

    @property
    def work_folder(self) -> Path:
        return self.work or self.settings.work

    @property
    def is_auto(self) -> bool:
        """Whether the recipe is left to whaleid."""
        from whaleid.config.files import AUTO, default_recipe

        return (self.recipe or default_recipe(self.competition)) == AUTO

    def load_competition(self) -> Competition:
        from whaleid.config.files import load_competition

        return load_competition(self.competition, self.settings)

    @cached_property
    def project(self) -> Project:
        from whaleid.auto.opening import open_project

        return open_project(
            self.competition,
            self.recipe,
            self.work_folder,
            self.overrides,
            self.skip_unreadable,
            self.settings,
            self.minutes,
        )

    def tracking(self) -> AbstractContextManager[None]:
        """The tracker of `--tracker`, while the command runs."""
        if self.tracker is None:
            return nullcontext()
        from whaleid.training.tracker import tracking

        return tracking(self.tracker, self.load_competition().name, self.work_folder / "trackers")

    @property
    def recipe_file(self) -> str:
        """Name or path of the recipe; that of `auto` is the file that was written."""
        from whaleid.auto.opening import recipe_file

        return recipe_file(self.competition, self.recipe, self.work_folder, self.minutes, self.settings)

    @property
    def executor(self) -> Executor:
        """What does the pipeline's tasks."""
        from whaleid.pipeline.executors import make_executor

        return make_executor(self.engine, self.jobs, self.options)

    @property
    def options(self) -> list[str]:
        """The same options for the command lines of jobs, which read the same SETTINGS.json."""
        words = ["--competition", self.competition, "--recipe", self.recipe_file]
        words += [] if self.work is None else ["--work", str(self.work)]
        words += [word for pair in self.overrides or [] for word in ("--set", pair)]
        return words + (["--skip-unreadable"] if self.skip_unreadable else [])


PROJECT = ("competition", "recipe", "minutes", "work", "overrides", "skip_unreadable")
"""Options of a command that opens a project."""
RUNS = (*PROJECT, "jobs", "engine", "json_log", "tracker")
"""Options of a command that may train."""

ExperimentOption = Annotated[str | None, typer.Option("--experiment", help="only this experiment of the recipe")]
FoldOption = Annotated[int | None, typer.Option("--fold", help="only this fold")]
ConfirmOption = Annotated[bool, typer.Option("--confirm", help="do it; without this, only show what would be done")]


def command(
    app: typer.Typer,
    shared: tuple[str, ...] = (),
    name: str | None = None,
    panel: str | None = None,
    default: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: add a function `f(context, ...)` to `app` as a command that also takes the `shared` options.

    Parameters
    ----------
    app : typer.Typer
        The command line or a group of it.
    shared : tuple of str
        Fields of `Context` that become options of the command.
    name : str, optional
        Of the command; default: that of the function, without a trailing underscore and with hyphens.
    panel : str, optional
        Heading under which `--help` lists the command.
    default : bool
        Whether it is what the group does where no command is named; it is called before a named one, too.
    """
    hints = get_type_hints(Context, include_extras=True)
    defaults = {field.name: field.default for field in fields(Context)}

    def add(function: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            context = Context(**{key: given.pop(key) for key in shared})
            with stoppable(), json_log(context.json_log), context.tracking():
                function(context, **given)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=defaults[key], annotation=hints[key])
            for key in shared
        ]
        parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own] + common
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        run.__doc__ = function.__doc__
        if default:
            app.callback(invoke_without_command=True)(run)
        else:
            app.command(name or function.__name__.strip("_").replace("_", "-"), rich_help_panel=panel)(run)
        return function

    return add
