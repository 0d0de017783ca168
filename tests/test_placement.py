"""Where `unknown` stands by calibrated probabilities: against loops over every place, and honest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_world import UNKNOWN, World, make_world, recipe, write_sources
from test_unknown import random_lists

from whaleid.ensemble import ladder
from whaleid.ensemble.blend import apply_blend
from whaleid.ensemble.graph_rankings import Choices, Chosen
from whaleid.ensemble.ladder import evaluate_ladder, rank_all
from whaleid.ensemble.placement import (
    FORMS,
    Placer,
    best_places,
    fit_placer,
    like_single,
    place_unknown,
    weighted_share_threshold,
)
from whaleid.ensemble.protocol import Protocol, read_protocol
from whaleid.ensemble.rankings import Ranking
from whaleid.ensemble.results import LadderResult, note_lines
from whaleid.ensemble.stack import deal_groups
from whaleid.retrieval.candidates import Candidates


def naive_value(chances: list[float], unknown: float, place: int, k: int) -> float:
    """Expected reciprocal rank with `unknown` at a place, guess by guess."""
    guesses = [*chances[: place - 1], unknown, *chances[place - 1 :]]
    return sum(chance / rank for rank, chance in enumerate(guesses[:k], start=1))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6))
def test_best_places_equal_a_loop_over_all(seed, k):
    rng = np.random.default_rng(seed)
    lists = random_lists(rng)
    slopes = rng.random(min(k, lists.codes.shape[1]))
    placer = Placer(lambda x: 1 / (1 + np.exp(x)), tuple(lambda x, s=s: s / (1 + np.exp(-x)) for s in slopes))
    places = best_places(lists, placer, k)
    for scores, place in zip(lists.scores, places, strict=True):
        chances = [s / (1 + np.exp(-x)) if np.isfinite(x) else 0.0 for s, x in zip(slopes, scores, strict=False)]
        chances += [0.0] * (k + 1 - len(chances))
        unknown = 1 / (1 + np.exp(scores[0]))
        values = [naive_value(chances, unknown, one, k) for one in range(1, k + 2)]
        assert 1 <= place <= k + 1 and values[place - 1] == pytest.approx(max(values))


def test_a_query_without_candidates_is_unknown_and_no_unknown_goes_last():
    lists = Candidates(
        np.array(["a", "b"]),
        np.array(["x", "y"]),
        np.array([[-1, -1], [0, 1]]),
        np.array([[-np.inf, -np.inf], [0.9, 0.1]], dtype=np.float32),
    )
    never = Placer(np.zeros_like, (np.ones_like, np.ones_like))
    places = best_places(lists, never, 2)
    assert places.tolist() == [1, 3]
    assert place_unknown(lists, places, "new").codes.tolist() == [[2, -1, -1], [0, 1, 2]]


def test_place_unknown_equals_a_loop():
    rng = np.random.default_rng(0)
    lists = random_lists(rng)
    places = rng.integers(1, 7, len(lists))
    placed = place_unknown(lists, places, "new")
    assert placed.classes[-1] == "new"
    for before, after, place in zip(lists.codes, placed.codes, places, strict=True):
        own = [code for code in before if code >= 0]
        wanted = [*own[: place - 1], 12, *own[place - 1 :]]
        assert after.tolist() == wanted + [-1] * (len(after) - len(wanted))


def world_of_scores(count: int, seed: int) -> tuple[Candidates, np.ndarray]:
    """Lists of one candidate whose score x says: true with 1 / (1 + exp(-3 x)), else unknown."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(count, 1)).astype(np.float32)
    truth = np.where(rng.random(count) < 1 / (1 + np.exp(-3 * score[:, 0])), 0, -1)
    names = np.array([f"q{number}" for number in range(count)])
    return Candidates(names, np.array(["x"]), np.zeros((count, 1), np.int64), score), truth


