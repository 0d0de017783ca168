"""What the blend and its members are worth."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict

import numpy as np
import pytest
from ladder_world import make_world, recipe, with_lists, write_sources

from whaleid.ensemble.intervals import Gain
from whaleid.ensemble.ladder import blend_worth, combine, common_folds, evaluate_ladder, rank_all
from whaleid.ensemble.protocol import read_protocol
from whaleid.ensemble.results import BlendWorth, MemberWorth
from whaleid.ensemble.simulation import with_simulated_unknowns
from whaleid.ensemble.summary import worth_lines

pytestmark = pytest.mark.usefixtures("worth")


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    world = make_world(seed=2)
    sources = write_sources(world, tmp_path_factory.mktemp("features"), count=2)
    protocol = read_protocol(world.images, world.folds, world.competition, common_folds(sources))
    config = recipe().combine
    return protocol, rank_all(sources, world.images, protocol, config, 0), config


def test_lines_by_hand():
    members = (
        MemberWorth("good", 0.5, Gain(0.875, 0.5, 1.0), False),
        MemberWorth("bad", 0.0, Gain(0.0, 0.0, 0.0), True),
        MemberWorth("only", 1.0, None, False),
    )
    lines = worth_lines(asdict(BlendWorth(0.875, "good", Gain(0.375, 0.25, 0.5), members)))
    assert lines == [
        "blend 0.87500: +0.37500 [+0.25000, +0.50000] over its best member, good",
        "  good alone 0.50000, worth +0.87500 [+0.50000, +1.00000] to the blend",
        "  bad alone 0.00000, worth +0.00000 [+0.00000, +0.00000] to the blend (dropped: it does not help)",
        "  only alone 1.00000",
    ]


def test_one_member_has_no_blend_without_it(ranked):
    protocol, rankings, config = ranked
    used = [one for one in rankings if one.kind in ("knn", "concat")]
    worth = blend_worth(protocol, used, config, evaluate_ladder(protocol, used, config))
    assert [one.gain for one in worth.members] == [None] and worth.best == "concat kNN"


def test_figures_are_those_of_the_ladder(ranked):
    protocol, rankings, config = ranked
    ladder = evaluate_ladder(protocol, rankings, config)
    worth = blend_worth(protocol, rankings, config, ladder)
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
    assert len(worth_lines(asdict(worth))) == 1 + len(worth.members)


def test_a_member_of_noise_is_worth_nothing(ranked):
    protocol, rankings, config = ranked
    rng = np.random.default_rng(0)
    single = next(one for one in rankings if one.kind == "knn")
    concat = next(one for one in rankings if one.kind == "concat")

    def shuffled(lists):
        rows = rng.permutation(len(lists))
        return dataclasses.replace(lists, codes=lists.codes[rows], scores=lists.scores[rows])

    noise = with_lists(concat, name="noise", kind="votes", oof=map(shuffled, concat.oof))
    used = [single, concat, noise]
    worth = blend_worth(protocol, used, config, evaluate_ladder(protocol, used, config))
    found = {one.name: one for one in worth.members}
    assert set(found) == {"concat kNN", "noise"}
    assert found["noise"].dropped and not found["concat kNN"].dropped
    assert found["noise"].gain.low <= 0 <= found["noise"].gain.high + 0.005
    assert found["concat kNN"].gain.low > 0.2
    assert "dropped" in worth_lines(asdict(worth))[2]


def test_a_setting_chosen_by_folds_is_worth_measured_on_its_training_folds(tmp_path):
    """Re-ranking's settings are chosen by folds' scores: the blend without another member must learn as the blend."""
    world = make_world(identities=25, seed=3)
    sources = write_sources(world, tmp_path / "features", count=2, logits=False)
    expansion = {"neighbours": [2], "alpha": [3.0]}
    others = dict.fromkeys(["augmentation", "reciprocal", "diffusion", "labels"])
    given = recipe(rerank={"expansion": expansion, **others}, classifier=None)
    result = combine(world.images, world.folds, sources, given, world.competition, tmp_path / "out")
    protocol = read_protocol(world.images, world.folds, world.competition, common_folds(sources))
    rankings = rank_all(sources, world.images, protocol, given.combine, 0)
    protocol, rankings = with_simulated_unknowns(protocol, rankings)
    assert any(one.kind == "rerank" for one in rankings) and result.worth is not None
    for one in result.worth.members:
        without = evaluate_ladder(
            protocol, [ranking for ranking in rankings if ranking.name != one.name], given.combine
        )
        assert one.gain is not None
        assert one.gain.gain == pytest.approx(result.worth.map - without.rung("blend").score.map)


@pytest.mark.parametrize(("unknown", "folds"), [(True, 3), (False, 3), (True, 1)])
def test_a_ladder_says_the_same_twice(tmp_path, unknown, folds):
    """With an unknown label and without, and of one fold alone."""
    world = make_world(identities=10, seed=3, unknown=unknown)
    sources = [
        dataclasses.replace(source, folds={fold: source.folds[fold] for fold in range(folds)})
        for source in write_sources(world, tmp_path / "features", count=2)
    ]
    given = recipe(classifier={"epochs": 2, "seeds": 1})
    one, other = (
        combine(world.images, world.folds, sources, given, world.competition, tmp_path / name) for name in "ab"
    )
    assert one.worth is not None and one.as_json() == other.as_json()
