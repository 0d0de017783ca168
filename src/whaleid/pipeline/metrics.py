"""`metrics.json`: every figure that was printed of a recipe, with the settings that gave it."""

from __future__ import annotations

import subprocess
from typing import Any

from whaleid.config.settings import repository_root
from whaleid.evaluation.form_score import FormScore
from whaleid.pipeline.project import Project
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import read_json, write_json
from whaleid.utils.locks import locked


def read_metrics(project: Project) -> dict[str, Any]:
    """The whole file: recipe -> its figures; empty where there is none yet."""
    path = project.workspace.metrics
    return read_json(path) if path.is_file() else {}


def read_figures(project: Project) -> dict[str, Any] | None:
    """The recipe's figures, None before its candidates were made for the first time."""
    return read_metrics(project).get(project.recipe.name)


def require_figures(project: Project) -> dict[str, Any]:
    """The recipe's figures. Raises WhaleidError where there are none yet."""
    figures = read_figures(project)
    if figures is None:
        raise WhaleidError(
            f"recipe {project.recipe.name} has no results for {project.competition.name} yet: make ensemble first"
        )
    return figures


def answer_score(figures: dict[str, Any]) -> FormScore:
    """Score out of fold of what is submitted: that of the competition's form, or the last rung's MAP@k."""
    ladder = figures["ladder"]
    if ladder.get("answer") is None:
        final = ladder["rungs"][-1]
        return FormScore(f"MAP@{ladder['k']}", final["map"], final["low"], final["high"], final["queries"])
    answer = ladder["answer"]
    return FormScore(**{name: answer[name] for name in ("metric", "value", "low", "high", "queries", "parts")})


def write_figures(project: Project, figures: dict[str, Any]) -> None:
    """Replace the recipe's figures."""
    path = project.workspace.metrics
    with locked(path.with_name(f".{path.name}.lock")):  # another recipe's figures may be written at the same time
        write_json(path, {**read_metrics(project), project.recipe.name: figures})


def commit() -> str:
    """Short commit of the checkout, with + where files differ from it; empty outside git."""
    describe = ["describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"]
    command = ["git", "-C", str(repository_root()), *describe]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
