"""`whaleid kaggle` and `whaleid doctor`. Nothing is published without --confirm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whaleid.cli.context import PROJECT, ConfirmOption, Context, ExperimentOption, FoldOption, command

group = typer.Typer(
    help="Push the kernel, submit, read scores. Nothing is published without --confirm.\n\n"
    "Example: whaleid kaggle submit -c humpback --confirm",
    no_args_is_help=True,
)
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="of the kernel; default: work/<competition>/kernel/<recipe>")
]


def register(app: typer.Typer) -> None:
    """Add the group and `doctor` to the command line."""
    app.add_typer(group, name="kaggle", rich_help_panel="Kaggle")
    command(app, PROJECT, panel="Data")(doctor)


def doctor(context: Context) -> None:
    """Check what a recipe needs: Python, packages, GPU, disk, memory, data, Kaggle. Exit code 2 if it would fail.

    Example: whaleid doctor -c humpback -r gold
    """
    from whaleid.config.files import AUTO
    from whaleid.kaggle.doctor import examine, verdict
    from whaleid.kaggle.download import has_tables

    competition, findings = context.load_competition(), []
    project = context.project if not context.is_auto or has_tables(competition) else None
    for finding in examine(competition, context.work_folder, project):
        print(finding.line(), flush=True)
        findings.append(finding)
    recipe = AUTO if project is None else project.recipe.name
    print(verdict(f"recipe {recipe} on {competition.name}", findings))
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(2)


def _kernel_folder(context: Context, folder: Path | None, experiment: str | None, fold: int | None) -> Path:
    from whaleid.kaggle.kernel.bundle import bundle_folder

    return folder or bundle_folder(context.project, experiment, fold)


@command(group, PROJECT)
def push(
    context: Context,
    folder: FolderOption = None,
    experiment: ExperimentOption = None,
    fold: FoldOption = None,
    confirm: ConfirmOption = False,
    again: Annotated[bool, typer.Option("--again", help="push a kernel that has not changed, to run it again")] = False,
) -> None:
    """Send the kernel that `whaleid kernel` made, after its data sets.

    Example: whaleid kaggle push -c humpback --confirm
    """
    from whaleid.kaggle.push import plan_lines, push, read_bundle
    from whaleid.pipeline.metrics import commit

    bundle = read_bundle(_kernel_folder(context, folder, experiment, fold))
    if confirm:
        for line in push(bundle, f"whaleid {commit()}".strip(), again):
            print(line, flush=True)
        return
    print("\n".join(plan_lines(bundle)))
    print("nothing was sent: --confirm sends it")


@command(group, PROJECT)
def status(
    context: Context, folder: FolderOption = None, experiment: ExperimentOption = None, fold: FoldOption = None
) -> None:
    """Show whether the kernel is queued, running, complete or failed.

    Example: whaleid kaggle status -c humpback
    """
    from whaleid.kaggle.push import kernel_status, read_bundle

    found = kernel_status(read_bundle(_kernel_folder(context, folder, experiment, fold)).kernel.id)
    print(found.line())
    if found.failed:
        raise typer.Exit(2)


@command(group, PROJECT)
def output(
    context: Context, folder: FolderOption = None, experiment: ExperimentOption = None, fold: FoldOption = None
) -> None:
    """Download the kernel's output and log, and check its submission.csv (or the run that it trained).

    Example: whaleid kaggle output -c humpback
    """
    from whaleid.kaggle.push import fetch_output

    run = None if experiment is None or fold is None else (experiment, fold)
    for line in fetch_output(context.project, _kernel_folder(context, folder, experiment, fold), run):
        print(line, flush=True)


@command(group, PROJECT)
def submit(context: Context, confirm: ConfirmOption = False) -> None:
    """Submit the recipe's latest submission, and read its score.

    Example: whaleid kaggle submit -c humpback --confirm
    """
    from whaleid.kaggle.submit import prepare, submit

    outgoing = prepare(context.project)
    if not confirm:
        print(f"would submit {outgoing.line()}\nnothing was sent: --confirm sends it")
        return
    for line in submit(context.project, outgoing):
        print(line, flush=True)


@command(group, PROJECT)
def scores(
    context: Context,
    offline: Annotated[bool, typer.Option("--offline", help="do not ask Kaggle; use the log as it is")] = False,
) -> None:
    """Read leaderboard scores into submissions/log.csv, and plot them against the out-of-fold scores.

    Example: whaleid kaggle scores -c humpback
    """
    from whaleid.kaggle.submit import draw_scores, read_back

    if not offline:
        for line in read_back(context.project):
            print(line, flush=True)
    for line in draw_scores(context.project):
        print(line)
