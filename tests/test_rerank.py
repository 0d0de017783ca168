"""Re-ranking on sparse graphs: every method against a dense, naive version of itself."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.config import KnnConfig, RerankConfig
from whaleid.config.base import Model
from whaleid.retrieval.graph import csr, find_neighbours, neighbour_graph, normalised
from whaleid.retrieval.index import search
from whaleid.retrieval.rerankers import (
    RERANKERS,
    QueryGraph,
    Reranker,
    diffusion,
    every_setting,
    query_graph,
    reciprocal,
    widest_graph,
)
from whaleid.retrieval.rerankers.base import Settings, fill_from_plain
from whaleid.retrieval.rerankers.diffusion import diffuse, from_rows, strongest_path
from whaleid.retrieval.rerankers.expansion import augment, expand
from whaleid.retrieval.rerankers.label_diffusion import spread_labels
from whaleid.retrieval.rerankers.reciprocal import jaccard, reciprocal_codes, reciprocal_scores
from whaleid.utils.errors import WhaleidError


def unit(rng: np.random.Generator, rows: int, width: int = 5) -> np.ndarray:
    """Unit rows; some stand twice, one is zero where there are enough."""
    table = rng.normal(size=(rows, width)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    if rows > 6:
        table[1], table[3], table[5] = table[0], table[0], 0.0
    return table


def order_of(embeddings: np.ndarray) -> np.ndarray:
    """All other images of each image, nearest first, by the search that the code uses."""
    _, rows = search(embeddings, embeddings, len(embeddings))
    return np.stack([row[row != number] for number, row in enumerate(rows)])


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    return unit(np.random.default_rng(draw(st.integers(0, 10**6))), draw(st.integers(2, 40)))


# ------------------------------------------------------------------------------------------------------ graph


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(1, 50), st.booleans(), st.sampled_from([0.0, 1.0, 3.0]))
def test_the_graph_equals_a_dense_one(table: np.ndarray, k: int, mutual: bool, gamma: float) -> None:
    count, order = len(table), order_of(table)
    asked = np.zeros((count, count), dtype=bool)
    for row in range(count):
        asked[row, order[row][:k]] = True
    weight = np.maximum(table @ table.T, 0) ** gamma * (table @ table.T > 1e-7)
    dense = np.where(asked & asked.T if mutual else asked | asked.T, weight, 0)
    graph = neighbour_graph(find_neighbours(table, k), gamma, mutual)
    np.testing.assert_allclose(graph.toarray(), dense, atol=1e-5)
    np.testing.assert_array_equal(graph.toarray(), graph.toarray().T)
    degree = dense.sum(axis=1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1e-30)), 0)
    np.testing.assert_allclose(normalised(graph).toarray(), scale[:, None] * dense * scale, atol=1e-4)


def test_more_equals_than_neighbours_leave_the_image_itself_out() -> None:
    nearest = find_neighbours(np.ones((9, 2), np.float32), 3)
    assert nearest.rows.shape == (9, 3)
    assert not (nearest.rows == np.arange(9)[:, None]).any()
    assert find_neighbours(np.ones((1, 2), np.float32), 3).rows.shape == (1, 0)


# -------------------------------------------------------------------------------------------------- expansion


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(1, 50), st.sampled_from([0.0, 1.0, 3.0]))
def test_expansion_and_augmentation_equal_a_loop(table: np.ndarray, k: int, alpha: float) -> None:
    queries, gallery = table[: len(table) // 2], table[len(table) // 2 :]

    def naive(own: np.ndarray, rows: np.ndarray) -> np.ndarray:
        total = own.astype(np.float64)
        for row in rows:
            cosine = float(gallery[row] @ own)
            total = total + (cosine**alpha * gallery[row] if cosine > 0 else 0)
        length = np.linalg.norm(total)
        return total / length if length > 1e-6 else own

    similarity, rows = search(queries, gallery, k)
    expected = np.array([naive(*pair) for pair in zip(queries, rows, strict=True)])
    # a cosine of rounding error counts as 1 where alpha is 0
    sure = (np.abs(similarity) > 1e-6).all(axis=1) | (alpha > 0)
    np.testing.assert_allclose(expand(queries, gallery, similarity, rows, alpha)[sure], expected[sure], atol=1e-4)
    nearest = find_neighbours(gallery, k)
    expected = np.array([naive(*pair) for pair in zip(gallery, nearest.rows, strict=True)])
    sure = (np.abs(nearest.similarity) > 1e-6).all(axis=1) | (alpha > 0)
    np.testing.assert_allclose(augment(gallery, nearest, alpha)[sure], expected[sure], atol=1e-4)


# ----------------------------------------------------------------------------------------------- k-reciprocal


def naive_codes(table: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """The paper with Python's sets, dense."""
    order, count = order_of(table), len(table)

    def near(row: int, k: int) -> list[int]:
        return [row, *order[row][:k].tolist()]

    def both(row: int, k: int) -> set[int]:
        return {other for other in near(row, k) if row in near(other, k)}

    codes = np.zeros((count, count))
    for row in range(count):
        first = both(row, k1)
        whole = set(first)
        for other in first:
            theirs = both(other, max(1, round(k1 / 2)))
            if 3 * len(first & theirs) >= 2 * len(theirs):
                whole |= theirs
        for other in whole:
            codes[row, other] = np.exp(2 * min(float(table[row] @ table[other]), 1.0) - 2)
        codes[row] /= codes[row].sum()
    return np.stack([codes[near(row, k2 - 1)].mean(axis=0) for row in range(count)])


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(1, 12), st.integers(1, 5))
def test_k_reciprocal_equals_the_naive_one(table: np.ndarray, k1: int, k2: int) -> None:
    codes = reciprocal_codes(table, find_neighbours(table, max(k1, k2)), k1, k2)
    dense = naive_codes(table, k1, k2)
    np.testing.assert_allclose(codes.toarray(), dense, atol=1e-5)
    half = len(table) // 2
    alike = jaccard(codes[:half], codes[half:].tocsc())
    least = np.minimum(dense[:half, None], dense[None, half:]).sum(axis=2)
    most = np.maximum(dense[:half, None], dense[None, half:]).sum(axis=2)
    np.testing.assert_allclose(alike, least / most, atol=1e-5)
    cosine = table[:half] @ table[half:].T
    distance = 0.7 * (1 - least / most) + 0.3 * (1 - cosine) / 2
    np.testing.assert_allclose(reciprocal_scores(alike, cosine, 0.3), 1 - distance, atol=1e-5)


