"""A finished project of drawn textures with local matching, made once for each process of tests; none may change it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from test_report_images import make_drawn

from whaleid.config.settings import Settings
from whaleid.data.reviews import Review, append_review, now, reviews_path
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run


@lru_cache(1)
def _made(folder: Path) -> Project:
    project = replace(make_drawn(folder), settings=Settings(submissions=folder / "submissions"))
    run(project, "score")
    return project


def review_project(base: Path, reviews: Path) -> Project:
    """The project, whose decisions are in the file `reviews`. base: the temporary folder of the test session."""
    made = _made(base / "reviewed")
    return replace(made, competition=made.competition.model_copy(update={"reviews": str(reviews)}))


def add(project: Project, image: str, other: str, same: str, who: str = "nora") -> None:
    """Decide of a pair."""
    append_review(reviews_path(project.competition), Review(image, other, same, now(), who))
