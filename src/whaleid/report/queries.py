"""Every query out of fold as the page's script reads it: scores, truths, thresholds, and pictures of the guesses."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config.settings import config_root
from whaleid.data.competition import RESERVED
from whaleid.ensemble.protocol import query_weights
from whaleid.pipeline.project import Project
from whaleid.report.examples import Example, add_gallery_images, example_of
from whaleid.report.inputs import Results, TopGuesses, best_single_features

MOST_VALUES = 60
"""Different values up to which a column is offered as a filter."""


def without_unknown(top: TopGuesses, unknown: str | None) -> TopGuesses:
    """The queries with one guess fewer: the unknown label is taken out, or else the last guess."""
    is_unknown = top.guesses == (unknown or "")
    kept = np.argsort(is_unknown, axis=1, kind="stable")[:, :-1]
    guesses = np.where(is_unknown, "", top.guesses)
    scores = np.where(is_unknown, np.float32("nan"), top.scores)
    return replace(
        top, guesses=np.take_along_axis(guesses, kept, axis=1), scores=np.take_along_axis(scores, kept, axis=1)
    )


def shown_queries(results: Results) -> list[Example]:
    """A card's content for each labelled image: its first k identities, each with its nearest gallery image."""
    top = without_unknown(results.scored, results.project.competition.unknown)
    queries = [example_of(top, int(query)) for query in np.flatnonzero(~top.simulated)]
    return add_gallery_images(queries, results.protocol, results.images, best_single_features(results)[1])


def query_data(results: Results, queries: list[Example]) -> dict[str, Any]:
    """Plain lists for the page's script (`templates/page.js`), which scores them under any threshold.

    Parameters
    ----------
    results : Results
    queries : list of Example
        As from `shown_queries`.

    Returns
    -------
    dict
        `identities`: names, to which codes point. `weights`: of a known and of an unknown query. `thresholds`: fold
        (and species, where it has its own) to the threshold in use, None without unknown label. Of all queries, the
        simulated ones last: `truth` (codes, -1: unknown), `fold` (key of `thresholds`), and `scores`, k a query, None
        where there is no guess. Of the others, which have cards: `guesses` (codes, -1: none) and `pictures` (rows, -1:
        none), k a query; `row`, `size`. `names`: row to image. `options`: of the command line, for this recipe.
        `columns`: as from `filter_columns`.
    """
    competition, protocol = results.project.competition, results.protocol
    top = without_unknown(results.scored, competition.unknown)
    order = np.argsort(top.simulated, kind="stable")
    place = {name: code for code, name in enumerate(protocol.classes.tolist())}
    known = top.known[order]
    pictures = [[-1 if guess.row is None else guess.row for guess in query.guesses] for query in queries]
    rows = {row for query in queries for row in query.rows}
    return {
        "k": protocol.k,
        "unknown": competition.unknown,
        "identities": protocol.classes.tolist(),
        "weights": _weights(results),
        "thresholds": _thresholds(results),
        "truth": [place[name] if is_known else -1 for name, is_known in zip(top.truth[order], known, strict=True)],
        "fold": _of_thresholds(results)[order].tolist(),
        "scores": _short(top.scores[order].ravel()),
        "guesses": [place.get(name, -1) for name in top.guesses[~top.simulated].ravel().tolist()],
        "pictures": [row for listed in pictures for row in [*listed, *[-1] * (protocol.k - len(listed))]],
        "row": [query.row for query in queries],
        "size": top.sizes[~top.simulated].tolist(),
        "names": {row: str(results.images["image"].iloc[row]) for row in sorted(rows)},
        "options": command_options(results.project),
        "columns": filter_columns(results.images, [query.row for query in queries]),
    }


def command_options(project: Project) -> str:
    """Options of a command that name the competition and the recipe; of a YAML of the user's its likely name."""
    own = project.workspace.root / "recipes" / f"{project.recipe.name}.yaml"  # that `auto` wrote
    recipe = own.as_posix() if own.is_file() else _file("recipes", project.recipe.name)
    return f"-c {shlex.quote(_file('competitions', project.competition.name))} -r {shlex.quote(recipe)}"


def _file(kind: str, name: str) -> str:
    return name if (config_root() / kind / f"{name}.yaml").is_file() else f"{name}.yaml"


def filter_columns(images: pd.DataFrame, rows: list[int]) -> dict[str, dict[str, list[Any]]]:
    """Further columns of the competition (`train.extra`: species, camera, view) by which cards can be filtered.

    Returns
    -------
    dict
        Name of a column with 2 to MOST_VALUES different values -> `values`, sorted, and `codes`: place of each row's
        value among them, -1 where it has none.
    """
    found = {}
    for name in [column for column in images.columns if column not in RESERVED]:
        column = images[name].iloc[rows]
        codes, values = pd.factorize(column.where(column.isna(), column.astype(str)), sort=True)
        if 2 <= len(values) <= MOST_VALUES:
            found[name] = {"values": values.tolist(), "codes": codes.tolist()}
    return found


def query_weights_of(results: Results) -> np.ndarray:
    """Weight float64 (n,) of each of `results.scored` in the score."""
    return np.where(results.scored.known, *_weights(results))


def _weights(results: Results) -> tuple[float, float]:
    """Weight of a known and of an unknown query, as the ladder's scores have them."""
    known = results.scored.known
    share = results.figures["ladder"]["share"]
    weights = query_weights(np.where(known, 0, -1), results.protocol.unknown, share and share["weight"])
    of_known, of_unknown = (float(weights[kind].mean()) if kind.any() else 0.0 for kind in (known, ~known))
    return of_known, of_unknown


def _thresholds(results: Results) -> dict[Any, float | None] | None:
    unknown = results.rankers[-1]["unknown"]
    if unknown is None:
        return None
    thresholds: dict[Any, float | None] = {int(fold): value for fold, value in unknown["by_fold"].items()}
    for name, own in unknown.get("species", {}).items():
        thresholds |= {f"{fold} {name}": value for fold, value in own["by_fold"].items()}
    return thresholds


def _of_thresholds(results: Results) -> np.ndarray:
    """Key in `_thresholds` of each of `results.scored`: the fold or, where it has its threshold, fold and species."""
    unknown, scored = results.rankers[-1]["unknown"], results.scored
    species = results.protocol.species(scored.rows)
    if unknown is None or not species.any():
        return scored.folds
    own = unknown.get("species", {})
    pairs = zip(scored.folds.tolist(), species, strict=True)
    return np.array([f"{fold} {name}" if name in own else fold for fold, name in pairs], dtype=object)


def _short(scores: np.ndarray) -> list[float | None]:
    """Scores by the fewest digits that give the same float32 again; None for NaN."""
    return [None if np.isnan(score) else float(str(score)) for score in scores.astype(np.float32)]
