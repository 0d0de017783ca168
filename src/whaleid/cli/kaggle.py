"""The commands that speak to Kaggle, and `doctor`. No logic; nothing is published without --confirm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whaleid.cli.options import (
    CompetitionOption,
    ExperimentOption,
    FoldOption,
    RecipeOption,
    SetOption,
    WorkOption,
    project_of,
)

kaggle_app = typer.Typer()

ConfirmOption = Annotated[bool, typer.Option("--confirm", help="do it; without, only what would be done is shown")]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="the kernel's folder; default: work/<competition>/kernel/<recipe>")
]


@kaggle_app.command()
def fetch(
    competition: CompetitionOption = "sample",
    keep_archive: Annotated[bool, typer.Option("--keep-archive", help="keep the zip once it is unpacked")] = False,
) -> None:
    """Download and unpack a Kaggle competition's data, where its root has no CSVs yet; carries on where it stopped."""
    from whaleid.config.files import load_competition
    from whaleid.kaggle.download import fetch_data

    for line in fetch_data(load_competition(competition), keep_archive):
        print(line, flush=True)


@kaggle_app.command()
def doctor(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
) -> None:
    """Say what is here of what the recipe needs: Python, packages, GPU, disk, memory, data, Kaggle. One line each."""
    from whaleid.kaggle.doctor import examine, verdict

    project = project_of(competition, recipe, work, set_, False)
    findings = []
    for finding in examine(project):
        print(finding.line(), flush=True)
        findings.append(finding)
    print(verdict(project, findings))
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(2)


@kaggle_app.command("kernel-push")
def kernel_push(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    folder: FolderOption = None,
    experiment: ExperimentOption = None,
    fold: FoldOption = None,
    confirm: ConfirmOption = False,
    again: Annotated[
        bool, typer.Option("--again", help="push the kernel though it has not changed: it runs anew")
    ] = False,
) -> None:
    """Send the folder that `make kernel` made: its data sets, then the kernel. Shows what it would send; --confirm.

    With --experiment and --fold: the kernel that trains this run.
    """
    from whaleid.kaggle.kernel.bundle import bundle_folder
    from whaleid.kaggle.push import plan_lines, push, read_bundle
    from whaleid.pipeline.metrics import commit

    place = folder or bundle_folder(project_of(competition, recipe, work, set_, False), experiment, fold)
    bundle = read_bundle(place)
    if confirm:
        for line in push(bundle, f"whaleid {commit()}".strip(), again):
            print(line, flush=True)
        return
    print("\n".join(plan_lines(bundle)))
    print("nothing was sent: CONFIRM=1 (--confirm) does it")


@kaggle_app.command("kernel-status")
def kernel_status(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    folder: FolderOption = None,
    experiment: ExperimentOption = None,
    fold: FoldOption = None,
) -> None:
    """Ask Kaggle how far the recipe's kernel is (--experiment, --fold: the one that trains this run)."""
    from whaleid.kaggle.kernel.bundle import bundle_folder
    from whaleid.kaggle.push import kernel_status, read_bundle

    place = folder or bundle_folder(project_of(competition, recipe, work, set_, False), experiment, fold)
    status = kernel_status(read_bundle(place).kernel.id)
    print(status.line())
    if status.failed:
        raise typer.Exit(2)


@kaggle_app.command("kernel-output")
def kernel_output(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    folder: FolderOption = None,
    experiment: ExperimentOption = None,
    fold: FoldOption = None,
) -> None:
    """Fetch what the recipe's kernel left at Kaggle, its log too, and check its submission.csv (or, with --experiment
    and --fold, the run that it trained).
    """
    from whaleid.kaggle.kernel.bundle import bundle_folder
    from whaleid.kaggle.push import fetch_output

    project = project_of(competition, recipe, work, set_, False)
    place = folder or bundle_folder(project, experiment, fold)
    run = None if experiment is None or fold is None else (experiment, fold)
    for line in fetch_output(project, place, run):
        print(line, flush=True)


@kaggle_app.command()
def submit(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    confirm: ConfirmOption = False,
) -> None:
    """Submit the recipe's latest submission to Kaggle, and read its score back. Shows what it would do; --confirm."""
    from whaleid.kaggle.submit import prepare, submit

    project = project_of(competition, recipe, work, set_, False)
    outgoing = prepare(project)
    if not confirm:
        print(f"would submit {outgoing.line()}\nnothing was sent: CONFIRM=1 (--confirm) does it")
        return
    for line in submit(project, outgoing):
        print(line, flush=True)


@kaggle_app.command()
def scores(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="draw what the log holds, without asking Kaggle")] = False,
) -> None:
    """Read leaderboard scores back into submissions/log.csv, and draw them against the out-of-fold scores."""
    from whaleid.kaggle.submit import draw_scores, read_back

    project = project_of(competition, recipe, work, set_, False)
    if not offline:
        for line in read_back(project):
            print(line, flush=True)
    for line in draw_scores(project):
        print(line)
