"""The results that the report shows, read from the work folder and checked to belong together."""

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

from whaleid.ensemble.protocol import FoldPart, Protocol, read_protocol
from whaleid.ensemble.simulation import is_simulated, simulated_protocol
from whaleid.ensemble.summary import Figures
from whaleid.evaluation.metrics import MapScore
from whaleid.pipeline.keys import candidates_key
from whaleid.pipeline.metrics import read_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.score import solution_path, solution_scores
from whaleid.pipeline.sources import sources
from whaleid.utils.errors import WhaleidError

GUESSES = 3
"""Guesses of each query that are read where no number is given."""


@dataclass(frozen=True)
class TopGuesses:
    """First guesses of one ranker out of fold, one row per query, fold after fold.

    Attributes
    ----------
    rows : int64 array, shape (n,)
        The queries' rows in images.parquet.
    folds : int64 array, shape (n,)
    truth : str array, shape (n,)
        True identity. For an identity without an image in the gallery: the unknown label, or "" if there is none.
    sizes : int64 array, shape (n,)
        Gallery images of the true identity.
    simulated : bool array, shape (n,)
        Whether it is a simulated unknown query.
    guesses : str array, shape (n, count)
        Best first; "" where the ranker gave fewer.
    scores : float32 array, shape (n, count)
        NaN where there is no guess.
    best : float32 array, shape (n,)
        Highest score of an identity other than unknown; NaN where there is none.
    """

    rows: np.ndarray
    folds: np.ndarray
    truth: np.ndarray
    sizes: np.ndarray
    simulated: np.ndarray
    guesses: np.ndarray
    scores: np.ndarray
    best: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Whether the gallery holds an image of the true identity, bool (n,)."""
        return self.sizes > 0


@dataclass(frozen=True)
class Results:
    """The results of one recipe.

    Attributes
    ----------
    figures : dict
        The recipe's part of metrics.json.
    images, folds : DataFrame
        images.parquet and folds.csv.
    final : TopGuesses
        Guesses of the last ranker of the ladder, whose answers are submitted.
    scored : TopGuesses
        The first k + 1 of them, with the simulated unknown queries.
    solution : dict
        Ranker -> score against the solution; empty where there is none.
    stale : bool
        Whether the work folder or the settings have changed since the figures were made.
    """

    project: Project
    figures: dict[str, Any]
    images: pd.DataFrame
    folds: pd.DataFrame
    protocol: Protocol
    final: TopGuesses
    scored: TopGuesses
    solution: dict[str, MapScore]
    stale: bool

    @property
    def rankers(self) -> list[dict[str, Any]]:
        """The ladder's rows, in the ladder's order."""
        return self.figures["ladder"]["rungs"]

    @property
    def best_single(self) -> dict[str, Any]:
        """The ladder's row of the best single network."""
        return next(ranker for ranker in self.rankers if ranker["name"] == self.figures["ladder"]["best_single"])


def read_results(project: Project) -> Results:
    """Read the results of a recipe.

    Raises
    ------
    WhaleidError
        If the ensemble stage has not run, or its files do not belong to the current folds.
    """
    workspace, figures = project.workspace, read_figures(project)
    folder = workspace.candidates(project.recipe.name)
    needed = [workspace.images, workspace.folds, folder / "oof.parquet"]
    if figures is None or not all(path.is_file() for path in needed):
        raise WhaleidError(
            f"recipe {project.recipe.name} has no results for {project.competition.name} in {workspace.root}: "
            "run `make ensemble` first"
        )
    images = pd.read_parquet(workspace.images)
    folds = pd.read_csv(workspace.folds, dtype={"image": str, "identity": str, "fold": int}, keep_default_na=False)
    protocol = read_protocol(images, folds, project.competition, project.folds)
    last = folder / "oof.parquet", figures["ladder"]["final"]
    final = read_top_guesses(*last, protocol)
    scored = read_top_guesses(*last, simulated_protocol(protocol), project.competition.k + 1)
    stale = figures["key"] != candidates_key(project)
    return Results(project, figures, images, folds, protocol, final, scored, _solution(project, folder), stale)


