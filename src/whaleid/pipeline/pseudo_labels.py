"""Rounds of pseudo-labels: every network trained again with the test images that the round before is sure of.

Each round is the whole road again (runs, features, ladder) with labels of its own, in folders of its own. A round is
used where the answer's out-of-fold MAP@k is above that of the round before by more than chance: the lower end of the
gain's paired 95 % bootstrap interval is above 0. The first round that does not help ends the rounds: what would follow
had learnt from it. To take a round by its plain gain would make the score that is reported optimistic.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console

from whaleid.data.pseudo import FULL, describe_pseudo_labels, labels_of, write_pseudo_labels
from whaleid.ensemble.stack_models import STACK_FOLDER
from whaleid.ensemble.summary import Figures
from whaleid.pipeline.metrics import combine_sources, read_figures, write_figures
from whaleid.pipeline.project import FORMAT, Project
from whaleid.pipeline.stages import folds_stage, images_stage, job_list, jobs_stage, local_stage, sources
from whaleid.pipeline.workspace import fold_name
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, digest, write_json
from whaleid.utils.machine import measured

if TYPE_CHECKING:
    from whaleid.ensemble.intervals import Gain

FIGURES, RANKS = "figures.json", "ranks.csv"
"""In a round's folder: its part of metrics.json, and the place of the truth among the answer's guesses (0: none)."""


@dataclass(frozen=True)
class Round:
    """One round that was trained and combined. ranks: int (n,), one a query out of fold, in the protocol's order."""

    project: Project
    figures: Figures
    ranks: np.ndarray


def rounds_stage(project: Project, at_once: int, options: list[str]) -> Figures:
    """Train and combine round after round; the figures of the one that is used, with what each was worth (`rounds`)."""
    assert project.recipe.pseudo is not None
    best = _combined_round(project.at_round(0), at_once, options)
    rows = [_first_row(best)]
    for number in range(1, project.recipe.pseudo.rounds + 1):
        given = project.at_round(number)
        if labels_stage(given, at_once, options).empty:
            rows.append({"round": number, "map": None, "labels": _counts(given), "gain": None, "used": False})
            break
        found = _combined_round(given, at_once, options)
        rows.append(_row(number, best, found))
        if not rows[-1]["used"]:
            break
        best = found
    figures = read_figures(project)
    wanted = {**best.figures, "rounds": rows}
    if figures is not None and figures["key"] == wanted["key"] and figures.get("rounds") == rows:
        return figures
    _take(best)
    return write_figures(best.project, wanted)


def labels_stage(project: Project, at_once: int, options: list[str]) -> pd.DataFrame:
    """The labels of the project's round (`pseudo/<recipe>/round<r>.csv`), by the networks of the round before."""
    from whaleid.ensemble.pseudo import pseudo_labels

    workspace, recipe = project.workspace, project.recipe
    before = project.at_round(workspace.round - 1)
    if before.workspace.round:
        labels_stage(before, at_once, options)
    jobs_stage(before, "features", at_once, options, job_list(before, "features"))
    path = workspace.pseudo_labels(recipe.name)
    assert recipe.pseudo is not None
    key = digest("pseudo", FORMAT, _teachers(before).ensemble_key(), recipe.pseudo.confidence)
    images = images_stage(project)
    if not workspace.is_current(path, key):
        found = pseudo_labels(
            images,
            folds_stage(project),
            sources(before),
            recipe,
            project.competition,
            workspace.round,
            local_stage(project),
            project.settings.weights,
        )
        write_pseudo_labels(found, path)
        workspace.mark_current(path, key)
        shown = found if project.full_experiments else found[found["fold"] != FULL]
        for line in describe_pseudo_labels(shown, int((images["split"] == "test").sum())):
            Console(stderr=True).print(f"pseudo-labels of round {workspace.round}: {line}", markup=False)
    labels = project.pseudo_labels
    assert labels is not None
    return labels


