"""Pseudo-labels: who gets which, what they must not know, and the tables that a run trains on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from ladder_world import UNKNOWN, make_world, recipe, write_sources

from whaleid.config import Recipe
from whaleid.data.batches import training_items
from whaleid.ensemble.ladder import common_folds
from whaleid.ensemble.protocol import read_protocol
from whaleid.ensemble.pseudo import (
    FULL,
    _against_own_gallery,
    describe_pseudo_labels,
    pseudo_labels,
    with_pseudo_labels,
)
from whaleid.errors import WhaleidError


def pseudo_recipe(confidence: float = 0.7) -> Recipe:
    return recipe().model_copy(
        update={"pseudo": Recipe.model_validate(PLAIN | {"pseudo": {"confidence": confidence}}).pseudo}
    )


PLAIN = {"name": "x", "folds": 3, "experiments": ["a"]}


@pytest.fixture(scope="module")
def world_and_sources(tmp_path_factory):
    world = make_world(noise=0.6)
    return world, write_sources(world, tmp_path_factory.mktemp("features"), count=2)


def labels_of(world, sources, confidence: float = 0.7) -> pd.DataFrame:
    return pseudo_labels(world.images, world.folds, sources, pseudo_recipe(confidence), world.competition)


def test_sure_labels_are_mostly_right_and_never_unknown(world_and_sources):
    world, sources = world_and_sources
    labels = labels_of(world, sources)
    test = world.images.loc[world.images["split"] == "test", "image"].to_numpy()
    truth = labels["image"].map(dict(zip(test, world.solution, strict=True)))
    assert set(labels["fold"]) == {FULL, 0, 1, 2}
    assert (labels["confidence"] >= 0.7).all()
    assert UNKNOWN not in set(labels["identity"])
    assert not labels.duplicated(["image", "fold"]).any()
    assert (labels["identity"] == truth).mean() > 0.8
    assert len(list(describe_pseudo_labels(labels, len(test)))) == 4


def test_more_confidence_gives_a_part_of_the_labels(world_and_sources):
    world, sources = world_and_sources
    few, many = (labels_of(world, sources, confidence).set_index(["image", "fold"]) for confidence in (0.8, 0.5))
    assert 0 < len(few) < len(many)
    assert few["identity"].equals(many.loc[few.index, "identity"])


def test_a_folds_labels_come_from_its_own_gallery_alone(world_and_sources):
    """Renaming the fold's own images moves nothing in how its models rank the test images for its labels."""
    world, sources = world_and_sources
    part_of = {0: "w_0001", 1: "w_0002", 2: "w_0003"}
    for fold, name in part_of.items():
        ranked = []
        for renamed in (False, True):
            images, folds = world.images.copy(), world.folds.copy()
            own = folds.loc[folds["fold"] == fold, "image"]
            if renamed:
                images.loc[images["image"].isin(own), "identity"] = name
                folds.loc[folds["fold"] == fold, "identity"] = name
            protocol = read_protocol(images, folds, world.competition, common_folds(sources))
            rankings = _against_own_gallery(sources, images, protocol, protocol.parts[fold], pseudo_recipe(), None)
            ranked += [
                [(one.name, one.test[0].classes[one.test[0].codes[:, 0]]) for one in rankings if one.kind == "knn"]
            ]
        for (_, first), (_, second) in zip(*ranked, strict=True):
            np.testing.assert_array_equal(first, second)


def test_training_gets_the_folds_own_labels_and_nothing_moves(world_and_sources):
    world, sources = world_and_sources
    labels = labels_of(world, sources)
    experiment = _experiment()
    for fold in (0, 1, 2, None):
        images, folds = with_pseudo_labels(world.images, world.folds, labels, fold)
        plain = training_items(world.images, world.folds, fold, experiment, UNKNOWN)
        items = training_items(images, folds, fold, experiment, UNKNOWN)
        own = labels[labels["fold"] == (FULL if fold is None else fold)]
        added = set(items.rows) - set(plain.rows)
        assert set(world.images["image"].to_numpy()[sorted(added)]) == set(own["image"])
        named = dict(zip(items.rows, np.array(items.classes)[items.labels], strict=True))
        place = {image: row for row, image in enumerate(world.images["image"])}
        assert all(named[place[image]] == name for image, name in zip(own["image"], own["identity"], strict=True))
    assert world.images["identity"].isna().sum() == (world.images["split"] == "test").sum()


def test_labels_of_other_images_are_refused(world_and_sources):
    world, _ = world_and_sources
    foreign = pd.DataFrame({"image": ["nowhere.jpg"], "identity": ["w_0001"], "fold": [0], "confidence": [0.9]})
    with pytest.raises(WhaleidError, match="pseudo-labels: not of these test images"):
        with_pseudo_labels(world.images, world.folds, foreign, 0)


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="pseudo needs experiments"):
        Recipe.model_validate({"name": "x", "folds": 3, "sources": {"a": "b"}, "pseudo": {}})
    with pytest.raises(ValueError, match="'b' is none of the recipe's experiments"):
        Recipe.model_validate(PLAIN | {"full": ["b"]})
    assert Recipe.model_validate(PLAIN | {"full": True}).full_members == ["a"]


def _experiment():
    from whaleid.configfiles import load_experiment

    return load_experiment("default")
