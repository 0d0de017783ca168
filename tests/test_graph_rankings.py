"""Re-ranking within the protocol: no label of a fold's queries, settings by the other folds alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ladder_world import World, make_world, recipe, write_sources

from whaleid.config import RerankConfig
from whaleid.ensemble.cross_fitting import OofLists
from whaleid.ensemble.ladder import combine, evaluate_ladder, rank_all
from whaleid.ensemble.protocol import Protocol, read_protocol
from whaleid.ensemble.rankers.base import Lists, RankerContext
from whaleid.ensemble.rankers.rerank import OFF, RerankRanker, Setting, choose_setting
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.ensemble.summary import note_lines
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.identities import nearest_identities
from whaleid.retrieval.rerankers import every_setting, query_graph, widest_graph

SMALL = {
    "expansion": {"neighbours": [2], "alpha": [3]},
    "augmentation": {"neighbours": [1], "alpha": [3]},
    "reciprocal": {"k1": [6], "k2": [2], "lambda_value": [0.3, 0.8]},
    "diffusion": {"neighbours": [6], "alpha": [0.8]},
    "labels": {"neighbours": [6], "alpha": [0.7], "steps": [1, 3]},
}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(seed=2)


@pytest.fixture(scope="module")
def sources(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    return write_sources(world, tmp_path_factory.mktemp("features"), count=2)


@pytest.fixture(scope="module")
def protocol(world: World) -> Protocol:
    return read_protocol(world.images, world.folds, world.competition, [0, 1, 2])


@pytest.fixture(scope="module")
def features(world: World) -> np.ndarray:
    table = world.latent / np.linalg.norm(world.latent, axis=1, keepdims=True)
    return table.astype(np.float32)


def settings_of(features: np.ndarray, protocol: Protocol, place: int, test: bool = False) -> dict[Setting, Lists]:
    query_set = protocol.queries(protocol.parts[place])[test]
    assert query_set is not None
    config = RerankConfig.model_validate(SMALL)
    rows = query_set.gallery, query_set.gallery_codes, query_set.labelled, query_set.rows
    return dict(every_setting(query_graph(features, *rows, recipe().combine.knn, 20, widest_graph(config)), config))


def test_every_setting_ranks_every_query(features, protocol):
    found, of_test = settings_of(features, protocol, 0), settings_of(features, protocol, 0, test=True)
    assert found.keys() == of_test.keys() and len(found) == 10  # two gammas
    assert len({method for method, _ in found}) == 5
    for (codes, _), (codes_of_test, _) in zip(found.values(), of_test.values(), strict=True):
        assert len(codes) == len(protocol.parts[0].names) and len(codes_of_test) == len(protocol.test_names)
        assert (codes >= 0).all() and (codes_of_test >= 0).all()
        assert set(np.unique(codes)) <= set(protocol.parts[0].gallery_codes)


def test_labels_of_the_queries_never_enter(features, protocol):
    """Out of fold they are in the graph; permuted, they change nothing."""
    part = protocol.parts[1]
    order = np.random.default_rng(0).permutation(len(part.truth))
    wrong = replace(part, truth=part.truth[order], sizes=part.sizes[order])
    permuted = replace(protocol, parts=(protocol.parts[0], wrong, protocol.parts[2]))
    one, other = settings_of(features, protocol, 1), settings_of(features, permuted, 1)
    for setting in one.keys() | other.keys():
        np.testing.assert_array_equal(one[setting][0], other[setting][0])
        np.testing.assert_array_equal(one[setting][1], other[setting][1])


def test_zero_vectors_have_the_plain_list(features, protocol):
    part = protocol.parts[0]
    blank = features.copy()
    blank[part.rows[0]] = 0
    knn = recipe().combine.knn
    plain = nearest_identities(blank[part.rows], blank[part.gallery], part.gallery_codes, knn, 20)
    for (method, _), (codes, _) in settings_of(blank, protocol, 0).items():
        if "diffusion" in method:
            np.testing.assert_array_equal(codes[0], plain[0][0])


# ------------------------------------------------------------------------------------------------- the choice


def fold_lists(protocol: Protocol, place: int, right: bool) -> Candidates:
    """All queries answered rightly, or all wrongly."""
    truth = protocol.parts[place].truth
    first = truth if right else (truth + 1) % len(protocol.classes)
    codes = np.where(first >= 0, first, 0)[:, None].astype(np.int64)
    return Candidates(protocol.parts[place].names, protocol.classes, codes, np.ones(codes.shape, np.float32))


def test_a_fold_has_the_setting_that_the_others_choose(protocol):
    """`good` is right on folds 0 and 1 and wrong on 2; the plain list is wrong everywhere."""
    plain = [fold_lists(protocol, place, False) for place in range(3)]
    good = [fold_lists(protocol, place, place < 2) for place in range(3)]
    chosen = choose_setting(protocol, {OFF: plain, "good": good})
    assert set(chosen.by_fold) == {"good"} and chosen.full == "good"
    chosen = choose_setting(protocol, {OFF: plain, "same": plain})
    assert set(chosen.by_fold) == {OFF} and chosen.full == OFF
    only = [fold_lists(protocol, place, place == 2) for place in range(3)]
    chosen = choose_setting(protocol, {OFF: plain, "one": only})
    assert chosen.by_fold == ("one", "one", OFF) and chosen.full == "one"
    assert choose_setting(protocol, {OFF: plain, "one": only}, "decided").by_fold == ("decided",) * 3


def test_lists_for_a_fold_are_of_the_setting_chosen_without_it(protocol, monkeypatch):
    plain = tuple(fold_lists(protocol, place, False) for place in range(3))
    only = [fold_lists(protocol, place, place == 2) for place in range(3)]
    concat = Ranking("concat kNN", "concat", OofLists.same(plain), (), False)
    monkeypatch.setattr("whaleid.ensemble.rankers.rerank.rerank_tables", lambda _: {("m", "one"): (only, [])})
    (ranking,) = RerankRanker().rank(RankerContext(protocol, recipe().combine, rankings=(concat,)))
    assert ranking.lists.without(2) == plain and ranking.oof[2] is plain[2]  # fold 2 had no part in that
    assert ranking.lists.without(None) == tuple(only) and ranking.oof[0] is only[0]


# ------------------------------------------------------------------------------------------------- the ladder


def test_a_folds_truth_reaches_neither_its_choice_nor_its_blend(world, sources, protocol):
    config = recipe(rerank=SMALL).combine

    def climbed(given: Protocol):
        return evaluate_ladder(given, rank_all(sources, world.images, given, config, 0), config)

    part = protocol.parts[1]
    order = np.random.default_rng(0).permutation(len(part.truth))
    wrong = replace(part, truth=part.truth[order], sizes=part.sizes[order])
    before, after = climbed(protocol), climbed(replace(protocol, parts=(protocol.parts[0], wrong, protocol.parts[2])))
    for one, other in zip(before.rungs, after.rungs, strict=True):
        np.testing.assert_array_equal(one.oof[1].codes, other.oof[1].codes)
        np.testing.assert_array_equal(one.oof[1].scores, other.oof[1].scores)
        assert one.thresholds.by_fold[1] == other.thresholds.by_fold[1]
        assert (one.weights or {}).get(1) == (other.weights or {}).get(1)
    assert before.final.thresholds.tuned != after.final.thresholds.tuned


def test_rungs_of_the_methods_asked_for(world, sources, tmp_path: Path):
    asked = {**SMALL, "expansion": None, "reciprocal": None}
    result = combine(world.images, world.folds, sources, recipe(rerank=asked), world.competition, tmp_path)
    names = [rung.name for rung in result.rungs if rung.kind == "rerank"]
    assert names == ["database augmentation", "diffusion", "label diffusion"]
    assert all(result.rung(name).weight is not None for name in names)
    assert len(result.test_guesses) == len(world.solution)
    written = json.loads((tmp_path / "ladder.json").read_text())
    told = {rung["name"]: rung for rung in written["rungs"]}
    for name in names:
        assert list(told[name]["settings"]) == ["0", "1", "2"]
        assert f"{name} {told[name]['setting']}" in note_lines(written)[0]
    for rung in written["rungs"]:
        assert (rung["setting"] is not None) == (rung["kind"] == "rerank")


def test_what_was_chosen_is_said_in_one_line():
    rungs = [
        {"name": "diffusion", "setting": "a", "settings": {"0": "a", "1": "off"}, "weight": 0.5, "weights": {"0": 0.5}},
        {"name": "concat", "setting": None, "settings": None, "weight": 0.0, "weights": {"0": 0.0, "1": 0.0}},
        {"name": "net", "setting": None, "settings": None, "weight": 0.5, "weights": {"0": 0.5, "1": 1.0}},
        {"name": "blend", "setting": None, "settings": None, "weight": None, "weights": None},
    ]
    ladder = {
        "final": "stack",
        "rungs": rungs,
        "stack": {"rounds": [50, 20, 30]},
    }
    assert note_lines(ladder) == ["chosen out of fold: diffusion a (by fold: a, off); trees 30 (by fold: 50, 20)"]
