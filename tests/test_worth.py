"""What the blend and its members are worth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ladder_world import make_world, recipe, write_sources

from whaleid.ensemble.ladder import combine, common_folds, evaluate_ladder, members_worth, rank_all
from whaleid.ensemble.protocol import read_protocol
from whaleid.ensemble.worth import blend_worth, worth_lines


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    world = make_world(seed=2)
    sources = write_sources(world, tmp_path_factory.mktemp("features"), count=2)
    protocol = read_protocol(world.images, world.folds, world.competition, common_folds(sources))
    config = recipe().combine
    return protocol, rank_all(sources, world.images, protocol, config, 0), config


def test_by_hand():
    weights = np.array([1.0, 1.0, 2.0])
    blend, good, bad = np.array([1.0, 0.5, 1.0]), np.array([1.0, 0.0, 0.5]), np.zeros(3)
    without = {"good": bad, "bad": blend}
    worth = blend_worth(blend, {"good": good, "bad": bad}, without, {"good": 1.0, "bad": 0.0}, weights)
    assert worth.map == pytest.approx(3.5 / 4) and worth.best == "good" and worth.gain.gain == pytest.approx(1.5 / 4)
    first, second = worth.members
    assert (first.name, first.map, first.dropped) == ("good", pytest.approx(0.5), False)
    assert first.gain is not None and first.gain.gain == pytest.approx(3.5 / 4)
    assert second.dropped and second.gain is not None and (second.gain.low, second.gain.high) == (0.0, 0.0)
    lines = worth_lines(worth.as_json())
    assert lines[0].startswith("blend 0.87500: +0.37500 [") and lines[0].endswith("over its best member, good")
    assert lines[1].startswith("  good alone 0.50000, worth +0.87500 [")
    assert (
        lines[2] == "  bad alone 0.00000, worth +0.00000 [+0.00000, +0.00000] to the blend (dropped: it does not help)"
    )


def test_one_member_has_no_blend_without_it():
    worth = blend_worth(np.ones(2), {"only": np.ones(2)}, {}, {"only": 1.0}, np.ones(2))
    assert worth.members[0].gain is None
    assert worth_lines(worth.as_json())[1] == "  only alone 1.00000"


def test_figures_are_those_of_the_ladder(ranked):
    protocol, rankings, config = ranked
    ladder = evaluate_ladder(protocol, rankings, config)
    worth = members_worth(protocol, rankings, config, ladder)
    assert worth.map == pytest.approx(ladder.rung("blend").score.map)
    members = {rung.name: rung for rung in ladder.rungs if rung.weight is not None}
    assert [one.name for one in worth.members] == list(members) and len(members) == 4
    for one in worth.members:
        assert one.map == pytest.approx(members[one.name].score.map)
        assert one.dropped == (members[one.name].weight == 0)
        without = evaluate_ladder(protocol, [ranking for ranking in rankings if ranking.name != one.name], config)
        assert one.gain is not None and one.gain.low <= one.gain.gain <= one.gain.high
        assert one.gain.gain == pytest.approx(worth.map - without.rung("blend").score.map)
    best = max(worth.members, key=lambda one: one.map)
    assert worth.best == best.name and worth.gain.gain == pytest.approx(worth.map - best.map)
    assert len(worth_lines(worth.as_json())) == 1 + len(worth.members)


def test_a_member_of_noise_is_worth_nothing(ranked):
    protocol, rankings, config = ranked
    rng = np.random.default_rng(0)
    single = next(one for one in rankings if one.kind == "knn")
    concat = next(one for one in rankings if one.kind == "concat")

    def shuffled(lists):
        rows = rng.permutation(len(lists))
        return dataclasses.replace(lists, codes=lists.codes[rows], scores=lists.scores[rows])

    noise = dataclasses.replace(concat, name="noise", kind="local", oof=tuple(map(shuffled, concat.oof)))
    used = [single, concat, noise]
    worth = members_worth(protocol, used, config, evaluate_ladder(protocol, used, config))
    found = {one.name: one for one in worth.members}
    assert set(found) == {"concat kNN", "noise"}
    assert found["noise"].dropped and not found["concat kNN"].dropped
    assert found["noise"].gain.low <= 0 <= found["noise"].gain.high + 0.005
    assert found["concat kNN"].gain.low > 0.2
    assert "dropped" in worth_lines(worth.as_json())[2]


def test_a_setting_chosen_by_folds_is_worth_measured_by_what_it_was_taught(tmp_path):
    """Re-ranking's settings are chosen by folds' scores: the blend without another member must learn as the blend."""
    world = make_world(identities=25, seed=3)
    sources = write_sources(world, tmp_path / "features", count=2, logits=False)
    expansion = {"neighbours": [2], "alpha": [3.0]}
    others = dict.fromkeys(["augmentation", "reciprocal", "diffusion", "labels"])
    given = recipe(rerank={"expansion": expansion, **others}, classifier=None)
    result = combine(world.images, world.folds, sources, given, world.competition, tmp_path / "out")
    protocol = read_protocol(world.images, world.folds, world.competition, common_folds(sources))
    rankings = rank_all(sources, world.images, protocol, given.combine, 0)
    assert any(one.kind == "rerank" for one in rankings) and result.worth is not None
    for one in result.worth.members:
        without = evaluate_ladder(
            protocol, [ranking for ranking in rankings if ranking.name != one.name], given.combine
        )
        assert one.gain is not None
        assert one.gain.gain == pytest.approx(result.worth.map - without.rung("blend").score.map)
