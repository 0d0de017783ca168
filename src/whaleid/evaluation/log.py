"""submissions/log.csv: a row for every submission, to compare out-of-fold scores with the leaderboard."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path


def utc_now() -> str:
    """The time as the log holds it: `2024-05-31T12:00:00+00:00`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class SubmissionRecord:
    """One submission, its fields the log's columns. Scores are in [0, 1], or None (blank) while not known."""

    time: str = field(default_factory=utc_now)
    file: str
    """Name of the submission's file: what tells one row from another."""
    commit: str = ""
    competition: str
    recipe: str
    cv: float | None = None
    """Out-of-fold score."""
    cv_interval: float | None = None
    """Half the width of its 95 % interval."""
    solution: float | None = None
    public: float | None = None
    """Leaderboard scores, filled in by hand or by `submit`."""
    private: float | None = None


COLUMNS = tuple(one.name for one in fields(SubmissionRecord))
_SCORES = ("cv", "cv_interval", "solution", "public", "private")


def read_log(path: Path) -> list[SubmissionRecord]:
    """Every row of the log, oldest first; none if there is no such file.

    Columns that are missing are blank. Raises WhaleidError for a column that rewriting the log would lose,
    and for a score that is not a number.
    """
    if not path.exists() or not path.stat().st_size:
        return []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        foreign = [name for name in reader.fieldnames or [] if name not in COLUMNS]
        if foreign:
            raise WhaleidError(f"{path}: column {foreign[0]!r} is not one of {', '.join(COLUMNS)}; remove it")
        return [_record(path, number, row) for number, row in enumerate(reader, start=2)]


def append_log(path: Path, record: SubmissionRecord) -> None:
    """Add a row, or replace the row of the same file; the log is replaced whole, never left half written.

    Leaderboard scores that the new row leaves blank are kept from the replaced one if both have the same
    recipe and out-of-fold score: it is then the same submission made again, and the scores are still its own.
    """
    records = read_log(path)
    places = [place for place, old in enumerate(records) if old.file == record.file]
    if places:
        records[places[-1]] = _keep_leaderboard(records[places[-1]], record)
        records = [old for place, old in enumerate(records) if place not in places[:-1]]
    else:
        records.append(record)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_cell(getattr(one, name)) for name in COLUMNS] for one in records)


def _keep_leaderboard(old: SubmissionRecord, new: SubmissionRecord) -> SubmissionRecord:
    same = (old.competition, old.recipe, _cell(old.cv)) == (new.competition, new.recipe, _cell(new.cv))
    if not same:
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


def _record(path: Path, number: int, row: dict[str, str | None]) -> SubmissionRecord:
    """One row as a record; `row` may lack columns."""
    values: dict[str, Any] = {name: (row.get(name) or "").strip() for name in COLUMNS}
    scores: dict[str, Any] = {name: _score(values[name], f"{path}: row {number}, column {name}") for name in _SCORES}
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
