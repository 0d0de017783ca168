"""The command line: one command a stage, and no logic. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from whaleid.cli import archive as cli_winning
from whaleid.cli import kernel as cli_kernel
from whaleid.cli import pictures as cli_pictures
from whaleid.cli import runs as cli_runs
from whaleid.cli.kaggle import kaggle_app
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

app = typer.Typer(
    help="Which individual is this? From a competition's photographs to a scored submission.\n\n"
    "Start with `whaleid sample` and `whaleid leaderboard`; every stage is also a command of its own, and a "
    "stage whose inputs have not changed is skipped. A mistake is one line; --debug shows the traceback too.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="The images table, and a report on the data.", no_args_is_help=True)
submission_app = typer.Typer(help="Write the submission, or check any file.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(submission_app, name="submission")
app.add_typer(kaggle_app)


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2, with a traceback only under --debug."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments)
    except WhaleidError as error:
        _end(str(error), debug)
    except KeyboardInterrupt:
        print("stopped; the same command carries on from here", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        place = f"{error.filename}: " if error.filename else ""
        mend = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "give yourself the right to it"
        _end(f"{place}{os.strerror(error.errno)}; {mend}, or put the work elsewhere with WORK= (--work)", debug)


def _end(message: str, debug: bool) -> NoReturn:
    """The user's line and exit code 2; under --debug the traceback of the error being handled comes first."""
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


# --------------------------------------------------------------------------------------------------- the data


@app.command()
def sample(
    root: Annotated[Path | None, typer.Option(help="folder to write; default: RAW_DATA_DIR/sample")] = None,
    seed: Annotated[int, typer.Option(help="another seed, another sample")] = 0,
    identities: Annotated[int, typer.Option(min=2, help="whales to draw")] = 150,
    train_images: Annotated[int, typer.Option(min=20, help="labelled photographs, new_whale's among them")] = 1000,
    test_images: Annotated[int, typer.Option(min=10, help="photographs to answer")] = 400,
    sheet: Annotated[Path | None, typer.Option(help="also write a contact sheet (PNG)")] = None,
) -> None:
    """Draw the embedded sample: humpback flukes in Kaggle's layout, with a solution for scoring."""
    from whaleid.config.settings import read_settings
    from whaleid.data.sample import contact_sheet, make_sample
    from whaleid.utils.progress import progress_bar

    folder = root or read_settings().raw / "sample"
    with progress_bar("drawing flukes", train_images + test_images) as bar:
        summary = make_sample(
            folder,
            seed,
            identities,
            train_images,
            test_images,
            progress=lambda done, total: bar.move_to(done),
        )
    print(
        f"{folder}: {summary.train:,} train images ({summary.train_unknown:,} new_whale) of {summary.identities} "
        f"identities ({summary.singletons} with one image), {summary.test:,} test images "
        f"({summary.test_unknown:,} new_whale)" + ("" if summary.made else "; up to date")
    )
    if sheet is not None:
        contact_sheet(folder, sheet)
        print(f"contact sheet: {sheet}")


@data_app.command("build")
def data_build(
    competition: CompetitionOption = "sample",
    work: WorkOption = None,
    skip_unreadable: SkipOption = False,
) -> None:
    """Make images.parquet: every image with its size, box, perceptual hash and duplicate group."""
    from whaleid.config.files import load_competition
    from whaleid.config.settings import read_settings
    from whaleid.pipeline.project import images_key_of
    from whaleid.pipeline.stages import images_table
    from whaleid.pipeline.workspace import Workspace

    settings = read_settings()
    contest = load_competition(competition, settings)
    workspace = Workspace((work or settings.work) / contest.name)
    images = images_table(contest, workspace, images_key_of(contest, workspace, skip_unreadable), skip_unreadable)
    print(f"{workspace.images}: {len(images):,} images")


@data_app.command("check")
def data_check(competition: CompetitionOption = "sample") -> None:
    """Report images, identities, singletons, unknown share; missing, unreadable, duplicate, contradictory rows."""
    from whaleid.config.files import load_competition
    from whaleid.data.check import check_data

    report = check_data(load_competition(competition))
    print("\n".join(report.lines()))
    if report.problems:
        raise typer.Exit(2)


@app.command()
def folds(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    skip_unreadable: SkipOption = False,
) -> None:
    """Deal the labelled images into folds, and show what each holds."""
    from whaleid.data.folds import fold_table
    from whaleid.pipeline.stages import folds_stage

    project = project_of(competition, recipe, work, set_, skip_unreadable)
    table = folds_stage(project)
    print(fold_table(table, project.competition.unknown).to_string(index=False))
    print(f"{project.workspace.folds}: {len(table):,} images in {project.recipe.folds} folds")


cli_runs.register(app)


# ---------------------------------------------------------------------------------------------------- answers


