"""Pictures matched pair by pair: which are looked at, their matches, and their scores, against loops."""

from __future__ import annotations

from typing import cast

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_match_score import described_at_random

from whaleid.config import LearnedConfig, PairsConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.match_score import FEATURES, MatchScorer, fit_match_scorer, matches_of, supported
from whaleid.local_matching.pair_score import (
    MATCH_FEATURES,
    PAIR_FEATURES,
    MatchParts,
    PairMatches,
    fit_pair_scorer,
    identity_scores,
    likely_images,
    match_pairs,
    pair_training_matches,
    pair_values,
    same_identity,
    score_candidates,
)
from whaleid.local_matching.rootsift import UNIT
from whaleid.local_matching.votes import nearest_descriptors


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_likely_images_equal_loops(seed, most):
    described, frames = described_at_random(np.random.default_rng(seed), [6, 0, 5, 7, 4, 6, 3])
    codes = np.array([-1, -1, 1, -1, 0, 1, 2])
    queries, gallery, config = np.array([0, 1, 3]), np.array([2, 4, 5, 6]), LearnedConfig(neighbours=5)
    nearest = nearest_descriptors(described, queries, gallery, 5)
    matches = matches_of(described, frames, queries, nearest)
    share = matches.values[:, FEATURES.index("share of the last")]
    sums = np.zeros((3, 3))
    agreed = supported(matches, described, frames, config)
    for q, row, near, agrees in zip(matches.query, matches.rows, share, agreed, strict=True):
        sums[q, codes[row]] += (1 - float(near) ** 2) * (3 if agrees else 1)
    sums /= np.array([4, 11, 3]) ** config.power
    found = likely_images(described, frames, queries, codes, 3, nearest, config, most)
    assert found.shape == (3, most) and (found[1] == -1).all()
    for own, row in zip(sums, found, strict=True):
        order = [code for code in np.argsort(-own, kind="stable")[:most] if own[code] > 0]
        expected = [place for code in order for place in {0: [4], 1: [2, 5], 2: [6]}[int(code)]][:most]
        assert row.tolist() == [*expected, *[-1] * (most - len(expected))]
    named = np.array([[2, 0, -1]] * 3)
    also = likely_images(described, frames, queries, codes, 3, nearest, config, 4, named)
    assert also[1].tolist() == [6, 4, -1, -1]  # a query without keypoints has the networks' identities alone
    for own, row in zip(sums[[0, 2]], also[[0, 2]], strict=True):
        first = int(np.argmax(own)) if own.any() else 2
        assert row[: {0: 1, 1: 2, 2: 1}[first]].tolist() == {0: [4], 1: [2, 5], 2: [6]}[first]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.9, 0.97, 1.0]))
def test_matches_of_pairs_equal_loops(seed, ratio):
    rng = np.random.default_rng(seed)
    described, frames = described_at_random(rng, [5, 4, 1, 6, 0])
    pictures = np.array([[1, 3, -1], [3, 2, 4]])
    queries = np.array([0, 1])
    found = match_pairs(described, frames, queries, pictures, PairsConfig(ratio=ratio), workers=2)
    vectors, points, offsets = described.vectors.astype(float), described.points, described.offsets
    assert points is not None
    expected: dict[tuple[int, int], list[tuple[bool, list[float]]]] = {}
    for q, row in [(0, 1), (0, 3), (1, 2), (1, 3), (1, 4)]:
        query = queries[q]
        mine, theirs = (np.arange(offsets[one], offsets[one + 1]) for one in (query, row))
        if len(theirs) < 2:
            continue
        distance = ((vectors[mine][:, None] - vectors[theirs]) ** 2).sum(axis=2)
        for i, j in enumerate(distance.argmin(axis=1)):
            second = np.delete(distance[i], j).min()
            if distance[:, j].argmin() != i or not distance[i, j] < ratio**2 * second:
                continue
            one, two = points[mine[i]], points[theirs[j]]
            size, turn = np.log(two[2] / one[2]), (two[3] - one[3] + 180) % 360 - 180
            at = one[:2] / frames[query]
            shift = two[:2] / frames[row] - at
            near = abs(size) <= np.log(2) and abs(turn) <= 60 and np.abs(shift).max() <= 0.4
            values = [np.sqrt(distance[i, j]) / UNIT, np.sqrt(distance[i, j] / second)]
            expected.setdefault((q, row), []).append((near, [*values, size, turn, *shift, one[2], *at, one[3], i]))
    assert sorted(zip(found.query.tolist(), found.rows.tolist(), strict=True)) == sorted(expected)
    assert found.values.shape == (len(found.pair), len(MATCH_FEATURES)) and len(found.features) == len(expected)
    for place, pair in enumerate(zip(found.query.tolist(), found.rows.tolist(), strict=True)):
        features = dict(zip(PAIR_FEATURES, found.features[place].tolist(), strict=True))
        matched = expected[pair]
        near = [values for counts, values in matched if counts]
        assert features["number of all"] == len(matched) and features["number of near"] == len(near)
        assert np.isclose(features["share left of near"], sum(1 - values[1] ** 2 for values in near), atol=1e-4)
        assert np.isclose(features["nearness of all"], sum(max(0, 0.5 - row[1][0]) for row in matched), atol=1e-4)
        assert features["distinct of all"] == sum(row[1][1] < 0.8 for row in matched)
        assert features["number of agreeing"] == found.agrees[found.pair == place].sum()
        scored = found.values[found.pair == place].tolist()
        wanted = [values for counts, values in matched if counts or values[1] < 0.75]
        assert all(any(np.allclose(row, one, rtol=1e-4, atol=1e-4) for one in scored) for row in wanted)
        known = [row[1] for row in matched]
        assert all(any(np.allclose(row, one, rtol=1e-4, atol=1e-4) for one in known) for row in scored)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 9), st.sampled_from([0.0, 0.3]))
