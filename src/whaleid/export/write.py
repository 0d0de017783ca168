"""`whaleid export`: the answers of the latest submission as a table for other programs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from whaleid.export.answers import read_answers
from whaleid.export.formats import FORMATS, Filled, filled
from whaleid.pipeline.project import Project
from whaleid.pipeline.submission import latest_submission
from whaleid.pipeline.workspace import read_images
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

MOST_ENCOUNTERS = 200
"""Rows of one file that Wildbook's documentation asks not to exceed."""


def export_answers(
    project: Project,
    name: str,
    out: Path | None = None,
    species: str | None = None,
    date: str | None = None,
    place: str | None = None,
) -> list[Path]:
    """Write the answers of the recipe's latest submission.

    Parameters
    ----------
    project : Project
    name : str
        One of FORMATS.
    out : Path, optional
        CSV to write; default: `export/<recipe>-<name>.csv` in the work folder.
    species, date, place : str, optional
        Text, or `{column}` of images.parquet; what formats that ask for them do with them is said there.

    Returns
    -------
    list of Path
        One, or of Wildbook one for each 200 rows.

    Raises
    ------
    WhaleidError
        For an unknown format, no submission, and a value that the format needs and an image does not have.
    """
    if name not in FORMATS:
        raise WhaleidError(f"export: no format '{name}'; choose one of {', '.join(FORMATS)}")
    answers, images = read_answers(project), read_images(project.workspace)
    patterns = {"species": species, "date": date, "place": place}
    table = FORMATS[name](
        answers,
        images,
        Filled(
            **{option: filled(pattern, option, answers, images) for option, pattern in patterns.items()},
            classified=datetime.fromtimestamp(latest_submission(project).stat().st_mtime, UTC),
            recipe=project.recipe.name,
            unknown=project.competition.unknown,
        ),
    )
    path = out or project.workspace.root / "export" / f"{project.recipe.name}-{name}.csv"
    most = MOST_ENCOUNTERS if name == "wildbook" else len(table)
    starts = range(0, len(table), most)
    paths = [path if len(starts) == 1 else path.with_stem(f"{path.stem}-{number + 1}") for number in range(len(starts))]
    for start, one in zip(starts, paths, strict=True):
        with atomic_path(one) as temporary:
            table.iloc[start : start + most].to_csv(temporary, index=False)
    return paths