@pytest.mark.parametrize("form", FORMS)
def test_curves_find_the_probabilities_that_made_the_truth(form):
    lists, truth = world_of_scores(20_000, 0)
    placer = fit_placer(lists, truth, np.ones(len(truth)), 1, form, False)
    x = np.linspace(-1.5, 1.5, 13)
    true = 1 / (1 + np.exp(-3 * x))
    np.testing.assert_allclose(placer.hits[0](x), true, atol=0.05)
    np.testing.assert_allclose(placer.unknown(x), 1 - true, atol=0.05)
    assert placer.hits[0](np.array([-np.inf])).tolist() == [0.0]


def test_a_logistic_curve_of_probabilities_and_of_parted_scores():
    rng = np.random.default_rng(1)
    p = rng.random((20_000, 1)).astype(np.float32)
    truth = np.where(rng.random(len(p)) < p[:, 0], 0, -1)
    names = np.array([f"q{number}" for number in range(len(p))])
    lists = Candidates(names, np.array(["x"]), np.zeros(p.shape, np.int64), p)
    placer = fit_placer(lists, truth, np.ones(len(p)), 1, "platt", True)
    x = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(placer.hits[0](x), x, atol=0.04)
    parted = fit_placer(lists, np.where(p[:, 0] > 0.5, 0, -1), np.ones(len(p)), 1, "platt", True)
    assert (best_places(lists, parted, 1) == np.where(p[:, 0] > 0.5, 2, 1)).mean() > 0.97
    assert np.isfinite(fit_placer(lists, np.zeros(len(p), int), np.ones(len(p)), 1, "platt", True).hits[0](x)).all()


@pytest.mark.parametrize("form", FORMS)
def test_weights_count_as_copies(form):
    lists, truth = world_of_scores(300, 2)
    weights = np.random.default_rng(0).integers(0, 3, 300).astype(float)
    rows = np.repeat(np.arange(300), weights.astype(int))
    names = np.array([f"q{number}" for number in range(len(rows))])
    copied = Candidates(names, lists.classes, lists.codes[rows], lists.scores[rows])
    x = np.linspace(-2, 2, 9)
    one = fit_placer(lists, truth, weights, 1, form, False).unknown(x)
    other = fit_placer(copied, truth[rows], np.ones(len(rows)), 1, form, False).unknown(x)
    np.testing.assert_allclose(one, other, atol=1e-6 if form == "isotonic" else 0.02)  # Platt's targets count queries


def test_averaged_lists_are_brought_to_the_height_of_single_ones():
    rng = np.random.default_rng(0)
    single = tuple(random_lists(rng, queries=200) for _ in range(3))
    low = replace(single[0], scores=(single[0].scores * np.float32(0.3) - np.float32(5)))
    moved = like_single(low, single)
    pooled = np.concatenate([lists.scores[:, 0] for lists in single])
    for share in (0.1, 0.5, 0.9):
        limit = np.quantile(pooled, share)
        assert (moved.scores[:, 0] < limit).mean() == pytest.approx(share, abs=0.01)
    np.testing.assert_array_equal(moved.codes, low.codes)
    assert like_single(low, single[:1]) is low


def test_weighted_share():
    rng = np.random.default_rng(0)
    lists, weights = random_lists(rng, queries=500), rng.choice([0.5, 2.0], 500)
    truth = np.where(rng.random(500) < 0.3, -1, 0)
    limit = weighted_share_threshold(lists, truth, weights)
    first = lists.scores[:, 0] < np.float32(limit)
    wanted = weights[truth < 0].sum() / weights.sum()
    assert weights[first].sum() / weights.sum() == pytest.approx(wanted, abs=2 * weights.max() / weights.sum())


# ------------------------------------------------------------------------------------------------- the ladder


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(seed=1)


@pytest.fixture(scope="module")
def asked(world, tmp_path_factory) -> tuple[Protocol, list[Ranking]]:
    sources = write_sources(world, tmp_path_factory.mktemp("features"), count=2)
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    return protocol, rank_all(sources, world.images, protocol, recipe().combine, 0)


@pytest.fixture(scope="module")
def plain(asked) -> LadderResult:
    return evaluate_ladder(*asked, recipe().combine)


STACK = {"num_trees": 10, "seeds": 1, "min_data_in_leaf": 20, "first": 8, "candidates": 15}


