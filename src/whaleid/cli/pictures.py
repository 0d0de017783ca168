"""The command line's part on pictures that are asked for one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whaleid.cli.options import CompetitionOption, RecipeOption, SkipOption, WorkOption, project_of


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("matches")(matches)


def matches(
    image: Annotated[str, typer.Argument(help="name of an image, as in the competition's CSV")],
    other: Annotated[str, typer.Argument(help="name of the image beside it")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write")] = Path("matches.png"),
    competition: CompetitionOption = "sample",
    recipe: RecipeOption = None,
    work: WorkOption = None,
    skip_unreadable: SkipOption = False,
) -> None:
    """Draw the matched keypoints of two images, green where they count; the recipe's local matching or its defaults."""
    from whaleid.report.matches import matches_line, write_matches

    found = write_matches(project_of(competition, recipe, work, None, skip_unreadable), (image, other), out)
    print(f"{out}: {matches_line(found)}")
