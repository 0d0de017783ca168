"""The tables that answers are written as: a spreadsheet, Wildbook's bulk import, the observations of Camtrap DP.

Wildbook's fields are those of its documentation (docs.wildme.org, Bulk Import), the columns of Camtrap DP those of
version 1.0 (camtrap-dp.tdwg.org/data).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd

from whaleid import __version__
from whaleid.config.competition import FIELD
from whaleid.data.images_table import CORNERS
from whaleid.evaluation.submission_file import is_finite
from whaleid.export.answers import PERSON
from whaleid.utils.errors import WhaleidError

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of cells that a spreadsheet takes for formulas, unless they are numbers."""
_DATE = re.compile(r"(\d{4})(?:-(0[1-9]|1[0-2])(?:-(0[1-9]|[12]\d|3[01])(?:[T ].*)?)?)?")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d)")
_SPECIES = re.compile(r"[A-Z][a-z-]+ [a-z][a-z. -]*")


@dataclass(frozen=True)
class Filled:
    """What formats ask of a table of answers beside its own columns. Each is '' where it was not given.

    Attributes
    ----------
    species, date, place : list of str
        Of each image.
    classified : datetime
        When the submission was written.
    recipe : str
    unknown : str or None
        Label of the unknown identity.
    """

    species: list[str]
    date: list[str]
    place: list[str]
    classified: datetime
    recipe: str
    unknown: str | None


def spreadsheet(answers: pd.DataFrame, images: pd.DataFrame, given: Filled) -> pd.DataFrame:
    """image, identity, confidence, second guess and its confidence, why; species, date and place where given."""
    table = answers[["image", "identity", "confidence", "second", "second_confidence"]].assign(why=_reasons(answers))
    for name in ("species", "date", "place"):
        if any(getattr(given, name)):
            table[name] = getattr(given, name)
    return table.map(_quoted)


def wildbook(answers: pd.DataFrame, images: pd.DataFrame, given: Filled) -> pd.DataFrame:
    """An encounter for each image; one without identity where it is unknown. Uncurated, as the answers are."""
    for name in ("species", "date", "place"):
        _require(answers, name, getattr(given, name))
    _require_form(answers, "species", given.species, _SPECIES, "a genus and an epithet, as Tragelaphus angasii")
    _require_form(answers, "date", given.date, _DATE, "a date or a year, as 2026-05-04")
    files = answers["image"].where(answers["row"] < 0, images["path"].reindex(answers["row"]).to_numpy())
    files = files.str.rpartition("/")[2]
    if files.duplicated().any():
        raise WhaleidError(f"wildbook: several images are named {files[files.duplicated()].iloc[0]}; rename the files")
    dates = [_DATE.fullmatch(date).groups() for date in given.date]  # pyright: ignore[reportOptionalMemberAccess]
    table = pd.DataFrame(
        {
            "Encounter.mediaAsset0": files,
            "Encounter.genus": [name.split(" ", 1)[0] for name in given.species],
            "Encounter.specificEpithet": [name.split(" ", 1)[1] for name in given.species],
            "Encounter.year": [year for year, _, _ in dates],
            "Encounter.month": [month or "" for _, month, _ in dates],
            "Encounter.day": [day or "" for _, _, day in dates],
            "Encounter.locationID": given.place,
            "MarkedIndividual.individualID": _named(answers, given.unknown),
            "Encounter.state": "unapproved",
            "Encounter.researcherComments": _comments(answers),
        }
    )
    table = table.loc[:, (table != "").any()]  # fields without data are to be left out
    _refuse_formulas("wildbook", answers, table)
    return table


def camtrap_dp(answers: pd.DataFrame, images: pd.DataFrame, given: Filled) -> pd.DataFrame:
    """A media-based observation for each image, as its row in observations.csv."""
    for name in ("date", "place"):
        _require(answers, name, getattr(given, name))
    _require_form(answers, "date", given.date, _TIME, "a time with its zone, as 2026-05-04T12:00:00Z")
    human = (answers["ranker"] == PERSON).to_numpy()
    boxes = _boxes(images.reindex(answers["row"]))
    table = pd.DataFrame(
        {
            "observationID": "whaleid:" + answers["image"],
            "deploymentID": given.place,
            "mediaID": answers["image"],
            "eventID": "",
            "eventStart": given.date,
            "eventEnd": given.date,
            "observationLevel": "media",
            "observationType": "animal",
            "cameraSetupType": "",
            "scientificName": given.species,
            "count": "",
            "lifeStage": "",
            "sex": "",
            "behavior": "",
            "individualID": _named(answers, given.unknown),
            "individualPositionRadius": "",
            "individualPositionAngle": "",
            "individualSpeed": "",
            **boxes,
            "classificationMethod": ["human" if one else "machine" for one in human],
            "classifiedBy": ["" if one else f"whaleid {__version__}, recipe {given.recipe}" for one in human],
            "classificationTimestamp": given.classified.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "classificationProbability": answers["confidence"].map(_number).to_numpy(),
            "observationTags": "",
            "observationComments": _comments(answers),
        }
    )
    _refuse_formulas("camtrap-dp", answers, table)
    return table


