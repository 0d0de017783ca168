"""Commands that show results as pages and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whaleid.cli.context import PROJECT, Context, command

PANEL = "Results"
PictureOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="PNG to write; default: in the work folder's report/")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(app, PROJECT, panel=PANEL)(report)
    command(app, ("competition", "work"), panel=PANEL)(compare)
    command(app, PROJECT, panel=PANEL)(matches)
    command(app, PROJECT, panel=PANEL)(explain)


def report(
    context: Context,
    atlas: Annotated[
        bool, typer.Option("--atlas", help="also write the map as atlas.parquet and for TensorBoard's projector")
    ] = False,
) -> None:
    """Write a page with the recipe's results: ladder, thresholds to try, every query with its guesses, hard identities.

    Example: whaleid report -c nyala
    """
    from whaleid.report.page import write_report

    print(f"report: {write_report(context.project, atlas)}")


def compare(
    context: Context,
    names: Annotated[
        list[str],
        typer.Argument(
            help="two or more: a recipe, RECIPE:RANKER, EXPERIMENT/foldK (a run), or a recipe behind the path of "
            "another work folder of the competition"
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML to write; default: in the work folder's report/")
    ] = None,
) -> None:
    """Settings that differ, scores with intervals, paired differences from the first, and training curves.

    Example: whaleid compare sample gold sample:lite0_arcface -c sample
    """
    from whaleid.pipeline.workspace import Workspace
    from whaleid.report.compare import compare_entries, comparison_lines, write_comparison
    from whaleid.report.places import report_file

    competition = context.load_competition()
    workspace = Workspace(context.work_folder / competition.name)
    found = compare_entries(names, competition, workspace)
    path = output or report_file(workspace, "compare", names, ".html")
    write_comparison(found, competition, path)
    print("\n".join([*comparison_lines(found), "", f"comparison: {path}"]))


def matches(
    context: Context,
    image: Annotated[str, typer.Argument(help="name of an image, as in the competition's CSV")],
    other: Annotated[str, typer.Argument(help="name of the image to compare it with")],
    output: PictureOption = None,
) -> None:
    """Draw the matched keypoints of two images, those that count in green.

    Example: whaleid matches 00001.jpg 00002.jpg -c nyala
    """
    from whaleid.report.matches import matches_line, write_matches
    from whaleid.report.places import report_file

    path = output or report_file(context.project.workspace, "matches", (image, other), ".png")
    found = write_matches(context.project, (image, other), path)
    print(f"{path}: {matches_line(found)}")


def explain(
    context: Context,
    image: Annotated[str, typer.Argument(help="name of an image, as in the competition's CSV")],
    others: Annotated[list[str], typer.Argument(help="names of the images to compare it with, a picture for each")],
    output: PictureOption = None,
) -> None:
    """Why are these two similar? Keypoints, where the first network sees them agree, and what its score depends on.

    Example: whaleid explain 00001.jpg 00002.jpg -c nyala
    """
    from whaleid.report.explain import write_explanations
    from whaleid.report.places import report_file
    from whaleid.utils.errors import WhaleidError

    if output and len(others) > 1:
        raise WhaleidError(f"{output}: one picture for {len(others)} pairs; leave out -o, or name one other image")
    workspace = context.project.workspace
    paths = {other: output or report_file(workspace, "explain", (image, other), ".png") for other in others}
    for lines in write_explanations(context.project, image, paths):
        print("\n".join(lines), flush=True)
