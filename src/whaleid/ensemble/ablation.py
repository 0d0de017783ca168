"""What every part of a recipe is worth: the recipe with each part off in turn, from saved features.

Nothing is trained again. A part that only adds a ranking is taken out of the rankings that are there; one that
changes what comes of all networks side by side (whitening, a network of the ensemble) has that made anew. Each variant
is scored out of fold like the recipe itself, and compared with it on the same queries. What is chosen by looking at
this table is chosen by the score that it shows: a recipe that was, is optimistic by as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import CombineConfig, Competition, LearnedConfig, LocalConfig, Recipe
from whaleid.ensemble.ladder import evaluate_ladder, protocol_of, rank_all, with_whole
from whaleid.ensemble.learned_matches import BY_PAIRS, LEARNED
from whaleid.ensemble.local_rankings import VERIFIED
from whaleid.ensemble.protocol import Protocol
from whaleid.ensemble.rankings import Ranking, Source, rank_jointly
from whaleid.ensemble.results import Gain, LadderResult, paired_gain
from whaleid.evaluation.metrics import MapScore, reciprocal_rank_at_k
from whaleid.features.files import open_embeddings
from whaleid.utils.progress import progress_bar

NOTHING = "nothing"
"""What is off in the first row, which is the whole recipe."""
_JOINT = ("concat", "rerank", "classifier")  # kinds of ranking that come of all networks side by side


@dataclass(frozen=True)
class Variant:
    """A recipe with a part off.

    gone: rankings (by kind, or by name) that the part gave and that are taken out. without: name of a source that is
    left out, or None. anew: the part changes what comes of all networks side by side, which is made again.
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
    weights_folder: Path | None = None,
) -> Ablation:
    """Score the recipe and each of its variants. Arguments as `ladder.combine`; nothing is written."""
    protocol = protocol_of(images, folds, competition, sources)
    rankings = rank_all(sources, images, protocol, recipe.combine, recipe.seed, local, weights_folder=weights_folder)
    rows: list[Row] = []
    base: LadderResult | None = None
    variants = list(list_variants(recipe.combine, [source.name for source in sources]))
    with progress_bar("ablation", total=len(variants) + 1) as bar:
        for variant in [Variant(NOTHING, recipe.combine), *variants]:
            used = _rankings_of(variant, rankings, sources, images, protocol, recipe.seed)
            result = evaluate_ladder(protocol, used, variant.config, recipe.seed)
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
        yield Variant("class probabilities", off(logits=0), gone=("logits",))
    if config.local_matching is not None:
        yield Variant("local matching", off(local_matching=None), gone=("local",))
        if config.local_matching.verify is not None:
            votes = config.local_matching.model_copy(update={"verify": None})
            yield Variant("matching pair by pair", off(local=votes), gone=(VERIFIED,))
        if config.local_matching.learned is not None:
            yield from _unlearned(config, config.local_matching, config.local_matching.learned)
    if config.rerank is not None:
        yield Variant("re-ranking", off(rerank=None), gone=("rerank",))
    if config.stack is not None:
        yield Variant("learned order", off(stack=None))
    if len(sources) > 1:
        for name in sources:
            others = {own: weight for own, weight in config.concat.weights.items() if own != name}
            concat = config.concat.model_copy(update={"weights": others})
            yield Variant(f"network {name}", off(concat=concat), without=name, anew=True)


def _unlearned(config: CombineConfig, local: LocalConfig, learned: LearnedConfig) -> Iterator[Variant]:
    """Local matching without what was learnt of matches; with it, but without the pictures matched pair by pair."""
    votes = config.model_copy(update={"local_matching": local.model_copy(update={"learned": None})})
    yield Variant("matches weighed as learnt", votes, gone=(*LEARNED.values(), BY_PAIRS))
    if learned.pairs is not None:
        unpaired = local.model_copy(update={"learned": learned.model_copy(update={"pairs": None})})
        yield Variant(
            "pairs weighed as learnt", config.model_copy(update={"local_matching": unpaired}), gone=(BY_PAIRS,)
        )


def _rankings_of(
    variant: Variant,
    rankings: list[Ranking],
    sources: list[Source],
    images: pd.DataFrame,
    protocol: Protocol,
    seed: int,
) -> list[Ranking]:
    """The rankings that a variant is made of, in the order of `rank_all`."""
    gone = {*variant.gone, *(_JOINT if variant.anew else ())}
    gone |= {f"{variant.without}{own}" for own in ("", " logits", " siamese")} if variant.without else set()
    kept = [one for one in rankings if one.kind not in gone and one.name not in gone]
    if not variant.anew:
        return kept
    used = [source for source in sources if source.name != variant.without]
    dims = [open_embeddings(next(iter(source.folds.values())), images).shape[1] for source in used]
    joint = rank_jointly(used, dims, images, protocol, variant.config, seed)
    singles, votes = ([one for one in kept if (one.kind == "local") == is_local] for is_local in (False, True))
    keep = max(variant.config.candidates, protocol.k)
    return [*singles, *(with_whole(one, protocol, keep) for one in joint if one is not None), *votes]


def _row(variant: Variant, result: LadderResult, base: LadderResult, protocol: Protocol, seed: int) -> Row:
    change = None
    if result is not base:
        own, whole = (reciprocal_rank_at_k(one.final.rank, protocol.k) for one in (result, base))
        change = paired_gain(own - whole, protocol.weights(list(range(len(protocol.parts)))), seed)
    return Row(variant.name, result.final.score, change, result.test_guesses)
