"""Commands of the Kaggle kernel: make its bundle, and run it here as Kaggle would."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

from whaleid.cli.options import (
    CompetitionOption,
    ExperimentOption,
    FoldOption,
    JobsOption,
    RecipeOption,
    SetOption,
    SkipOption,
    WorkOption,
    options_of,
    project_of,
)
from whaleid.utils.errors import WhaleidError


class Mode(StrEnum):
    inference = "inference"
    training = "training"


class LayoutChoice(StrEnum):
    new = "new"
    old = "old"
    both = "both"


ModeOption = Annotated[Mode, typer.Option("--mode", help="answer the test set, or train one run there")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("kernel")(kernel)
    app.command("kernel-run")(kernel_run)


def kernel(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    jobs: JobsOption = 0,
    skip_unreadable: SkipOption = False,
    mode: ModeOption = Mode.inference,
    experiment: ExperimentOption = None,
    fold: FoldOption = None,
    owner: Annotated[str | None, typer.Option(help="Kaggle user name; default: KAGGLE_USERNAME")] = None,
    hours: Annotated[float, typer.Option(min=0.001, help="limit of the kernel's time")] = 12.0,
    gpu: Annotated[bool | None, typer.Option(help="ask for GPUs; default: by the size of the images")] = None,
    notebook: Annotated[bool, typer.Option("--notebook", help="push the notebook instead of the script")] = False,
) -> None:
    """Make the Kaggle kernel of a recipe, with its data sets: work/<competition>/kernel/<recipe>/."""
    from whaleid.kaggle.kernel.bundle import KernelOptions, inference_size, make_bundle
    from whaleid.kaggle.metadata import PLACEHOLDER
    from whaleid.pipeline.stages import folds_stage

    if (mode is Mode.training) != (experiment is not None and fold is not None):
        raise WhaleidError("--mode training goes with --experiment and --fold, and these with --mode training")
    project = project_of(competition, recipe, work, set_, skip_unreadable)
    if mode is Mode.training:
        folds_stage(project)
    else:
        from whaleid.pipeline.submission import submission_stage

        submission_stage(project, jobs, options_of(competition, recipe, work, set_, skip_unreadable))
        print(f"the kernel carries {inference_size(project).line()}", flush=True)
    name = owner or os.environ.get("KAGGLE_USERNAME") or PLACEHOLDER
    options = KernelOptions(name, hours, gpu, notebook, experiment, fold)
    bundle = make_bundle(project, options, project.workspace.root.parent / "kaggle-wheels")
    for role, size in bundle.sizes.items():
        print(f"data set {role}: {size / 1e6:,.1f} MB")
    print(f"kernel: {bundle.kernel} in {bundle.folder}")
    if name == PLACEHOLDER:
        print(f"its owner is the placeholder {PLACEHOLDER}: to push it, make it again with OWNER= (or KAGGLE_USERNAME)")


def kernel_run(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    skip_unreadable: SkipOption = False,
    layout: Annotated[LayoutChoice, typer.Option(help="of /kaggle/input: that of 2026, the one before")] = (
        LayoutChoice.both
    ),
    hours: Annotated[float | None, typer.Option(min=0.0, help="another time budget than the kernel's")] = None,
    mode: ModeOption = Mode.inference,
    experiment: ExperimentOption = None,
    fold: FoldOption = None,
) -> None:
    """Run the kernel here as Kaggle would (offline, read-only inputs) and compare its submission with the local one."""
    from whaleid.kaggle.kernel.bundle import bundle_folder
    from whaleid.kaggle.kernel.run import (
        RunOptions,
        compare_submissions,
        require_equal,
        run_bundle,
        submission_of,
    )
    from whaleid.pipeline.metrics import read_figures
    from whaleid.pipeline.submission import submission_path

    project = project_of(competition, recipe, work, set_, skip_unreadable)
    bundle = bundle_folder(project, experiment, fold)
    if not (bundle / "kernel").is_dir():
        raise WhaleidError(f"{bundle}: no kernel here yet: make kernel first")
    figures = read_figures(project)
    for one in ("new", "old") if layout is LayoutChoice.both else (layout.value,):
        base = project.workspace.root / "kernel-run" / bundle.name
        print(f"layout {one}", flush=True)
        run = run_bundle(bundle, project.competition, base, RunOptions(one, hours))
        print(f"{run.seconds:.0f} s; {run.words}")
        if mode is Mode.training:
            print(f"output: {run.working}")
            continue
        assert figures is not None  # a bundle of inference is made after its ensemble
        compared = compare_submissions(submission_path(project, figures["key"]), submission_of(run))
        print(compared.line())
        require_equal(run, compared)