def read_top_guesses(path: Path, ranker: str, protocol: Protocol, count: int = GUESSES) -> TopGuesses:
    """Read the first `count` guesses of one ranker from oof.parquet; other rankers' rows are not loaded.

    Simulated unknown queries are left out where `protocol` has none.
    """
    read = max(count, 2)  # `best` may be the second guess
    try:
        wanted = (pc.field("source") == ranker) & (pc.field("rank") <= read)
        long = pq.read_table(path, filters=wanted).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise WhaleidError(f"{path}: not readable as parquet: {' '.join(str(error).split())}") from error
    names = np.concatenate([part.names for part in protocol.parts])
    if not any(part.simulated for part in protocol.parts):
        long = long[~is_simulated(long["query"])]
    query = pd.Index(names).get_indexer(pd.Index(long["query"].astype(str)))
    if (query < 0).any() or len(np.unique(query)) < len(names):
        raise WhaleidError(f"{path}: its queries are not the images of folds.csv; run `make ensemble` again")
    guesses = np.full((len(names), read), "", dtype=object)
    scores = np.full((len(names), read), np.nan, dtype=np.float32)
    listed = long["rank"].to_numpy() > 0
    cell = query[listed], long["rank"].to_numpy()[listed] - 1
    guesses[cell], scores[cell] = long["identity"].astype(str).to_numpy()[listed], long["score"].to_numpy()[listed]
    guesses = guesses.astype(str)
    # unknown stands in a list at most once, so the best identity is the first guess or the second
    first_unknown = guesses[:, 0] == protocol.unknown if protocol.unknown else np.zeros(len(names), dtype=bool)
    codes = protocol.truth(list(range(len(protocol.parts))))
    return TopGuesses(
        rows=np.concatenate([part.rows for part in protocol.parts]),
        folds=np.concatenate([np.full(len(part.rows), part.fold) for part in protocol.parts]),
        truth=np.append(protocol.classes.astype(object), protocol.unknown or "")[codes].astype(str),
        sizes=np.concatenate([part.sizes for part in protocol.parts]),
        simulated=np.concatenate([_is_simulated(part) for part in protocol.parts]),
        guesses=guesses[:, :count],
        scores=scores[:, :count],
        best=np.where(first_unknown, scores[:, 1], scores[:, 0]),
    )


def _is_simulated(part: FoldPart) -> np.ndarray:
    """Which queries are simulated, bool (q,): they stand last."""
    return np.arange(len(part.rows)) >= len(part.rows) - part.simulated


def best_single_features(results: Results) -> tuple[str, dict[int, Path]]:
    """Name of the best single network, and its folder of features for each fold; {} where one is missing."""
    return features_of_best(results.project, results.figures)


def features_of_best(project: Project, figures: Figures) -> tuple[str, dict[int, Path]]:
    """As `best_single_features`, by the recipe's figures alone."""
    ladder = figures["ladder"]
    best = next(rung for rung in ladder["rungs"] if rung["name"] == ladder["best_single"])
    for source in sources(project):
        if source.name == best.get("source"):
            complete = all((path / "embeddings.npy").is_file() for path in source.folds.values())
            return source.name, dict(source.folds) if complete else {}
    return best["name"], {}


def read_losses(folder: Path) -> list[tuple[int, float]]:
    """Epoch and mean loss of each epoch of a run, from its log; empty where there is no log."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except ValueError as error:
        raise WhaleidError(f"{path}: not readable as JSON lines ({error}); train the run again") from error
    epochs = (line for line in lines if line.get("kind") == "epoch" and line.get("loss") is not None)
    return [(int(line["epoch"]), float(line["loss"])) for line in epochs]


def _solution(project: Project, folder: Path) -> dict[str, MapScore]:
    path = solution_path(project.competition)
    if path is None or not path.is_file() or not (folder / "test.parquet").is_file():
        return {}
    return solution_scores(project)
