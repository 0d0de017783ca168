"""Recall@k, MAP@R, NMI and pair histograms against naive loops and against pytorch-metric-learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.evaluation.retrieval_metrics import clustering_nmi, pair_histogram, recall_and_map, retrieval_score
from whaleid.utils.errors import WhaleidError


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(images: int, identities: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, identities, images)
    return unit(rng.normal(size=(identities, 16))[labels] + noise * rng.normal(size=(images, 16))), labels


def naive_order(rows: np.ndarray, labels: np.ndarray, query: int) -> list[bool]:
    """Whether each of the other images, nearest first, is of the query's identity; of equals the wrong one first."""
    others = [number for number in range(len(rows)) if number != query]
    others.sort(key=lambda number: (-round(float(rows[query] @ rows[number]), 5), labels[number] == labels[query]))
    return [bool(labels[number] == labels[query]) for number in others]


def naive_figures(rows: np.ndarray, labels: np.ndarray, ks: list[int]) -> tuple[dict[int, float], float, int]:
    hits: dict[int, list[bool]] = {k: [] for k in ks}
    precisions = []
    for query in range(len(rows)):
        right = naive_order(rows, labels, query)
        right_images = sum(right)
        if right_images == 0:
            continue
        for k in ks:
            hits[k].append(any(right[:k]))
        precisions.append(sum(sum(right[: i + 1]) / (i + 1) for i in range(right_images) if right[i]) / right_images)
    recall = {k: sum(found) / len(found) for k, found in hits.items()}
    return recall, sum(precisions) / len(precisions), len(precisions)


# Small whole numbers: equal cosines, repeated rows and lone identities are common, and cosines that are not equal
# differ by far more than float32 rounds.
tables = st.lists(
    st.tuples(st.tuples(*[st.integers(-2, 2)] * 3).filter(any), st.integers(0, 4)), min_size=3, max_size=24
).filter(lambda table: len({label for _, label in table}) < len(table))


@settings(deadline=None)
@given(tables, st.integers(1, 100))
def test_recall_and_map_equal_naive_loops(table: list[tuple[tuple[int, ...], int]], cells: int) -> None:
    rows = unit(np.array([row for row, _ in table], dtype=float))
    labels = np.array([label for _, label in table]) * 7 - 3
    ks = [1, 2, 4, 8, 100]
    recall, map_at_r, queries = recall_and_map(rows, labels, ks, cells)
    expected = naive_figures(rows, labels, ks)
    assert recall == pytest.approx(expected[0])
    assert map_at_r == pytest.approx(expected[1])
    assert queries == expected[2]


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_equal_to_pytorch_metric_learning(noise: float) -> None:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    rows, labels = clustered(400, 60, noise, seed=1)
    labels[0] = 1000  # one image without a mate, which both leave out as a query
    names = ("precision_at_1", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    theirs = calculator.get_accuracy(rows, labels)
    recall, map_at_r, queries = recall_and_map(rows, labels)
    assert recall[1] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert map_at_r == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)
    assert queries == 400 - int((np.bincount(labels) == 1).sum())


def test_blocks_change_nothing() -> None:
    rows, labels = clustered(300, 40, 1.0, seed=2)
    whole, parts = recall_and_map(rows, labels), recall_and_map(rows, labels, cells=1000)
    assert whole[0] == parts[0] and whole[1] == pytest.approx(parts[1], abs=1e-9)
    edges = np.linspace(0, 2, 21)
    for one, other in zip(pair_histogram(rows, labels, edges), pair_histogram(rows, labels, edges, 777), strict=True):
        assert np.abs(one - other).max() <= 1  # a pair on an edge may round either way


def test_nmi_of_perfect_and_of_random_embeddings() -> None:
    rows, labels = clustered(300, 10, 0.01, seed=3)
    assert clustering_nmi(rows, labels, seed=0) > 0.9  # K-means may split one identity and join two
    rng = np.random.default_rng(0)
    noise = unit(rng.normal(size=(300, 16)))
    assert clustering_nmi(noise, labels) < 0.3
    assert clustering_nmi(noise, labels, seed=5) == clustering_nmi(noise, labels, seed=5)


def test_nmi_is_that_of_its_clusters() -> None:
    """Two identities far apart, one of them in two halves: with 2 clusters nothing is lost."""
    rows = unit(np.repeat([[1.0, 0.0, 0.02], [1.0, 0.02, 0.0], [-1.0, 0.0, 0.0]], 10, axis=0))
    assert clustering_nmi(rows, np.repeat([5, 5, 9], 10)) == pytest.approx(1.0)
    assert clustering_nmi(rows, np.tile([5, 9], 15)) == pytest.approx(0.0, abs=1e-9)


def test_histogram_equals_naive_loop() -> None:
    rows, labels = clustered(60, 8, 0.7, seed=4)
    edges = np.linspace(0.2, 1.7, 14)
    same, different = pair_histogram(rows, labels, edges)
    distances: dict[bool, list[float]] = {True: [], False: []}
    for one in range(60):
        for other in range(one + 1, 60):
            distance = float(np.linalg.norm(rows[one].astype(float) - rows[other]))
            distances[bool(labels[one] == labels[other])].append(distance)
    for counts, values in ((same, distances[True]), (different, distances[False])):
        assert counts.sum() == len(values)
        assert np.abs(counts - np.histogram(np.clip(values, 0.2, 1.7), edges)[0]).max() <= 1


def test_one_point_scores_as_badly_as_it_can() -> None:
    """A collapsed network: rows in the order of their identities must not help it."""
    rows, labels = np.repeat([[0.6, 0.8]], 12, axis=0), np.repeat([0, 1, 2], 4)
    recall, map_at_r, _ = recall_and_map(rows, labels)
    assert recall == {1: 0.0, 2: 0.0, 4: 0.0, 8: 0.0} and map_at_r == 0.0


def test_all_figures_at_once() -> None:
    rows = np.eye(4, dtype=np.float64)[[0, 0, 1, 1, 2]]
    score = retrieval_score(rows, np.array([3, 3, 8, 8, 9]))
    assert score.recall == {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}
    assert (score.map_at_r, score.images, score.queries, score.identities) == (1.0, 5, 4, 3)
    assert 0 <= score.nmi <= 1


def test_bad_input_is_refused() -> None:
    rows, labels = np.eye(3), np.array([0, 0, 1])
    with pytest.raises(WhaleidError, match="labels: shape"):
        recall_and_map(rows, labels[:2])
    with pytest.raises(WhaleidError, match="nothing to find"):
        recall_and_map(rows, np.arange(3))
    with pytest.raises(WhaleidError, match="ks"):
        recall_and_map(rows, labels, [0])
    with pytest.raises(WhaleidError, match="embeddings: int"):
        recall_and_map(np.eye(3, dtype=int), labels)
    with pytest.raises(WhaleidError, match="row 1 holds NaN"):
        retrieval_score(np.where(np.arange(3)[:, None] == 1, np.nan, rows), labels)
