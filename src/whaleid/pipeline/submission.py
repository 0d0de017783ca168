"""The submission: the final ranker's guesses for the test images, written, checked and logged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.competition import inspect_rows
from whaleid.data.listing import read_listed
from whaleid.evaluation.forms import get_form, write_submission
from whaleid.evaluation.log import SubmissionRecord, append_log, read_log
from whaleid.evaluation.submission_file import ANSWER, read_answer_file
from whaleid.evaluation.topk import read_guesses
from whaleid.pipeline.ladder import ladder_tasks
from whaleid.pipeline.metrics import answer_score, read_figures, require_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.workspace import read_folds
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path


def submission_tasks(project: Project) -> list[Task]:
    """The submission of the recipe, and its row in the log; none where the competition has no test images."""
    if project.competition.test is None:
        return []
    ladder = ladder_tasks(project)[0]
    path = submission_path(project, ladder.key)
    note = project.workspace.root / "submission" / project.recipe.name  # the file itself is outside of the work folder

    def make() -> None:
        write_answer(project, path)
        log_submission(project, require_figures(project), path)

    def check() -> bool:
        return path.is_file() and ladder.current and bool(_rows_of(project, path))

    return [Task("submission", "", project.workspace, note, ladder.key, make, ("ladder",), check)]


def write_answer(project: Project, path: Path) -> None:
    """Write the answer, as it lies beside the candidates, to the submission file `path`."""
    competition = project.competition
    template = submission_template(competition, project.workspace.root)
    cells = _with_unreadable(project, test_answers(project), template)
    columns = (competition.submission.image, competition.submission.identities)
    labels, form = known_labels(competition), competition.answer.form
    write_submission(form, path, cells, template, labels, competition.k, columns)


def test_answers(project: Project) -> dict[str, str]:
    """Test image -> its answer in the competition's form."""
    if get_form(project.competition.answer.form).NEEDS != "guesses":
        return read_answer_file(project.workspace.candidates(project.recipe.name) / ANSWER)
    final = read_guesses_of_rungs(project)[-1]
    return {image: " ".join(row[row != ""]) for image, row in zip(final.images.tolist(), final.guesses, strict=True)}


# -------------------------------------------------------------------------------------------------- where it is


def submission_path(project: Project, key: str) -> Path:
    """File of the submission with a key; its name ends in the key, so that different submissions have two files."""
    return project.settings.submissions / f"{project.competition.name}_{project.recipe.name}_{key[:8]}.csv"


def latest_submission(project: Project) -> Path:
    """File of the recipe's latest submission. Raises WhaleidError where there is none."""
    figures = read_figures(project)
    path = None if figures is None else submission_path(project, figures["key"])
    if path is None or not path.is_file():
        raise WhaleidError(
            f"recipe {project.recipe.name} has no submission for {project.competition.name} yet: make submission first"
        )
    return path


def log_path(project: Project) -> Path:
    """The log of all submissions."""
    return project.settings.submissions / "log.csv"


def log_submission(project: Project, figures: dict[str, Any], path: Path, solution: float | None = None) -> None:
    """Give a submission its row in `submissions/log.csv`, or the row that it has its score on the solution."""
    logged = _rows_of(project, path)
    if logged and solution in (None, logged[-1].solution):
        return
    final = answer_score(figures)
    record = SubmissionRecord(
        file=path.name,
        competition=project.competition.name,
        recipe=project.recipe.name,
        commit=figures["commit"],
        cv=final.value,
        cv_interval=(final.high - final.low) / 2,
        solution=solution,
    )
    append_log(log_path(project), record)


def _rows_of(project: Project, path: Path) -> list[SubmissionRecord]:
    return [record for record in read_log(log_path(project)) if record.file == path.name]


# -------------------------------------------------------------------------------------------------- the guesses


@dataclass(frozen=True)
class TestGuesses:
    """Guesses of one rung of the ladder for the test images.

    Attributes
    ----------
    rung : str
        Its name in the ladder.
    images : str array, shape (n,)
        Names of the test images.
    guesses : str array, shape (n, k)
        Identities, best first; "" where there are fewer than k.
    """

    rung: str
    images: np.ndarray
    guesses: np.ndarray


def read_guesses_of_rungs(project: Project) -> list[TestGuesses]:
    """The guesses of every rung for the test images, in the ladder's order."""
    from whaleid.ensemble.results import labels
    from whaleid.retrieval.candidates import read_candidates

    path = project.workspace.candidates(project.recipe.name) / "test.parquet"
    if not path.is_file():
        raise WhaleidError(f"competition {project.competition.name} has no test images: add `test` to its YAML")
    k = project.competition.k
    return [TestGuesses(rung, lists.queries, labels(lists, k)) for rung, _, lists in read_candidates(path)]


def _most_frequent(project: Project) -> list[str]:
    """Guesses for an image that could not be read: unknown, then the identities with most images."""
    labelled = read_folds(project.workspace).identity
    unknown = project.competition.unknown
    common = labelled[labelled != unknown].value_counts(sort=True).index.tolist()
    return ([unknown] if unknown else []) + common[: project.competition.k - bool(unknown)]


def _with_unreadable(project: Project, answers: dict[str, str], template: Path) -> dict[str, str]:
    """The answers, and what the form has for every image of the template that was unreadable."""
    missing = sorted(set(read_guesses(template).images) - set(answers))
    if not missing:
        return answers
    form, likely = get_form(project.competition.answer.form), _most_frequent(project)
    print(f"{len(missing)} unreadable test images are answered without a look: {', '.join(missing[:3])} ...")
    return answers | {image: form.unreadable(image, likely) for image in missing}


# -------------------------------------------------------------------------------------------------- its form


def submission_template(competition: Competition, folder: Path) -> Path:
    """The sample submission; where the test CSV is none, one that is made of its images in `folder`."""
    test = competition.test
    if test is None:
        raise WhaleidError(f"competition {competition.name} has no test images: add `test` to its YAML")
    path = competition.root / test.csv
    if not path.is_file():
        raise WhaleidError(f"{path}: not found; it lists the test images (test.csv in the competition's YAML)")
    columns = [competition.submission.image, competition.submission.identities]
    if list(pd.read_csv(path, nrows=0).columns) == columns:
        return path
    name = test.image if competition.answer.pairs is None else competition.answer.pairs.row
    listed = read_listed(competition.root, test, [name])[name]  # images without a file too: each needs a row
    made = folder / "sample_submission.csv"
    with atomic_path(made) as temporary:
        pd.DataFrame({columns[0]: listed, columns[1]: ""}).to_csv(temporary, index=False)
    return made


def submission_problems(path: Path, competition: Competition, work: Path) -> list[str]:
    """What is wrong with any submission file of a competition, a line for each problem."""
    template = submission_template(competition, work / competition.name)
    form = get_form(competition.answer.form)
    problems = form.check_submission(path, template, known_labels(competition), competition.k)
    return [problem if problem.startswith(str(path)) else f"{path}: {problem}" for problem in problems]


def known_labels(competition: Competition) -> set[str]:
    """Every label that may be answered: the labelled images where a form compares images, else the identities."""
    rows, _ = inspect_rows(competition)  # a missing image file takes no label away
    if get_form(competition.answer.form).NEEDS == "pairs":
        return set(rows.image[rows.split == "train"])
    return set(rows.identity[rows.split == "train"]) | ({competition.unknown} if competition.unknown else set())
