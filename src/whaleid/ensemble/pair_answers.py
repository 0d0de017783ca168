"""The answer in a form that is made from pairs of images: scored out of fold, and given for the test images.

Each fold's images are a small test set of their own, embedded by models that were trained without them, beside the
labelled images of the other folds. P(same) and what the form fits (a threshold) are fitted for fold k on the sets of
the other folds, and for the test set on all. For the test set P(same) is the mean over the folds' models.

The images of a fold show identities that its models know from other images. Test images of new individuals are harder
to tell apart: such a test set will score less than is said out of fold.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import Competition, Recipe
from whaleid.data.asked_pairs import read_asked_pairs
from whaleid.data.reviews import Links
from whaleid.ensemble.answers import FormAnswer, datasets_of, on_scale_of
from whaleid.ensemble.comparable import Comparable
from whaleid.ensemble.cross_fitting import cross_fit
from whaleid.ensemble.protocol import FoldPart, Protocol
from whaleid.ensemble.rankers.base import JointFeatures
from whaleid.ensemble.rankings import Source
from whaleid.ensemble.same_identity import (
    PairModel,
    distinct_pairs,
    fit_pair_model,
    matched_values,
    nearest_gallery_pairs,
    nearest_pairs,
    pair_values,
)
from whaleid.evaluation.doubts import doubtful_pairs
from whaleid.evaluation.form_input import ImagePairs, PairTable
from whaleid.evaluation.forms import CLUSTERS, Form
from whaleid.local_matching.keypoints import frames_of, read_described

_ASKED_MOST = 1000
"""Images of a fold where pairs are asked about: all their pairs are answered, which are a million then."""
DOUBTS = 1000
"""Pairs in doubt that are kept for a person: more than one decides in a day."""
NO_LINKS = Links()
KeypointMatcher = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Rows of both images of each pair, and cosines -> `matched_values`."""
Tables = dict[str, np.ndarray]
"""`among` and `to_gallery`, where the form needs them: what there is of each pair."""


@dataclass(frozen=True)
class PairSet:
    """Images that are asked about and their gallery, as rows of images.parquet, and pairs of them.

    Attributes
    ----------
    rows, gallery : int64 arrays, shapes (n,) and (g,)
    pairs : dict of str to int64 array, shape (p, 2)
        Places of the first image in `rows`, and of the second in `rows` (`among`) or in `gallery` (`to_gallery`).
    values : tuple of dict of str to float array, shape (p, v)
        `pair_values` by each model and, where keypoints are matched, `matched_values`.
    asked : str array, shape (p,), or None
        As in `ImagePairs`.
    """

    rows: np.ndarray
    gallery: np.ndarray
    pairs: Tables
    values: tuple[Tables, ...]
    asked: np.ndarray | None = None


def answer_by_pairs(
    form: Form,
    protocol: Protocol,
    sources: list[Source],
    images: pd.DataFrame,
    recipe: Recipe,
    competition: Competition,
    descriptors: Path | None = None,
    links: Links = NO_LINKS,
) -> FormAnswer:
    """The answer in a form that needs pairs of images.

    Parameters
    ----------
    form : Form
    protocol : Protocol
        Without simulated queries.
    sources : list of Source
    images : DataFrame
        images.parquet.
    recipe : Recipe
    competition : Competition
    descriptors : Path, optional
        Folder of the keypoints, where the recipe has local matching.
    links : Links, optional
        What people decided about pairs of images. Nothing is fitted with it.
    """
    with closing(JointFeatures(sources, images, protocol, recipe.combine, recipe.seed)) as joint:
        matcher = None if descriptors is None else keypoint_matcher(descriptors, images, recipe)
        maker = _PairSets(form, protocol, joint, images, recipe, competition, matcher)
        sets = [maker.of_fold(part) for part in protocol.parts]
        test = maker.of_test() if len(protocol.test_rows) else None
    identity = images["identity"].to_numpy(dtype=object)
    truths = [identity[one.rows].astype(str) for one in sets]
    names = images["image"].to_numpy(dtype=str), datasets_of(images, competition), identity
    groups = images[competition.group] if competition.group_is_individual else None

    def of(one: PairSet, models: dict[str, PairModel]) -> ImagePairs:
        made = _apart(_image_pairs(one, models, *names), one, protocol.comparable)
        return made if groups is None else replace(made, must_link=group_links(groups.iloc[one.rows]))

    models = cross_fit(protocol, lambda _, training: _fit_models([sets[other] for other in training], identity))
    own = [of(one, fitted) for one, fitted in zip(sets, models.by_fold, strict=True)]
    target = None
    if test is not None:
        nodes = images["image"].iloc[np.concatenate([test.rows, test.gallery])]
        target = with_links(of(test, models.full), nodes, links)

    def fit(place: int | None, training: list[int]) -> object:
        given = models.full if place is None else models.by_fold[place]
        applied = target if place is None else own[place]
        return form.fit([of(sets[other], given) for other in training], [truths[other] for other in training], applied)

    fitted = cross_fit(protocol, fit)
    answers = [form.answer(one, value, None) for one, value in zip(own, fitted.by_fold, strict=True)]
    outcomes = form.outcomes(answers, own, truths, None)
    score = form.evaluate(outcomes, recipe.seed)
    cells = {} if target is None else dict(zip(target.rows, form.answer(target, fitted.full, None), strict=True))
    doubts = None
    if target is not None and competition.answer.form == CLUSTERS:
        doubts = doubts_table(target, fitted.full)
    return FormAnswer(score, outcomes, not protocol.crossfitted, fitted.full, cells, doubts)


