"""The similarity of two images: planted ones are found among chance matches, and padding changes nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.local_matching.similarity import TOLERANCE, MatchMoves, find_similarities


def planted(rng: np.random.Generator, true: int, chance: int) -> tuple[MatchMoves, complex, complex]:
    """Matches of which the first `true` are moved by one similarity, within a third of the tolerance."""
    count, scale = true + chance, np.exp(rng.uniform(-1.4, 1.4))
    factor, shift = scale * np.exp(1j * rng.uniform(-np.pi, np.pi)), complex(*rng.uniform(-0.5, 0.5, 2))
    start = rng.uniform(0, 1, count) + 1j * rng.uniform(0, 1, count)
    end = factor * start + shift + TOLERANCE / 5 * np.sqrt(scale) * np.exp(1j * rng.uniform(0, 7, count))
    size, turn = np.log(scale) + rng.normal(0, 0.02, count), np.angle(factor) + rng.normal(0, 0.02, count)
    end[true:] = rng.uniform(0, 1, chance) + 1j * rng.uniform(0, 1, chance)
    size[true:], turn[true:] = rng.uniform(-1.4, 1.4, chance), rng.uniform(-np.pi, np.pi, chance)
    return MatchMoves(start, end, size, turn, rng.uniform(0.1, 0.5, count)), factor, shift


def joined(parts: list[MatchMoves]) -> MatchMoves:
    names = "start", "end", "size", "turn", "weight"
    return MatchMoves(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(12, 30), st.integers(0, 20))
def test_a_planted_similarity_is_found_at_any_scale_and_turn(seed, true, chance):
    moves, factor, shift = planted(np.random.default_rng(seed), true, chance)
    found = find_similarities(moves, np.array([true + chance]))
    assert found.agrees[:true].mean() > 0.9
    assert abs(found.factor[0] / factor - 1) < 0.15
    middle = 0.5 + 0.5j
    assert abs(found.factor[0] * middle + found.shift[0] - factor * middle - shift) < TOLERANCE * np.sqrt(abs(factor))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_pairs_do_not_change_one_another(seed, counts):
    rng = np.random.default_rng(seed)
    parts = [planted(rng, count // 2, count - count // 2)[0] for count in counts]
    together = find_similarities(joined(parts), np.array(counts))
    ends = np.cumsum(counts)
    for place, (part, end) in enumerate(zip(parts, ends, strict=True)):
        alone = find_similarities(part, np.array([counts[place]]))
        assert np.allclose(alone.factor[0], together.factor[place], rtol=1e-4)
        assert np.allclose(alone.distance, together.distance[end - counts[place] : end], atol=1e-4)


def test_a_match_of_another_size_or_turn_does_not_agree():
    start = np.array([0.1, 0.5 + 0.2j, 0.9 + 0.8j, 0.3 + 0.7j, 0.7 + 0.5j])
    size, turn = np.array([0, 0, 0, np.log(2), 0]), np.array([0, 0, 0, 0, np.pi / 2])
    found = find_similarities(MatchMoves(start, start + 0.1, size, turn, np.full(5, 0.2)), np.array([5]))
    assert found.agrees.tolist() == [True] * 3 + [False] * 2 and np.allclose(found.distance, 0, atol=1e-5)


def test_matches_at_one_place_do_not_confirm_one_another():
    """A keypoint with two directions is two keypoints: three places in one arrangement win against six at one place."""
    start = np.array([0.1, 0.5 + 0.2j, 0.9 + 0.8j, *[0.4 + 0.4j] * 6])
    end = np.array([*(start[:3] + 0.1), *[0.9 + 0.9j] * 6])
    moves = MatchMoves(start, end, np.zeros(9), np.zeros(9), np.full(9, 0.2))
    found = find_similarities(moves, np.array([9]))
    assert found.agrees.tolist() == [True] * 3 + [False] * 6
    assert np.allclose([found.factor[0], found.shift[0]], [1, 0.1], atol=1e-5)
