"""`whaleid data`: get the images, check them, and assign them to folds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whaleid.cli.context import PROJECT, Context, command

group = typer.Typer(
    help="Get the images, check them, assign them to folds.\n\nExample: whaleid data check -c humpback",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="data", rich_help_panel="Data")


@command(group)
def sample(
    context: Context,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder to write; default: RAW_DATA_DIR/sample")
    ] = None,
    seed: Annotated[int, typer.Option(help="another seed draws another sample")] = 0,
    identities: Annotated[int, typer.Option(min=2, help="number of whales")] = 150,
    train_images: Annotated[int, typer.Option(min=20, help="labelled images, those of new_whale included")] = 1000,
    test_images: Annotated[int, typer.Option(min=10, help="images of the test set")] = 400,
    unknown_train: Annotated[
        float | None, typer.Option(min=0, max=0.95, help="share of new_whale in the train images; default: .381")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="also write an overview of the images (PNG)")] = None,
) -> None:
    """Draw the sample: humpback flukes in the layout of the Kaggle competition, with a solution for scoring.

    Example: whaleid data sample --identities 50 -o data/small
    """
    from whaleid.data.sample import UNKNOWN_TRAIN, contact_sheet, make_sample
    from whaleid.utils.progress import progress_bar

    folder = output or context.settings.raw / "sample"
    with progress_bar("drawing flukes", train_images + test_images, images=True) as bar:
        made = make_sample(
            folder,
            seed,
            identities,
            train_images,
            test_images,
            UNKNOWN_TRAIN if unknown_train is None else unknown_train,
            progress=lambda done, total: bar.move_to(done),
        )
    print(
        f"{folder}: {made.train:,} train images ({made.train_unknown:,} new_whale) of {made.identities} "
        f"identities ({made.singletons} with one image), {made.test:,} test images "
        f"({made.test_unknown:,} new_whale)" + ("" if made.made else "; up to date")
    )
    if sheet is not None:
        contact_sheet(folder, sheet)
        print(f"overview: {sheet}")


@command(group, ("competition",))
def download(
    context: Context,
    keep_archive: Annotated[bool, typer.Option("--keep-archive", help="keep the zip after unpacking")] = False,
) -> None:
    """Download and unpack a Kaggle competition, unless its CSVs are there. Continues where it stopped.

    Example: whaleid data download -c humpback
    """
    from whaleid.kaggle.download import fetch_data

    for line in fetch_data(context.load_competition(), keep_archive):
        print(line, flush=True)


@command(group, name="import")
def import_(
    context: Context,
    source: Annotated[Path, typer.Argument(help="CSV of images, or folder")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="YAML to write; default: the folder's name, here")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that exist")] = False,
) -> None:
    """Look at a CSV or a folder (one for each identity), write the competition's YAML, and say what was understood.

    Example: whaleid data import data/turtles -o turtles.yaml
    """
    from whaleid.data.importing import import_data

    folder = source.resolve() if source.is_dir() else source.resolve().parent
    made = import_data(source, output or Path(f"{folder.name}.yaml"), overwrite)
    print("\n".join([*made.lines, f"wrote {made.yaml}; next: whaleid data check -c {made.yaml}"]))


@command(group, ("competition", "work", "skip_unreadable"))
def build(context: Context) -> None:
    """Write images.parquet: size, box, perceptual hash and duplicate group of every image.

    Example: whaleid data build -c nyala
    """
    from whaleid.pipeline.data_stages import build_images_table
    from whaleid.pipeline.workspace import Workspace

    competition, skip = context.load_competition(), context.skip_unreadable
    workspace = Workspace(context.work_folder / competition.name)
    images = build_images_table(competition, workspace, skip)
    print(f"{workspace.images}: {len(images):,} images")


@command(group, ("competition", "recipe", "overrides"))
def check(context: Context) -> None:
    """Report counts and all that would stop a run, of the data and, with -r, of a recipe on it. Exit code 2 if any.

    Example: whaleid data check -c nyala -r sample
    """
    from whaleid.pipeline.preflight import check_project

    report = check_project(context.load_competition(), None if context.recipe is None else context.project)
    print("\n".join(report.lines()))
    if report.problems:
        raise typer.Exit(2)


@command(group, (*PROJECT, "json_log"))
def folds(context: Context) -> None:
    """Assign the labelled images to folds, and show what each fold holds.

    Example: whaleid data folds -c nyala -r sample
    """
    from whaleid.data.bursts import across, burst_line, bursts_of
    from whaleid.data.folds import fold_table
    from whaleid.pipeline.runner import run
    from whaleid.pipeline.workspace import read_folds, read_images

    project = context.project
    run(project, "folds")
    table, images = read_folds(project.workspace), read_images(project.workspace)
    print(fold_table(table, project.competition.unknown).to_string(index=False))
    fold = images["image"].map(table.set_index("image")["fold"]).to_numpy()
    pairs = across(bursts_of(project.competition, images), fold)
    if line := burst_line(images["image"].to_numpy(), pairs, len(table), " in another fold"):
        print(f"note: {line}")
    print(f"{project.workspace.folds}: {len(table):,} images in {project.recipe.folds} folds")