def doubts_table(pairs: ImagePairs, fitted: Any) -> pd.DataFrame:
    """The pairs of a set that are worth a person's look: `image, other, probability, worth`, the most worth first."""
    asked, probability, worth = doubtful_pairs(pairs, fitted)
    names = np.concatenate([pairs.images, pairs.gallery])
    columns = {"image": names[asked[:, 0]], "other": names[asked[:, 1]], "probability": probability, "worth": worth}
    return pd.DataFrame(columns).head(DOUBTS)


def group_links(groups: pd.Series) -> np.ndarray:
    """Links between the images of one group, int64 (m, 2), places: each is linked with the first. Null: of no group."""
    places = pd.Series(np.arange(len(groups)))
    first = places.groupby(groups.to_numpy()).transform("min")
    linked = first.notna() & (first < places)
    return np.column_stack([first[linked], places[linked]]).astype(np.int64)


def _apart(pairs: ImagePairs, one: PairSet, comparable: Comparable | None) -> ImagePairs:
    """The pairs with P(same) 0 where two images may not be compared: all pairs are there where they are asked about."""
    if comparable is None:
        return pairs
    among = pairs.among
    alike = comparable.pairs(one.rows[among.first], one.rows[among.second])
    return replace(pairs, among=replace(among, probability=np.where(alike, among.probability, 0.0)))


def with_links(pairs: ImagePairs, names: pd.Series, links: Links) -> ImagePairs:
    """The pairs of a set with the decisions about its images, whose names are given; others are left out."""
    nodes = pd.Index(names)
    placed = (nodes.get_indexer(pd.Index(np.ravel(table))).reshape(-1, 2) for table in (links.must, links.cannot))
    must, cannot = (table[(table >= 0).all(axis=1)] for table in placed)
    return replace(pairs, must_link=np.concatenate([pairs.must_link, must]), cannot_link=cannot)


