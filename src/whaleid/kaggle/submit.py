"""Submissions to Kaggle: each is sent once, and its scores are read back into the log.

The name of a submission's file ends in a digest of the settings and data, so it identifies the submission in Kaggle's
list and in our log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whaleid.evaluation.log import SubmissionRecord, append_log, read_log
from whaleid.kaggle.client import competition_page, kaggle, waits
from whaleid.pipeline.metrics import answer_score, read_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.submission import log_path, log_submission, submission_path, submission_problems
from whaleid.utils.errors import WhaleidError

SCORE_SECONDS = 900.0
"""To wait for a score; `scores` reads it later."""
UPLOAD_SECONDS = 900.0
LISTED = 100
"""Newest submissions that are read."""


@dataclass(frozen=True)
class Listed:
    """A submission as Kaggle lists it.

    Attributes
    ----------
    ref : str
        Its number.
    file : str
    state : str
        ``pending``, ``complete`` or ``error``.
    public, private : float or None
        Scores; None while hidden or unknown.
    """

    ref: str
    file: str
    state: str
    public: float | None
    private: float | None

    @property
    def scored(self) -> bool:
        return self.public is not None or self.private is not None

    def line(self) -> str:
        if self.state == "error":
            return f"{self.file}: Kaggle could not score it; its page says why"
        if self.state != "complete":
            return f"{self.file}: no score yet; whaleid kaggle scores reads it later"
        private = "" if self.private is None else f", private {self.private:.5f}"
        return f"{self.file}: public {'hidden' if self.public is None else f'{self.public:.5f}'}{private}"


@dataclass(frozen=True)
class Outgoing:
    """A file to submit; `figures` are the recipe's part of metrics.json."""

    competition: str
    file: Path
    message: str
    figures: dict[str, Any]

    def line(self) -> str:
        return f"{self.file} to {self.competition}, message {self.message!r}"


def prepare(project: Project) -> Outgoing:
    """The recipe's latest submission, checked.

    Raises
    ------
    WhaleidError
        If there is none, or Kaggle would refuse it.
    """
    slug, figures = kaggle_slug(project), read_figures(project)
    if figures is None or not submission_path(project, figures["key"]).is_file():
        raise WhaleidError(
            f"recipe {project.recipe.name} has no submission for {project.competition.name} yet: run whaleid submission"
        )
    path = submission_path(project, figures["key"])
    problems = submission_problems(path, project.competition, project.workspace.root.parent)
    if problems:
        more = (
            f" (and {len(problems) - 1} more: whaleid submission --check FILE lists all)" if len(problems) > 1 else ""
        )
        raise WhaleidError(f"not submitted: {problems[0]}{more}")
    cv = answer_score(figures).value
    return Outgoing(slug, path, f"{project.recipe.name} | {cv:.5f} | {figures['commit'] or 'no commit'}", figures)


def submit(project: Project, outgoing: Outgoing) -> Iterator[str]:
    """Submit a file unless Kaggle has it, wait for its score, and write that into the log.

    Yields
    ------
    str
        A line for each step.
    """
    log_submission(project, outgoing.figures, outgoing.file)
    earlier = _of_file(outgoing)
    failed = {one.ref for one in earlier if one.state == "error"}
    if len(failed) < len(earlier):
        yield f"{outgoing.file.name} is at Kaggle already: it is not submitted again"
    else:
        kaggle(
            ["competitions", "submit", outgoing.competition, "-f", str(outgoing.file), "-m", outgoing.message],
            f"submission of {outgoing.file.name}",
            expect=r"(?is)\A(?!.*could not)",
            competition=outgoing.competition,
            timeout=UPLOAD_SECONDS,
        )
        yield f"submitted {outgoing.line()}"
    found = _wait_for_score(outgoing, failed)
    if found is None:
        page = competition_page(outgoing.competition, "submissions")
        raise WhaleidError(
            f"submission of {outgoing.file.name}: Kaggle does not list it; look at {page} before you try again"
        )
    note_scores(project, [found])
    yield found.line()


