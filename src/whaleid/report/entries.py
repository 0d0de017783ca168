"""What can be compared: a recipe's answer, one of its rankers, or a single run, each read from the work folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml

from whaleid.config import Competition
from whaleid.data.competition import first_few
from whaleid.ensemble.protocol import NONE, query_weights, read_protocol
from whaleid.ensemble.simulation import is_simulated, simulated_protocol
from whaleid.evaluation.form_score import FormScore
from whaleid.evaluation.metrics import MapScore, score_ranks
from whaleid.evaluation.submission_file import OUTCOMES
from whaleid.pipeline.metrics import answer_score
from whaleid.pipeline.workspace import Workspace, fold_name, read_folds, read_images
from whaleid.report.inputs import read_losses, read_top_guesses
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import read_json

RANKER = ":"
"""Between a recipe and one of its rankers: `sample:concat kNN`."""
CONFIG, LOG = "config.yaml", "log.jsonl"
"""In the folder of a run."""


@dataclass(frozen=True)
class Ranks:
    """Rank of the truth of queries out of fold.

    Attributes
    ----------
    queries : str array, shape (n,)
        Names of the images, also of the simulated unknown queries.
    folds : int64 array, shape (n,)
    truth : str array, shape (n,)
        The right answer: an identity, or the unknown label; "" for an identity that nobody can name.
    ranks : int64 array, shape (n,)
        0 where the truth was not guessed.
    k : int
        Number of guesses that count.
    unknown : str or None
        The unknown label.
    share : float or None
        Share of unknown queries that the score is weighted to.
    """

    queries: np.ndarray
    folds: np.ndarray
    truth: np.ndarray
    ranks: np.ndarray
    k: int
    unknown: str | None
    share: float | None

    @property
    def weights(self) -> np.ndarray:
        """Weight of each query in the score, float64 (n,)."""
        return query_weights(np.where(self.truth == (self.unknown or ""), NONE, 0), self.unknown, self.share)

    @property
    def images(self) -> int:
        """Number of images among the queries; the others are simulated."""
        return int((~is_simulated(pd.Series(self.queries))).sum())

    def only(self, kept: np.ndarray) -> Ranks:
        """Those of some queries. kept: bool or int (m,)."""
        arrays = {name: getattr(self, name)[kept] for name in ("queries", "folds", "truth", "ranks")}
        return replace(self, **arrays)


@dataclass(frozen=True)
class Entry:
    """One of the things that are compared.

    Attributes
    ----------
    name : str
        As the user named it.
    settings : dict
        Of the recipe; empty for a run.
    experiments : dict
        Name -> settings of each experiment.
    ranks : Ranks or None
        None for a run that no recipe has ranked.
    score : MapScore or None
        Its MAP@k out of fold.
    answer : FormScore or None
        Score out of fold of a recipe's answers by the competition's own metric; None where that is MAP@k, and for
        what gives no answers: a ranker, a run.
    outcomes : DataFrame or None
        What that was made of (`Form.outcomes`).
    runs : tuple of dict
        Summary of each run.
    curves : dict
        Head -> name of the experiment -> points (epoch, loss), averaged over the runs.
    """

    name: str
    settings: dict[str, Any]
    experiments: dict[str, dict[str, Any]]
    ranks: Ranks | None
    score: MapScore | None
    answer: FormScore | None = None
    outcomes: pd.DataFrame | None = None
    runs: tuple[dict[str, Any], ...] = ()
    curves: dict[str, dict[str, list[tuple[int, float]]]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds of all its training."""
        return float(sum(run["seconds"] for run in self.runs))

    @property
    def rate(self) -> float | None:
        """Images a second in training; None where nothing was trained."""
        return sum(run["images"] for run in self.runs) / self.seconds if self.seconds else None


def read_entries(names: list[str], competition: Competition, workspace: Workspace) -> list[Entry]:
    """Read what is to be compared.

    Parameters
    ----------
    names : list of str
        Each a recipe, `RECIPE:RANKER`, `<experiment>/fold<k>` (a run), or one of the first two behind the path of
        another work folder of the competition.
    competition : Competition
    workspace : Workspace

    Raises
    ------
    WhaleidError
        For fewer than two names, one that was not run, and results of another competition.
    """
    if len(set(names)) < max(2, len(names)):
        raise WhaleidError(f"compare: {len(names)} given ({', '.join(names)}); name two or more, each once")
    return [_read_entry(name, competition, workspace) for name in names]


def _read_entry(name: str, competition: Competition, workspace: Workspace) -> Entry:
    folder, _, short = name.rpartition("/")
    for place, recipe in ((workspace, name), (Workspace(Path(folder or ".")), short)):
        for wanted, ranker in _readings(recipe):
            figures = _figures(place).get(wanted)
            if figures is not None:
                _require_competition(name, figures, competition)
                return _recipe_entry(name, figures, ranker, competition, place)
    if (workspace.root / "runs" / name / CONFIG).is_file():
        return _run_entry(name, competition, workspace)
    recipes = first_few(_figures(workspace)) or "none"
    runs = first_few(_run_names(workspace)) or "none"
    raise WhaleidError(
        f"compare: '{name}' was not run in {workspace.root}; recipes with results: {recipes}; runs: {runs}"
    )


def _readings(name: str) -> Iterator[tuple[str, str | None]]:
    """Recipe and ranker that a name may stand for."""
    yield name, None
    recipe, colon, ranker = name.partition(RANKER)
    if colon:
        yield recipe, ranker


def _figures(workspace: Workspace) -> dict[str, Any]:
    return read_json(workspace.metrics) if workspace.metrics.is_file() else {}


def _run_names(workspace: Workspace) -> list[str]:
    runs = workspace.root / "runs"
    return sorted(path.parent.relative_to(runs).as_posix() for path in runs.glob(f"*/*/{CONFIG}"))