def test_k_reciprocal_in_pieces_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    table = unit(np.random.default_rng(0), 60)
    nearest = find_neighbours(table, 10)
    codes = reciprocal_codes(table, nearest, 10, 3)
    alike = jaccard(codes[:20], codes[20:].tocsc())
    for name, value in (("_ROWS", 7), ("_PAIRS", 11), ("_MINIMA", 13)):
        monkeypatch.setattr(reciprocal, name, value)
    np.testing.assert_allclose(reciprocal_codes(table, nearest, 10, 3).toarray(), codes.toarray(), atol=1e-6)
    np.testing.assert_allclose(jaccard(codes[:20], codes[20:].tocsc()), alike, atol=1e-6)


# -------------------------------------------------------------------------------------------------- diffusion


@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(1, 12), st.sampled_from([0.3, 0.9, 0.99]))
def test_diffusion_is_the_closed_form(table: np.ndarray, k: int, alpha: float) -> None:
    smooth = normalised(neighbour_graph(find_neighbours(table, k)))
    count = len(table)
    closed = (1 - alpha) * np.linalg.inv(np.eye(count) - alpha * smooth.toarray().astype(np.float64))
    found = diffuse(smooth, from_rows(count, np.arange(count)), alpha, iterations=300, tolerance=1e-6)
    np.testing.assert_allclose(found, closed, atol=1e-4)


def test_diffusion_ranks_as_the_closed_form() -> None:
    rng = np.random.default_rng(3)
    table = unit(rng, 300, 16)
    smooth = normalised(neighbour_graph(find_neighbours(table, 10)))
    closed = np.linalg.inv(np.eye(300) - 0.9 * smooth.toarray().astype(np.float64))[:, :50]
    found = diffuse(smooth, from_rows(300, np.arange(50)), 0.9)
    first, true = (np.argsort(-given, axis=0, kind="stable")[:10] for given in (found, closed))
    assert (first == true).mean() > 0.98  # duplicates are equals


def naive_labels(smooth: np.ndarray, labels: np.ndarray, alpha: float, steps: int) -> np.ndarray:
    reached = labels
    for _ in range(steps):
        reached = alpha * smooth @ reached + (1 - alpha) * labels
    return reached


