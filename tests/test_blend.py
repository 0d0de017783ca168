"""Calibration, the union of candidate lists, and the search for weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import minimize
from test_unknown import naive_map, random_lists

from whaleid.config import BlendConfig
from whaleid.ensemble.blend import (
    EXPONENTS,
    Member,
    Targets,
    apply_blend,
    average,
    best_members,
    fit_blend,
    reshaped,
    stack,
    union,
)
from whaleid.ensemble.calibrate import Isotonic, calibrated, fit_calibration, fit_isotonic
from whaleid.ensemble.unknown import best_threshold, rank_stats
from whaleid.retrieval.candidates import Candidates


def noisy_member(truth, seed, noise, classes=20, width=10, name=None, probability=False):
    """Lists in which the truth scores 1 above the rest, under noise; unknown queries have no such
    identity.
    """
    rng = np.random.default_rng(seed)
    scores = noise * rng.normal(size=(len(truth), classes))
    known = truth >= 0
    scores[known, truth[known]] += 1
    if probability:
        scores = np.exp(4 * scores) / np.exp(4 * scores).sum(axis=1, keepdims=True)
    order = np.argsort(-scores, axis=1)[:, :width]
    lists = Candidates(
        np.array([f"q{number}" for number in range(len(truth))]),
        np.array([f"c{number:02d}" for number in range(classes)]),
        order.astype(np.int64),
        np.take_along_axis(scores, order, axis=1).astype(np.float32),
    )
    return Member(name or f"m{seed}", lists, probability)


def questions(seed=0, count=300, unknown=True):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 20, count)
    truth[rng.random(count) < 0.25] = -1
    weights = np.where(truth < 0, 0.8 if unknown else 0.0, 1.0)
    return Targets(truth, weights, 5, unknown)


# ------------------------------------------------------------------------------------------------ calibration


@pytest.mark.parametrize("probability", [False, True])
def test_calibration_is_the_least_loss(probability):
    asked = questions()
    member = noisy_member(asked.truth, 1, 0.4, probability=probability)
    fit = fit_calibration(member.candidates, asked.truth, asked.weights, probability)

    def loss(point):
        slope, none = point
        total = 0.0
        for codes, row, true, weight in zip(
            member.candidates.codes, member.candidates.scores.astype(float), asked.truth, asked.weights, strict=True
        ):
            if probability:  # the classes that are not listed stand as one more
                row = np.log(np.append(row, max(1 - row.sum(), 1e-12)))
            mass = np.append(np.exp(slope * (row - fit.center) / fit.spread), np.exp(none))
            hit = np.flatnonzero((codes == true) & (true >= 0))
            missed = -2 if probability and true >= 0 else -1
            total -= weight * np.log(mass[hit[0] if len(hit) else missed] / mass.sum())
        return total / asked.weights.sum() + 5e-4 * ((slope - 1) ** 2 + none**2)

    best = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-8})
    assert loss([fit.slope, fit.none]) == pytest.approx(best.fun, abs=1e-5)


def test_calibrated_probabilities_are_probabilities():
    lists = random_lists(np.random.default_rng(0))
    fit = fit_calibration(lists, np.random.default_rng(1).integers(-1, 12, 30), np.ones(30), False)
    p, none = calibrated(lists, fit)
    assert np.isneginf(p[lists.codes < 0]).all()
    np.testing.assert_allclose(np.where(lists.codes >= 0, p, 0).sum(axis=1) + none, 1, atol=1e-5)
    assert (np.diff(np.where(np.isfinite(p), p, -1), axis=1) <= 0).all()


def test_calibration_of_perfect_lists_stays_finite():
    lists = random_lists(np.random.default_rng(2))
    fit = fit_calibration(lists, lists.codes[:, 0], np.ones(30), False)
    assert np.isfinite([fit.slope, fit.none]).all() and fit.slope > 0


def pool_adjacent(value: list[float], weight: list[float]) -> list[float]:
    """Isotonic regression by its definition: neighbours out of order are replaced by their mean until none is."""
    blocks = [[v, w, 1] for v, w in zip(value, weight, strict=True)]
    place = 0
    while place + 1 < len(blocks):
        (v, w, n), (other, more, m) = blocks[place], blocks[place + 1]
        if v <= other:
            place += 1
            continue
        blocks[place : place + 2] = [[(v * w + other * more) / (w + more), w + more, n + m]]
        place = max(place - 1, 0)
    return [v for v, _, n in blocks for _ in range(n)]


def test_isotonic_chances_equal_pooled_neighbours():
    rng = np.random.default_rng(5)
    asked = questions()
    lists = noisy_member(asked.truth, 1, 0.4).candidates
    apart = (1e-4 * rng.permutation(lists.scores.size).reshape(lists.scores.shape)).astype(np.float32)
    lists = replace(lists, scores=-np.sort(-(lists.scores + apart), axis=1))
    fit = fit_isotonic(lists, asked.truth, asked.weights)
    used = (lists.codes >= 0) & (asked.weights > 0)[:, None]
    score = lists.scores[used].astype(float)
    hit = ((lists.codes == asked.truth[:, None]) & (asked.truth >= 0)[:, None])[used].astype(float)
    weight = np.broadcast_to(asked.weights[:, None], lists.codes.shape)[used]
    order = np.argsort(score)
    assert len(np.unique(score)) == len(score)
    wanted = pool_adjacent(hit[order].tolist(), weight[order].tolist())
    np.testing.assert_allclose(np.interp(score[order], fit.scores, fit.chances), wanted, atol=1e-6)


def test_isotonic_probabilities_are_probabilities():
    lists = random_lists(np.random.default_rng(0))
    fit = fit_isotonic(lists, lists.codes[:, 0], np.ones(30))
    p, none = calibrated(lists, fit)
    assert np.isneginf(p[lists.codes < 0]).all()
    np.testing.assert_allclose(np.where(lists.codes >= 0, p, 0).sum(axis=1) + none, 1, atol=1e-5)
    assert (np.diff(np.where(np.isfinite(p), p, -1), axis=1) <= 0).all() and (none >= 0).all()
    nobody = replace(lists, codes=np.full_like(lists.codes, -1), scores=np.full_like(lists.scores, -np.inf))
    p, none = calibrated(nobody, fit_isotonic(nobody, lists.codes[:, 0], np.ones(30)))
    assert np.isneginf(p).all() and (none == 1).all()


def test_a_blend_of_isotonic_members_finds_the_truth():
    asked = questions()
    members = [noisy_member(asked.truth, 1, 0.4), noisy_member(asked.truth, 2, 0.4)]
    blend = fit_blend(members, asked, BlendConfig(calibration="isotonic"))
    alone = [fit_blend([member], asked, BlendConfig(calibration="isotonic")).map for member in members]
    assert all(isinstance(one, Isotonic) for one in blend.calibrations) and blend.map > max(alone)


# ------------------------------------------------------------------------------------------------------ union


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4))
def test_union_and_average_equal_a_loop(seed, count):
    rng = np.random.default_rng(seed)
    lists = tuple(random_lists(rng, queries=9, width=int(rng.integers(1, 8))) for _ in range(count))
    codes, scores = union([(given.codes, given.scores) for given in lists])
    mean = average(lists, 50)
    for row in range(9):
        own = [{c: s for c, s in zip(g.codes[row], g.scores[row], strict=True) if c >= 0} for g in lists]
        every = sorted(set().union(*own))
        assert [code for code in codes[row] if code >= 0] == every
        expected = {}
        for place, code in enumerate(every):
            values = [table.get(code, min(table.values())) for table in own]
            np.testing.assert_array_equal(scores[:, row, place], values)
            expected[code] = np.mean(values)
        got = {c: s for c, s in zip(mean.codes[row], mean.scores[row], strict=True) if c >= 0}
        assert got.keys() == expected.keys()
        np.testing.assert_allclose([got[c] for c in every], [expected[c] for c in every], atol=1e-5)


def test_average_of_no_queries():
    lists = random_lists(np.random.default_rng(0))
    none = Candidates(lists.queries[:0], lists.classes, lists.codes[:0], lists.scores[:0])
    assert average((none, none), 5).codes.shape == (0, 5)


# ----------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("unknown", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_blend_is_no_worse_than_its_best_member(seed, unknown):
    asked = questions(seed, unknown=unknown)
    members = [noisy_member(asked.truth, 10 * seed + n, noise) for n, noise in enumerate((0.35, 0.5, 1.5))]
    blend = fit_blend(members, asked)
    assert sum(blend.weights) == pytest.approx(1) and min(blend.weights) >= 0

    def tuned(lists):
        given = rank_stats(lists, asked.truth, asked.weights, 5)
        if not unknown:
            return naive_map(lists, asked.truth, asked.weights, -9.0, 5)
        threshold, value = best_threshold(given, 5)
        assert naive_map(lists, asked.truth, asked.weights, threshold, 5) == pytest.approx(value)
        return value

    blended = tuned(apply_blend(blend, {member.name: member.candidates for member in members}, 10))
    assert blended == pytest.approx(blend.map, abs=0.01)  # the search looks at the first candidates alone
    assert blend.map >= max(tuned(member.candidates) for member in members) - 1e-6
    assert blended > tuned(members[0].candidates)  # independent noise: together they know more


def test_a_member_that_knows_nothing_is_dropped():
    asked = questions(3, count=600)
    good = noisy_member(asked.truth, 1, 0.3, name="good")
    junk = noisy_member(np.full(600, -1), 2, 1.0, name="junk")
    blend = fit_blend([junk, good], asked)
    assert blend.used == ["good"] and blend.weights[0] == 0.0
    apply_blend(blend, {"good": good.candidates}, 5)  # the dropped one need not be there


def test_the_same_blend_twice():
    asked = questions(5)
    members = [noisy_member(asked.truth, n, 0.5) for n in range(3)]
    assert fit_blend(members, asked) == fit_blend(members, asked)


def test_best_members():
    asked = questions(6)
    members = [noisy_member(asked.truth, n, noise) for n, noise in enumerate((1.5, 0.3, 0.6))]
    assert [member.name for member in best_members(members, asked, 2)] == ["m1", "m2"]
    assert best_members(members, asked, 0) == []


def test_stack_keeps_every_query():
    lists = random_lists(np.random.default_rng(0))
    parts = [
        Candidates(lists.queries[rows], lists.classes, lists.codes[rows], lists.scores[rows])
        for rows in (slice(0, 10), slice(10, 30))
    ]
    np.testing.assert_array_equal(stack(parts).codes, lists.codes)


# --------------------------------------------------------------------------- exponents, ranks, pairwise search


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), exponent=st.sampled_from(EXPONENTS), form=st.sampled_from(["score", "rank"]))
def test_reshaped_equals_a_loop(seed, exponent, form):
    rng = np.random.default_rng(seed)
    lists = random_lists(rng)
    fit = fit_calibration(lists, rng.integers(-1, 12, 30), np.ones(30), False)
    scores, none = calibrated(lists, fit)
    got, rest = reshaped(scores, none, exponent, form)
    for row in range(len(scores)):
        real = [float(p) for p in scores[row] if np.isfinite(p)]
        if form == "score":
            total = sum(p**exponent for p in real) + float(none[row]) ** exponent
            expected, left = [p**exponent / total for p in real], float(none[row]) ** exponent / total
        else:
            parts = [1 / (61 + place) ** exponent for place in range(len(real))]
            expected, left = [part / sum(parts) * sum(real) for part in parts], float(none[row])
        np.testing.assert_allclose(got[row, : len(real)], expected, rtol=1e-4, atol=1e-7)
        assert np.isneginf(got[row, len(real) :]).all() and rest[row] == pytest.approx(left, abs=1e-5)


@pytest.mark.parametrize("form", ["score", "rank"])
@pytest.mark.parametrize("search", ["coordinate", "pairwise"])
def test_every_search_keeps_the_promise_of_the_best_member(search, form):
    asked = questions(2)
    members = [noisy_member(asked.truth, n, noise) for n, noise in enumerate((0.35, 0.5, 1.5))]
    config = BlendConfig(search=search, form=form, exponents=True)
    blend = fit_blend(members, asked, config)
    assert sum(blend.weights) == pytest.approx(1) and min(blend.weights) >= 0
    assert set(blend.exponents) <= set(EXPONENTS)
    alone = [fit_blend([member], asked, BlendConfig(form=form)).map for member in members]
    assert blend.map >= max(alone) - 1e-6
    out = apply_blend(blend, {member.name: member.candidates for member in members}, 10)
    _, value = best_threshold(rank_stats(out, asked.truth, asked.weights, 5), 5)
    assert value == pytest.approx(blend.map, abs=0.01)  # the search looks at the first candidates alone


@pytest.mark.parametrize("search", ["coordinate", "pairwise"])
def test_every_search_drops_junk(search):
    asked = questions(3, count=600)
    good = noisy_member(asked.truth, 1, 0.3, name="good")
    junk = noisy_member(np.full(600, -1), 2, 1.0, name="junk")
    assert fit_blend([junk, good], asked, BlendConfig(search=search)).used == ["good"]


def test_exponents_are_no_worse_where_they_are_tuned():
    asked = questions(4)
    members = [noisy_member(asked.truth, n, 0.5) for n in range(3)]
    plain = fit_blend(members, asked, BlendConfig(search="pairwise"))
    assert set(plain.exponents) == {1.0}
    free = fit_blend([members[0]], asked, BlendConfig(exponents=True))
    assert free.map >= fit_blend([members[0]], asked).map - 1e-9


def test_unknown_settings_of_the_blend_are_refused():
    with pytest.raises(ValidationError, match="search"):
        BlendConfig.model_validate({"search": "optuna"})