def at_round(project: Project, number: int) -> Project:
    """The project in a round of the recipe, for the command line."""
    rounds = project.recipe.pseudo.rounds if project.recipe.pseudo is not None else 0
    if number > rounds:
        raise WhaleidError(
            f"--round {number}: recipe {project.recipe.name} has {rounds} rounds of pseudo-labels; "
            "name one of them, or set `pseudo: {rounds: ...}`"
        )
    return project.at_round(number)


def answered(project: Project) -> Project:
    """The project as its answer was made: in the round that is used, without any other."""
    if project.recipe.pseudo is None:
        return project
    figures = read_figures(project)
    rows = [] if figures is None else figures.get("rounds", [])
    used = max((row["round"] for row in rows if row["used"]), default=0)
    return project.with_settings(project.recipe.model_copy(update={"pseudo": None})).at_round(used)


# ----------------------------------------------------------------------------------------------------- one round


def _combined_round(project: Project, at_once: int, options: list[str]) -> Round:
    """One round's ladder in its own folder, made where it is not up to date."""
    workspace = project.workspace
    jobs_stage(project, "features", at_once, options, job_list(project, "features"))
    out, key = workspace.round_candidates(project.recipe.name), project.ensemble_key()
    if not workspace.is_current(out, key):
        began = time.monotonic()
        result, figures = combine_sources(project, out)
        write_json(out / FIGURES, figures)
        with atomic_path(out / RANKS) as temporary:
            pd.DataFrame({"rank": result.final.rank}).to_csv(temporary, index=False)
        workspace.mark_current(out, key, **measured(began))
    ranks = pd.read_csv(out / RANKS)["rank"].to_numpy()
    return Round(project, json.loads((out / FIGURES).read_text()), ranks)


def _take(found: Round) -> None:
    """The candidates of the round that is used, where every later stage looks for the recipe's."""
    workspace, name = found.project.workspace, found.project.recipe.name
    target = workspace.candidates(name)
    for file in ("oof.parquet", "test.parquet", "ladder.json"):
        (target / file).unlink(missing_ok=True)
        source = workspace.round_candidates(name) / file
        if source.is_file():
            with atomic_path(target / file) as temporary:
                shutil.copyfile(source, temporary)
    shutil.rmtree(target / STACK_FOLDER, ignore_errors=True)
    if (workspace.round_candidates(name) / STACK_FOLDER).is_dir():
        shutil.copytree(workspace.round_candidates(name) / STACK_FOLDER, target / STACK_FOLDER)


def _first_row(found: Round) -> dict[str, Any]:
    final = found.figures["ladder"]["rungs"][-1]
    return {"round": 0, "map": final["map"], "low": final["low"], "high": final["high"], "used": True}


def _row(number: int, before: Round, found: Round) -> dict[str, Any]:
    """What a round added, and what it is worth over the one before."""
    gain = _gain(before, found)
    return {
        **_first_row(found),
        "round": number,
        "labels": _counts(found.project),
        "gain": asdict(gain),
        "used": gain.low > 0,
    }


def _gain(before: Round, found: Round) -> Gain:
    """Difference of the two rounds' answers on the same queries out of fold."""
    from whaleid.ensemble.intervals import rank_gain
    from whaleid.ensemble.ladder import protocol_of

    project = found.project
    protocol = protocol_of(images_stage(project), folds_stage(project), project.competition, sources(project))
    return rank_gain(protocol, found.ranks, before.ranks, project.recipe.seed)


def _counts(project: Project) -> dict[str, int]:
    """Test images that join training, for each fold and for the full-data members where there are such."""
    labels = project.pseudo_labels
    assert labels is not None
    taught = [*project.folds, *([None] if project.full_experiments else [])]
    return {fold_name(fold): len(labels_of(labels, fold)) for fold in taught}


def _teachers(project: Project) -> Project:
    """The project without what its pseudo-labels do not depend on."""
    combine = project.recipe.combine.model_copy(update={"stack": None, "unknown": "threshold"})
    return project.with_settings(project.recipe.model_copy(update={"combine": combine}))