@dataclass(frozen=True)
class _PairSets:
    """Makes the sets of pairs of the folds and of the test images."""

    form: Form
    protocol: Protocol
    joint: JointFeatures
    images: pd.DataFrame
    recipe: Recipe
    competition: Competition
    matcher: KeypointMatcher | None

    def of_fold(self, part: FoldPart) -> PairSet:
        """The fold's images whose identity has a name, beside the labelled images of the other folds."""
        named = self.images["identity"].to_numpy(dtype=object)[part.rows] != self.protocol.unknown
        rows = part.rows[named]
        if self.competition.answer.pairs is not None:
            rng = np.random.default_rng([self.recipe.seed, part.fold])
            rows = np.sort(rng.permutation(rows)[:_ASKED_MOST])
        embeddings = self.joint[part]
        pairs = self._pairs(embeddings, rows, part.gallery)
        if self.competition.answer.pairs is not None:
            pairs["among"] = np.argwhere(~np.eye(len(rows), dtype=bool))
        values = (_values(embeddings, rows, part.gallery, pairs),)
        return PairSet(rows, part.gallery, pairs, self._with_matches(values, rows, part.gallery, pairs))

    def of_test(self) -> PairSet:
        """The test images beside all labelled ones; pairs are those that any model has among its nearest."""
        rows, gallery, parts = self.protocol.test_rows, self.protocol.gallery, self.joint.parts
        asked = None
        if self.competition.answer.pairs is not None:
            asked = read_asked_pairs(self.competition, self.protocol.test_names)
        tables = [self._pairs(self.joint[part], rows, gallery) for part in parts]
        width = max(len(rows), len(gallery))
        pairs = {name: distinct_pairs([table[name] for table in tables], width) for name in self.form.TABLES}
        if asked is not None:
            pairs["among"] = asked.places
        values = tuple(_values(self.joint[part], rows, gallery, pairs) for part in parts)
        values = self._with_matches(values, rows, gallery, pairs)
        return PairSet(rows, gallery, pairs, values, None if asked is None else asked.names)

    def _pairs(self, embeddings: np.ndarray, rows: np.ndarray, gallery: np.ndarray) -> Tables:
        """The nearest images of each image, without those that it may not be compared with."""
        knn, comparable = self.recipe.combine.knn, self.protocol.comparable
        pairs = {}
        if "among" in self.form.TABLES:
            pairs["among"] = nearest_pairs(embeddings, rows, knn)
        if "to_gallery" in self.form.TABLES:
            pairs["to_gallery"] = nearest_gallery_pairs(embeddings, rows, gallery, knn)
        if comparable is None:
            return pairs
        others = {"among": rows, "to_gallery": gallery}
        return {
            name: table[comparable.pairs(rows[table[:, 0]], others[name][table[:, 1]])] for name, table in pairs.items()
        }

    def _with_matches(
        self, values: tuple[Tables, ...], rows: np.ndarray, gallery: np.ndarray, pairs: Tables
    ) -> tuple[Tables, ...]:
        """The values with those of keypoints, which are the same for every model."""
        if self.matcher is None:
            return values
        matched = {}
        for name, table in pairs.items():
            others = rows if name == "among" else gallery
            cosine = np.mean([one[name][:, 0] for one in values], axis=0)
            matched[name] = self.matcher(rows[table[:, 0]], others[table[:, 1]], cosine)
        return tuple({name: np.column_stack([one[name], matched[name]]) for name in pairs} for one in values)


def keypoint_matcher(descriptors: Path, images: pd.DataFrame, recipe: Recipe) -> KeypointMatcher | None:
    """What matches the keypoints of pairs; None where they have no places (the recipe counts votes alone)."""
    config = recipe.combine.local_matching
    assert config is not None
    described, frames = read_described(descriptors, images, config.features), frames_of(images, config.size)
    if described.points is None:
        return None
    return lambda first, second, cosine: matched_values(described, frames, first, second, cosine)


def _values(embeddings: np.ndarray, rows: np.ndarray, gallery: np.ndarray, pairs: Tables) -> Tables:
    """`pair_values` of each table; neighbours of the gallery's are looked for among all images of the set."""
    values = {}
    if "among" in pairs:
        values["among"] = pair_values(embeddings, rows, pairs["among"])
    if "to_gallery" in pairs:
        shifted = pairs["to_gallery"] + [0, len(rows)]
        values["to_gallery"] = pair_values(embeddings, np.concatenate([rows, gallery]), shifted)
    return values


def _fit_models(sets: list[PairSet], identity: np.ndarray) -> dict[str, PairModel]:
    """P(same) of each table, fitted on these folds' pairs."""
    models = {}
    for name in sets[0].pairs:
        same = np.concatenate([_same(one, name, identity) for one in sets])
        models[name] = fit_pair_model(np.concatenate([one.values[0][name] for one in sets]), same)
    return models


def _same(one: PairSet, name: str, identity: np.ndarray) -> np.ndarray:
    other = one.rows if name == "among" else one.gallery
    first, second = one.pairs[name].T
    return identity[one.rows[first]] == identity[other[second]]


def _image_pairs(
    one: PairSet, models: dict[str, PairModel], names: np.ndarray, datasets: np.ndarray, identity: np.ndarray
) -> ImagePairs:
    """The set with the mean probability of all its models, distributed like that of one."""
    tables = {}
    for name in ("among", "to_gallery"):
        pairs = one.pairs.get(name, np.empty((0, 2), dtype=np.int64))
        by_model = [models[name].probability(values[name]) for values in one.values if name in values]
        # means of models are less extreme than one model's, for which thresholds are fitted
        probability = on_scale_of(np.mean(by_model, axis=0), np.stack(by_model)) if by_model else np.empty(0)
        tables[name] = PairTable(pairs[:, 0], pairs[:, 1], probability)
    gallery = one.gallery
    labelled = names[gallery], identity[gallery].astype(str)
    return ImagePairs(names[one.rows], datasets[one.rows], *labelled, asked=one.asked, **tables)
