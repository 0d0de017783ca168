"""Scores of the test images against the competition's solution. No setting is chosen by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from whaleid.config import Competition
from whaleid.data.competition import inspect_rows
from whaleid.evaluation.forms import TOPK, Score, score_files, score_options
from whaleid.evaluation.metrics import MapScore, rank_of_truth, score_ranks
from whaleid.evaluation.topk import read_guesses, score_submission
from whaleid.pipeline.metrics import require_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.submission import (
    TestGuesses,
    latest_submission,
    log_submission,
    read_guesses_of_rungs,
    submission_tasks,
)
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.versions import VERSION
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest, file_digest, write_json


def score_tasks(project: Project) -> list[Task]:
    """The submission's score against the solution, `score/<recipe>.json`, where the competition has a solution."""
    solution = solution_path(project.competition)
    if solution is None or project.competition.test is None:
        return []
    submission = submission_tasks(project)[0]
    path, k = project.workspace.root / "score" / f"{project.recipe.name}.json", project.competition.k
    known = submission.key and solution.is_file()
    key = digest("score", VERSION["score"], submission.key, file_digest(solution), k) if known else ""

    def make() -> None:
        written = latest_submission(project)
        score = answer_on(solution, written, project.competition)
        log_submission(project, require_figures(project), written, round(score.value, 5))
        write_json(path, score.as_json())

    def check() -> bool:
        return submission.current and project.workspace.is_current(path, key)

    return [Task("score", "", project.workspace, path, key, make, ("submission",), check)]


def solution_path(competition: Competition) -> Path | None:
    """The competition's solution file, None where it has none."""
    return None if competition.solution is None else competition.root / competition.solution


def solution_digest(competition: Competition) -> str | None:
    """Digest of the solution, None where there is nothing to score."""
    path = solution_path(competition)
    return None if path is None or competition.test is None else file_digest(path)


def answer_on(solution: Path, submission: Path, competition: Competition, k: int | None = None) -> Score:
    """Score of a competition's submission in its form. k: default the competition's."""
    form = competition.answer.form
    options = {"k": k or competition.k, "unknown": competition.unknown}
    given = {name: value for name, value in options.items() if name in score_options(form)}
    return score_files(submission, solution, form, **given)


def own_score(project: Project, k: int | None = None) -> Score:
    """The recipe's latest submission against the competition's solution; of guesses also by images of the identity.

    Parameters
    ----------
    project : Project
    k : int, optional
        Number of guesses that count; default: the competition's.

    Raises
    ------
    WhaleidError
        Where there is no submission yet, or no solution.
    """
    competition, submission, solution = (
        project.competition,
        latest_submission(project),
        solution_path(project.competition),
    )
    if solution is None:
        raise WhaleidError(f"competition {competition.name} has no solution file: give SUBMISSION and SOLUTION by path")
    if competition.answer.form != TOPK:
        return answer_on(solution, submission, competition, k)
    rows, _ = inspect_rows(competition)
    sizes = {str(name): int(count) for name, count in rows.identity[rows.split == "train"].value_counts().items()}
    return score_submission(submission, solution, k or competition.k, unknown=competition.unknown, sizes=sizes)


def solution_scores(project: Project) -> dict[str, MapScore]:
    """MAP@k of every rung of the ladder against the solution; empty where `read_truths` has none."""
    if solution_path(project.competition) is None or project.competition.test is None:
        return {}
    rungs = read_guesses_of_rungs(project)
    truth_of = read_truths(project.competition, rungs[0].images)
    if truth_of is None:
        return {}
    return {one.rung: score_guesses(one, truth_of, project.competition.k) for one in rungs}


def read_truths(competition: Competition, images: np.ndarray) -> dict[str, str] | None:
    """Identity of every test image by the solution file.

    Parameters
    ----------
    competition : Competition
    images : str array, shape (n,)
        The images that are guessed.

    Returns
    -------
    dict of str to str, or None
        Image -> identity; None where there is no solution, or it is that of another form than ranked guesses.

    Raises
    ------
    WhaleidError
        Where the file lacks one of the images: it would count as a wrong guess.
    """
    path = solution_path(competition)
    if path is None or competition.test is None or competition.answer.form != TOPK:
        return None
    truths = read_guesses(path)
    truth_of = {image: row[0] for image, row in zip(truths.images, truths.as_lists(), strict=True) if row}
    missing = [image for image in images.tolist() if image not in truth_of]
    if missing:
        raise WhaleidError(
            f"{path}: no identity for {len(missing)} of {len(images)} test images, first '{missing[0]}'; add their "
            "rows, or take `solution` out of the competition's YAML"
        )
    return truth_of


def score_guesses(one: TestGuesses, truth_of: dict[str, str], k: int) -> MapScore:
    """MAP@k of one rung's guesses."""
    truth = np.array([truth_of[image] for image in one.images.tolist()])
    labels = np.unique(np.concatenate([one.guesses.ravel(), truth]))
    guesses = np.where(one.guesses == "", -1, np.searchsorted(labels, one.guesses))
    return score_ranks(rank_of_truth(guesses, np.searchsorted(labels, truth)), k)