def test_every_way_is_compared_and_said_in_one_line(plain):
    found = {one.form: one for one in plain.placements}
    assert list(found) == ["own", "threshold", "share", *FORMS, "never"]
    assert found["own"].map == pytest.approx(plain.final.score.map) and found["own"].change is None
    assert found["threshold"].map == pytest.approx(found["own"].map)  # the blend's own way is that threshold
    assert found["never"].map < found["own"].map
    line = note_lines(plain.as_json())[-1]
    assert "\n" not in line and all(form in line for form in found)
    assert note_lines({"final": "blend", "rungs": []}) == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stack", [None, STACK])
def test_the_form_that_is_used_scores_as_compared(asked, plain, world, form, stack):
    result = evaluate_ladder(*asked, recipe(unknown=form, stack=stack).combine)
    compared = {one.form: one.map for one in result.placements}
    assert result.final.score.map == pytest.approx(compared[form])
    if stack is None:
        assert compared == pytest.approx({one.form: one.map for one in plain.placements})
    assert result.final.score.map > compared["never"]
    first = result.test_guesses[:, 0] == UNKNOWN
    assert first.mean() == pytest.approx(result.final.thresholds.test_first)
    right = [
        1 / (list(row).index(true) + 1) if true in row else 0
        for row, true in zip(result.test_guesses, world.solution, strict=True)
    ]
    assert np.mean(right) == pytest.approx(result.final.score.map, abs=0.08)


def test_a_folds_truth_does_not_reach_its_own_places(asked, monkeypatch):
    protocol, rankings = asked
    groups = deal_groups(protocol, 3)  # whose identity a query is tells which models saw none of it
    monkeypatch.setattr("whaleid.ensemble.stack.deal_groups", lambda *_: groups)
    part = protocol.parts[1]
    order = np.random.default_rng(0).permutation(len(part.truth))
    wrong = replace(part, truth=part.truth[order], sizes=part.sizes[order])
    permuted = replace(protocol, parts=(protocol.parts[0], wrong, protocol.parts[2]))
    before, after = (
        evaluate_ladder(one, rankings, recipe(unknown="isotonic", stack=STACK).combine) for one in (protocol, permuted)
    )
    for one, other in zip(before.rungs, after.rungs, strict=True):
        np.testing.assert_array_equal(one.oof[1].codes, other.oof[1].codes)
    assert any(
        not np.array_equal(a.oof[0].codes, b.oof[0].codes) for a, b in zip(before.rungs, after.rungs, strict=True)
    )


def test_no_unknown_label_nothing_to_place(tmp_path: Path):
    world = make_world(seed=3, unknown=False)
    sources = write_sources(world, tmp_path, count=1)
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    config = recipe(unknown="platt", classifier=None).combine
    result = evaluate_ladder(protocol, rank_all(sources, world.images, protocol, config, 0), config)
    assert result.placements == () and UNKNOWN not in result.test_guesses


def test_the_stack_sees_other_folds_blended_of_lists_that_the_fold_had_no_part_in(asked):
    protocol, rankings = asked
    base, mixed = (next(one for one in rankings if one.kind == kind) for kind in ("concat", "classifier"))
    names = Choices({part.fold: "a" for part in protocol.parts}, "b")
    without = (base.oof, mixed.oof, base.oof)
    own = tuple(without[place][place] for place in range(3))
    chosen = Chosen("rerank", names, own, base.test, without, mixed.oof)
    every = [*rankings, Ranking("rerank", "rerank", own, base.test, False, chosen=chosen)]
    config = recipe().combine
    final, by_fold, *_ = ladder.blend_rankings(protocol, every, config)
    even = tuple(1 / len(final.names) for _ in final.names)
    final, blends = replace(final, weights=even), [replace(one, weights=even) for one in by_fold.values()]
    limits = [ladder._limits(protocol, one) for one in every]
    materials = ladder._materials(protocol, every, blends, final, limits, config)
    for place, (material, blend) in enumerate(zip(materials, [*blends, final], strict=True)):
        target = place if place < 3 else None
        for other in range(3):
            wanted = apply_blend(blend, {one.name: one.taught(target)[other] for one in every}, config.candidates)
            np.testing.assert_array_equal(material.oof[other].scores, wanted.scores)
