"""What people decided of pairs of images (`data/reviews.py`), in candidates of test images and in pseudo-labels.

A decision about two images holds for all images that were decided to be the same as either. No list out of fold
changes: its score stays that of the machine alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from whaleid.data.duplicates import connected
from whaleid.data.reviews import Links
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.identities import PADDING


@dataclass(frozen=True)
class Decided:
    """What decisions say of images without a label.

    Attributes
    ----------
    same : dict of str to tuple of str
        Image -> identities of the labelled images that it is the same as, sorted.
    different : dict of str to set of str
        Image -> identities of the labelled images that it is different from, but not of those in `same`.
    """

    same: dict[str, tuple[str, ...]] = field(default_factory=dict)
    different: dict[str, set[str]] = field(default_factory=dict)

    @property
    def images(self) -> set[str]:
        return {*self.same, *self.different}


def decide(links: Links, identity_of: Mapping[str, str]) -> Decided:
    """What the links say of every image that is not in `identity_of` (labelled image -> identity)."""
    if not len(links):
        return Decided()
    members = _components(links)
    same, different = {}, {}
    for images in {id(group): group for group in members.values()}.values():
        identities = tuple(sorted({identity_of[image] for image in images if image in identity_of}))
        if identities:
            same |= {image: identities for image in images if image not in identity_of}
    for pair in links.cannot:
        for one, other in (pair, pair[::-1]):
            identities = {identity_of[image] for image in members[other] if image in identity_of}
            for image in members[one]:
                left = identities - set(same.get(image, ()))
                if image not in identity_of and left:
                    different[image] = different.get(image, set()) | left
    return Decided(same, different)


def _components(links: Links) -> dict[str, list[str]]:
    """Image -> the images that it is the same as, itself among them; images of one component share the list."""
    images = sorted({image for pair in (*links.must, *links.cannot) for image in pair})
    place = {image: number for number, image in enumerate(images)}
    pairs = np.array([[place[image] for image in pair] for pair in links.must], dtype=int).reshape(-1, 2)
    groups: dict[int, list[str]] = {}
    for image, component in zip(images, connected(len(images), pairs).tolist(), strict=True):
        groups.setdefault(component, []).append(image)
    return {image: group for group in groups.values() for image in group}


def reviewed_candidates(candidates: Candidates, decided: Decided, unknown: str | None) -> Candidates:
    """Candidates in which decided identities stand first, with the highest score of all lists.

    Identities that a query was decided to be different from are taken out, but never the unknown identity: its images
    show many individuals.
    """
    rows = [row for row, name in enumerate(candidates.queries.tolist()) if name in decided.images]
    if not rows:
        return candidates
    named = {identity for row in rows for identity in decided.same.get(str(candidates.queries[row]), ())}
    classes = np.append(candidates.classes, sorted(named - set(candidates.classes.tolist())))
    code_of = {str(name): code for code, name in enumerate(classes)}
    listed = candidates.codes != PADDING
    certain = float(candidates.scores[listed].max()) if listed.any() else 0.0
    spare = max(len(identities) for identities in [(), *decided.same.values()])
    codes = np.pad(candidates.codes, ((0, 0), (0, spare)), constant_values=PADDING)
    scores = np.pad(candidates.scores, ((0, 0), (0, spare)), constant_values=-np.inf)
    for row in rows:
        name = str(candidates.queries[row])
        first = [code_of[identity] for identity in decided.same.get(name, ())]
        wrong = [
            code_of[identity] for identity in decided.different.get(name, set()) - {unknown} if identity in code_of
        ]
        kept = listed[row] & ~np.isin(candidates.codes[row], [*first, *wrong])
        _fill(codes[row], [*first, *candidates.codes[row][kept]], PADDING)
        _fill(scores[row], [*[certain] * len(first), *candidates.scores[row][kept]], -np.inf)
    return Candidates(candidates.queries, classes, codes, scores)


def _fill(row: np.ndarray, values: list, padding: float) -> None:
    row[:] = padding
    row[: len(values)] = values


def reviewed_labels(
    labels: pd.DataFrame, links: Links, images: pd.DataFrame, folds: pd.DataFrame, unknown: str | None
) -> pd.DataFrame:
    """Pseudo-labels of one fold (or of full-data models) with those that were decided, whose confidence is 1.

    An image that was decided to be the same as images of two identities has no label, nor has one of the unknown
    identity.

    Parameters
    ----------
    labels : DataFrame
        `image, identity, confidence`.
    links : Links
    images : DataFrame
        images.parquet.
    folds : DataFrame
        Rows of folds.csv that the fold's models are trained on. Decisions about other labelled images are not used:
        the models would learn the identities of the queries that they are scored on.
    unknown : str or None

    Returns
    -------
    DataFrame
        The same columns, in the order of images.parquet.
    """
    test = images["image"][images["split"] == "test"]
    other = images["image"][(images["split"] == "train") & ~images["image"].isin(folds["image"])]
    decided = decide(links.without(set(other)), dict(zip(folds["image"], folds["identity"], strict=True)))
    guessed = zip(labels["image"], labels["identity"], strict=True)
    refused = {image for image, label in guessed if label in decided.different.get(image, set())}
    kept = labels[~labels["image"].isin(refused | set(decided.same))]
    sure = {image: names[0] for image, names in decided.same.items() if len(names) == 1 and names[0] != unknown}
    added = [{"image": image, "identity": sure[image], "confidence": 1.0} for image in test if image in sure]
    if added:
        kept = pd.concat([kept, pd.DataFrame(added)])
    place = pd.Index(images["image"]).get_indexer(pd.Index(kept["image"]))
    return kept.iloc[np.argsort(place, kind="stable")].reset_index(drop=True)