@app.command()
def ensemble(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    jobs: JobsOption = 0,
    skip_unreadable: SkipOption = False,
) -> None:
    """Rank identities, combine the sources, and print the ladder of out-of-fold scores."""
    from whaleid.ensemble.summary import ladder_lines
    from whaleid.pipeline.submission import ensemble_stage

    project = project_of(competition, recipe, work, set_, skip_unreadable)
    figures = ensemble_stage(project, jobs, options_of(competition, recipe, work, set_, skip_unreadable))
    print("\n".join(ladder_lines(figures)))


@app.command()
def ablation(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    jobs: JobsOption = 0,
    skip_unreadable: SkipOption = False,
) -> None:
    """Score the recipe with each part off in turn, from saved features: what every part is worth."""
    from whaleid.ensemble.summary import ablation_lines
    from whaleid.pipeline.submission import ablation_stage

    project = project_of(competition, recipe, work, set_, skip_unreadable)
    rows = ablation_stage(project, jobs, options_of(competition, recipe, work, set_, skip_unreadable))
    print("\n".join(ablation_lines(rows)))
    print(f"ablation: {project.workspace.ablation(project.recipe.name)}")


@submission_app.command("write")
def submission_write(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    jobs: JobsOption = 0,
    skip_unreadable: SkipOption = False,
) -> None:
    """Write the submission CSV into submissions/, checked against the sample submission."""
    from whaleid.pipeline.submission import submission_stage

    project = project_of(competition, recipe, work, set_, skip_unreadable)
    print(
        f"submission: {submission_stage(project, jobs, options_of(competition, recipe, work, set_, skip_unreadable))}"
    )


@submission_app.command("check")
def submission_check(
    file: Annotated[Path, typer.Argument(help="the submission CSV")],
    competition: CompetitionOption = "sample",
    work: WorkOption = None,
) -> None:
    """Check any submission file against a competition: header, rows, order, guesses, labels."""
    from whaleid.config.files import load_competition
    from whaleid.config.settings import read_settings
    from whaleid.pipeline.submission import submission_problems

    settings = read_settings()
    problems = submission_problems(file, load_competition(competition, settings), work or settings.work)
    if problems:
        print("\n".join(f"error: {problem}" for problem in problems), file=sys.stderr)
        raise typer.Exit(2)
    print(f"{file}: a valid submission")


@app.command()
def score(
    submission: Annotated[Path | None, typer.Argument(help="CSV: image, guesses (columns by position)")] = None,
    solution: Annotated[Path | None, typer.Argument(help="CSV: image, identity (columns by position)")] = None,
    k: Annotated[
        int | None, typer.Option(min=1, help="guesses that count; default: the competition's k, 5 for files given")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="map, k, queries, low, high as JSON")] = False,
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
) -> None:
    """MAP@k of a submission against a solution; with neither, the recipe's own against the competition's."""
    if submission is None:
        from whaleid.pipeline.submission import own_score

        result = own_score(project_of(competition, recipe, work, set_, False), k)
    elif solution is None:
        raise WhaleidError("score: give the solution too: whaleid score SUBMISSION SOLUTION")
    else:
        from whaleid.evaluation.submissions import score_submission

        result = score_submission(submission, solution, 5 if k is None else k)
    if as_json:
        print(json.dumps(result.as_json(), indent=2))
        return
    print(result.line("solution"))
    print(f"95 % interval {result.low:.5f} to {result.high:.5f}, {result.queries:,} queries")
    for name, part in result.slices.items():
        print(f"  {name:>8}: {part.map:.5f} ({part.queries:,} queries)")


@app.command()
def leaderboard(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    jobs: JobsOption = 0,
    skip_unreadable: SkipOption = False,
) -> None:
    """Everything: data, folds, training, features, ensemble, submission, score."""
    from whaleid.pipeline.submission import leaderboard_lines

    project = project_of(competition, recipe, work, set_, skip_unreadable)
    options = options_of(competition, recipe, work, set_, skip_unreadable)
    for line in leaderboard_lines(project, jobs, options):
        print(line)


@app.command()
def plan(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    tflops: Annotated[float | None, typer.Option(min=0.001, help="sustained TFLOP/s of the device in training")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="training images, where the data is not here")] = None,
    identities: Annotated[int | None, typer.Option(min=2, help="identities, where the data is not here")] = None,
    skip_unreadable: SkipOption = False,
) -> None:
    """Show what a recipe would train: jobs, sizes, parameters, estimated hours. Trains nothing."""
    from whaleid.kaggle.kernel.size import planned_line, planned_size
    from whaleid.pipeline.plan import plan_lines

    project = project_of(competition, recipe, work, set_, skip_unreadable)
    print("\n".join(plan_lines(project, tflops, images, identities)))
    print(planned_line(planned_size(project, images, identities)))


@app.command()
def report(
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    set_: SetOption = None,
    skip_unreadable: SkipOption = False,
) -> None:
    """Write the page of a recipe's results: ladder, slices, training curves, right and wrong guesses."""
    from whaleid.report.page import write_report

    print(f"report: {write_report(project_of(competition, recipe, work, set_, skip_unreadable))}")


cli_pictures.register(app)
cli_winning.register(app)
cli_kernel.register(app)
