"""What every part of a recipe is worth: the recipe without each part in turn, from saved features.

Nothing is trained again. A part that only adds a ranking is taken out of the rankings; one that changes what all
sources give together (whitening, a network of the ensemble) has these rankings made again. Pairs of images stay those
that all networks proposed. Each variant is scored out of fold like the recipe itself, and compared with it on the same
queries. What is chosen by looking at this table is chosen by the score that it shows: a recipe that was, is optimistic
by as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import CombineConfig, Competition, Recipe
from whaleid.ensemble.intervals import Gain, rank_gain
from whaleid.ensemble.ladder import evaluate_ladder, protocol_of, rank_all, rank_jointly
from whaleid.ensemble.rankers.base import RankerContext, Without
from whaleid.ensemble.rankers.registry import RANKERS, ranker_of
from whaleid.ensemble.rankings import Ranking, Source, with_full_data
from whaleid.ensemble.results import LadderResult
from whaleid.ensemble.simulation import with_simulated_unknowns
from whaleid.evaluation.metrics import MapScore
from whaleid.utils.progress import progress_bar

NOTHING = "nothing"
"""The first row: the whole recipe."""


@dataclass(frozen=True)
class Row:
    """One variant's score out of fold.

    Attributes
    ----------
    name : str
        What is left out.
    score : MapScore
    change : Gain or None
        Against the whole recipe: below 0 where the part helps. None for the recipe itself.
    guesses : str array, shape (n_test, k)
        Its guesses for the test images.
    """

    name: str
    score: MapScore
    change: Gain | None
    guesses: np.ndarray


@dataclass(frozen=True)
class Ablation:
    """The table; its first row is the whole recipe. test_images: str (n_test,)."""

    rows: tuple[Row, ...]
    test_images: np.ndarray

    def as_json(self) -> list[dict[str, Any]]:
        """Every figure as plain types."""
        return [
            {"off": row.name, **row.score.as_json(), "change": None if row.change is None else asdict(row.change)}
            for row in self.rows
        ]


def ablate(
    images: pd.DataFrame,
    folds: pd.DataFrame,
    sources: list[Source],
    recipe: Recipe,
    competition: Competition,
    local: Path | None = None,
    weights_folder: Path | None = None,
) -> Ablation:
    """Score the recipe and each of its variants. Parameters as in `ladder.combine`; nothing is written."""
    protocol = protocol_of(images, folds, competition, sources)
    config, seed = recipe.combine, recipe.seed
    rankings = rank_all(sources, images, protocol, config, seed, local, weights_folder=weights_folder)
    variants = list(list_variants(config, [source.name for source in sources]))
    with progress_bar("ablation", total=len(variants) + 1) as bar:
        simulated, used = with_simulated_unknowns(protocol, rankings)
        base = evaluate_ladder(simulated, used, config, seed)
        rows = [_row(NOTHING, base, None)]
        bar.advance(note=NOTHING)
        for variant, source in variants:
            context = RankerContext(protocol, variant.config, seed, images=images)
            _, used = with_simulated_unknowns(protocol, _rankings_of(variant, source, rankings, sources, context))
            result = evaluate_ladder(simulated, used, variant.config, seed)
            rows.append(_row(variant.name, result, rank_gain(simulated, result.final.rank, base.final.rank, seed)))
            bar.advance(note=variant.name)
    return Ablation(tuple(rows), protocol.test_names)


def list_variants(config: CombineConfig, sources: list[str]) -> Iterator[tuple[Without, str | None]]:
    """The recipe without each part of each ranker, then without each source, where there are several.

    Yields
    ------
    variant : Without
    source : str or None
        Name of the source that is left out.
    """
    for ranker in RANKERS:
        if ranker.is_on(config):
            for variant in ranker.ablations(config):
                yield variant, None
    for name in sources if len(sources) > 1 else []:
        weights = {other: weight for other, weight in config.concat.weights.items() if other != name}
        concat = config.concat.model_copy(update={"weights": weights})
        yield Without(f"network {name}", config.model_copy(update={"concat": concat}), redo=True), name


def _rankings_of(
    variant: Without, without: str | None, rankings: list[Ranking], sources: list[Source], context: RankerContext
) -> list[Ranking]:
    """The rankings of a variant, in the order of `rank_all`."""
    kept = [one for one in rankings if one.kind not in variant.kinds and (without is None or one.source != without)]
    if not variant.redo:
        return kept
    joint = rank_jointly([source for source in sources if source.name != without], context)
    by_level = {level: [one for one in kept if ranker_of(one.kind).level == level] for level in ("source", "local")}
    return [
        *by_level["source"],
        *(with_full_data(one, context.protocol, context.keep) for one in joint),
        *by_level["local"],
    ]


def _row(name: str, result: LadderResult, change: Gain | None) -> Row:
    return Row(name, result.final.score, change, result.test_guesses)
