"""The peer baseline: its scores by comparison with a naive version, and a run of a few seconds."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.config.files import load_competition
from whaleid.config.settings import repository_root

K = 5
UNKNOWN = 99


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    sys.path.insert(0, str(repository_root() / "benchmarks"))
    return importlib.import_module("bench_peer_pml")


def naive_map(codes: np.ndarray, scores: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    """Write the guesses out with the unknown identity among them, and look the truth up."""
    total = 0.0
    for row, values, true in zip(codes, scores, truth, strict=True):
        guesses = [code for code, score in zip(row, values, strict=True) if score >= threshold]
        guesses += [UNKNOWN, *(code for code, score in zip(row, values, strict=True) if score < threshold)]
        wanted = UNKNOWN if true < 0 else true
        guesses = guesses[:K]
        total += 1 / (guesses.index(wanted) + 1) if wanted in guesses else 0.0
    return total / len(truth)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), level=st.floats(0, 1))
def test_map_at_a_threshold_is_the_naive_one(peer: ModuleType, seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.permutation(8)[:K] for _ in range(12)])
    scores = -np.sort(-rng.random((12, K)).astype(np.float32).round(2), axis=1)
    truth = rng.integers(-1, 8, 12)
    expected = naive_map(codes, scores, truth, level)
    assert peer.map_at_threshold(codes, scores, truth, level, K) == pytest.approx(expected)
    if (truth >= 0).any():
        figures = peer.peer_scores(codes, scores, truth, True, K)
        assert figures["map"] == pytest.approx(naive_map(codes, scores, truth, figures["threshold"]))
        assert figures["map"] >= naive_map(codes, scores, truth, float(np.median(scores))) - 0.05
        assert figures["top1_known"] == pytest.approx((codes[:, 0] == truth)[truth >= 0].mean())


def test_batches_are_full_and_each_epoch_holds_a_row_once(peer: ModuleType) -> None:
    some = peer.batches(np.arange(10), 5, seed=0)
    first = [next(some) for _ in range(4)]
    assert sorted(np.concatenate(first[:2])) == sorted(np.concatenate(first[2:])) == list(range(10))


def test_a_run_of_a_second(peer: ModuleType, tmp_path: Path) -> None:
    drawn_sets = importlib.import_module("drawn_sets")
    path = drawn_sets.make_set("marks", tmp_path / "marks", share=0.05)
    given = argparse.Namespace(
        minutes=0.02, seed=0, width=32, batch=8, lr=1e-3, class_lr=1e-2, backbone="test_resnet", weights="random"
    )
    figures = peer.run(load_competition(str(path)), given)
    assert figures["size"] == [32, 32] or figures["size"] == [32, 16]
    assert figures["seen"] > 0 and 0 <= figures["map"] <= 1 and 0 <= figures["top1_known"] <= 1
