"""The last stages of the road: the ensemble's ladder, the submission, its score, and what is printed of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.competition import inspect_rows
from whaleid.data.tables import read_table
from whaleid.ensemble.summary import Figures, ablation_lines, ladder_lines, slice_lines
from whaleid.evaluation.log import SubmissionRecord, append_log, read_log
from whaleid.evaluation.metrics import MapScore, rank_of_truth, score_ranks
from whaleid.evaluation.topk import check_submission, read_guesses, score_submission, write_submission
from whaleid.pipeline.metrics import combine_sources, read_figures, write_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.stages import (
    folds_stage,
    images_stage,
    jobs_stage,
    local_stage,
    require_local,
    select_jobs,
    sources,
)
from whaleid.pipeline.times import submission_note
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, digest, file_digest, write_json
from whaleid.utils.machine import measured

# ------------------------------------------------------------------------------------------------- the ladder


def ensemble_stage(project: Project, at_once: int, options: list[str]) -> Figures:
    """Candidates of every rung out of fold and for the test set; returns the recipe's part of `metrics.json`."""
    require_local(project)
    if project.recipe.pseudo is not None:
        from whaleid.pipeline.pseudo_labels import rounds_stage

        return rounds_stage(project, at_once, options)
    jobs_stage(project, "features", at_once, options, select_jobs(project, "features", None, None))
    workspace = project.workspace
    out = workspace.candidates(project.recipe.name)
    key = project.ensemble_key()
    figures = read_figures(project)
    if workspace.is_current(out, key) and figures is not None and figures["key"] == key and "rounds" not in figures:
        return figures
    began = time.monotonic()
    figures = combine_sources(project, out)[1]
    workspace.mark_current(out, key, **measured(began))
    return write_figures(project, figures)


# ----------------------------------------------------------------------------------------------- the ablation


def ablation_stage(project: Project, at_once: int, options: list[str]) -> list[dict[str, Any]]:
    """What every part of the recipe is worth, from saved features: `ablation.json` and `ablation.md`; the rows."""
    require_local(project)
    if project.recipe.pseudo is not None:
        from whaleid.pipeline.pseudo_labels import answered

        ensemble_stage(project, at_once, options)
        project = answered(project)
    jobs_stage(project, "features", at_once, options, select_jobs(project, "features", None, None))
    out = project.workspace.ablation(project.recipe.name)
    key = ablation_key(project)
    path = out / "ablation.json"
    if project.workspace.is_current(path, key):
        return json.loads(path.read_text())
    from whaleid.ensemble.ablation import ablate

    images, folds = images_stage(project), folds_stage(project)
    about = project.recipe, project.competition, local_stage(project), project.settings.weights
    table = ablate(images, folds, sources(project), *about)
    rows = table.as_json()
    truths = _truths(project.competition, table.test_images)
    for row, given in zip(rows, table.rows, strict=True):
        answer = TestAnswer(given.name, table.test_images, given.guesses)
        row["solution"] = None if truths is None else _score(answer, truths, project.competition.k).map
    write_json(path, rows)
    with atomic_path(out / "ablation.md") as temporary:
        temporary.write_text("\n".join(ablation_lines(rows)) + "\n")
    project.workspace.mark_current(path, key)
    return rows


def ablation_key(project: Project) -> str:
    return digest("ablation", project.ensemble_key(), _solution_digest(project.competition))


# -------------------------------------------------------------------------------------------- the submission


@dataclass(frozen=True)
class TestAnswer:
    """Guesses of one rung for the test images. images: str (n,). guesses: str (n, k), "" where there are fewer."""

    rung: str
    images: np.ndarray
    guesses: np.ndarray


def submission_stage(project: Project, at_once: int, options: list[str]) -> Path:
    """Write the final rung's guesses into `submissions/`, checked against the sample submission, and log them."""
    figures = ensemble_stage(project, at_once, options)
    path = submission_path(project, figures["key"])
    if not path.is_file():
        began = time.monotonic()
        write_answer(project, path)
        project.workspace.mark_current(submission_note(project), figures["key"], **measured(began))
        figures = write_figures(project, figures)
    log_submission(project, figures, path)
    return path


