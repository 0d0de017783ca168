"""submissions/log.csv: one row for every submission, to compare out-of-fold scores with the leaderboard."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whaleid.data.tables import read_csv
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path
from whaleid.utils.locks import locked


@dataclass(frozen=True, kw_only=True)
class SubmissionRecord:
    """One submission; its fields are the log's columns.

    Attributes
    ----------
    time : str
        UTC: `2024-05-31T12:00:00+00:00`.
    file : str
        Name of the submission's file, which identifies the row.
    commit, competition, recipe : str
    cv : float or None
        Out-of-fold score; scores are in [0, 1], None (blank) if not known.
    cv_interval : float or None
        Half the width of its 95 % interval.
    solution : float or None
        Score against the competition's solution file.
    public, private : float or None
        Leaderboard scores, filled in by hand or by `submit`.
    """

    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    file: str
    commit: str = ""
    competition: str
    recipe: str
    cv: float | None = None
    cv_interval: float | None = None
    solution: float | None = None
    public: float | None = None
    private: float | None = None


COLUMNS = tuple(one.name for one in fields(SubmissionRecord))
_SCORES = ("cv", "cv_interval", "solution", "public", "private")


def read_log(path: Path) -> list[SubmissionRecord]:
    """Rows of the log, oldest first; none if there is no such file. Missing columns are blank.

    Raises WhaleidError for a column that rewriting the log would lose, and for a score that is not a number.
    """
    if not path.exists() or not path.stat().st_size:
        return []
    table = read_csv(path)
    foreign = [name for name in table.header if name not in COLUMNS]
    if foreign:
        raise WhaleidError(f"{path}: column {foreign[0]!r} is not one of {', '.join(COLUMNS)}; remove it")
    cells = zip(*(column.to_pylist() for column in table.columns), strict=True)
    records = zip(table.rows.tolist(), cells, strict=True)
    return [_record(path, row, dict(zip(table.header, values, strict=True))) for row, values in records]


def append_log(path: Path, record: SubmissionRecord) -> None:
    """Add a row to the log, or replace the row of the same file.

    A replaced row's leaderboard scores are kept where the new row has none and both have the same recipe and
    out-of-fold score: it is then the same submission, made again.
    """
    with locked(path.with_name(f".{path.name}.lock")):  # of two runs at once neither loses its row
        _write_log(path, _with_record(read_log(path), record))


def _with_record(records: list[SubmissionRecord], record: SubmissionRecord) -> list[SubmissionRecord]:
    places = [place for place, old in enumerate(records) if old.file == record.file]
    if not places:
        return [*records, record]
    records[places[-1]] = _keep_leaderboard(records[places[-1]], record)
    return [old for place, old in enumerate(records) if place not in places[:-1]]


def _write_log(path: Path, records: list[SubmissionRecord]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_cell(getattr(one, name)) for name in COLUMNS] for one in records)


def _keep_leaderboard(old: SubmissionRecord, new: SubmissionRecord) -> SubmissionRecord:
    if (old.competition, old.recipe, _cell(old.cv)) != (new.competition, new.recipe, _cell(new.cv)):
        return new
    return replace(
        new,
        public=old.public if new.public is None else new.public,
        private=old.private if new.private is None else new.private,
    )


def _cell(value: str | float | None) -> str:
    """Five decimals for a score, as everywhere in the output; blank for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.5f}"


def _record(path: Path, row: int, cells: dict[str, str]) -> SubmissionRecord:
    values: dict[str, Any] = {name: cells.get(name, "").strip() for name in COLUMNS}
    scores: dict[str, Any] = {name: _score(values[name], f"{path}: row {row}, column {name}") for name in _SCORES}
    return SubmissionRecord(**(values | scores))


def _score(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise WhaleidError(f"{where}: {text!r} is not a score; give a number, or leave it blank")
    return value
