"""MAP@k against a naive loop, its interval against the textbook's, slices and weights."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whaleid.evaluation.metrics import (
    MapScore,
    SliceScore,
    distinct_mask,
    expected_share_weights,
    rank_of_truth,
    reciprocal_rank_at_k,
    score_ranks,
    size_slices,
)
from whaleid.utils.errors import WhaleidError


def naive_rank(guesses: list[int], truth: int) -> int:
    """Rule 7 word by word: place of the truth among the distinct guesses, 0 if it is not there."""
    distinct: list[int] = []
    for guess in guesses:
        if guess >= 0 and guess not in distinct:
            distinct.append(guess)
    return distinct.index(truth) + 1 if truth >= 0 and truth in distinct else 0


def naive_map_at_k(guesses: list[list[int]], truth: list[int], k: int) -> float:
    total = 0.0
    for row, identity in zip(guesses, truth, strict=True):
        rank = naive_rank(row, identity)
        total += 1 / rank if 1 <= rank <= k else 0
    return total / len(truth)


# few codes, so that repeats, hits and rows of padding alone are common
rows = st.integers(0, 8).flatmap(
    lambda m: st.lists(
        st.tuples(st.lists(st.integers(-1, 5), min_size=m, max_size=m), st.integers(-1, 6)),
        min_size=1,
        max_size=20,
    )
)


def arrays(table: list[tuple[list[int], int]]) -> tuple[np.ndarray, np.ndarray]:
    guesses = np.array([row for row, _ in table], dtype=np.int32).reshape(len(table), -1)
    return guesses, np.array([truth for _, truth in table])


@given(rows, st.integers(1, 8))
def test_map_equals_naive_loop(table: list[tuple[list[int], int]], k: int) -> None:
    guesses, truth = arrays(table)
    rank = rank_of_truth(guesses, truth)
    assert rank.tolist() == [naive_rank(row, identity) for row, identity in table]
    expected = naive_map_at_k(guesses.tolist(), truth.tolist(), k)
    score = score_ranks(rank, k, bootstraps=20)
    assert score.map == pytest.approx(expected, abs=1e-12)
    assert score.queries == len(table)


def test_blocks_are_joined_seamlessly() -> None:
    """More rows than one block of rank_of_truth holds."""
    rng = np.random.default_rng(0)
    guesses, truth = rng.integers(-1, 4, (70_000, 3)), rng.integers(-1, 4, 70_000)
    rank = rank_of_truth(guesses, truth)
    for row in (0, 32_767, 32_768, 65_535, 65_536, 69_999):
        assert rank[row] == naive_rank(guesses[row].tolist(), truth[row])
    assert (distinct_mask(guesses).sum(axis=1) == [len(set(r) - {-1}) for r in guesses.tolist()]).all()


def test_repeated_guess_takes_no_place() -> None:
    guesses = np.array([[3, 3, -1, 3, 1, 2, 7]])
    assert rank_of_truth(guesses, np.array([2])).tolist() == [3]
    assert reciprocal_rank_at_k(np.array([0, 1, 2, 5, 6])).tolist() == [0, 1, 0.5, 0.2, 0]


def test_interval_covers_as_the_textbook_says() -> None:
    """Hits and misses alone: the half width is 1.96 standard errors, weighted or not."""
    rng = np.random.default_rng(1)
    rank = (rng.random(10_000) < 0.8).astype(int)
    score = score_ranks(rank, bootstraps=4000)
    expected = 1.96 * np.sqrt(score.map * (1 - score.map) / 10_000)
    assert (score.high - score.low) / 2 == pytest.approx(expected, rel=0.08)

    weights = np.where(np.arange(10_000) < 1000, 9.0, 1.0)
    few = score_ranks(rank, weights=weights, bootstraps=4000)
    many = score_ranks(rank, weights=weights * rng.uniform(0.9999, 1.0001, 10_000))  # computed, not resampled
    assert few.map == pytest.approx(np.average(rank, weights=weights))
    assert (many.low, many.high) == pytest.approx((few.low, few.high), abs=0.003)
    assert few.high - few.low > 1.3 * (score.high - score.low)


def test_interval_is_seeded_and_holds_the_mean() -> None:
    rank = np.array([1, 2, 0, 5, 1, 0, 3])
    assert score_ranks(rank, seed=3) == score_ranks(rank, seed=3)
    assert score_ranks(rank, seed=3).low != score_ranks(rank, seed=4, bootstraps=7).low
    for seed in range(20):
        score = score_ranks(rank, seed=seed, bootstraps=1)
        assert score.low <= score.map <= score.high
    perfect = score_ranks(np.ones(3, int), weights=np.array([0.1, 0.2, 0.3]))
    assert (perfect.low, perfect.map, perfect.high) == (1, 1, 1)


def test_bootstrap_of_a_million_is_quick() -> None:
    rng = np.random.default_rng(0)
    rank, unknown = rng.integers(0, 7, 1_000_000), rng.random(1_000_000) < 0.3
    start = time.process_time()  # not the clock's: other tests run beside this one
    score_ranks(rank, weights=expected_share_weights(unknown, 0.1))
    assert time.process_time() - start < 3  # 0.2 s when nothing else runs; a loop over resamples takes minutes


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.floats(0, 1))
def test_weights_give_the_expected_share(unknown: list[bool], share: float) -> None:
    mask = np.array(unknown)
    weights = expected_share_weights(mask, share)
    assert weights.mean() == pytest.approx(1)
    if mask.all() or not mask.any():
        assert (weights == 1).all()
    else:
        assert weights[mask].sum() / len(mask) == pytest.approx(share)
        assert np.ptp(weights[mask]) == 0 and np.ptp(weights[~mask]) == 0
    assert (expected_share_weights(mask, None) == 1).all()


def test_weights_of_no_unknown_drop_them() -> None:
    unknown = np.array([True, True, False, False])
    rank = np.array([0, 0, 1, 2])
    weights = expected_share_weights(unknown, 0.0)
    assert weights.tolist() == [0, 0, 2, 2]
    slices = np.array(["unknown", "unknown", "1", "1"])
    score = score_ranks(rank, weights=weights, slices=slices)
    assert score.map == 0.75 and score.low >= 0.5 and score.queries == 4
    assert score.slices == {"1": SliceScore(0.75, 2), "unknown": SliceScore(0.0, 2)}


def test_slices_by_size() -> None:
    sizes, unknown = np.array([0, 1, 2, 5, 6, 99, 3]), np.array([False] * 6 + [True])
    names = size_slices(sizes, unknown)
    assert names.tolist() == ["unknown", "1", "2-5", "2-5", "6+", "6+", "unknown"]
    score = score_ranks(np.array([1, 2, 1, 0, 1, 1, 4]), slices=names)
    assert list(score.slices) == ["1", "2-5", "6+", "unknown"]
    assert score.slices["2-5"] == SliceScore(0.5, 2)
    assert score.slices["unknown"] == SliceScore(0.625, 2)


def test_lines_and_json() -> None:
    score = MapScore(0.912341, 5, 10, 0.9, 0.91912, {"1": SliceScore(0.5, 2)})
    assert score.line("solution") == "MAP@5 (solution): 0.91234"
    assert score.line("out of fold", interval=True) == "MAP@5 (out of fold): 0.91234 ± 0.00956"
    assert json.loads(json.dumps(score.as_json())) == {
        "map": 0.912341,
        "k": 5,
        "queries": 10,
        "low": 0.9,
        "high": 0.91912,
        "slices": {"1": {"map": 0.5, "queries": 2}},
    }


@pytest.mark.parametrize(
    "figures",
    [
        (1.2, 5, 10, 1.0, 1.3),
        (0.5, 5, 10, 0.6, 0.7),
        (0.5, 0, 10, 0.4, 0.7),
        (0.5, 5, 0, 0.4, 0.7),
        (float("nan"), 5, 10, 0.4, 0.7),
        (0.5, 5, 1, 0.4, 0.7, {"1": SliceScore(0.5, 2)}),
        (0.5, 5, 3, 0.4, 0.7, {"1": SliceScore(1.5, 2)}),
    ],
)
def test_impossible_scores_are_refused(figures: tuple) -> None:
    with pytest.raises(WhaleidError, match=r"MAP@|at least 1 guess"):
        MapScore(*figures)


def test_bad_input_is_refused() -> None:
    rank = np.array([1, 0])
    for weights in ([1.0], [-1.0, 2.0], [0.0, 0.0], [np.nan, 1.0]):
        with pytest.raises(WhaleidError, match="weights"):
            score_ranks(rank, weights=np.array(weights))
    with pytest.raises(WhaleidError, match="rank"):
        score_ranks(np.array([], int))
    with pytest.raises(WhaleidError, match="slices"):
        score_ranks(rank, slices=np.array(["1"]))
    with pytest.raises(WhaleidError, match="truth"):
        rank_of_truth(np.zeros((2, 3), int), np.zeros(3, int))
    with pytest.raises(WhaleidError, match="guesses"):
        rank_of_truth(np.zeros(2, int), np.zeros(2, int))
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(WhaleidError, match="unknown_share"):
            expected_share_weights(np.array([True, False]), share)
