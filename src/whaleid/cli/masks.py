"""The command that finds the animal in every picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whaleid.cli.context import Context, command


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    command(app, ("competition", "work", "skip_unreadable"), panel="Data")(masks)


def masks(
    context: Context,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder to write; default: <work>/<competition>/masks")
    ] = None,
) -> None:
    """Make a mask of every picture (white = animal) by U2-Netp, boxes around them, and a sheet to look at.

    Masks that are there are kept: a stopped command continues, and those corrected by hand stay.

    Example: whaleid masks -c turtles.yaml
    """
    from whaleid.data.masks import masks_of
    from whaleid.data.segmentation import boxes_of_masks, make_masks
    from whaleid.pipeline.data_stages import build_images_table
    from whaleid.pipeline.workspace import Workspace
    from whaleid.report.mask_sheet import write_mask_sheet
    from whaleid.utils.files import atomic_path

    competition = context.load_competition()
    workspace = Workspace(context.work_folder / competition.name)
    folder = (output or workspace.root / "masks").absolute()
    images = build_images_table(competition, workspace, context.skip_unreadable)
    done = make_masks(images, competition, folder, context.settings.weights)
    print(f"masks: {done.made:,} made, {done.kept:,} were there, in {folder}")
    if done.whole:
        print(f"nothing found in {done.whole:,} pictures: their masks are the whole picture or box")
    lines = [f"masks: {folder}"]
    if competition.boxes is None:
        boxes = folder.with_name(f"{folder.name}-boxes.csv")
        with atomic_path(boxes) as temporary:
            boxes_of_masks(images, competition, folder).to_csv(temporary, index=False)
        lines.append(f"boxes: {boxes}")
    sheet = folder.with_name(f"{folder.name}.jpg")
    masked = competition.model_copy(update={"masks": str(folder)})
    write_mask_sheet(images, competition.root, masks_of(masked, images) or [], sheet)
    print(f"look at them: {sheet}")
    print("\n".join(["to use them, add to the competition's YAML:", *lines]))