def _require_competition(name: str, figures: dict[str, Any], competition: Competition) -> None:
    if figures["competition"] != competition.name:
        raise WhaleidError(
            f"compare: '{name}' holds results of the competition {figures['competition']}, not of {competition.name}; "
            "only results of one competition can be compared"
        )


# ------------------------------------------------------------------------------------------------------ a recipe


def _recipe_entry(
    name: str, figures: dict[str, Any], ranker: str | None, competition: Competition, workspace: Workspace
) -> Entry:
    rung = _rung(figures, ranker)
    ranks = _read_ranks(workspace, figures, rung["name"], competition)
    score = MapScore(rung["map"], rung["k"], rung["queries"], rung["low"], rung["high"], {})
    runs = {key: run for key, run in figures["runs"].items() if run}
    settings = {key: value for key, value in figures["settings"]["recipe"].items() if key not in ("name", "set")}
    experiments = {item["name"]: item for item in figures["settings"]["experiments"]}
    curves = _curves(figures, runs, workspace)
    answer, outcomes = None, None
    if ranker is None and figures["ladder"].get("answer"):
        path = workspace.candidates(figures["recipe"]) / OUTCOMES
        answer, outcomes = answer_score(figures), pd.read_parquet(path) if path.is_file() else None
    return Entry(name, settings, experiments, ranks, score, answer, outcomes, tuple(runs.values()), curves)


def _rung(figures: dict[str, Any], ranker: str | None) -> dict[str, Any]:
    """The ladder's row of a ranker; None: of the last one, whose answers are submitted."""
    rungs = {rung["name"]: rung for rung in figures["ladder"]["rungs"]}
    wanted = figures["ladder"]["final"] if ranker is None else ranker
    if wanted not in rungs:
        raise WhaleidError(f"compare: recipe {figures['recipe']} has no ranker '{wanted}'; it has: {', '.join(rungs)}")
    return rungs[wanted]


def _read_ranks(workspace: Workspace, figures: dict[str, Any], ranker: str, competition: Competition) -> Ranks:
    recipe = figures["settings"]["recipe"]
    numbers = recipe["train_folds"] or list(range(recipe["folds"]))
    path = workspace.candidates(figures["recipe"]) / "oof.parquet"
    if not path.is_file():
        raise WhaleidError(f"{path}: not there; run whaleid ensemble -r {figures['recipe']} again")
    protocol = read_protocol(read_images(workspace), read_folds(workspace), competition, numbers)
    protocol = simulated_protocol(protocol)
    queries = np.concatenate([part.names for part in protocol.parts])
    folds = np.concatenate([np.full(len(part.names), part.fold) for part in protocol.parts])
    ranked = pq.read_table(path, columns=["query", "fold"], filters=[("source", "==", ranker)]).to_pandas()
    of_query = ranked.drop_duplicates("query").set_index("query")["fold"].reindex(queries)
    if not np.array_equal(of_query.to_numpy(), folds):
        raise WhaleidError(
            f"{path}: ranked on other folds than those of {workspace.folds}; "
            f"run whaleid ensemble -r {figures['recipe']} again"
        )
    top = read_top_guesses(path, ranker, protocol, competition.k)
    hits = (top.guesses == top.truth[:, None]) & (top.guesses != "")
    ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)
    share = None if protocol.share is None else protocol.share.weight
    return Ranks(queries, folds, top.truth, ranks, protocol.k, protocol.unknown, share)


def _curves(
    figures: dict[str, Any], runs: dict[str, Any], workspace: Workspace
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for experiment in figures["settings"]["experiments"]:
        own = [run for run in runs.values() if run["experiment"] == experiment["name"]]
        losses = [read_losses(workspace.run(run["experiment"], run["fold"])) for run in own]
        if points := mean_curve(losses):
            curves.setdefault(experiment["head"]["name"], {})[experiment["name"]] = points
    return curves


def mean_curve(curves: list[list[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Mean loss of each epoch over the curves that have it; points are (epoch, loss)."""
    table = pd.DataFrame([point for curve in curves for point in curve], columns=["epoch", "loss"])
    means = table.groupby("epoch", as_index=False)["loss"].mean()
    return list(zip(means["epoch"].astype(int).tolist(), means["loss"].tolist(), strict=True))


# --------------------------------------------------------------------------------------------------------- a run


def _run_entry(name: str, competition: Competition, workspace: Workspace) -> Entry:
    folder = workspace.root / "runs" / name
    settings = yaml.safe_load((folder / CONFIG).read_text())
    summary = workspace.stamp(folder).get("summary")
    if summary is None:
        raise WhaleidError(f"compare: {folder} is not trained to its end; run whaleid train again")
    ranks = _ranks_of_run(summary, competition, workspace)
    score = None if ranks is None else score_ranks(ranks.ranks, ranks.k, ranks.weights)
    losses = read_losses(folder)
    curves = {settings["head"]["name"]: {settings["name"]: losses}} if losses else {}
    return Entry(name, {}, {settings["name"]: settings}, ranks, score, runs=(summary,), curves=curves)


def _ranks_of_run(summary: dict[str, Any], competition: Competition, workspace: Workspace) -> Ranks | None:
    """Ranks of the fold that a run did not see, by the kNN of its network in the first recipe that has it."""
    experiment, fold = summary["experiment"], summary["fold"]
    for figures in _figures(workspace).values():
        if fold is None or f"{experiment}/{fold_name(fold)}" not in figures["runs"]:
            continue
        rung = next(one for one in figures["ladder"]["rungs"] if one.get("source") == experiment)
        found = _read_ranks(workspace, figures, rung["name"], competition)
        return found.only(found.folds == fold)
    return None