def read_back(project: Project) -> Iterator[str]:
    """Write the scores of all listed submissions into the log; yields a line for each that the log has."""
    found = listed(kaggle_slug(project))
    logged = note_scores(project, found)
    yield from (one.line() for one in logged)
    yield f"{len(logged)} of {len(found)} listed submissions are in {log_path(project)}"


def draw_scores(project: Project) -> Iterator[str]:
    """Plot leaderboard scores against out-of-fold scores; yields how they agree, and the plot's path."""
    from whaleid.report.cv_lb import draw_cv_lb, gap_lines, scored

    log = log_path(project)
    records = scored(read_log(log), project.competition.name)
    if not records:
        yield f"no submission of {project.competition.name} has a leaderboard score in {log} yet"
        return
    path = project.workspace.root / "report" / "cv_lb.png"
    draw_cv_lb(records, path)
    yield from gap_lines(records)
    yield f"plot: {path}"


def listed(slug: str) -> list[Listed]:
    """Submissions to a competition, newest first."""
    words = ["competitions", "submissions", slug, "--format", "json", "--page-size", str(LISTED)]
    out = kaggle(words, f"submissions to {slug}", r"(?m)^\[|No submissions found", competition=slug)
    if "No submissions found" in out:
        return []
    try:
        return [_from_row(row) for row in json.loads(out[out.index("[") :])]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise WhaleidError(f"submissions to {slug}: unexpected answer of Kaggle ({error})") from error


def note_scores(project: Project, found: list[Listed]) -> list[Listed]:
    """Write scores into the competition's rows of the log.

    Parameters
    ----------
    project : Project
    found : list of Listed
        Newest first; of several submissions of a file, the newest with a score counts.

    Returns
    -------
    list of Listed
        The submissions that have a row.
    """
    log = log_path(project)
    records = {record.file: record for record in read_log(log) if record.competition == project.competition.name}
    logged: dict[str, Listed] = {}
    for one in found:
        if one.file in records and (one.file not in logged or not logged[one.file].scored):
            logged[one.file] = one
    for name, one in logged.items():
        if one.scored:
            append_log(log, _with_scores(records[name], one))
    return list(logged.values())


def kaggle_slug(project: Project) -> str:
    """The competition's slug at Kaggle; raises WhaleidError if it is not there."""
    slug = project.competition.kaggle
    if slug is None:
        raise WhaleidError(f"competition {project.competition.name} is not one of Kaggle: its YAML has no `kaggle`")
    return slug


def _wait_for_score(outgoing: Outgoing, failed: set[str]) -> Listed | None:
    """The file's submission once it is scored or failed, or as it is when the time is up; None if not listed.

    failed: numbers of earlier submissions of the file.
    """
    found = _newest(outgoing, failed)
    for _ in waits(SCORE_SECONDS):
        if found is not None and found.state != "pending":
            break
        found = _newest(outgoing, failed)
    return found


def _newest(outgoing: Outgoing, failed: set[str]) -> Listed | None:
    return next((one for one in _of_file(outgoing) if one.ref not in failed), None)


def _of_file(outgoing: Outgoing) -> list[Listed]:
    """Submissions of the file, newest first."""
    return [one for one in listed(outgoing.competition) if one.file == outgoing.file.name]


def _with_scores(record: SubmissionRecord, one: Listed) -> SubmissionRecord:
    scores = {name: score for name, score in (("public", one.public), ("private", one.private)) if score is not None}
    return replace(record, **scores)


def _from_row(row: dict[str, Any]) -> Listed:
    state = str(row["status"]).rsplit(".", 1)[-1].lower()
    return Listed(str(row["ref"]), str(row["fileName"]), state, _score(row["publicScore"]), _score(row["privateScore"]))


def _score(value: Any) -> float | None:
    return None if value in (None, "") else float(value)
