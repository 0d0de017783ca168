"""Stages of the ensemble: candidates of every ranker, and the ladder of their scores in metrics.json."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.ensemble.stack_models import STACK_FOLDER
from whaleid.ensemble.summary import Figures
from whaleid.pipeline import keys
from whaleid.pipeline.data_stages import keypoints_folder
from whaleid.pipeline.metrics import commit, read_figures, write_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.rounds import Round, read_gain, round_state, rounds, used_round
from whaleid.pipeline.run_stages import feature_reads
from whaleid.pipeline.sources import sources
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.workspace import fold_name, read_folds, read_images
from whaleid.utils.files import atomic_path, read_json, write_json

FIGURES, RANKS = "figures.json", "ranks.csv"
"""Beside the candidates: their part of metrics.json; the rank of the true identity among the final guesses, 0: none."""
CANDIDATES = ("oof.parquet", "test.parquet", "answer.csv", "outcomes.parquet", "doubts.csv", "ladder.json")


def candidates_folder(project: Project) -> Path:
    """Folder of the candidates; every round has its own where the recipe has rounds."""
    workspace, name = project.workspace, project.recipe.name
    return workspace.candidates(name) if project.recipe.pseudo is None else workspace.round_candidates(name)


def candidate_tasks(project: Project) -> list[Task]:
    """Candidates of every ranker, out of fold and for the test set, with their scores out of fold."""
    state, out, number = round_state(project), candidates_folder(project), project.workspace.round
    if state is Round.CLOSED:
        return []
    key = keys.candidates_key(project) if state is Round.OPEN else ""
    reads = ("images", "folds", "keypoints", *feature_reads(project))

    def make() -> None:
        rank_features(project, out)

    return [Task("candidates", f"round{number}", project.workspace, out, key, make, reads)]


def rank_features(project: Project, out: Path, checks: bool = True) -> Figures:
    """Write the candidates of every ranker to the folder `out`; returns the figures of their ladder.

    checks: whether to find out what the scores out of fold promise, too (full gallery, bursts, worth of the blend's
    members), for which the labelled photographs are read. No answer depends on it.
    """
    from whaleid.data.bursts import burst_numbers, bursts_of
    from whaleid.ensemble.ladder import combine
    from whaleid.ensemble.stack_models import read_stack_models

    images = read_images(project.workspace)
    bursts = burst_numbers(bursts_of(project.competition, images), len(images)) if checks else None
    recipe = project.recipe
    if not checks:
        recipe = recipe.model_copy(update={"combine": recipe.combine.model_copy(update={"full_gallery": False})})
    result = combine(
        images,
        read_folds(project.workspace),
        sources(project),
        recipe,
        project.competition,
        out,
        keypoints_folder(project),
        None if project.stack_models is None else read_stack_models(project.stack_models),
        weights_folder=project.settings.weights,
        bursts=bursts,
        worth=checks,
    )
    figures = _figures(project, keys.candidates_key(project), result.as_json())
    write_json(out / FIGURES, figures)
    with atomic_path(out / RANKS) as temporary:
        pd.DataFrame({"rank": result.final.rank}).to_csv(temporary, index=False)
    return figures


def _figures(project: Project, key: str, ladder: dict[str, Any]) -> Figures:
    workspace = project.workspace
    return {
        "key": key,
        "competition": project.competition.name,
        "recipe": project.recipe.name,
        "commit": commit(),
        "ladder": ladder,
        "settings": {
            "recipe": project.recipe.model_dump(mode="json"),
            "experiments": [experiment.model_dump(mode="json") for experiment in project.experiments],
            "pretraining": None if project.pretext is None else project.pretext.model_dump(mode="json"),
        },
        "runs": {
            f"{experiment.name}/{fold_name(fold)}": workspace.stamp(project.run_folder(experiment, fold)).get("summary")
            for experiment in project.experiments
            for fold in project.folds_of(experiment)
        },
    }


def read_round_figures(project: Project) -> Figures:
    """The figures of a round's candidates."""
    return read_json(candidates_folder(project) / FIGURES)


def read_ranks(project: Project) -> np.ndarray:
    """Rank of the true identity among the final guesses, int (n_query,), 0 where it is none of them."""
    return pd.read_csv(candidates_folder(project) / RANKS)["rank"].to_numpy()


# -------------------------------------------------------------------------------------------------- the ladder


def ladder_tasks(project: Project) -> list[Task]:
    """The recipe's part of metrics.json, by the round that is used."""
    workspace, used = project.workspace, used_round(project)
    numbers = range(len(rounds(project))) if project.recipe.pseudo is not None else [workspace.round]
    reads = [f"{stage}/round{number}" for number in numbers for stage in ("candidates", "labels", "gain")]
    key = "" if used is None else keys.candidates_key(used)

    def make() -> None:
        assert used is not None
        figures = read_round_figures(used)
        if project.recipe.pseudo is not None:
            figures["rounds"] = _rows(project)
            _take(used)
        write_figures(project, figures)

    def check() -> bool:
        figures = read_figures(project)
        made = all(task.current for one in rounds(project) for task in candidate_tasks(one))
        if figures is None or not made:
            return False
        rows = None if project.recipe.pseudo is None else _rows(project)
        return figures["key"] == key and figures.get("rounds") == rows

    return [Task("ladder", "", workspace, workspace.metrics, key, make, tuple(reads), check)]


def first_row(figures: Figures) -> dict[str, Any]:
    """Score of a round's final candidates."""
    final = figures["ladder"]["rungs"][-1]
    return {"round": 0, "map": final["map"], "low": final["low"], "high": final["high"], "used": True}


def _rows(project: Project) -> list[dict[str, Any]]:
    """What each round was worth; the last one may not have been used, or not trained for want of labels."""
    before, *later = rounds(project)
    rows = [first_row(read_round_figures(before))]
    for number, one in enumerate(later, start=1):
        row = read_gain(one) if round_state(one) is Round.OPEN else None
        if row is None:
            if rows[-1]["used"]:
                rows.append({"round": number, "map": None, "labels": _no_labels(one), "gain": None, "used": False})
            break
        rows.append(row)
    return rows


def _no_labels(project: Project) -> dict[str, int]:
    runs = [*project.folds, *([None] if project.full_experiments else [])]
    return {fold_name(fold): 0 for fold in runs}


def _take(used: Project) -> None:
    """Copy the candidates of the round that is used to where every later stage reads the recipe's."""
    source, target = candidates_folder(used), used.workspace.candidates(used.recipe.name)
    used.workspace.mark_current(target, "")  # no longer those of the recipe without rounds
    for name in CANDIDATES:
        (target / name).unlink(missing_ok=True)
        if (source / name).is_file():
            with atomic_path(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
    shutil.rmtree(target / STACK_FOLDER, ignore_errors=True)
    if (source / STACK_FOLDER).is_dir():
        with atomic_path(target / STACK_FOLDER) as temporary:
            shutil.copytree(source / STACK_FOLDER, temporary)
