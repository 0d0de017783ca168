"""`whaleid review`: a person decides of pairs of images that the networks doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whaleid.cli.context import PROJECT, Context, command

group = typer.Typer()


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="review", rich_help_panel="Results")


@command(group, PROJECT, default=True)
def review(
    context: Context,
    called: typer.Context,
    as_list: Annotated[
        bool, typer.Option("--list", help="print the pairs, doubtful labels among them, and open no page")
    ] = False,
    who: Annotated[str, typer.Option(envvar="USER", help="your name in reviews.csv")] = "reviewer",
    port: Annotated[int, typer.Option(min=0, max=65535, help="of the page; 0: any that is free")] = 0,
) -> None:
    """Decide of pairs of images whether they show one individual, on a local page, the most informative pairs first.

    Example: whaleid review -c turtles.yaml
    """
    if called.invoked_subcommand is not None:
        return
    from whaleid.data.reviews import repair_reviews, reviews_path
    from whaleid.review.desk import Desk
    from whaleid.review.pairs import find_pairs

    path = reviews_path(context.project.competition)
    results, pairs = find_pairs(context.project)
    desk = Desk(results, pairs, path, who)
    if as_list:
        print("\n".join(desk.lines()))
        return
    from whaleid.review.server import ReviewServer

    if torn := repair_reviews(path):
        print(f"{path}: took out a row that was cut short: {torn}")
    with ReviewServer(desk, port) as server:
        print(f"{len(pairs):,} pairs; decisions go to {path}; Ctrl-C ends the review\n{server.address}", flush=True)
        server.serve_forever()


@command(group)
def merge(
    context: Context,
    files: Annotated[list[Path], typer.Argument(help="reviews.csv of several people")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write; may be one of the files")],
) -> None:
    """Merge the decisions of several people; those that contradict one another are named, and nothing is written.

    Example: whaleid review merge nora.csv tom.csv -o reviews.csv
    """
    from whaleid.data.reviews import merge_reviews

    print(f"{output}: {merge_reviews(files, output):,} decisions of {len(files)} files")
