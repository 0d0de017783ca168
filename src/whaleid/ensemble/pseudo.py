"""Pseudo-labels: test images whose identity the ensemble is sure of, as training images of the next round.

A fold's models must not learn, by way of the test set, whose the fold's own queries are. So each fold has labels of
its own: its models compare the test images with **its** gallery, which lacks the fold's images, and weights, settings
and threshold are those that the other folds' queries taught. Only the members trained on all labelled images get the
whole ensemble's labels. A pseudo-label goes to training alone: never into a gallery, never among the queries.

A model trained on a test image's pseudo-label answers that image more surely than one that was not, as it does with
its training images: what a round is worth is measured on the folds' queries, which are in no round's training.

Lee, "Pseudo-label: the simple and efficient semi-supervised learning method for deep neural networks", 2013.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from whaleid.config import Competition, Recipe
from whaleid.data.pseudo import COLUMNS, FULL
from whaleid.ensemble.blend import apply_blend
from whaleid.ensemble.ladder import blend_rankings, protocol_of, rank_all
from whaleid.ensemble.lists import average
from whaleid.ensemble.protocol import FULL_DATA, FoldPart, Protocol, whole_part
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.identities import PADDING
from whaleid.utils.errors import WhaleidError


def pseudo_labels(
    images: pd.DataFrame,
    folds: pd.DataFrame,
    sources: list[Source],
    recipe: Recipe,
    competition: Competition,
    number: int,
    local: Path | None = None,
    weights_folder: Path | None = None,
) -> pd.DataFrame:
    """The test images that are sure enough, for every fold and (fold -1) for full-data members.

    Arguments as `ladder.combine`; recipe.pseudo says how sure. number: of the round that they teach. The blend gives
    them, also where a stack stands on it. Returns `image, identity, fold, round, confidence`, a row for each image and
    fold, in the order of the folds and of images.parquet. Labels of an unknown identity are not given: "new" says no
    more of two images than that they may differ.
    """
    protocol = protocol_of(images, folds, competition, sources)
    if not len(protocol.test_rows):
        raise WhaleidError(f"competition {competition.name} has no test images: take `pseudo` out of the recipe")
    if not protocol.crossfitted:
        raise WhaleidError("pseudo: one fold alone has no other to learn from what is sure; train at least two folds")
    rankings = rank_all(sources, images, protocol, recipe.combine, recipe.seed, local, weights_folder=weights_folder)
    labels = sure_labels(protocol, rankings, sources, images, recipe, local, weights_folder)
    return labels.assign(round=number)[list(COLUMNS)]


def sure_labels(
    protocol: Protocol,
    rankings: list[Ranking],
    sources: list[Source],
    images: pd.DataFrame,
    recipe: Recipe,
    local: Path | None = None,
    weights_folder: Path | None = None,
) -> pd.DataFrame:
    """`image, identity, fold, confidence`. rankings: `rank_all` of the protocol."""
    assert recipe.pseudo is not None
    _, by_fold, blended, limits = blend_rankings(protocol, rankings, recipe.combine)
    keep = max(recipe.combine.candidates, protocol.k)
    tables = []
    for part, limit in zip(protocol.parts, limits.by_fold, strict=True):
        decided = {one.name: one.chosen.choices.by_fold[part.fold] for one in rankings if one.chosen is not None}
        own = against_own_gallery(sources, images, protocol, part, recipe, decided, local, weights_folder)
        lists = apply_blend(by_fold[part.fold], {one.name: one.test[0] for one in own}, keep)
        tables.append(_sure(lists, limit, recipe.pseudo.confidence, part.fold))
    whole = average(blended.test, keep)
    tables.append(_sure(whole, limits.tuned, recipe.pseudo.confidence, FULL))
    return pd.concat(tables, ignore_index=True)


def against_own_gallery(
    sources: list[Source],
    images: pd.DataFrame,
    protocol: Protocol,
    part: FoldPart,
    recipe: Recipe,
    decided: dict[str, str],
    local: Path | None,
    weights_folder: Path | None = None,
) -> list[Ranking]:
    """Rankings of the test images by one fold's models, among the images which that fold's models were trained on.

    As if there were no others: the fold's model stands in the place of a full-data member of that smaller world, in
    which nothing is out of fold. decided: re-ranking method -> setting, as the other folds have chosen it.
    """
    seen = replace(
        protocol,
        parts=(),
        gallery=part.gallery,
        gallery_codes=part.gallery_codes,
        whole=whole_part(part.training, part.gallery, part.gallery_codes),
    )
    alone = [
        replace(
            source,
            folds={},
            full=source.folds[part.fold],
            pairs={FULL_DATA: source.pairs[part.fold]} if source.pairs else {},
        )
        for source in sources
    ]
    return rank_all(alone, images, seen, recipe.combine, recipe.seed, local, decided, weights_folder)


def _sure(lists: Candidates, limit: float | None, confidence: float, fold: int) -> pd.DataFrame:
    """First guesses of at least `confidence` that stand before the unknown identity (`limit`)."""
    first, score = lists.codes[:, 0], lists.scores[:, 0]
    chosen = (first != PADDING) & (score >= confidence)
    if limit is not None:
        chosen &= score >= limit
    return pd.DataFrame(
        {
            "image": lists.queries[chosen],
            "identity": lists.classes[first[chosen]],
            "fold": fold,
            "confidence": score[chosen],
        }
    )
