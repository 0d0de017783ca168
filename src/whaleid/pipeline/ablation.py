"""The ablation: the recipe scored with each of its parts off in turn, from saved features."""

from __future__ import annotations

from typing import Any

from whaleid.ensemble.summary import ablation_lines
from whaleid.pipeline import keys
from whaleid.pipeline.data_stages import keypoints_folder
from whaleid.pipeline.ladder import ladder_tasks
from whaleid.pipeline.project import Project
from whaleid.pipeline.rounds import in_used_round
from whaleid.pipeline.run_stages import feature_reads
from whaleid.pipeline.score import read_truths, score_guesses, solution_digest
from whaleid.pipeline.sources import sources
from whaleid.pipeline.submission import TestGuesses
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.workspace import Workspace, read_folds, read_images
from whaleid.utils.files import atomic_path, digest, read_json, write_json


def ablation_tasks(project: Project) -> list[Task]:
    """`ablation/<recipe>/ablation.json` and `.md`; of several rounds of pseudo-labels, for the one that is used."""
    has_rounds = project.recipe.pseudo is not None
    used, out = in_used_round(project), project.workspace.ablation(project.recipe.name)
    path, key = out / "ablation.json", ""
    if not has_rounds or ladder_tasks(project)[0].current:
        key = digest("ablation", keys.candidates_key(used), solution_digest(project.competition))

    def make() -> None:
        rows = _rows(used)
        with atomic_path(out / "ablation.md") as temporary:
            temporary.write_text("\n".join(ablation_lines(rows)) + "\n")
        write_json(path, rows)

    reads = ("ladder",) if has_rounds else ("images", "folds", "keypoints", *feature_reads(project))
    return [Task("ablation", "", project.workspace, path, key, make, reads)]


def read_ablation(workspace: Workspace, recipe: str) -> list[dict[str, Any]]:
    """The table's rows."""
    return read_json(workspace.ablation(recipe) / "ablation.json")


def _rows(project: Project) -> list[dict[str, Any]]:
    from whaleid.ensemble.ablation import ablate

    table = ablate(
        read_images(project.workspace),
        read_folds(project.workspace),
        sources(project),
        project.recipe,
        project.competition,
        keypoints_folder(project),
        project.settings.weights,
    )
    truths = read_truths(project.competition, table.test_images)
    rows = table.as_json()
    for row, one in zip(rows, table.rows, strict=True):
        guesses = TestGuesses(one.name, table.test_images, one.guesses)
        row["solution"] = None if truths is None else score_guesses(guesses, truths, project.competition.k).map
    return rows
