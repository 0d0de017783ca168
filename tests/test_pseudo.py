"""Pseudo-labels: who gets which, what they must not know, and the training on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ladder_world import UNKNOWN, World, make_world, recipe, write_sources
from test_match_score import local_world
from training_world import small, train, write_case

from whaleid.config import Recipe
from whaleid.data.pseudo import (
    FULL,
    describe_pseudo_labels,
    labels_of,
    read_pseudo_labels,
    with_pseudo_labels,
    write_pseudo_labels,
)
from whaleid.data.samplers import training_items
from whaleid.ensemble.ladder import protocol_of, rank_all
from whaleid.ensemble.protocol import FULL_DATA, Protocol
from whaleid.ensemble.pseudo import confident_labels, pseudo_labels, rank_with_own_gallery
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.utils.errors import WhaleidError

PLAIN = {"name": "x", "folds": 3, "experiments": ["a"]}
RERANK = {
    "augmentation": None,
    "expansion": {"neighbours": [1, 4], "alpha": [0.0, 3.0]},
    "reciprocal": None,
    "diffusion": None,
    "labels": {"neighbours": [5], "gamma": [3.0], "steps": [2, 4]},
}


def sure_recipe(confidence: float = 0.7, **combine) -> Recipe:
    pseudo = Recipe.model_validate(PLAIN | {"pseudo": {"confidence": confidence}}).pseudo
    return recipe(**combine).model_copy(update={"pseudo": pseudo})


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(identities=30, noise=0.6)


@pytest.fixture(scope="module")
def sources(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Two networks; the first has a model of all labelled images, too."""
    return write_sources(world, tmp_path_factory.mktemp("features"), count=2, full=1)


@pytest.fixture(scope="module")
def protocol(world: World, sources: list[Source]) -> Protocol:
    return protocol_of(world.images, world.folds, world.competition, sources)


def labels_with(world: World, sources: list[Source], confidence: float) -> pd.DataFrame:
    return pseudo_labels(world.images, world.folds, sources, sure_recipe(confidence), world.competition, 2)


@pytest.fixture(scope="module")
def labels(world: World, sources: list[Source]) -> pd.DataFrame:
    return labels_with(world, sources, 0.7)


# --------------------------------------------------------------------------------------------------- the labels


def test_confident_labels_are_mostly_right_and_never_unknown(world: World, labels: pd.DataFrame) -> None:
    test = world.images.loc[world.images["split"] == "test", "image"].to_numpy()
    truth = labels["image"].map(dict(zip(test, world.solution, strict=True)))
    assert set(labels["fold"]) == {FULL, 0, 1, 2} and set(labels["round"]) == {2}
    assert (labels["confidence"] >= 0.7).all()
    assert UNKNOWN not in set(labels["identity"])
    assert not labels.duplicated(["image", "fold"]).any()
    assert (labels["identity"] == truth).mean() > 0.8
    assert len(list(describe_pseudo_labels(labels, len(test)))) == 4


def test_more_confidence_gives_a_part_of_the_labels(world: World, sources: list[Source], labels: pd.DataFrame) -> None:
    few, many = labels_with(world, sources, 0.85).set_index(["image", "fold"]), labels.set_index(["image", "fold"])
    assert 0 < len(few) < len(many)
    assert few["identity"].equals(many.loc[few.index, "identity"])


def test_a_folds_truth_does_not_reach_its_own_labels(world: World, sources: list[Source], protocol: Protocol) -> None:
    """Permute what fold 1's queries truly are: its labels stay, bit for bit; those that it teaches change."""
    given = sure_recipe(0.5, rerank=RERANK)

    def found(asked: Protocol) -> pd.DataFrame:
        rankings = rank_all(sources, world.images, asked, given.combine, 0)
        return confident_labels(asked, rankings, sources, world.images, given)

    part = protocol.parts[1]
    order = np.random.default_rng(0).permutation(len(part.truth))
    wrong = replace(part, truth=part.truth[order], sizes=part.sizes[order])
    before, after = found(protocol), found(replace(protocol, parts=(protocol.parts[0], wrong, protocol.parts[2])))
    pd.testing.assert_frame_equal(labels_of(before, 1), labels_of(after, 1))
    assert not labels_of(before, 0).equals(labels_of(after, 0))
    assert not labels_of(before, None).equals(labels_of(after, None))


def test_a_fold_sees_neither_its_own_images_nor_who_saw_them(
    world: World, sources: list[Source], protocol: Protocol
) -> None:
    """Rename the fold's own images, and spoil the model of all labelled images: how its models rank stays."""
    given = sure_recipe(rerank=RERANK)
    decided = {"query expansion": "4 neighbours, alpha 3", "label diffusion": "off"}

    def ranked(images: pd.DataFrame, folds: pd.DataFrame, networks: list[Source], fold: int) -> list[Ranking]:
        asked = protocol_of(images, folds, world.competition, networks)
        return rank_with_own_gallery(networks, images, asked, asked.parts[fold], given, decided, None)

    spoilt = [replace(source, full=source.full and sources[1].folds[0]) for source in sources]
    for fold in range(3):
        images, folds = world.images.copy(), world.folds.copy()
        own = folds["fold"] == fold
        folds.loc[own, "identity"] = folds.loc[own, "identity"].to_numpy()[::-1]
        images["identity"] = images["image"].map(folds.set_index("image")["identity"])
        plain, other = ranked(world.images, world.folds, sources, fold), ranked(images, folds, spoilt, fold)
        assert {one.kind for one in plain} == {"knn", "logits", "concat", "rerank", "classifier"}
        gallery = set(protocol.parts[fold].gallery_codes)
        for one, renamed in zip(plain, other, strict=True):
            assert one.oof == () and len(one.test) == 1
            assert set(np.unique(one.test[0].codes)) - {-1} <= gallery
            np.testing.assert_array_equal(_names(one), _names(renamed))
            np.testing.assert_array_equal(one.test[0].scores, renamed.test[0].scores)


