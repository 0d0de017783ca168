"""What `whaleid leaderboard` prints: what is to be done and how long it takes, then the ladder and the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from whaleid.ensemble.summary import full_gallery_line, ladder_lines, slice_lines
from whaleid.evaluation.forms import TOPK, score_files
from whaleid.pipeline.executors import Executor
from whaleid.pipeline.metrics import answer_score, require_figures
from whaleid.pipeline.plan import count_images, estimate_minutes
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run, tasks_to_do
from whaleid.pipeline.score import answer_on, solution_path, solution_scores
from whaleid.pipeline.stages import STAGES
from whaleid.pipeline.submission import foreign_reviews_line, latest_submission, review_line
from whaleid.pipeline.tasks import Task

LAST = "score"
SPREAD = {
    "frozen": "frozen networks",
    "train": "runs",
    "full": "runs on all labelled images",
    "shards": "parts of features",
    "features": "feature extractions",
}


def leaderboard_lines(project: Project, executor: Executor | None = None) -> Iterator[str]:
    """Run every stage; yields what will be done, then the lines that end `make leaderboard`."""
    has_test = project.competition.test is not None
    until = "ladder" if not has_test else LAST if solution_path(project.competition) is not None else "submission"
    yield from announcement(project, tasks_to_do(project, until))
    run(project, until, executor)
    figures = require_figures(project)
    yield from ladder_lines(figures, solution_scores(project))
    yield ""
    final, score = figures["ladder"]["rungs"][-1], answer_score(figures)
    yield from slice_lines(final)
    yield from score.part_lines()
    optimistic = " (optimistic: one fold alone is fitted and scored on the same queries)" if final["optimistic"] else ""
    yield score.line("out of fold", interval=True) + optimistic
    full = full_gallery_line(figures["ladder"]) if project.competition.answer.form == TOPK else None
    if full is not None:
        yield full
    if not has_test:
        yield "no submission: the competition's YAML names no test images"
        return
    path, solution = latest_submission(project), solution_path(project.competition)
    yield from filter(None, (review_line(project), foreign_reviews_line(project)))
    if solution is not None:
        if project.competition.answer.form == TOPK:
            yield f"top-1 (solution): {score_files(path, solution, k=1).value:.5f}"
        yield answer_on(solution, path, project.competition).line("solution")
    yield f"submission: {path}"


def announcement(project: Project, tasks: list[Task]) -> Iterator[str]:
    """What is about to be done, on what, and about how long it takes; one line where everything is up to date."""
    if not tasks:
        yield f"everything is up to date in {project.workspace.root}"
        return
    census = count_images(project, None, None)
    identities = f"{census.identities:,} identities"
    yield (
        f"recipe {project.recipe.name} on {project.competition.name}: {census.labelled + census.unknown:,} labelled "
        f"images of {identities}, {census.test:,} test images"
    )
    counts = Counter(task.stage for task in tasks)
    names = [stage.name for stage in STAGES if stage.name in counts]
    parts = [f"{name} ({counts[name]} {SPREAD[name]})" if name in SPREAD else name for name in names]
    yield f"to do: {', '.join(parts)}"
    if any(task.stage in SPREAD for task in tasks):
        minutes, machine = estimate_minutes(project, census, tasks)
        length = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        yield f"training and features take about {length} on {machine}, by the networks' operations"
