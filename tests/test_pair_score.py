"""Pictures matched pair by pair: which are looked at, their matches, and their scores, against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_match_score import described_at_random

from whaleid.config import LearnedConfig, PairsConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.match_score import FEATURES, fit_match_scorer, matches_of, supported
from whaleid.local_matching.pair_score import (
    PAIR_FEATURES,
    PairMatches,
    likely_images,
    match_pairs,
    pair_score_candidates,
    pair_training_matches,
)
from whaleid.local_matching.rootsift import UNIT
from whaleid.local_matching.votes import nearest_descriptors


class Ratio:
    """A model whose answer is the first feature; it stands in for `MatchScorer`, whose trees no loop could repeat."""

    def log_ratio(self, values: np.ndarray) -> np.ndarray:
        return values[:, 0].astype(float)


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
    expected = []
    for q, row in [(0, 1), (0, 3), (1, 3), (1, 2), (1, 4)]:
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
            if abs(size) > np.log(2) or abs(turn) > 60 or np.abs(shift).max() > 0.4:
                continue
            values = [np.sqrt(distance[i, j]) / UNIT, np.sqrt(distance[i, j] / second)]
            expected.append((q, row, [*values, size, turn, *shift, one[2], *at, one[3], i]))
    assert list(zip(found.query.tolist(), found.rows.tolist(), strict=True)) == [row[:2] for row in expected]
    assert found.values.shape == (len(expected), len(PAIR_FEATURES))
    if expected:
        assert np.allclose(found.values, [row[2] for row in expected], rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 30), st.sampled_from([0.0, 0.3]))
def test_scores_of_pairs_equal_loops(seed, count, rest):
    rng = np.random.default_rng(seed)
    q, rows = np.sort(rng.integers(0, 3, count)), rng.integers(0, 4, count)
    values = rng.normal(size=(count, len(PAIR_FEATURES))).astype(np.float32)
    codes = np.array([0, 2, 2, 1])
    found, scores = pair_score_candidates(PairMatches(q, rows, values), Ratio(), codes, (3, 4), rest, 4)  # type: ignore[arg-type]
    for query in range(3):
        pictures: dict[int, float] = {}
        for own, row, value in zip(q, rows, values[:, 0], strict=True):
            if own == query:
                pictures[int(row)] = pictures.get(int(row), 0.0) + float(value)
        expected: dict[int, float] = {}
        for code in {int(codes[row]) for row in pictures}:
            own = [score for row, score in pictures.items() if codes[row] == code]
            expected[code] = max(own) + rest * sum(max(score, 0) for score in own)
        listed = found[query][found[query] >= 0].tolist()
        assert sorted(listed) == sorted(expected)
        assert np.allclose(scores[query][: len(listed)], [expected[code] for code in listed], atol=1e-5)
        assert (np.diff(scores[query][: len(listed)]) <= 0).all()


def test_a_model_that_knows_nothing_lists_what_was_matched():
    matches = PairMatches(np.array([0, 0]), np.array([1, 2]), np.zeros((2, len(PAIR_FEATURES)), np.float32))
    codes, scores = pair_score_candidates(matches, None, np.array([0, 0, 1]), (1, 2), 0.3, 3)
    assert codes.tolist() == [[0, 1, -1]] and scores[0, :2].tolist() == [0, 0]


def test_marks_in_one_arrangement_find_their_picture():
    """Two animals whose marks are alike but for a few: pairs of drawn pictures teach, and a new query finds its own."""
    rng = np.random.default_rng(0)
    animals = rng.integers(0, 120, (8, 20, 128))
    places = rng.uniform(10, 70, (8, 20, 2))
    vectors, points = [], []
    for image in range(24):
        animal = image % 8
        vectors.append(np.clip(animals[animal] + rng.integers(-40, 41, (20, 128)), 0, 255))
        points.append(np.column_stack([places[animal] + rng.normal(0, 1, (20, 2)), np.full(20, 4.0), np.zeros(20)]))
    offsets = np.arange(0, 24 * 20 + 1, 20)
    described = Described(np.concatenate(vectors).astype(np.uint8), offsets, np.concatenate(points).astype(np.float32))
    frames, config = np.full((24, 2), 80.0), PairsConfig(min_data_in_leaf=5, num_iterations=20)
    codes = np.where(np.arange(24) < 8, np.arange(24) % 8, -1)
    every = np.tile(np.arange(8), (8, 1))
    training = match_pairs(described, frames, np.arange(8, 16), every, config)
    model = fit_match_scorer([pair_training_matches(training, np.arange(8), codes, config)], config)
    asked = match_pairs(described, frames, np.arange(16, 24), every, config)
    found, scores = pair_score_candidates(asked, model, codes, (8, 8), config.rest, 8)
    assert found[:, 0].tolist() == list(range(8))
    assert model is not None and scores[:, 0].min() > 1 > scores[:, 1].max()


def test_settings_are_checked():
    assert LearnedConfig().pairs == PairsConfig() and LearnedConfig(pairs=None).pairs is None
    with pytest.raises(ValueError, match="images"):
        PairsConfig(images=0)