def _names(ranking: Ranking) -> np.ndarray:
    lists = ranking.test[0]
    return np.append(lists.classes.astype(object), "")[lists.codes]


def test_a_folds_ranking_is_that_of_its_model_against_its_gallery(
    world: World, sources: list[Source], protocol: Protocol
) -> None:
    part = protocol.parts[2]
    found = rank_with_own_gallery(sources, world.images, protocol, part, sure_recipe(), {}, None)
    table = np.load(sources[1].folds[2] / "embeddings.npy")
    similarity = table[protocol.test_rows] @ table[part.gallery].T
    nearest = part.gallery_codes[similarity.argmax(axis=1)]
    lists = next(one for one in found if one.name == "net1").test[0]
    np.testing.assert_array_equal(lists.codes[:, 0], nearest)
    np.testing.assert_allclose(lists.scores[:, 0], similarity.max(axis=1), atol=1e-5)


def test_learned_match_scores_are_left_out_of_the_labels(tmp_path: Path) -> None:
    """They are fitted across folds, and a fold's own labels know its gallery alone."""
    drawn = local_world(tmp_path / "local")
    sources = write_sources(drawn, tmp_path / "features", count=1)
    given = [
        pseudo_labels(drawn.images, drawn.folds, sources, one, drawn.competition, 1, tmp_path / "local")
        for one in (sure_recipe(0.5, local_matching=local) for local in ({}, {"learned": {}}))
    ]
    assert len(given[0]) and given[0].equals(given[1])


def test_nothing_to_label_and_nobody_to_learn_from(world: World, sources: list[Source]) -> None:
    single = [Source(source.name, {1: source.folds[1]}) for source in sources]
    with pytest.raises(WhaleidError, match="at least two folds"):
        labels_with(world, single, 0.7)
    with pytest.raises(ValueError, match="two folds or more"):
        Recipe.model_validate(PLAIN | {"train_folds": [1], "pseudo": {}})
    with pytest.raises(ValueError, match="pseudo needs experiments"):
        Recipe.model_validate({"name": "x", "folds": 3, "sources": {"a": "b"}, "pseudo": {}})


# --------------------------------------------------------------------------------------------------- the training


def test_training_gets_the_folds_own_labels_and_nothing_moves(world: World, labels: pd.DataFrame) -> None:
    experiment = small()
    for fold in (0, 1, 2, None):
        own = labels_of(labels, fold)
        images, folds = with_pseudo_labels(world.images, world.folds, own)
        plain = training_items(world.images, world.folds, fold, experiment, UNKNOWN)
        items = training_items(images, folds, fold, experiment, UNKNOWN)
        added = set(items.rows) - set(plain.rows)
        assert set(plain.rows) <= set(items.rows) and items.classes == plain.classes
        assert set(world.images["image"].to_numpy()[sorted(added)]) == set(own["image"])
        named = dict(zip(items.rows, np.array(items.classes)[items.labels], strict=True))
        place = {image: row for row, image in enumerate(world.images["image"])}
        assert all(named[place[image]] == name for image, name in zip(own["image"], own["identity"], strict=True))
    assert world.images["identity"].isna().sum() == (world.images["split"] == "test").sum()


def test_labels_of_other_images_are_refused(world: World) -> None:
    for name in ("nowhere.jpg", world.folds["image"].iloc[0]):
        foreign = pd.DataFrame({"image": [name], "identity": ["w_0001"]})
        with pytest.raises(WhaleidError, match="pseudo-labels: their images are not the test images"):
            with_pseudo_labels(world.images, world.folds, foreign)


def test_a_run_is_trained_on_them(tmp_path: Path) -> None:
    write_case(tmp_path)
    images, folds = pd.read_parquet(tmp_path / "images.parquet"), pd.read_csv(tmp_path / "folds.csv")
    test = images["image"].str.endswith("_4.png")
    truth = images.loc[test, ["image", "identity"]].reset_index(drop=True)
    images.loc[test, ["split", "identity"]] = ["test", None]
    images.to_parquet(tmp_path / "images.parquet")
    folds[folds["fold"] != 4].to_csv(tmp_path / "folds.csv", index=False)
    experiment = small(train_epochs=1)
    without = train(tmp_path, tmp_path / "a", experiment)
    trained = train(tmp_path, tmp_path / "b", experiment, labels=truth)
    assert (without.pseudo, trained.pseudo) == (0, 8)
    assert trained.images == without.images + 8


def test_the_table_on_disk(tmp_path: Path, labels: pd.DataFrame) -> None:
    path = tmp_path / "pseudo" / "round2.csv"
    write_pseudo_labels(labels, path)
    again = read_pseudo_labels(path)
    pd.testing.assert_frame_equal(
        again.drop(columns="confidence"), labels.drop(columns="confidence"), check_dtype=False
    )
    assert list(again.columns) == ["image", "identity", "fold", "round", "confidence"]
    with pytest.raises(WhaleidError, match=r"round1\.csv: file not found"):
        read_pseudo_labels(path.with_name("round1.csv"))
    path.write_text("image,identity,fold\na.jpg,w,0\n")
    with pytest.raises(WhaleidError, match=r"round2\.csv: .*'confidence'"):
        read_pseudo_labels(path)


def test_the_whole_and_the_full_labels_have_one_number() -> None:
    assert FULL == FULL_DATA
