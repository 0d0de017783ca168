"""submissions/log.csv: one row for every submission made, so that cross-validation and leaderboard can be compared."""

from __future__ import annotations

import csv
import math
from dataclasses import astuple, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from whaleid.errors import WhaleidError
from whaleid.workspace import atomic_path


def utc_now() -> str:
    """The time as the log holds it: `2024-05-31T12:00:00+00:00`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class SubmissionRecord:
    """One submission. Scores are in [0, 1], or None (a blank cell) while they are not known."""

    file: str
    """Name of the submission's file: what tells one row from another."""
    competition: str
    recipe: str
    commit: str = ""
    cv: float | None = None
    """Out-of-fold score, and half the width of its 95 % interval."""
    cv_interval: float | None = None
    solution: float | None = None
    public: float | None = None
    """Leaderboard scores, filled in by hand or by `submit`."""
    private: float | None = None
    time: str = field(default_factory=utc_now)


COLUMNS = ("time", "file", "commit", "competition", "recipe", "cv", "cv_interval", "solution", "public", "private")
_SCORES = ("cv", "cv_interval", "solution", "public", "private")
assert set(COLUMNS) == {one.name for one in fields(SubmissionRecord)}


def read_log(path: Path) -> list[SubmissionRecord]:
    """Every row of the log, oldest first; none if there is no such file.

    Columns that are missing are blank. Raises WhaleidError for a column that rewriting the log would lose, and for a
    score that is not a number.
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

    Leaderboard scores that the new row leaves blank are kept from the replaced one if both come from the same recipe
    with the same out-of-fold score: then it is the same submission made again, and typed-in scores still belong to it.
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
    """Five decimals for a score, as everywhere in the output; blank for none."""
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.5f}"


def _record(path: Path, number: int, row: dict[str, str | None]) -> SubmissionRecord:
    values: dict[str, str | float | None] = {name: row.get(name) or "" for name in COLUMNS}
    for name in _SCORES:
        text = str(values[name]).strip()
        try:
            values[name] = float(text) if text else None
        except ValueError:
            values[name] = math.nan
        if isinstance(values[name], float) and not math.isfinite(float(text and values[name] or 0.0)):
            raise WhaleidError(f"{path}: row {number}, column {name}: {text!r} is not a score; give a number or nothing")
    return SubmissionRecord(**values)  # type: ignore[arg-type]