@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(1, 8), st.sampled_from([0.5, 1.0]), st.integers(1, 3), st.integers(0, 10**6))
def test_labels_spread_as_in_a_dense_loop(table: np.ndarray, k: int, alpha: float, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = len(table)
    known = max(1, count // 2)
    codes = 3 * rng.integers(0, 6, known)
    smooth = normalised(neighbour_graph(find_neighbours(table, k)))
    names, place, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    labels = np.zeros((count, len(names)))
    labels[np.arange(known), place] = sizes[place] ** -0.5
    queries = np.arange(known, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion, "_CELLS", count * width)
        found = spread_labels(smooth, np.arange(known), codes, queries, [1, 2, 4], alpha, 4)
    for steps, (given_codes, scores) in found.items():
        dense = naive_labels(smooth.toarray().astype(np.float64), labels, alpha, steps)[queries]
        for row in range(len(queries)):
            listed = given_codes[row] >= 0
            own = dense[row, np.searchsorted(names, given_codes[row][listed])]
            np.testing.assert_allclose(scores[row][listed], own, atol=1e-5)
            best = -np.sort(-dense[row])[:4]
            np.testing.assert_allclose(np.where(listed, scores[row], 0), np.pad(best, (0, 4 - len(best))), atol=1e-5)


def test_a_single_image_is_reached_through_one_that_nobody_named() -> None:
    """Nearest by cosine is a stranger's whale; the query's own photograph lies two steps away."""
    turn = np.deg2rad([0, 28, 56, -40, -44, -48])
    table = np.column_stack([np.cos(turn), np.sin(turn)]).astype(np.float32)
    gallery, codes = np.array([2, 3, 4, 5]), np.array([7, 1, 1, 1])  # 0: query, 1: unlabelled, 2: its one image
    assert codes[np.argmax(table[gallery] @ table[0])] == 1
    smooth = normalised(neighbour_graph(find_neighbours(table, 2), 8.0))
    found, scores = spread_labels(smooth, gallery, codes, np.array([0]), [2], 1.0, 2)[2]
    assert found[0, 0] == 7 and scores[0, 0] > scores[0, 1]
    alone = table[[0, 2, 3, 4, 5]]
    smooth = normalised(neighbour_graph(find_neighbours(alone, 2), 8.0))
    assert spread_labels(smooth, np.arange(1, 5), codes, np.array([0]), [2], 1.0, 2)[2][0][0, 0] == 1


# ------------------------------------------------------------------------------------------------------ paths


@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(1, 4), st.integers(0, 10**6))
def test_the_strongest_path(table: np.ndarray, k: int, seed: int) -> None:
    graph = neighbour_graph(find_neighbours(table, k))
    dense = np.minimum(graph.toarray().astype(np.float64), 1)
    best = np.maximum(dense, np.eye(len(table)))
    for middle in range(len(table)):  # Floyd and Warshall, with products
        best = np.maximum(best, best[:, middle, None] * best[None, middle])
    rows = np.random.default_rng(seed).permutation(len(table))[:3]
    path = strongest_path(graph, 0, rows)
    if not best[0, rows].max() > 0:
        assert not len(path)
        return
    assert path[0] == 0 and path[-1] in rows and len(set(path.tolist())) == len(path)
    product = np.prod([dense[one, other] for one, other in pairwise(path)])
    assert product == pytest.approx(best[0, rows].max(), rel=1e-6)


# --------------------------------------------------------------------------------------------------- registry


def test_filled_by_hand():
    lists = np.array([[4, 2, 9], [1, -1, -1]]), np.array([[0.5, 0.25, 0.0], [0.1, -np.inf, -np.inf]], np.float32)
    plain = np.array([[2, 7, 4], [3, 1, -1]]), np.array([[0.9, 0.8, 0.7], [0.9, 0.8, -np.inf]], np.float32)
    codes, scores = fill_from_plain(lists, plain)
    assert codes.tolist() == [[4, 2, 7], [1, 3, -1]]
    np.testing.assert_allclose(scores, [[0.5, 0.25, 0.0], [0.1, 0.0, -np.inf]])


def test_a_reranker_is_one_file_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy that returns the plain lists with their scores shifted, by a grid of shifts."""

    class Grid(Model):
        shift: tuple[float, ...] = (1.0, 2.0)

    def shifted(graph: QueryGraph, grid: Grid) -> Settings:
        for shift in grid.shift:
            yield f"shift {shift:g}", (graph.plain[0], graph.plain[1] + np.float32(shift))

    monkeypatch.setitem(RERANKERS, "toy", Reranker("toy", shifted))
    table = unit(np.random.default_rng(0), 20)
    nothing = dict.fromkeys(RerankConfig.model_fields)
    config = RerankConfig.model_validate(nothing).model_copy(update={"toy": Grid()})
    assert widest_graph(config) == 0
    graph = query_graph(table, np.arange(15), np.arange(15) // 3, np.arange(16), np.arange(16, 20), KnnConfig(), 4)
    found = dict(every_setting(graph, config))
    assert list(found) == [("toy", "shift 1"), ("toy", "shift 2")]
    np.testing.assert_array_equal(found["toy", "shift 2"][0], graph.plain[0])
    np.testing.assert_array_equal(found["toy", "shift 2"][1], graph.plain[1] + 2)


# -------------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_one_clear_line() -> None:
    table = unit(np.random.default_rng(0), 8)
    nearest = find_neighbours(table, 3)
    smooth = normalised(neighbour_graph(nearest))
    broken = table.copy()
    broken[4, 1] = np.nan
    calls = {
        "features: row 4": lambda: find_neighbours(broken, 3),
        "0 neighbours": lambda: find_neighbours(table, 0),
        "k1 0": lambda: reciprocal_codes(table, nearest, 0, 1),
        "alpha 1": lambda: diffuse(smooth, from_rows(8, np.array([0])), 1.0),
        "steps": lambda: spread_labels(smooth, np.array([0]), np.array([0]), np.array([1]), [0], 0.5, 1),
        "outside the graph": lambda: strongest_path(smooth, 8, np.array([0])),
        "not above 0": lambda: strongest_path(csr(np.array([[0.0, -1.0], [-1.0, 0.0]])), 0, np.array([1])),
    }
    for said, call in calls.items():
        with pytest.raises(WhaleidError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
