"""Submissions: sent once, with the message `recipe | cv | commit`, and their scores read back into the log.

A submission's file has a name of its own (it ends in the answer's key), by which Kaggle's list and our log meet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whaleid.evaluation.log import SubmissionRecord, append_log, read_log
from whaleid.kaggle.client import competition_page, kaggle, waits
from whaleid.pipeline.metrics import read_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.submission import log_path, log_submission, submission_path, submission_problems
from whaleid.utils.errors import WhaleidError

SCORED_WITHIN = 900.0
"""Seconds that are waited for a score; `scores` reads it later."""
UPLOAD_WITHIN = 900.0
LISTED = 100
"""Newest submissions that are looked at."""


@dataclass(frozen=True)
class Listed:
    """A submission as Kaggle lists it.

    ref: its number. state: pending, complete, error. Scores are None while hidden or not known.
    """

    ref: str
    file: str
    message: str
    state: str
    public: float | None
    private: float | None

    def line(self) -> str:
        if self.state == "error":
            return f"{self.file}: Kaggle could not score it; its page says why"
        if self.state != "complete":
            return f"{self.file}: no score yet; make scores reads it later"
        private = "" if self.private is None else f", private {self.private:.5f}"
        return f"{self.file}: public {'hidden' if self.public is None else f'{self.public:.5f}'}{private}"


@dataclass(frozen=True)
class Outgoing:
    """A file about to be submitted."""

    competition: str
    file: Path
    message: str
    figures: dict[str, Any]
    """The recipe's part of metrics.json."""

    def line(self) -> str:
        return f"{self.file} to {self.competition}, message {self.message!r}"


def prepare(project: Project) -> Outgoing:
    """The recipe's latest submission, checked; raises WhaleidError where there is none, or it would be refused."""
    slug = kaggle_slug(project)
    figures = read_figures(project)
    if figures is None or not submission_path(project, figures["key"]).is_file():
        raise WhaleidError(
            f"recipe {project.recipe.name} has no submission for {project.competition.name} yet: make submission first"
        )
    path = submission_path(project, figures["key"])
    problems = submission_problems(path, project.competition, project.workspace.root.parent)
    if problems:
        more = f" (and {len(problems) - 1} more: whaleid submission check names all)" if len(problems) > 1 else ""
        raise WhaleidError(f"not submitted: {problems[0]}{more}")
    cv = figures["ladder"]["rungs"][-1]["map"]
    return Outgoing(slug, path, f"{project.recipe.name} | {cv:.5f} | {figures['commit'] or 'no commit'}", figures)


def submit(project: Project, outgoing: Outgoing) -> Iterator[str]:
    """Submit a file that Kaggle does not have yet, wait for its score, and write it into the log; yields lines."""
    log_submission(project, outgoing.figures, outgoing.file)
    before = _own(outgoing)
    if any(one.state != "error" for one in before):
        yield f"{outgoing.file.name} is at Kaggle already: it is not submitted again"
    else:
        kaggle(
            ["competitions", "submit", outgoing.competition, "-f", str(outgoing.file), "-m", outgoing.message],
            f"submission of {outgoing.file.name}",
            expect=r"(?is)\A(?!.*could not)",
            competition=outgoing.competition,
            within=UPLOAD_WITHIN,
        )
        yield f"submitted {outgoing.line()}"
    found = _wait_for_score(outgoing, {one.ref for one in before if one.state == "error"})
    if found is None:
        raise WhaleidError(
            f"submission of {outgoing.file.name}: Kaggle does not list it; look at {_page(outgoing.competition)} "
            "before you try again"
        )
    note_scores(project, [found])
    yield found.line()


def read_back(project: Project) -> Iterator[str]:
    """Write the scores of everything that Kaggle lists into the log; yields a line for each that is of our log."""
    found = listed(kaggle_slug(project))
    ours = note_scores(project, found)
    yield from (one.line() for one in ours)
    yield f"{len(ours)} of {len(found)} listed submissions are in {log_path(project)}"


def draw_scores(project: Project) -> Iterator[str]:
    """Draw the competition's leaderboard scores against its out-of-fold scores; yields what they say, and the path."""
    from whaleid.report.cv_lb import draw_cv_lb, gap_lines, scored

    log = log_path(project)
    records = scored(read_log(log), project.competition.name)
    if not records:
        yield f"no submission of {project.competition.name} has a leaderboard score in {log} yet"
        return
    path = project.workspace.root / "report" / "cv_lb.png"
    draw_cv_lb(records, path)
    yield from gap_lines(records)
    yield f"picture: {path}"


def listed(slug: str) -> list[Listed]:
    """Submissions to a competition, newest first."""
    words = ["competitions", "submissions", slug, "--format", "json", "--page-size", str(LISTED)]
    out = kaggle(words, f"submissions to {slug}", r"(?m)^\[|No submissions found", competition=slug)
    if "No submissions found" in out:
        return []
    try:
        return [_listed(row) for row in json.loads(out[out.index("[") :])]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise WhaleidError(f"submissions to {slug}: Kaggle's list is not understood ({error})") from error


def note_scores(project: Project, found: list[Listed]) -> list[Listed]:
    """Give the competition's rows of the log the scores of their files; returns the submissions that have a row.

    Where a file was submitted more than once the newest with a score counts.
    """
    log = log_path(project)
    records = {record.file: record for record in read_log(log) if record.competition == project.competition.name}
    ours: dict[str, Listed] = {}
    for one in found:
        if one.file in records and (one.file not in ours or _unscored(ours[one.file])):
            ours[one.file] = one
    for name, one in ours.items():
        if not _unscored(one):
            append_log(log, _with_scores(records[name], one))
    return list(ours.values())


def kaggle_slug(project: Project) -> str:
    """The competition's name at Kaggle."""
    slug = project.competition.kaggle
    if slug is None:
        raise WhaleidError(f"competition {project.competition.name} is not one of Kaggle: its YAML has no `kaggle`")
    return slug


def _wait_for_score(outgoing: Outgoing, failed: set[str]) -> Listed | None:
    """The file's submission once it has a score or an error, or as it is when the time is up; None if not listed.

    failed: numbers of earlier submissions of the file, not to be taken for this one.
    """
    found = _newest(_own(outgoing), failed)
    if found is not None and found.state != "pending":
        return found
    for _ in waits(SCORED_WITHIN):
        found = _newest(_own(outgoing), failed)
        if found is not None and found.state != "pending":
            break
    return found


def _own(outgoing: Outgoing) -> list[Listed]:
    """Submissions of the file, newest first."""
    return [one for one in listed(outgoing.competition) if one.file == outgoing.file.name]


def _newest(own: list[Listed], failed: set[str]) -> Listed | None:
    return next((one for one in own if one.ref not in failed), None)


def _page(slug: str) -> str:
    return competition_page(slug, "submissions")


def _with_scores(record: SubmissionRecord, one: Listed) -> SubmissionRecord:
    return replace(
        record,
        public=record.public if one.public is None else one.public,
        private=record.private if one.private is None else one.private,
    )


def _unscored(one: Listed) -> bool:
    return one.public is None and one.private is None


def _listed(row: dict[str, Any]) -> Listed:
    return Listed(
        str(row["ref"]),
        str(row["fileName"]),
        str(row["description"] or ""),
        str(row["status"]).rsplit(".", 1)[-1].lower(),
        _score(row["publicScore"]),
        _score(row["privateScore"]),
    )


def _score(value: Any) -> float | None:
    return None if value in (None, "") else float(value)
