"""Commands from features to a scored submission, and its archive."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from whaleid.cli.context import PROJECT, RUNS, Context, command
from whaleid.utils.errors import WhaleidError

PANEL = "Results"


class RebuildFrom(StrEnum):
    predictions = "predictions"
    weights = "weights"
    train = "train"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for function in (leaderboard, ensemble, ablation, background, submission):
        command(app, RUNS, panel=PANEL)(function)
    command(app, PROJECT, panel=PANEL)(score)
    command(app, PROJECT, panel=PANEL)(archive)
    command(app, RUNS, panel=PANEL)(rebuild)


def leaderboard(context: Context) -> None:
    """Run every stage: images table, folds, training, features, ensemble, submission, score.

    Example: whaleid leaderboard -c turtles.yaml
    """
    from whaleid.pipeline.leaderboard import leaderboard_lines

    for line in leaderboard_lines(context.project, context.executor):
        print(line, flush=True)


def ensemble(context: Context) -> None:
    """Rank identities, combine the rankers, and print the ladder of out-of-fold scores.

    Example: whaleid ensemble -c nyala -s combine.stack=null
    """
    from whaleid.ensemble.summary import ladder_lines
    from whaleid.pipeline.metrics import require_figures
    from whaleid.pipeline.runner import run

    run(context.project, "ladder", context.executor)
    print("\n".join(ladder_lines(require_figures(context.project))))


def ablation(context: Context) -> None:
    """Score the recipe with each of its parts left out in turn, from saved features.

    Example: whaleid ablation -c nyala
    """
    from whaleid.ensemble.summary import ablation_lines
    from whaleid.pipeline.ablation import read_ablation
    from whaleid.pipeline.runner import run

    project = context.project
    run(project, "ablation", context.executor)
    print("\n".join(ablation_lines(read_ablation(project.workspace, project.recipe.name))))
    print(f"ablation: {project.workspace.ablation(project.recipe.name)}")


def background(context: Context) -> None:
    """How much of a network's accuracy comes from the background: its context ratio. Needs masks.

    Example: whaleid background -c turtles.yaml
    """
    from whaleid.pipeline.context import context_line, require_masked
    from whaleid.pipeline.metrics import require_figures
    from whaleid.pipeline.runner import run

    require_masked(context.project)
    run(context.project, "context", context.executor)
    print(context_line(require_figures(context.project)["context"]))


def submission(
    context: Context,
    check: Annotated[
        Path | None, typer.Option("--check", help="check this CSV (header, rows, guesses, labels) and write nothing")
    ] = None,
) -> None:
    """Write the submission into submissions/, or check any submission file.

    Example: whaleid submission --check mine.csv -c humpback
    """
    if check is not None:
        _check_submission(context, check)
        return
    from whaleid.pipeline.runner import run
    from whaleid.pipeline.submission import latest_submission

    run(context.project, "submission", context.executor)
    print(f"submission: {latest_submission(context.project)}")


def _check_submission(context: Context, file: Path) -> None:
    from whaleid.pipeline.submission import submission_problems

    problems = submission_problems(file, context.load_competition(), context.work_folder)
    if problems:
        print("\n".join(f"error: {problem}" for problem in problems), file=sys.stderr)
        raise typer.Exit(2)
    print(f"{file}: a valid submission")


def score(
    context: Context,
    submission: Annotated[Path | None, typer.Argument(help="CSV: image, guesses (columns by position)")] = None,
    solution: Annotated[Path | None, typer.Argument(help="CSV: image, identity (columns by position)")] = None,
    k: Annotated[
        int | None, typer.Option("-k", "--k", min=1, help="guesses that count; default: the competition's, else 5")
    ] = None,
    form: Annotated[
        str,
        typer.Option(help="form of answer: topk, one_or_unknown, one_confident, ranked_images, pairs, clusters"),
    ] = "topk",
    unknown: Annotated[
        str | None, typer.Option(help="label of the unknown identity (one_or_unknown); default: new_individual")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the score, its interval and more as JSON")] = False,
) -> None:
    """Score of any submission against any solution, MAP@k unless --form; without files, of the recipe's own submission.

    Example: whaleid score submission.csv solution.csv --k 5 --json
    """
    if submission is None:
        if form != "topk" or unknown is not None:
            raise WhaleidError("score: --form and --unknown need files: whaleid score SUBMISSION SOLUTION --form FORM")
        from whaleid.pipeline.score import own_score

        result = own_score(context.project, k)
    elif solution is None:
        raise WhaleidError("score: give the solution too: whaleid score SUBMISSION SOLUTION")
    else:
        from whaleid.evaluation.forms import score_files

        result = score_files(submission, solution, form, k, unknown)
    if as_json:
        print(json.dumps(result.as_json() | result.details(), indent=2))
        return
    print(result.line("solution"))
    print(f"95 % interval {result.low:.5f} to {result.high:.5f}, {result.queries:,} queries")
    for part in result.part_lines():
        print(f"  {part}")


def archive(
    context: Context,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="default: <work>/<competition>/archive/<recipe>.zip")
    ] = None,
) -> None:
    """Pack predictions, weights and checksums into one file, from which `rebuild` makes the same submission.

    Example: whaleid archive -c nyala -o nyala.zip
    """
    from whaleid.pipeline.archive import archive_path, write_archive

    path = output or archive_path(context.project)
    manifest = write_archive(context.project, path)
    print(f"archive: {path}: {len(manifest.files)} files, {path.stat().st_size / 1e6:,.1f} MB")


def rebuild(
    context: Context,
    start: Annotated[RebuildFrom, typer.Option("--from", help="what to start from")] = RebuildFrom.predictions,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="default: <work>/<competition>/archive/<recipe>.zip")
    ] = None,
) -> None:
    """Make the submission again from an archive, or by training again, and compare it with the archive's.

    Example: whaleid rebuild -c nyala --archive nyala.zip --from weights
    """
    from dataclasses import replace

    from whaleid.pipeline.archive import archive_path, rebuild_folder
    from whaleid.pipeline.archive import rebuild as build

    project = context.project
    out = rebuild_folder(project, start.value)
    options = replace(context, work=out).options
    result = build(project, start.value, archive or archive_path(project), out, context.jobs, options)
    if result.same is False and start is RebuildFrom.predictions:
        raise WhaleidError(f"{result.path}: {result.comparison}; run whaleid archive again")
    print(result.comparison)
    if result.same is False:
        print("another processor, GPU or library version changes the last digits of scores, and so the order of some")
    print(f"submission: {result.path}")
