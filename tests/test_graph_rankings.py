"""Re-ranking within the protocol: no label of a fold's queries, settings by the other folds alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ladder_world import World, make_world, recipe, write_sources

from whaleid.config import RerankConfig
from whaleid.ensemble.graph_rankings import OFF, Setting, choose_settings, rerank_part
from whaleid.ensemble.ladder import combine, evaluate_ladder, rank_all
from whaleid.ensemble.protocol import Protocol, read_protocol
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.ensemble.results import note_lines
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.identities import nearest_identities

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


def settings_of(features: np.ndarray, protocol: Protocol, place: int) -> list[Setting]:
    config = recipe().combine
    return rerank_part(features, protocol.parts[place], protocol, RerankConfig.model_validate(SMALL), config.knn, 20)


def test_every_setting_answers_every_query(features, protocol):
    found = settings_of(features, protocol, 0)
    assert len({(one.method, one.name) for one in found}) == len(found) == 10  # two gammas
    assert len({one.method for one in found}) == 5
    for one in found:
        np.testing.assert_array_equal(one.oof.queries, protocol.parts[0].names)
        np.testing.assert_array_equal(one.test.queries, protocol.test_names)
        assert (one.oof.codes >= 0).all() and (one.test.codes >= 0).all()
        assert set(np.unique(one.oof.codes)) <= set(protocol.parts[0].gallery_codes)


def test_labels_of_the_queries_never_enter(features, protocol):
    """Out of fold they are in the graph; permuted, they change nothing."""
    part = protocol.parts[1]
    order = np.random.default_rng(0).permutation(len(part.truth))
    wrong = replace(part, truth=part.truth[order], sizes=part.sizes[order])
    permuted = replace(protocol, parts=(protocol.parts[0], wrong, protocol.parts[2]))
    for one, other in zip(settings_of(features, protocol, 1), settings_of(features, permuted, 1), strict=True):
        np.testing.assert_array_equal(one.oof.codes, other.oof.codes)
        np.testing.assert_array_equal(one.oof.scores, other.oof.scores)


def test_zero_vectors_have_the_plain_list(features, protocol):
    part = protocol.parts[0]
    blank = features.copy()
    blank[part.rows[0]] = 0
    knn = recipe().combine.knn
    plain = nearest_identities(blank[part.rows], blank[part.gallery], part.gallery_codes, knn, 20)
    for one in settings_of(blank, protocol, 0):
        if "diffusion" in one.method:
            np.testing.assert_array_equal(one.oof.codes[0], plain[0][0])


# ------------------------------------------------------------------------------------------------- the choice


def fold_lists(protocol: Protocol, place: int, right: bool) -> Candidates:
    """All queries answered rightly, or all wrongly."""
    truth = protocol.parts[place].truth
    first = truth if right else (truth + 1) % len(protocol.classes)
    codes = np.where(first >= 0, first, 0)[:, None].astype(np.int64)
    return Candidates(protocol.parts[place].names, protocol.classes, codes, np.ones(codes.shape, np.float32))


def test_a_fold_is_answered_by_what_the_others_choose(protocol):
    """`good` is right on folds 0 and 1 and wrong on 2; the plain list is wrong everywhere."""
    plain = [(fold_lists(protocol, place, False), None) for place in range(3)]
    good = [[Setting("m", "good", fold_lists(protocol, place, place < 2), None)] for place in range(3)]
    (chosen,) = choose_settings(protocol, plain, good)
    assert set(chosen.choices.by_fold.values()) == {"good"} and chosen.choices.tuned == "good"
    assert chosen.oof[2] is good[2][0].oof and chosen.without[0][1] is good[1][0].oof
    bad = [[Setting("m", "same", plain[place][0], None)] for place in range(3)]
    (chosen,) = choose_settings(protocol, plain, bad)
    assert set(chosen.choices.by_fold.values()) == {OFF} and chosen.choices.tuned == OFF
    only = [[Setting("m", "one", fold_lists(protocol, place, place == 2), None)] for place in range(3)]
    (chosen,) = choose_settings(protocol, plain, only)
    assert chosen.choices.by_fold == {0: "one", 1: "one", 2: OFF}
    assert chosen.oof[2] is plain[2][0]


def test_a_ranking_teaches_without_the_fold(protocol):
    plain = [(fold_lists(protocol, place, False), None) for place in range(3)]
    only = [[Setting("m", "one", fold_lists(protocol, place, place == 2), None)] for place in range(3)]
    (chosen,) = choose_settings(protocol, plain, only)
    ranking = Ranking("m", "rerank", chosen.oof, chosen.test, False, chosen=chosen)
    assert ranking.taught(2) == tuple(lists for lists, _ in plain)  # fold 2 had no part in that
    assert ranking.taught(None) == tuple(of_fold[0].oof for of_fold in only)


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