def write_answer(project: Project, path: Path) -> None:
    """Write the final rung's guesses, as the candidates hold them, to the submission file `path`."""
    competition = project.competition
    template = submission_template(competition, project.workspace.root)
    images, guesses = _with_missing(test_answers(project)[-1], template, _prior(project))
    columns = (competition.submission.image, competition.submission.identities)
    write_submission(path, images, guesses, template, known_labels(competition), competition.k, columns)


def log_submission(project: Project, figures: dict[str, Any], path: Path, solution: float | None = None) -> None:
    """Give a submission its row in `submissions/log.csv`, or the row it has its solution score."""
    log = log_path(project)
    logged = [record for record in read_log(log) if record.file == path.name]
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
    append_log(log, record)


def log_path(project: Project) -> Path:
    """The log of all submissions."""
    return project.settings.submissions / "log.csv"


def submission_path(project: Project, key: str) -> Path:
    """A file of its own for every different answer: its name ends in the answer's key."""
    return project.settings.submissions / f"{project.competition.name}_{project.recipe.name}_{key[:8]}.csv"


def test_answers(project: Project) -> list[TestAnswer]:
    """The test images' guesses of every rung, in the ladder's order."""
    from whaleid.ensemble.results import labels
    from whaleid.retrieval.candidates import read_candidates

    path = project.workspace.candidates(project.recipe.name) / "test.parquet"
    if not path.is_file():
        raise WhaleidError(
            f"competition {project.competition.name} has no test images to answer: add `test` to its YAML"
        )
    k = project.competition.k
    return [TestAnswer(rung, lists.queries, labels(lists, k)) for rung, _, lists in read_candidates(path)]


def submission_template(competition: Competition, folder: Path) -> Path:
    """The sample submission; where the competition's test CSV is no submission, a template made from its images."""
    test = competition.test
    if test is None:
        raise WhaleidError(f"competition {competition.name} has no test images: add `test` to its YAML")
    path = competition.root / test.csv
    if not path.is_file():
        raise WhaleidError(f"{path}: not found; it lists the test images (test.csv in the competition's YAML)")
    wanted = [competition.submission.image, competition.submission.identities]
    if list(pd.read_csv(path, nrows=0).columns) == wanted:
        return path
    listed = read_table(path, [test.image])[test.image]  # those too whose file is not there: each is asked about
    made = folder / "sample_submission.csv"
    with atomic_path(made) as temporary:
        table = pd.DataFrame({wanted[0]: listed, wanted[1]: ""})
        table.to_csv(temporary, index=False)
    return made


def submission_problems(path: Path, competition: Competition, work: Path) -> list[str]:
    """What is wrong with any submission file of a competition, a line each."""
    template = submission_template(competition, work / competition.name)
    problems = check_submission(path, template, known_labels(competition), competition.k)
    return [problem if problem.startswith(str(path)) else f"{path}: {problem}" for problem in problems]


def known_labels(competition: Competition) -> set[str]:
    """Every label that may be guessed."""
    rows, _ = inspect_rows(competition)  # a picture that is not there takes no label away
    return set(rows.identity[rows.split == "train"]) | ({competition.unknown} if competition.unknown else set())


def _prior(project: Project) -> list[str]:
    """Guesses for an image that could not be read: unknown, then the identities with most images."""
    labelled = folds_stage(project).identity
    unknown = project.competition.unknown
    common = labelled[labelled != unknown].value_counts(sort=True).index.tolist()
    return ([unknown] if unknown else [])[:1] + common[: project.competition.k - bool(unknown)]


def _with_missing(answer: TestAnswer, template: Path, prior: list[str]) -> tuple[list[str], list[list[str]]]:
    """The answer with the prior for every image of the template that has none (skipped as unreadable)."""
    images, guesses = answer.images.tolist(), [list(row) for row in answer.guesses]
    missing = sorted(set(read_guesses(template).images) - set(images))
    if missing:
        print(f"{len(missing)} unreadable test images get the most frequent identities: {', '.join(missing[:3])} ...")
    return images + missing, guesses + [prior] * len(missing)


