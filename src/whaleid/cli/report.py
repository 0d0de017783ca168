"""Commands that show results as pages and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whaleid.cli.context import PROJECT, Context, command

PANEL = "Results"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(app, PROJECT, panel=PANEL)(report)
    command(app, PROJECT, panel=PANEL)(matches)
    command(app, PROJECT, panel=PANEL)(explain)


def report(context: Context) -> None:
    """Write a page with the recipe's results: ladder, thresholds to try, every query with its guesses, hard identities.

    Example: whaleid report -c nyala
    """
    from whaleid.report.page import write_report

    print(f"report: {write_report(context.project)}")


def matches(
    context: Context,
    image: Annotated[str, typer.Argument(help="name of an image, as in the competition's CSV")],
    other: Annotated[str, typer.Argument(help="name of the image to compare it with")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write")] = Path("matches.png"),
) -> None:
    """Draw the matched keypoints of two images, those that count in green.

    Example: whaleid matches 00001.jpg 00002.jpg -c nyala -o matches.png
    """
    from whaleid.report.matches import matches_line, write_matches

    found = write_matches(context.project, (image, other), output)
    print(f"{output}: {matches_line(found)}")


def explain(
    context: Context,
    image: Annotated[str, typer.Argument(help="name of an image, as in the competition's CSV")],
    other: Annotated[str, typer.Argument(help="name of the image to compare it with")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write")] = Path("explain.png"),
) -> None:
    """Why are these two similar? Keypoints, where the first network sees them agree, and what its score depends on.

    Example: whaleid explain 00001.jpg 00002.jpg -c nyala -o explain.png
    """
    from whaleid.report.explain import write_explanation

    print("\n".join(write_explanation(context.project, (image, other), output)))
