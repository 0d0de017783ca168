"""The unknown identity as a candidate: exact thresholds against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.ensemble.protocol import query_weights
from whaleid.ensemble.unknown import (
    best_threshold,
    map_without_unknown,
    rank_stats,
    share_threshold,
    with_unknown,
)
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError


def random_lists(rng, queries=30, classes=12, width=8, levels=None):
    """Candidates with random scores (few distinct ones where `levels` is given) and padding here and
    there.
    """
    codes = np.stack([rng.permutation(classes)[:width] for _ in range(queries)]).astype(np.int64)
    shape = (queries, width)
    scores = rng.normal(size=shape) if levels is None else rng.integers(0, levels, shape)
    scores = -np.sort(-scores.astype(np.float32), axis=1)
    length = rng.integers(1, width + 1, queries)[:, None]
    padded = np.arange(width) >= length
    codes[padded], scores[padded] = -1, -np.inf
    names = np.array([f"q{number}" for number in range(queries)])
    return Candidates(names, np.array([f"c{number:02d}" for number in range(classes)]), codes, scores)


def naive_map(lists, truth, weights, threshold, k):
    """Weighted MAP@k of the guesses written out one by one."""
    total = 0.0
    for codes, scores, true, weight in zip(lists.codes, lists.scores, truth, weights, strict=True):
        guesses, placed = [], False
        for code, score in zip(codes, scores, strict=True):
            if code < 0:
                break
            if score < np.float32(threshold) and not placed:
                guesses.append("unknown")
                placed = True
            guesses.append(int(code))
        if not placed:
            guesses.append("unknown")
        wanted = "unknown" if true < 0 else int(true)
        if wanted in guesses[:k]:
            total += weight / (guesses.index(wanted) + 1)
    return total / np.sum(weights)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6), levels=st.sampled_from([None, 2, 4]))
def test_best_threshold_equals_brute_force(seed, k, levels):
    rng = np.random.default_rng(seed)
    lists = random_lists(rng, levels=levels)
    truth = rng.integers(-1, 12, len(lists)) if seed % 5 else np.full(len(lists), 3)
    weights = rng.choice([0.0, 0.4, 2.0], len(lists))
    weights[0] = 1.0
    threshold, value = best_threshold(rank_stats(lists, truth, weights, k), k)
    finite = lists.scores[np.isfinite(lists.scores)].astype(np.float64)
    steps = np.unique(finite)
    tries = [steps[0] - 1, *((steps[1:] + steps[:-1]) / 2), *steps, steps[-1] + 1]
    brute = max(naive_map(lists, truth, weights, one, k) for one in tries)
    assert value == pytest.approx(brute, abs=1e-9)
    assert naive_map(lists, truth, weights, threshold, k) == pytest.approx(brute, abs=1e-9)


def test_threshold_between_neighbouring_float32_scores():
    low = np.float32(0.5)
    high = np.nextafter(low, np.float32(1))
    scores = np.array([[high], [low]], dtype=np.float32)
    lists = Candidates(np.array(["a", "b"]), np.array(["x"]), np.zeros((2, 1), np.int64), scores)
    threshold, value = best_threshold(rank_stats(lists, np.array([0, -1]), np.ones(2), 1), 1)
    assert value == 1.0
    placed = with_unknown(lists, threshold, "new")
    assert placed.codes[:, 0].tolist() == [0, 1]


def test_always_and_never_unknown():
    lists = random_lists(np.random.default_rng(1))
    always, value = best_threshold(rank_stats(lists, np.full(30, -1), np.ones(30), 5), 5)
    assert value == pytest.approx(1.0) and (always > lists.scores).all()
    truth = lists.codes[:, 0]
    never, value = best_threshold(rank_stats(lists, truth, np.ones(30), 5), 5)
    assert value == pytest.approx(1.0) and (never <= lists.scores[:, 0]).all()


def test_without_unknown_is_plain_map():
    lists = random_lists(np.random.default_rng(2))
    truth = lists.codes[:, 0].copy()
    truth[:15] = -1
    weights = query_weights(truth, None, None)
    assert weights.tolist() == [0.0] * 15 + [1.0] * 15
    assert map_without_unknown(rank_stats(lists, truth, weights, 5), 5) == 1.0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.276, 1.0])
def test_share_threshold(share):
    top = np.random.default_rng(3).random(1000).astype(np.float32)
    threshold = share_threshold(top, share)
    assert (top < np.float32(threshold)).mean() == pytest.approx(share)


def test_with_unknown_places_one_candidate():
    lists = random_lists(np.random.default_rng(4))
    placed = with_unknown(lists, 0.3, "new_whale")
    assert placed.classes[-1] == "new_whale" and placed.codes.shape[1] == lists.codes.shape[1] + 1
    for before, after, scores in zip(lists.codes, placed.codes, placed.scores, strict=True):
        assert [code for code in after if code != 12] == list(before)
        where = list(after).index(12)
        assert (scores[:where] >= np.float32(0.3)).all() and (scores[where + 1 :] < np.float32(0.3)).all()


def test_no_query_weighs_anything():
    with pytest.raises(WhaleidError, match="none of the 3 queries"):
        query_weights(np.full(3, -1), None, None)