# -------------------------------------------------------------------------------------------------- the score


def solution_path(competition: Competition) -> Path | None:
    """The competition's solution file, None where it has none."""
    return None if competition.solution is None else competition.root / competition.solution


def own_submission(project: Project) -> tuple[Path, Path, int]:
    """The recipe's latest submission, the competition's solution, and k."""
    figures, solution = read_figures(project), solution_path(project.competition)
    if figures is None or not submission_path(project, figures["key"]).is_file():
        raise WhaleidError(
            f"recipe {project.recipe.name} has no submission for {project.competition.name} yet: make submission first"
        )
    if solution is None:
        raise WhaleidError(
            f"competition {project.competition.name} has no solution file: give SUBMISSION and SOLUTION by path"
        )
    return submission_path(project, figures["key"]), solution, project.competition.k


def own_score(project: Project, k: int | None = None) -> MapScore:
    """The recipe's latest submission against the competition's solution, with the slices by size of the identity.

    k: guesses that count; None: the competition's.
    """
    submission, solution, own_k = own_submission(project)
    rows, _ = inspect_rows(project.competition)
    sizes = {str(name): int(count) for name, count in rows.identity[rows.split == "train"].value_counts().items()}
    return score_submission(submission, solution, k or own_k, unknown=project.competition.unknown, sizes=sizes)


def solution_scores(project: Project) -> dict[str, MapScore]:
    """MAP@k of every rung against the solution. Only for the eye: nothing is chosen by it."""
    if solution_path(project.competition) is None or project.competition.test is None:
        return {}
    answers = test_answers(project)
    truth_of = _truths(project.competition, answers[0].images)
    if truth_of is None:
        return {}
    return {answer.rung: _score(answer, truth_of, project.competition.k) for answer in answers}


def _truths(competition: Competition, images: np.ndarray) -> dict[str, str] | None:
    """Identity of every test image by the solution file, None where there is none. images: str (n,), those answered.

    Raises WhaleidError where the file has no identity for one of them: it would count as a wrong answer.
    """
    path = solution_path(competition)
    if path is None or competition.test is None:
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


def _solution_digest(competition: Competition) -> str | None:
    path = solution_path(competition)
    return None if path is None or competition.test is None else file_digest(path)


def _score(answer: TestAnswer, truth_of: dict[str, str], k: int) -> MapScore:
    truth = np.array([truth_of[image] for image in answer.images.tolist()])
    labels = np.unique(np.concatenate([answer.guesses.ravel(), truth]))
    guesses = np.where(answer.guesses == "", -1, np.searchsorted(labels, answer.guesses))
    return score_ranks(rank_of_truth(guesses, np.searchsorted(labels, truth)), k)


# --------------------------------------------------------------------------------------------- the leaderboard


def leaderboard_lines(project: Project, at_once: int, options: list[str]) -> Iterator[str]:
    """Every stage, and the lines that end `make leaderboard`."""
    before = read_figures(project)
    figures = ensemble_stage(project, at_once, options)
    path = None if project.competition.test is None else submission_stage(project, at_once, options)
    solution = solution_scores(project)  # a faulty solution file ends here: the submission is written by then
    yield from ladder_lines(figures, solution)
    yield ""
    final = figures["ladder"]["rungs"][-1]
    yield from slice_lines(final)
    if before is not None and before["key"] == figures["key"]:
        yield f"everything is up to date in {project.workspace.root}"
    k, half = figures["ladder"]["k"], (final["high"] - final["low"]) / 2
    yield f"MAP@{k} (out of fold): {final['map']:.5f} ± {half:.5f}" + (
        " (optimistic: an epoch was chosen by the fold's own score)" if final["optimistic"] else ""
    )
    if path is None:
        yield "no submission: the competition's YAML names no test images"
        return
    truth = solution_path(project.competition)
    if truth is not None:
        score = score_submission(path, truth, k)
        log_submission(project, figures, path, round(score.map, 5))
        yield f"top-1 (solution): {score_submission(path, truth, 1).map:.5f}"
        yield score.line("solution")
    yield f"submission: {path}"
