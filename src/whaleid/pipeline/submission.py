"""The submission: the final ranker's guesses for the test images, written, checked and logged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.competition import inspect_rows, listed_names
from whaleid.data.listing import read_listed
from whaleid.data.reviews import read_links, reviews_path
from whaleid.data.tables import read_csv
from whaleid.evaluation.forms import get_form, write_submission
from whaleid.evaluation.log import SubmissionRecord, append_log, read_log
from whaleid.evaluation.submission_file import ANSWER, read_answer_file
from whaleid.evaluation.topk import read_guesses
from whaleid.pipeline.keys import answer_key
from whaleid.pipeline.ladder import ladder_tasks
from whaleid.pipeline.metrics import answer_score, read_figures, require_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.workspace import read_folds, read_images
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

if TYPE_CHECKING:
    from whaleid.ensemble.reviews import Decided
    from whaleid.retrieval.candidates import Candidates


def submission_tasks(project: Project) -> list[Task]:
    """The submission of the recipe, and its row in the log; none where the competition has no test images."""
    if project.competition.test is None:
        return []
    ladder = ladder_tasks(project)[0]
    path, key = submission_path(project, ladder.key), answer_key(project, ladder.key)
    note = project.workspace.root / "submission" / project.recipe.name  # the file itself is outside of the work folder

    def make() -> None:
        write_answer(project, path)
        log_submission(project, require_figures(project), path)

    def check() -> bool:
        return path.is_file() and ladder.current and bool(_rows_of(project, path)) and _is_valid(project, path)

    return [Task("submission", "", project.workspace, note, key, make, ("ladder",), check)]


def _is_valid(project: Project, path: Path) -> bool:
    """Whether a submission is still what the sample asks for: columns, rows and order are in no key."""
    template = submission_template(project.competition, project.workspace.root)
    return not get_form(project.competition.answer.form).check_submission(path, template, k=project.competition.k)


def write_answer(project: Project, path: Path) -> None:
    """Write the answer, as it lies beside the candidates, to the submission file `path`."""
    competition = project.competition
    template = submission_template(competition, project.workspace.root)
    cells = _with_unreadable(project, test_answers(project), template)
    write_submission(competition.answer.form, path, cells, template, known_labels(competition), competition.k)


def test_answers(project: Project) -> dict[str, str]:
    """Test image, as the test table lists it -> its answer in the competition's form."""
    competition = project.competition
    if get_form(competition.answer.form).NEEDS != "guesses":
        cells = read_answer_file(project.workspace.candidates(project.recipe.name) / ANSWER)
        return dict(zip(listed_names(competition, cells), cells.values(), strict=True))
    final = _reviewed_guesses(project)
    return {image: " ".join(row[row != ""]) for image, row in zip(final.images.tolist(), final.guesses, strict=True)}


# -------------------------------------------------------------------------------------------------- where it is


def submission_path(project: Project, key: str) -> Path:
    """File of the submission by the ladder with a key, and by what people decided.

    Its name ends in the answer's key, so that different submissions have two files.
    """
    end = answer_key(project, key)[:8]
    return project.settings.submissions / f"{project.competition.name}_{project.recipe.name}_{end}.csv"


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
        Names of the test images, as the test table lists them.
    guesses : str array, shape (n, k)
        Identities, best first; "" where there are fewer than k.
    """

    rung: str
    images: np.ndarray
    guesses: np.ndarray


def read_guesses_of_rungs(project: Project) -> list[TestGuesses]:
    """The guesses of every rung for the test images, in the ladder's order."""
    return [_first_guesses(rung, lists, project.competition) for rung, lists in read_rungs(project)]


def review_line(project: Project) -> str:
    """How many guesses people's decisions changed; empty where there are no decisions, or the form has no guesses."""
    links = read_links(project.competition)
    if not len(links) or get_form(project.competition.answer.form).NEEDS != "guesses":
        return ""
    before, after = read_guesses_of_rungs(project)[-1].guesses, _reviewed_guesses(project).guesses
    return f"{len(links):,} decisions: {int((before != after).any(axis=1).sum()):,} queries answered otherwise"


def foreign_reviews_line(project: Project) -> str:
    """How many decisions are about images that the competition does not have; empty where all are its own."""
    links, known = read_links(project.competition), set(read_images(project.workspace)["image"])
    foreign = [image for pair in (*links.must, *links.cannot) for image in pair if image not in known]
    if not foreign:
        return ""
    count = sum(not set(pair) <= known for pair in (*links.must, *links.cannot))
    return (
        f"{reviews_path(project.competition)}: {count:,} decisions are about images that are not in this competition, "
        f"first {foreign[0]}: they change nothing; correct the names"
    )


def _reviewed_guesses(project: Project) -> TestGuesses:
    """The guesses of the last rung, changed by what people decided."""
    rung, lists, _ = reviewed_lists(project)
    return _first_guesses(rung, lists, project.competition)


def reviewed_lists(project: Project) -> tuple[str, Candidates, Decided]:
    """The last rung's name, its test candidates as people's decisions changed them, and those decisions."""
    from whaleid.ensemble.reviews import decide, reviewed_candidates

    competition, labelled = project.competition, read_folds(project.workspace)
    rung, lists = read_rungs(project)[-1]
    decided = decide(read_links(competition), dict(zip(labelled["image"], labelled["identity"], strict=True)))
    return rung, reviewed_candidates(lists, decided, competition.unknown), decided


def read_rungs(project: Project) -> list[tuple[str, Candidates]]:
    """Name and test candidates of every rung."""
    from whaleid.retrieval.candidates import read_candidates

    path = project.workspace.candidates(project.recipe.name) / "test.parquet"
    if not path.is_file():
        raise WhaleidError(f"competition {project.competition.name} has no test images: add `test` to its YAML")
    return [(rung, lists) for rung, _, lists in read_candidates(path)]


def _first_guesses(rung: str, lists: Candidates, competition: Competition) -> TestGuesses:
    from whaleid.ensemble.results import labels

    names = np.array(listed_names(competition, lists.queries.tolist()))
    return TestGuesses(rung, names, labels(lists, competition.k))


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
    name = test.image if competition.answer.pairs is None else competition.answer.pairs.row
    listed = read_listed(competition.root, test, [name])[name]  # images without a file too: each needs a row
    columns = [wanted.image or name, wanted.identities or str(competition.train.identity)]
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
