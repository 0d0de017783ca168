"""Rounds of pseudo-labels: which of them there are, and which one gives the submission.

Round r + 1 trains every network again with the test images of which round r is confident. A round is used where its
out-of-fold MAP@k is above that of the round before by more than chance: the lower end of the gain's paired 95 %
bootstrap interval is above 0. The first round that does not help is the last. Taking a round by its plain gain would
make the reported score optimistic.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Any

from whaleid.pipeline import keys
from whaleid.pipeline.metrics import read_figures
from whaleid.pipeline.project import Project
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest, read_json

GAIN = "gain.json"
"""In the folder of a round's candidates: what the round is worth over the one before."""


class Round(Enum):
    """Whether a round's networks are trained."""

    OPEN = "open"
    CLOSED = "closed"
    """The round before did not help, or was confident of no test image."""
    UNKNOWN = "unknown"
    """The round before is not finished."""


def rounds(project: Project) -> list[Project]:
    """The project in each round that its recipe allows; the project itself where the recipe has no rounds."""
    if project.recipe.pseudo is None:
        return [project]
    return [project.at_round(number) for number in range(project.recipe.pseudo.rounds + 1)]


def require_round(project: Project, number: int) -> None:
    """Raise WhaleidError where the recipe does not have this round."""
    allowed = project.recipe.pseudo.rounds if project.recipe.pseudo is not None else 0
    if number > allowed:
        raise WhaleidError(
            f"--round {number}: recipe {project.recipe.name} has {allowed} rounds of pseudo-labels; "
            "name one of them, or set `pseudo: {rounds: ...}`"
        )


def label_state(project: Project) -> Round:
    """Whether the round before the project's gives labels."""
    number = project.workspace.round
    if number <= 1 or project.recipe.pseudo is None:
        return Round.OPEN
    before = project.at_round(number - 1)
    state = round_state(before)
    if state is not Round.OPEN:
        return state
    row = read_gain(before)
    if row is None:
        return Round.UNKNOWN
    return Round.OPEN if row["used"] else Round.CLOSED


def round_state(project: Project) -> Round:
    """Whether the networks of the project's round are trained."""
    if not project.workspace.round or project.recipe.pseudo is None:
        return Round.OPEN
    state = label_state(project)
    if state is not Round.OPEN:
        return state
    path = project.workspace.pseudo_labels(project.recipe.name)
    if not project.workspace.is_current(path, keys.labels_key(project)):
        return Round.UNKNOWN
    labels = project.pseudo_labels
    return Round.CLOSED if labels is None or labels.empty else Round.OPEN


def gain_key(project: Project) -> str:
    """Of what a round is worth: the candidates of both rounds."""
    before = project.at_round(project.workspace.round - 1)
    return digest("gain", keys.candidates_key(before), keys.candidates_key(project))


def read_gain(project: Project) -> dict[str, Any] | None:
    """The round's row of metrics.json: score, labels, gain, whether it is used. None while it is not known."""
    path = project.workspace.round_candidates(project.recipe.name) / GAIN
    return read_json(path) if project.workspace.is_current(path, gain_key(project)) else None


def used_round(project: Project) -> Project | None:
    """The project in the round that gives the submission, None while that is not known."""
    used = rounds(project)[0]
    for one in rounds(project)[1:]:
        state = round_state(one)
        if state is Round.UNKNOWN:
            return None
        row = read_gain(one) if state is Round.OPEN else {"used": False}
        if row is None:
            return None
        if not row["used"]:
            break
        used = one
    return used


def in_used_round(project: Project) -> Project:
    """The project as its submission was made: in the round that metrics.json names as used, without any other."""
    if project.recipe.pseudo is None:
        return project
    figures = read_figures(project)
    rows = [] if figures is None else figures.get("rounds", [])
    used = max((row["round"] for row in rows if row["used"]), default=0)
    one = project.at_round(used)
    return replace(one, recipe=one.recipe.model_copy(update={"pseudo": None}), data_keys=one.keys)
