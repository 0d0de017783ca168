"""What the report is made of, read from the work folder and checked to belong together; nothing is computed anew."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whaleid.ensemble.protocol import Protocol, read_protocol
from whaleid.evaluation.metrics import MapScore
from whaleid.pipeline.metrics import read_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.stages import sources
from whaleid.pipeline.submission import solution_path, solution_scores
from whaleid.utils.errors import WhaleidError

GUESSES = 3
"""First guesses that are read of every query."""


@dataclass(frozen=True)
class Answers:
    """What one rung answered out of fold, a line a query, the folds one after the other.

    rows: int64 (n,), of images.parquet. folds: int64 (n,). truth: str (n,), the true identity as the protocol
    has it: the unknown label (or "" where there is none) for an identity without an image in the gallery.
    known: bool (n,). guesses: str (n, GUESSES), best first, "" = none. scores: float32, likewise, NaN = none.
    best: float32 (n,), best score of an identity other than unknown; NaN where there is none.
    """

    rows: np.ndarray
    folds: np.ndarray
    truth: np.ndarray
    known: np.ndarray
    guesses: np.ndarray
    scores: np.ndarray
    best: np.ndarray


@dataclass(frozen=True)
class StackInputs:
    """figures: the recipe's part of metrics.json. images, folds: the tables. final: the last rung's answers.

    solution: rung -> its score against the solution; empty where there is none. stale: the work folder or the
    settings have changed since the figures were made.
    """

    project: Project
    figures: dict[str, Any]
    images: pd.DataFrame
    folds: pd.DataFrame
    protocol: Protocol
    final: Answers
    solution: dict[str, MapScore]
    stale: bool

    @property
    def rungs(self) -> list[dict[str, Any]]:
        return self.figures["ladder"]["rungs"]

    @property
    def single(self) -> dict[str, Any]:
        """The best single network's rung."""
        return next(rung for rung in self.rungs if rung["name"] == self.figures["ladder"]["best_single"])


def read_material(project: Project) -> StackInputs:
    """Everything of the recipe. Raises WhaleidError where the ensemble is not there, or is not of these files."""
    workspace, figures = project.workspace, read_figures(project)
    folder = workspace.candidates(project.recipe.name)
    made = [workspace.images, workspace.folds, folder / "oof.parquet"]
    if figures is None or not all(path.is_file() for path in made):
        raise WhaleidError(
            f"recipe {project.recipe.name} has no results for {project.competition.name} in {workspace.root}: "
            "run `make ensemble` first"
        )
    images = pd.read_parquet(workspace.images)
    folds = pd.read_csv(workspace.folds, dtype={"image": str, "identity": str, "fold": int}, keep_default_na=False)
    protocol = read_protocol(images, folds, project.competition, project.folds)
    final = read_answers(folder / "oof.parquet", figures["ladder"]["final"], protocol)
    stale = figures["key"] != project.ensemble_key()
    return StackInputs(project, figures, images, folds, protocol, final, _solution(project, folder), stale)


def read_answers(path: Path, rung: str, protocol: Protocol) -> Answers:
    """First guesses of one rung from oof.parquet; the other rungs' rows are not even loaded."""
    try:
        wanted = (pc.field("source") == rung) & (pc.field("rank") <= GUESSES)
        long = pq.read_table(path, filters=wanted).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise WhaleidError(f"{path}: not readable as parquet: {' '.join(str(error).split())}") from error
    names = np.concatenate([part.names for part in protocol.parts])
    place = pd.Index(names).get_indexer(pd.Index(long["query"].astype(str)))
    if (place < 0).any() or len(np.unique(place)) < len(names):
        raise WhaleidError(f"{path}: its queries are not the images of folds.csv; run `make ensemble` again")
    guesses = np.full((len(names), GUESSES), "", dtype=object)
    scores = np.full((len(names), GUESSES), np.nan, dtype=np.float32)
    listed = long["rank"].to_numpy() > 0
    at = place[listed], long["rank"].to_numpy()[listed] - 1
    guesses[at], scores[at] = long["identity"].astype(str).to_numpy()[listed], long["score"].to_numpy()[listed]
    codes = protocol.truth(list(range(len(protocol.parts))))
    return Answers(
        rows=np.concatenate([part.rows for part in protocol.parts]),
        folds=np.concatenate([np.full(len(part.rows), part.fold) for part in protocol.parts]),
        truth=np.append(protocol.classes.astype(object), protocol.unknown or "")[codes].astype(str),
        known=codes >= 0,
        guesses=guesses.astype(str),
        scores=scores,
        best=_best(guesses.astype(str), scores, protocol.unknown),
    )


def features_of_single(material: StackInputs) -> tuple[str, dict[int, Path]]:
    """The best single network's source, and its folder of features for every fold; {} where one is missing."""
    rung = material.single["name"]
    for source in sources(material.project):
        if source.name == material.single["source"]:
            there = all((path / "embeddings.npy").is_file() for path in source.folds.values())
            return source.name, dict(source.folds) if there else {}
    return rung, {}


def read_losses(folder: Path) -> list[tuple[int, float]]:
    """Epoch and mean loss of each epoch of a run, from its log; empty where there is no log."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise WhaleidError(f"{path}: not readable as JSON lines ({error}); train the run again") from error
    epochs = (line for line in lines if line.get("kind") == "epoch" and line.get("loss") is not None)
    return [(int(line["epoch"]), float(line["loss"])) for line in epochs]


def _best(guesses: np.ndarray, scores: np.ndarray, unknown: str | None) -> np.ndarray:
    """The first score that is an identity's: unknown stands in a list once, so it is the first or the second."""
    first_unknown = guesses[:, 0] == unknown if unknown is not None else np.zeros(len(guesses), dtype=bool)
    return np.where(first_unknown, scores[:, 1], scores[:, 0])


def _solution(project: Project, folder: Path) -> dict[str, MapScore]:
    path = solution_path(project.competition)
    if path is None or not path.is_file() or not (folder / "test.parquet").is_file():
        return {}
    return solution_scores(project)