FORMATS: dict[str, Callable[[pd.DataFrame, pd.DataFrame, Filled], pd.DataFrame]] = {
    "csv": spreadsheet,
    "wildbook": wildbook,
    "camtrap-dp": camtrap_dp,
}
"""Name of a format -> (answers from `read_answers`, images.parquet, what else is known) -> its table, all text."""


def filled(pattern: str | None, option: str, answers: pd.DataFrame, images: pd.DataFrame) -> list[str]:
    """A text for each answer: `pattern` with the image's values in place of `{column}`; '' for no pattern.

    Raises
    ------
    WhaleidError
        For a column that images.parquet does not have.
    """
    columns = [column for column, _ in FIELD.findall(pattern or "")]
    for column in columns:
        if column not in images.columns:
            raise WhaleidError(
                f"--{option} {pattern}: images.parquet has no column '{column}'; add it to `test.extra` of the "
                f"competition's YAML, or name one of {', '.join(images.columns)}"
            )
    values = images.reindex(answers["row"])[columns].astype(object).fillna("").astype(str)
    records = [dict(zip(columns, row, strict=True)) for row in values.to_numpy().tolist()]
    return [_fill(pattern or "", record) for record in records]


def _fill(pattern: str, record: dict[str, str]) -> str:
    return FIELD.sub(lambda found: record[found[1]], pattern)


# ------------------------------------------------------------------------------------------------------ cells


def _named(answers: pd.DataFrame, unknown: str | None) -> pd.Series:
    """The identities, '' in the place of the unknown label."""
    return answers["identity"].where(answers["identity"] != (unknown or ""), "")


def _reasons(answers: pd.DataFrame) -> list[str]:
    reasons = []
    for row in answers.to_dict("records"):
        said = [str(row["ranker"] or "the image could not be read")]
        said += [f"{row['agree']} rankers say so first"] if row["agree"] else []
        said += [f"nearest labelled image {row['nearest']}"] if row["nearest"] else []
        reasons.append("; ".join(said))
    return reasons


def _comments(answers: pd.DataFrame) -> list[str]:
    """Confidence, second guess and reason in one line."""
    lines = []
    for row, reason in zip(answers.to_dict("records"), _reasons(answers), strict=True):
        first, second = _number(row["confidence"]), _number(row["second_confidence"])
        said = [f"whaleid: probability {first}"] if first else ["whaleid"]
        said += [f"second guess {row['second']} ({second})"] if row["second"] else []
        lines.append("; ".join([*said, reason]))
    return lines


def _boxes(rows: pd.DataFrame) -> dict[str, list[str]]:
    """bboxX, bboxY, bboxWidth, bboxHeight as shares of the sides; '' where an image is used whole."""
    x0, y0, x1, y1 = (rows[name].to_numpy(float) for name in CORNERS)
    width, height = rows["width"].to_numpy(float), rows["height"].to_numpy(float)
    whole = ~((x0 > 0) | (y0 > 0) | (x1 < width) | (y1 < height))
    shares = {"X": x0 / width, "Y": y0 / height, "Width": (x1 - x0) / width, "Height": (y1 - y0) / height}
    return {
        f"bbox{name}": ["" if one else _number(value) for one, value in zip(whole, values, strict=True)]
        for name, values in shares.items()
    }


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4f}"


def _quoted(value: object) -> str:
    """A cell of a spreadsheet: text that begins like a formula stands behind an apostrophe, which makes it text."""
    if isinstance(value, float):
        return _number(value)
    text = str(value)
    return f"'{text}" if _is_formula(text) else text


def _is_formula(text: str) -> bool:
    return text.startswith(FORMULA) and not is_finite(text)


# ----------------------------------------------------------------------------------------------------- refusals


def _require(answers: pd.DataFrame, option: str, values: list[str]) -> None:
    """Raise WhaleidError for the first image without a value."""
    for image, value in zip(answers["image"], values, strict=True):
        if not value.strip():
            raise WhaleidError(
                f"image {image}: no {option}, which this format asks for; give it with --{option}: a text, or "
                "{column} of `test.extra`"
            )


def _require_form(answers: pd.DataFrame, option: str, values: list[str], form: re.Pattern[str], what: str) -> None:
    for image, value in zip(answers["image"], values, strict=True):
        if not form.fullmatch(value):
            raise WhaleidError(f"image {image}: --{option} is '{value}'; this format asks for {what}")


def _refuse_formulas(name: str, answers: pd.DataFrame, table: pd.DataFrame) -> None:
    """Raise WhaleidError for a cell that a spreadsheet would run; names must stay as they are for other programs."""
    for column in table.columns:
        cells: Iterable[str] = table[column].astype(str)
        for image, cell in zip(answers["image"], cells, strict=True):
            if _is_formula(cell):
                raise WhaleidError(
                    f"{name}: image {image}: {column} is {cell!r}, which a spreadsheet would take for a formula; "
                    "rename it (identities: rename_values)"
                )
