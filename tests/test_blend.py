"""Calibration, the union of candidate lists, and the search for weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from test_unknown import naive_map, random_lists

from whaleid.ensemble import blend as blend_module
from whaleid.ensemble.blend import Member, apply_blend, best_members, fit_blend
from whaleid.ensemble.calibrate import calibrated, fit_calibration
from whaleid.ensemble.lists import average, concatenate_lists, union
from whaleid.ensemble.protocol import Targets
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


def make_targets(seed=0, count=300, unknown=True):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 20, count)
    truth[rng.random(count) < 0.25] = -1
    weights = np.where(truth < 0, 0.8 if unknown else 0.0, 1.0)
    return Targets(truth, weights, 5, unknown)


# ------------------------------------------------------------------------------------------------ calibration


@pytest.mark.parametrize("probability", [False, True])
def test_calibration_is_the_least_loss(probability):
    targets = make_targets()
    member = noisy_member(targets.truth, 1, 0.4, probability=probability)
    fit = fit_calibration(member.candidates, targets.truth, targets.weights, probability)

    def loss(point):
        slope, none = point
        total = 0.0
        for codes, row, true, weight in zip(
            member.candidates.codes, member.candidates.scores.astype(float), targets.truth, targets.weights, strict=True
        ):
            if probability:  # the classes that are not listed stand as one more
                row = np.log(np.append(row, max(1 - row.sum(), 1e-12)))
            mass = np.append(np.exp(slope * (row - fit.center) / fit.spread), np.exp(none))
            hit = np.flatnonzero((codes == true) & (true >= 0))
            missed = -2 if probability and true >= 0 else -1
            total -= weight * np.log(mass[hit[0] if len(hit) else missed] / mass.sum())
        return total / targets.weights.sum() + 5e-4 * ((slope - 1) ** 2 + none**2)

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


@given(st.lists(st.floats(2**-10, 1, width=32), min_size=3, max_size=3), st.permutations(range(3)))
def test_equal_sums_stand_in_the_order_of_their_codes(places, order):
    """Three lists turn the same scores round three identities: no rounding of a sum puts one before another."""
    scores = np.sort(np.array([places], dtype=np.float32))[:, ::-1]
    codes = [np.roll([[0, 1, 2]], turn, axis=1) for turn in order]
    lists = tuple(Candidates(np.array(["q"]), np.array(["a", "b", "c"]), one, scores) for one in codes)
    mean = average(lists, 3)
    assert mean.codes.tolist() == [[0, 1, 2]] and len(set(mean.scores[0].tolist())) == 1


def test_average_of_no_queries():
    lists = random_lists(np.random.default_rng(0))
    none = Candidates(lists.queries[:0], lists.classes, lists.codes[:0], lists.scores[:0])
    assert average((none, none), 5).codes.shape == (0, 5)


# ----------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("unknown", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_blend_is_no_worse_than_its_best_member(seed, unknown):
    targets = make_targets(seed, unknown=unknown)
    members = [noisy_member(targets.truth, 10 * seed + n, noise) for n, noise in enumerate((0.35, 0.5, 1.5))]
    blend = fit_blend(members, targets)
    assert sum(blend.weights) == pytest.approx(1) and min(blend.weights) >= 0

    def tuned(lists):
        given = rank_stats(lists, targets.truth, targets.weights, 5)
        if not unknown:
            return naive_map(lists, targets.truth, targets.weights, -9.0, 5)
        threshold, value = best_threshold(given, 5)
        assert naive_map(lists, targets.truth, targets.weights, threshold, 5) == pytest.approx(value)
        return value

    blended = tuned(apply_blend(blend, {member.name: member.candidates for member in members}, 10))
    assert blended == pytest.approx(blend.map, abs=0.01)  # the search looks at the first candidates alone
    assert blend.map >= max(tuned(member.candidates) for member in members) - 1e-6
    assert blended > tuned(members[0].candidates)  # independent noise: together they know more


def test_a_member_that_knows_nothing_is_dropped():
    targets = make_targets(3, count=600)
    good = noisy_member(targets.truth, 1, 0.3, name="good")
    junk = noisy_member(np.full(600, -1), 2, 1.0, name="junk")
    blend = fit_blend([junk, good], targets)
    assert blend.used == ["good"] and blend.weights[0] == 0.0
    apply_blend(blend, {"good": good.candidates}, 5)  # the dropped one need not be there


def test_the_same_blend_twice():
    targets = make_targets(5)
    members = [noisy_member(targets.truth, n, 0.5) for n in range(3)]
    assert fit_blend(members, targets) == fit_blend(members, targets)


def test_the_search_tries_no_weights_twice(monkeypatch):
    targets = make_targets(5)
    members = [noisy_member(targets.truth, n, 0.5) for n in range(3)]
    plain, tried = blend_module._objective, []

    def recorded(weights, search):
        tried.append(weights.tobytes())
        return plain(weights, search)

    monkeypatch.setattr(blend_module, "_objective", recorded)
    fit_blend(members, targets)
    assert len(tried) == len(set(tried)) > 30


def test_best_members():
    targets = make_targets(6)
    members = [noisy_member(targets.truth, n, noise) for n, noise in enumerate((1.5, 0.3, 0.6))]
    assert [member.name for member in best_members(members, targets, 2)] == ["m1", "m2"]
    assert best_members(members, targets, 0) == []


def test_concatenation_keeps_every_query():
    lists = random_lists(np.random.default_rng(0))
    parts = [
        Candidates(lists.queries[rows], lists.classes, lists.codes[rows], lists.scores[rows])
        for rows in (slice(0, 10), slice(10, 30))
    ]
    np.testing.assert_array_equal(concatenate_lists(parts).codes, lists.codes)
