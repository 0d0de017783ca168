"""Pseudo-labels: test images whose identity the ensemble is sure of, as training images of the next round.

A fold's models must not learn, by way of the test set, whose the fold's own queries are. So each fold has labels of
its own: its models compare the test images with **its** gallery, which lacks the fold's images, and weights and
threshold are those that the other folds' queries taught. Only the members trained on all labelled images get the
whole ensemble's labels. A pseudo-label goes to training alone: never into a gallery, never among the queries.

Lee, "Pseudo-label: the simple and efficient semi-supervised learning method for deep neural networks", 2013.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import Competition, Recipe
from whaleid.ensemble.blend import apply_blend, average
from whaleid.ensemble.ladder import blend_rankings, common_folds, rank_all
from whaleid.ensemble.protocol import FoldPart, Protocol, read_protocol
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.errors import WhaleidError
from whaleid.retrieval.candidates import PADDING, Candidates

FULL = -1
"""Number in column `fold` of the labels for members that all labelled images taught."""


def pseudo_labels(
    images: pd.DataFrame,
    folds: pd.DataFrame,
    sources: list[Source],
    recipe: Recipe,
    competition: Competition,
    local: Path | None = None,
) -> pd.DataFrame:
    """The test images that are sure enough, for every fold and (fold -1) for full-data members.

    Arguments as `ladder.combine`; recipe.pseudo says how sure. Returns `image, identity, fold, confidence`, a row for
    each image and fold, in the order of the folds and of images.parquet. Labels of an unknown identity are not given:
    "new" says no more of two images than that they may differ.
    """
    assert recipe.pseudo is not None
    protocol = read_protocol(images, folds, competition, common_folds(sources))
    if not len(protocol.test_rows):
        raise WhaleidError(f"competition {competition.name} has no test images: take `pseudo` out of the recipe")
    rankings = rank_all(sources, images, protocol, recipe.combine, recipe.seed, local)
    _, by_fold, blended, limits = blend_rankings(protocol, rankings, recipe.combine)
    keep = max(recipe.combine.candidates, protocol.k)
    tables = []
    for part, limit in zip(protocol.parts, limits.by_fold, strict=True):
        own = _against_own_gallery(sources, images, protocol, part, recipe, local)
        lists = apply_blend(by_fold[part.fold], {one.name: one.test[0] for one in own}, keep)
        tables.append(_sure(lists, limit, recipe.pseudo.confidence, part.fold))
    whole = average(blended.test, keep)
    tables.append(_sure(whole, limits.tuned, recipe.pseudo.confidence, FULL))
    return pd.concat(tables, ignore_index=True)


def _against_own_gallery(
    sources: list[Source],
    images: pd.DataFrame,
    protocol: Protocol,
    part: FoldPart,
    recipe: Recipe,
    local: Path | None,
) -> list[Ranking]:
    """Rankings of the test images by one fold's models, among the images which that fold's models were trained on."""
    seen = replace(protocol, parts=(part,), gallery=part.gallery, gallery_codes=part.gallery_codes)
    return rank_all(sources, images, seen, recipe.combine, recipe.seed, local)


def _sure(lists: Candidates, limit: float | None, confidence: float, fold: int) -> pd.DataFrame:
    """First guesses of at least `confidence` that stand before the unknown identity (`limit`)."""
    first, score = lists.codes[:, 0], lists.scores[:, 0]
    chosen = (first != PADDING) & (score >= confidence)
    if limit is not None:
        chosen &= score >= np.float32(limit)
    return pd.DataFrame(
        {
            "image": lists.queries[chosen],
            "identity": lists.classes[first[chosen]],
            "fold": fold,
            "confidence": score[chosen],
        }
    )


def with_pseudo_labels(
    images: pd.DataFrame, folds: pd.DataFrame, labels: pd.DataFrame, fold: int | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables as the run of `fold` trains on them: its pseudo-labelled test images among the labelled ones.

    images, folds: images.parquet and folds.csv. labels: as `pseudo_labels` gives them. fold: None for the run on all
    labelled images. Rows keep their places; the added images have the fold -1 and so are in every training part.
    """
    own = labels[labels["fold"] == (FULL if fold is None else fold)]
    named = own.set_index("image")["identity"]
    joined = images.copy()
    added = joined["image"].isin(named.index).to_numpy()
    if added.sum() != len(own) or (joined.loc[added, "split"] != "test").any():
        raise WhaleidError("pseudo-labels: not of these test images; remove the work folder's `pseudo` and run again")
    joined.loc[added, "identity"] = joined.loc[added, "image"].map(named)
    joined.loc[added, "split"] = "train"
    extra = pd.DataFrame({"image": own["image"], "identity": own["identity"], "fold": FULL})
    return joined, pd.concat([folds, extra], ignore_index=True)


def describe_pseudo_labels(labels: pd.DataFrame, test_images: int) -> Iterator[str]:
    """What a round adds, a line for each fold."""
    for fold, rows in labels.groupby("fold", sort=True):
        name = "all labelled images" if fold == FULL else f"fold {fold}"
        yield f"{name}: {len(rows):,} of {test_images:,} test images, {rows['identity'].nunique():,} identities"
