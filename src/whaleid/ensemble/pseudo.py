"""Pseudo-labels: test images whose identity the ensemble is confident of, as training images of the next round.

A fold's models must not learn the identities of the fold's own queries by way of the test set. So each fold has labels
of its own: its models compare the test images with **its** gallery, which lacks the fold's images, and the weights,
settings and threshold are those fitted on the other folds' queries. Only the models trained on all labelled images get
the whole ensemble's labels. A pseudo-label is used for training alone: never in a gallery, never among the queries.

A model trained on a test image's pseudo-label ranks that image more confidently than one that was not, as it does with
its training images: a round is judged on the folds' queries, which are in no round's training.

References
----------
Lee, "Pseudo-label: the simple and efficient semi-supervised learning method for deep neural networks", 2013.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import Competition, Recipe
from whaleid.data.pseudo import COLUMNS, FULL
from whaleid.data.reviews import Links
from whaleid.ensemble.blend import apply_blend
from whaleid.ensemble.ladder import protocol_of, rank_all
from whaleid.ensemble.lists import average
from whaleid.ensemble.protocol import FULL_DATA, FoldPart, Protocol, full_data_part
from whaleid.ensemble.rankers.base import RankerContext
from whaleid.ensemble.rankers.second_level import BlendRanker
from whaleid.ensemble.rankings import Ranking, Source, fit_limits
from whaleid.ensemble.reviews import reviewed_labels
from whaleid.ensemble.simulation import with_simulated_unknowns
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
    links: Links | None = None,
) -> pd.DataFrame:
    """The test images that are confident enough, for every fold and (fold -1) for full-data models.

    The blend gives them, also where the recipe has a stack, and without learned match scores: those of a fold would
    have to be fitted without it and without the folds that check them. Labels of the unknown identity are not given:
    two unknown images need not be of one individual.

    Parameters
    ----------
    number : int
        Of the round that is trained with them.
    images, folds, sources, recipe, competition, local, weights_folder
        As in `ladder.combine`; `recipe.pseudo` holds the confidence.
    links : Links, optional
        What people decided.

    Returns
    -------
    DataFrame
        `image, identity, fold, round, confidence`, a row for each image and fold, in the order of the folds and of
        images.parquet.
    """
    protocol = protocol_of(images, folds, competition, sources)
    if not len(protocol.test_rows):
        raise WhaleidError(f"competition {competition.name} has no test images: take `pseudo` out of the recipe")
    if not protocol.crossfitted:
        raise WhaleidError("pseudo: needs at least two folds, to fit the confidence of one on the others")
    recipe = _without_learned_scores(recipe)
    rankings = rank_all(sources, images, protocol, recipe.combine, recipe.seed, local, weights_folder=weights_folder)
    labels = confident_labels(protocol, rankings, sources, images, recipe, local, weights_folder)
    if links is not None:
        labels = with_decisions(labels, links, protocol, images, folds)
    return labels.assign(round=number)[list(COLUMNS)]


def with_decisions(
    labels: pd.DataFrame, links: Links, protocol: Protocol, images: pd.DataFrame, folds: pd.DataFrame
) -> pd.DataFrame:
    """The labels with what people decided, in each fold without the decisions about the fold's own images.

    labels: `image, identity, fold, confidence`. images, folds: images.parquet and folds.csv.
    """
    parts = []
    for fold in [*(part.fold for part in protocol.parts), FULL]:
        own, training = labels[labels["fold"] == fold], folds[folds["fold"] != fold]
        parts.append(reviewed_labels(own, links, images, training, protocol.unknown).assign(fold=fold))
    return pd.concat(parts, ignore_index=True)


def _without_learned_scores(recipe: Recipe) -> Recipe:
    if recipe.combine.local_matching is None:
        return recipe
    votes = recipe.combine.local_matching.model_copy(update={"learned": None})
    return recipe.model_copy(update={"combine": recipe.combine.model_copy(update={"local_matching": votes})})


def confident_labels(
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
    simulated, used = with_simulated_unknowns(protocol, rankings)
    (blend,) = BlendRanker().rank(RankerContext(simulated, recipe.combine, recipe.seed, tuple(used)))
    limits, keep = fit_limits(simulated, blend), max(recipe.combine.candidates, protocol.k)
    assert blend.fitted is not None
    tables, species = [], protocol.species(protocol.test_rows)
    for place, part in enumerate(protocol.parts):
        settings = {one.name: one.fitted.by_fold[place] for one in rankings if one.fitted is not None}
        own = rank_with_own_gallery(sources, images, protocol, part, recipe, settings, local, weights_folder)
        lists = apply_blend(blend.fitted.by_fold[place], {one.name: one.test[0] for one in own}, keep)
        tables.append(_confident(lists, limits.of(place, species), recipe.pseudo.confidence, part.fold))
    tables.append(_confident(average(blend.test, keep), limits.of(None, species), recipe.pseudo.confidence, FULL))
    return pd.concat(tables, ignore_index=True)


def rank_with_own_gallery(
    sources: list[Source],
    images: pd.DataFrame,
    protocol: Protocol,
    part: FoldPart,
    recipe: Recipe,
    settings: dict[str, str],
    local: Path | None,
    weights_folder: Path | None = None,
) -> list[Ranking]:
    """Rankings of the test images by one fold's models, among the images that these models were trained on.

    The fold's models stand in for full-data models of a smaller data set, in which nothing is out of fold.

    Parameters
    ----------
    settings : dict of str to str
        Re-ranking method to setting, as chosen on the other folds.
    """
    smaller = replace(
        protocol,
        parts=(),
        gallery=part.gallery,
        gallery_codes=part.gallery_codes,
        full_data=full_data_part(part.training, part.gallery, part.gallery_codes),
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
    return rank_all(alone, images, smaller, recipe.combine, recipe.seed, local, settings, weights_folder)


def _confident(lists: Candidates, threshold: np.ndarray | None, confidence: float, fold: int) -> pd.DataFrame:
    """First guesses of at least `confidence` that stand before the unknown identity."""
    first, score = lists.codes[:, 0], lists.scores[:, 0]
    chosen = (first != PADDING) & (score >= confidence)
    if threshold is not None:
        chosen &= score >= threshold
    return pd.DataFrame(
        {
            "image": lists.queries[chosen],
            "identity": lists.classes[first[chosen]],
            "fold": fold,
            "confidence": score[chosen],
        }
    )