def test_scores_of_pairs_equal_loops(seed, count, rest):
    rng = np.random.default_rng(seed)
    cells = np.sort(rng.permutation(12)[:count])
    matches = drawn_pairs(cells // 4, cells % 4)
    values, codes = rng.normal(size=count), np.array([0, 2, 2, 1])
    found, scores = score_candidates(identity_scores(matches, values, codes, (3, 4), rest), 4)
    for query in range(3):
        expected: dict[int, float] = {}
        for code in range(3):
            own = values[(matches.query == query) & (codes[matches.rows] == code)]
            if len(own):
                expected[code] = own.max() + rest * np.maximum(own, 0).sum()
        listed = found[query][found[query] >= 0].tolist()
        assert sorted(listed) == sorted(expected)
        assert np.allclose(scores[query][: len(listed)], [expected[code] for code in listed], atol=1e-5)
        assert (np.diff(scores[query][: len(listed)]) <= 0).all()


def drawn_pairs(query: np.ndarray, rows: np.ndarray) -> PairMatches:
    """Two matches for each pair; only the first agrees with its similarity."""
    pair = np.repeat(np.arange(len(rows)), 2)
    features = np.zeros((len(rows), len(PAIR_FEATURES)), np.float32)
    return PairMatches(query, rows, features, pair, np.zeros((len(pair), len(MATCH_FEATURES)), np.float32), pair < 0)


class Constant(MatchScorer):
    """A model that gives every match the same score."""

    def log_ratio(self, values: np.ndarray) -> np.ndarray:
        return np.full(len(values), self.prior)


def test_no_model_scores_matches_that_it_was_fitted_on():
    """Three folds of two parts: fold 1's matches by all models but that of their own part."""
    parts = MatchParts(2, (*(Constant(cast("lgb.Booster", None), 2.0**k) for k in range(5)), None))
    matches = drawn_pairs(np.array([0, 1, 2]), np.array([5, 5, 6]))
    found = parts.log_ratios(matches, 1)
    assert found.shape == (6, 6) and np.isnan(found[:, 5]).all()
    assert np.isnan(found[[0, 1, 4, 5], 2]).all() and (found[2:4, 2] == 4).all()
    assert np.isnan(found[2:4, 3]).all() and (found[[0, 1, 4, 5], 3] == 8).all()
    assert (found[:, [0, 1, 4]] == [1, 2, 16]).all() and not np.isnan(parts.log_ratios(matches, None)[:, :5]).any()
    assert parts.of_folds([1, 2]).tolist() == [False, False, True, True, True, False]
    values = pair_values(matches, found, parts.of_folds([1, 2]))[:, len(PAIR_FEATURES) :]
    assert np.allclose(values[:, 0], [2 * (8 + 16) / 2, 2 * (4 + 16) / 2, 2 * (8 + 16) / 2])
    assert np.allclose(values[:, 4], [12, 10, 12]) and not values[:, 2:4].any()
    assert not pair_values(matches, found, np.zeros(6, bool))[:, len(PAIR_FEATURES) :].any()


def test_marks_in_one_arrangement_find_their_picture():
    """Animals whose marks are alike but for a few: drawn pictures teach, and new ones find their own, although each
    is shown at a scale and a turn of its own."""
    rng = np.random.default_rng(0)
    animals, places = rng.integers(0, 120, (8, 20, 128)), rng.uniform(10, 70, (8, 20, 2)) @ [1, 1j]
    vectors, points = [], []
    for image in range(40):
        animal, factor = image % 8, rng.uniform(0.5, 1.5) * np.exp(1j * rng.uniform(0, 6))
        vectors.append(np.clip(animals[animal] + rng.integers(-40, 41, (20, 128)), 0, 255))
        at = 40 + 40j + factor * (places[animal] - 40 - 40j) + rng.normal(0, 1, (20, 2)) @ [1, 1j]
        size, turn = np.full(20, 4 * abs(factor)), np.full(20, np.rad2deg(np.angle(factor)) % 360)
        points.append(np.column_stack([at.real, at.imag, size, turn]))
    offsets = np.arange(0, 40 * 20 + 1, 20)
    described = Described(np.concatenate(vectors).astype(np.uint8), offsets, np.concatenate(points).astype(np.float32))
    frames, config = np.full((40, 2), 80.0), PairsConfig(min_data_in_leaf=5, num_iterations=20)
    codes = np.where(np.arange(40) < 8, np.arange(40) % 8, -1)
    every, truth = np.tile(np.arange(8), (16, 1)), np.tile(np.arange(8), 2)
    training = match_pairs(described, frames, np.arange(8, 24), every, config)
    tables = pair_training_matches(training, truth, codes, 2, config)
    parts = MatchParts(2, tuple(fit_match_scorer([table], config) for table in tables))
    both = np.array([True, True])
    values = pair_values(training, parts.log_ratios(training, 0), both)
    model = fit_pair_scorer([(values, same_identity(training, truth, codes))])
    asked = match_pairs(described, frames, np.arange(24, 40), every, config)
    assert model is not None
    score = model.log_ratio(pair_values(asked, parts.log_ratios(asked, None), both))
    found, scores = score_candidates(identity_scores(asked, score, codes, (16, 8), config.rest), 8)
    assert found[:, 0].tolist() == truth.tolist()
    assert scores[:, 0].min() > 1 > scores[:, 1].max()


def test_settings_are_checked():
    assert LearnedConfig().pairs == PairsConfig() and LearnedConfig(pairs=None).pairs is None
    with pytest.raises(ValueError, match="images"):
        PairsConfig(images=0)
