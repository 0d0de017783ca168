"""What every part of a recipe is worth: the recipe with each part off in turn, from saved features.

Nothing is trained again. A part that only adds a ranking is taken out of the rankings that are there; one that
changes them (whitening, a network of the ensemble) has them made anew. Each variant is scored out of fold like the
recipe itself, and compared with it on the same queries. What is chosen by looking at this table is chosen by the
score that it shows: a recipe that was, is optimistic by as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import CombineConfig, Competition, Recipe
from whaleid.ensemble.ladder import climb, common_folds, rank_all
from whaleid.ensemble.protocol import Protocol, read_protocol
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.ensemble.results import Gain, LadderResult, paired_gain
from whaleid.progress import progress_bar
from whaleid.scoring.metrics import MapScore, reciprocal_rank_at_k

WHOLE = "the whole recipe"
"""Name of the first row: nothing is off."""


@dataclass(frozen=True)
class Variant:
    """A recipe with a part off.

    gone: rankings (by kind, or by name) that the part gave and that are taken out. without: name of a source that is
    left out, or None. anew: the part changes rankings that stay, which are made again.
    """

    name: str
    config: CombineConfig
    gone: tuple[str, ...] = ()
    without: str | None = None
    anew: bool = False


@dataclass(frozen=True)
class Row:
    """One variant's score out of fold, and what it loses (below 0) or gains against the whole recipe.

    guesses: str (n_test, k), its answers for the test images.
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
            {
                "off": row.name,
                **row.score.as_json(),
                "change": None if row.change is None else asdict(row.change),
            }
            for row in self.rows
        ]


def ablate(
    images: pd.DataFrame,
    folds: pd.DataFrame,
    sources: list[Source],
    recipe: Recipe,
    competition: Competition,
    local: Path | None = None,
) -> Ablation:
    """Score the recipe and each of its variants. Arguments as `ladder.combine`; nothing is written."""
    protocol = read_protocol(images, folds, competition, common_folds(sources))
    rankings = rank_all(sources, images, protocol, recipe.combine, recipe.seed, local)
    rows: list[Row] = []
    base: LadderResult | None = None
    variants = list(list_variants(recipe.combine, [source.name for source in sources]))
    with progress_bar("ablation", total=len(variants) + 1) as bar:
        for variant in [Variant(WHOLE, recipe.combine), *variants]:
            used = _rankings_of(variant, rankings, sources, images, protocol, recipe.seed, local)
            result = climb(protocol, used, variant.config, recipe.seed)
            rows.append(_row(variant, result, base or result, protocol, recipe.seed))
            base = base or result
            bar.advance(note=variant.name)
    return Ablation(tuple(rows), protocol.test_names)


def list_variants(config: CombineConfig, sources: list[str]) -> Iterator[Variant]:
    """The recipe with each part off that is on, then with each network left out, where there are several."""

    def off(**changes: Any) -> CombineConfig:
        return config.model_copy(update=changes)

    if config.concat.whiten is not None:
        bare = config.concat.model_copy(update={"whiten": None})
        yield Variant("whitening", off(concat=bare), anew=True)
    if config.classifier is not None:
        yield Variant("classifier on the features", off(classifier=None), gone=("classifier",))
    if config.logits:
        yield Variant("class probabilities", off(logits=0))
    if config.local is not None:
        yield Variant("local matching", off(local=None), gone=("local",))
        if config.local.verify is not None:
            votes = config.local.model_copy(update={"verify": None})
            yield Variant("matching pair by pair", off(local=votes), gone=("local verified",))
    if config.rerank is not None:
        yield Variant("re-ranking", off(rerank=None), gone=("rerank",))
    if config.stack is not None:
        yield Variant("learned order", off(stack=None))
        if config.stack.embeddings:
            lists_alone = config.stack.model_copy(update={"embeddings": False})
            yield Variant("embeddings in the learned order", off(stack=lists_alone))
    if len(sources) > 1:
        for name in sources:
            yield Variant(f"network {name}", config, without=name, anew=True)


def _rankings_of(
    variant: Variant,
    rankings: list[Ranking],
    sources: list[Source],
    images: pd.DataFrame,
    protocol: Protocol,
    seed: int,
    local: Path | None,
) -> list[Ranking]:
    if not variant.anew:
        return [one for one in rankings if one.kind not in variant.gone and one.name not in variant.gone]
    used = [source for source in sources if source.name != variant.without]
    return rank_all(used, images, protocol, variant.config, seed, local)


def _row(variant: Variant, result: LadderResult, base: LadderResult, protocol: Protocol, seed: int) -> Row:
    change = None
    if result is not base:
        own, whole = (reciprocal_rank_at_k(one.final.rank, protocol.k) for one in (result, base))
        change = paired_gain(own - whole, protocol.weights(list(range(len(protocol.parts)))), seed)
    return Row(variant.name, result.final.score, change, result.test_guesses)
