"""The command that says who is on a photograph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whaleid.cli.context import PROJECT, Context, command
from whaleid.utils.errors import WhaleidError

if TYPE_CHECKING:
    import pandas as pd

PANEL = "Results"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    command(app, PROJECT, panel=PANEL)(identify)


def identify(
    context: Context,
    photographs: Annotated[list[Path], typer.Argument(help="files, and folders whose photographs are taken")],
    csv: Annotated[
        Path | None, typer.Option("--csv", help="CSV to write: photograph, rank, identity, probability")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="folder for a picture of each: its first guesses, with matched keypoints"),
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option("--boxes", help="CSV image,x0,y0,x1,y1: where the animals are (paths as given)")
    ] = None,
) -> None:
    """Who is this? The guesses of a trained project for any photographs; its work folder is only read.

    Example: whaleid identify new/a.jpg new/b.jpg -c turtles.yaml --csv guesses.csv --picture guesses
    """
    if context.is_auto and not Path(context.recipe_file).is_file():
        raise WhaleidError(f"{context.recipe_file}: not there yet; run whaleid leaderboard with the same options first")
    from whaleid.identify.photographs import find_photographs, photograph_rows
    from whaleid.identify.rank import identify, require_trained
    from whaleid.utils.files import atomic_path

    project = context.project
    found = find_photographs(photographs)
    require_trained(project)
    rows = photograph_rows(found, project.competition, boxes, context.skip_unreadable)
    with identify(project, rows) as identified:
        table = identified.table()
        if csv is not None:
            with atomic_path(csv) as temporary:
                table.to_csv(temporary, index=False, float_format="%.4f")
        print("\n".join(_lines(table)))
        if picture is not None:
            from whaleid.identify.picture import write_pictures

            print(f"pictures: {len(write_pictures(identified, picture))} in {picture}")
    if csv is not None:
        print(f"guesses: {csv}")


def _lines(table: pd.DataFrame) -> list[str]:
    """A line for each photograph: its name, and each guess with its probability."""
    wide = max(len(name) for name in table["photograph"])
    lines = []
    for name, guesses in table.groupby("photograph", sort=False):
        said = [f"{guess.identity} {guess.probability:.1%}" for guess in guesses.itertuples()]
        lines.append(f"{name!s:<{wide}}  {'  '.join(said)}")
    return lines
