"""Commands that make the Kaggle kernel, and run it here as Kaggle would."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

from whaleid.cli.context import PROJECT, RUNS, Context, ExperimentOption, FoldOption, command
from whaleid.utils.errors import WhaleidError

PANEL = "Kaggle"


class Layout(StrEnum):
    new = "new"
    old = "old"
    both = "both"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(app, RUNS, panel=PANEL)(kernel)
    command(app, PROJECT, panel=PANEL)(kernel_run)


def kernel(
    context: Context,
    experiment: ExperimentOption = None,
    fold: FoldOption = None,
    owner: Annotated[str | None, typer.Option(help="Kaggle user name; default: KAGGLE_USERNAME")] = None,
    hours: Annotated[float, typer.Option(min=0.001, help="limit of the kernel's time")] = 12.0,
    gpu: Annotated[bool | None, typer.Option(help="ask for GPUs; default: by the size of the images")] = None,
    notebook: Annotated[bool, typer.Option("--notebook", help="push the notebook instead of the script")] = False,
) -> None:
    """Make the Kaggle kernel of a recipe: one that identifies the test set, or (with both options) trains one run.

    It is written to work/<competition>/kernel/<recipe>/, with its data sets.

    Example: whaleid kernel -c humpback --owner your-kaggle-name
    """
    from whaleid.kaggle.kernel.assets import inference_size
    from whaleid.kaggle.kernel.bundle import KernelOptions, make_bundle
    from whaleid.kaggle.metadata import PLACEHOLDER
    from whaleid.pipeline.rounds import in_used_round
    from whaleid.pipeline.runner import run

    project = context.project
    if _trains(experiment, fold):
        run(project, "folds")
    else:
        run(project, "submission", context.executor)
        run(in_used_round(project), "features", context.executor)  # the kernel carries them, with their runs
        print(f"the kernel carries {inference_size(project).line()}", flush=True)
    name = owner or os.environ.get("KAGGLE_USERNAME") or PLACEHOLDER
    options = KernelOptions(name, hours, gpu, notebook, experiment, fold)
    bundle = make_bundle(project, options, project.workspace.root.parent / "kaggle-wheels")
    for role, size in bundle.sizes.items():
        print(f"data set {role}: {size / 1e6:,.1f} MB")
    print(f"kernel: {bundle.kernel} in {bundle.folder}")
    if name == PLACEHOLDER:
        print(f"its owner is the placeholder {PLACEHOLDER}: to push it, make it again with --owner or KAGGLE_USERNAME")


def kernel_run(
    context: Context,
    experiment: ExperimentOption = None,
    fold: FoldOption = None,
    layout: Annotated[Layout, typer.Option(help="of /kaggle/input: that of 2026, or the one before")] = Layout.both,
    hours: Annotated[float | None, typer.Option(min=0.0, help="another time limit than the kernel's")] = None,
) -> None:
    """Run the kernel here as Kaggle would (offline, read-only inputs), and compare its submission with the local one.

    Example: whaleid kernel-run -c sample --layout new
    """
    from whaleid.kaggle.kernel.bundle import bundle_folder
    from whaleid.kaggle.kernel.local_run import (
        RunOptions,
        compare_submissions,
        require_equal,
        run_bundle,
        submission_of,
    )
    from whaleid.pipeline.metrics import read_figures
    from whaleid.pipeline.submission import submission_path

    project = context.project
    bundle = bundle_folder(project, experiment, fold)
    if not (bundle / "kernel").is_dir():
        raise WhaleidError(f"{bundle}: there is no kernel yet: run whaleid kernel first")
    figures = read_figures(project)
    for one in ("new", "old") if layout is Layout.both else (layout.value,):
        base = project.workspace.root / "kernel-run" / bundle.name
        print(f"layout {one}", flush=True)
        run = run_bundle(bundle, project.competition, base, RunOptions(one, hours))
        print(f"{run.seconds:.0f} s; {run.isolation}")
        if _trains(experiment, fold):
            print(f"output: {run.working}")
            continue
        assert figures is not None  # a bundle of inference is made after its ensemble
        compared = compare_submissions(submission_path(project, figures["key"]), submission_of(run))
        print(compared.line())
        require_equal(run, compared)


def _trains(experiment: str | None, fold: int | None) -> bool:
    """Whether the kernel trains a run; raises WhaleidError where only one of both options is given."""
    if (experiment is None) != (fold is None):
        raise WhaleidError("--experiment and --fold go together: they name the run that the kernel trains")
    return experiment is not None
