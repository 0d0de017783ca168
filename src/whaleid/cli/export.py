"""The command that hands the answers on to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whaleid.cli.context import PROJECT, Context, command


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    command(app, PROJECT, panel="Results")(export)


def export(
    context: Context,
    form: Annotated[str, typer.Argument(metavar="FORMAT", help="csv (a spreadsheet), wildbook, camtrap-dp")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="CSV to write; default: <work>/<competition>/export/<recipe>-<format>.csv"),
    ] = None,
    species: Annotated[str | None, typer.Option(help="genus and epithet, or {column} of test.extra")] = None,
    date: Annotated[str | None, typer.Option(help="when the photographs were taken, or {column} of test.extra")] = None,
    place: Annotated[
        str | None, typer.Option(help="where: Wildbook's location, Camtrap DP's deployment, or {column} of test.extra")
    ] = None,
) -> None:
    """Write the answers of the latest submission as a table for spreadsheets, Wildbook or Camtrap DP.

    Example: whaleid export wildbook -c turtles.yaml --species "Chelonia mydas" --date "{date}" --place "{beach}"
    """
    from whaleid.export.write import export_answers

    for path in export_answers(context.project, form, output, species, date, place):
        print(f"answers: {path}")
