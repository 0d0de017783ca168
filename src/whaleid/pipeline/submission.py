"""The submission: the final ranker's guesses for the test images, written, checked and logged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.competition import inspect_rows, listed_names
from whaleid.data.listing import read_listed
from whaleid.data.tables import read_csv
from whaleid.evaluation.forms import get_form
from whaleid.evaluation.log import SubmissionRecord, append_log, read_log
from whaleid.evaluation.topk import read_guesses
from whaleid.pipeline.ladder import ladder_tasks
from whaleid.pipeline.metrics import read_figures, require_figures
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
        return path.is_file() and ladder.current and bool(_rows_of(project, path)) and _is_valid(project, path)

    return [Task("submission", "", project.workspace, note, ladder.key, make, ("ladder",), check)]


def _is_valid(project: Project, path: Path) -> bool:
    """Whether a submission is still what the sample asks for: columns, rows and order are in no key."""
    template = submission_template(project.competition, project.workspace.root)
    return not get_form(project.competition.answer.form).check_submission(path, template, k=project.competition.k)


def write_answer(project: Project, path: Path) -> None:
    """Write the final ranker's guesses, as the candidates hold them, to the submission file `path`."""
    competition = project.competition
    template = submission_template(competition, project.workspace.root)
    final = read_guesses_of_rungs(project)[-1]
    images, guesses = _with_missing(final, template, _most_frequent(project))
    scores = None
    if final.scores is not None:
        scores = np.pad(final.scores, ((0, len(images) - len(final.images)), (0, 0)), constant_values=-np.inf)
    form = get_form(competition.answer.form)
    form.write_submission(path, images, guesses, template, known_labels(competition), competition.k, scores)


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
    final = figures["ladder"]["rungs"][-1]
    record = SubmissionRecord(
        file=path.name,
        competition=project.competition.name,
        recipe=project.recipe.name,
        commit=figures["commit"],
        cv=final["map"],
        cv_interval=(final["high"] - final["low"]) / 2,
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
        Names of the test images, as the test table lists them.
    guesses : str array, shape (n, k)
        Identities, best first; "" where there are fewer than k.
    scores : float array, shape (n, k), optional
        Scores of the guesses; -inf where there are fewer than k.
    """

    rung: str
    images: np.ndarray
    guesses: np.ndarray
    scores: np.ndarray | None = None


def read_guesses_of_rungs(project: Project) -> list[TestGuesses]:
    """The guesses of every rung for the test images, in the ladder's order."""
    from whaleid.ensemble.results import labels
    from whaleid.retrieval.candidates import read_candidates

    path = project.workspace.candidates(project.recipe.name) / "test.parquet"
    if not path.is_file():
        raise WhaleidError(f"competition {project.competition.name} has no test images: add `test` to its YAML")
    k = project.competition.k
    rungs = ((rung, lists, lists.scores[:, :k]) for rung, _, lists in read_candidates(path))
    return [
        TestGuesses(
            rung,
            np.array(listed_names(project.competition, lists.queries.tolist())),
            labels(lists, k),
            np.pad(scores, ((0, 0), (0, k - scores.shape[1])), constant_values=-np.inf),
        )
        for rung, lists, scores in rungs
    ]


def _most_frequent(project: Project) -> list[str]:
    """Guesses for an image that could not be read: unknown, then the identities with most images."""
    labelled = read_folds(project.workspace).identity
    unknown = project.competition.unknown
    common = labelled[labelled != unknown].value_counts(sort=True).index.tolist()
    return ([unknown] if unknown else []) + common[: project.competition.k - bool(unknown)]


def _with_missing(final: TestGuesses, template: Path, frequent: list[str]) -> tuple[list[str], list[list[str]]]:
    """The guesses, with the most frequent identities for every image of the template that was unreadable."""
    images, guesses = final.images.tolist(), [list(row) for row in final.guesses]
    missing = sorted(set(read_guesses(template).images) - set(images))
    if missing:
        print(f"{len(missing)} unreadable test images get the most frequent identities: {', '.join(missing[:3])} ...")
    return images + missing, guesses + [frequent] * len(missing)


# -------------------------------------------------------------------------------------------------- its form


def submission_template(competition: Competition, folder: Path) -> Path:
    """The sample submission; where the competition has none, one that is made of its test images in `folder`."""
    test, wanted = competition.test, competition.submission
    if test is None:
        raise WhaleidError(f"competition {competition.name} has no test images: add `test` to its YAML")
    path = competition.root / (wanted.sample or test.csv)
    header = read_csv(path).header
    own = [wanted.image or header[0], wanted.identities or header[-1]]
    if wanted.sample is not None:
        if header != own:
            raise WhaleidError(
                f"{path}: the header is {','.join(header)}, but `submission` names {' and '.join(own)}; a sample has "
                "two columns: correct `submission` in the competition's YAML"
            )
        return path
    if header == own and header[0] == test.image and not test.where:
        return path
    listed = read_listed(competition.root, test)[test.image]  # images without a file too: each needs a row
    columns = [wanted.image or test.image, wanted.identities or str(competition.train.identity)]
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
    """Every label that may be guessed."""
    rows, _ = inspect_rows(competition)  # a missing image file takes no label away
    return set(rows.identity[rows.split == "train"]) | ({competition.unknown} if competition.unknown else set())
