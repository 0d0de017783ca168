"""Exact search: against numpy's full matrix, with every tie settled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.retrieval import index
from whaleid.retrieval.index import search
from whaleid.utils.errors import WhaleidError


def naive(queries: np.ndarray, gallery: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole matrix, sorted row by row; equal similarities by ascending gallery row."""
    matrix = queries.astype(np.float32) @ gallery.astype(np.float32).T
    rows = np.argsort(-matrix, axis=1, kind="stable")[:, :neighbours]
    return np.take_along_axis(matrix, rows, axis=1), rows


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Searches this small only wait for one another's threads."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def unit(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    table = rng.normal(size=(rows, width)).astype(np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_the_full_matrix_with_many_ties(data: st.DataObject) -> None:
    """Whole numbers are exact in float32: equal similarities are equal in whatever order they are summed."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    width = data.draw(st.integers(1, 4))
    queries = rng.integers(-1, 2, (data.draw(st.integers(1, 30)), width)).astype(np.float32)
    gallery = rng.integers(-1, 2, (data.draw(st.integers(1, 300)), width)).astype(np.float32)
    neighbours = data.draw(st.integers(1, 320))
    similarity, rows = search(queries, gallery, neighbours, chunk=data.draw(st.integers(1, 40)))
    expected, expected_rows = naive(queries, gallery, neighbours)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(similarity, expected)


def test_ties_are_settled_where_the_last_place_is_shared_by_a_thousand() -> None:
    gallery = np.ones((1000, 8), dtype=np.float32)
    gallery[990:, 0] = 2.0
    similarity, rows = search(np.ones((3, 8), dtype=np.float32), gallery, 150)
    assert rows.tolist() == [[*range(990, 1000), *range(140)]] * 3
    assert similarity[0, [9, 10]].tolist() == [9.0, 8.0]


def test_widening_in_steps_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, gallery = (rng.integers(0, 2, (n, 3)).astype(np.float32) for n in (50, 400))
    whole = search(queries, gallery, 5)
    monkeypatch.setattr(index, "_WIDE", 64)
    np.testing.assert_array_equal(search(queries, gallery, 5)[1], whole[1])


def test_the_way_over_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's index played by the CPU's: what is asked of it stays within its 2,048 neighbours."""
    asked: list[int] = []

    class Index(faiss.IndexFlatIP):
        def __init__(self, resources: object, width: int):
            super().__init__(width)

        def search(self, queries: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
            asked.append(neighbours)
            return super().search(queries, neighbours)

    rng = np.random.default_rng(0)
    queries, gallery = (rng.integers(0, 2, (n, 3)).astype(np.float32) for n in (20, 9000))
    expected = [search(queries, gallery, neighbours)[1] for neighbours in (10, 2047, 2048)]
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexFlatIP", Index, raising=False)
    for neighbours, rows in zip((10, 2047, 2048), expected, strict=True):
        np.testing.assert_array_equal(search(queries, gallery, neighbours)[1], rows)
    assert 2048 in asked and max(asked) <= 2048


def test_equals_the_full_matrix_on_embeddings() -> None:
    rng = np.random.default_rng(1)
    queries, gallery = unit(rng, 333, 64), unit(rng, 2000, 64)
    similarity, rows = search(queries, gallery, 100, chunk=100)
    expected, expected_rows = naive(queries, gallery, 100)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    assert (rows == expected_rows).mean() > 0.999  # the last bit of a float32 sum may swap two neighbours
    assert similarity.dtype == np.float32 and rows.dtype == np.int64 and similarity.flags.c_contiguous


def test_chunks_do_not_show() -> None:
    rng = np.random.default_rng(2)
    queries, gallery = unit(rng, 100, 16), unit(rng, 500, 16)
    whole, parts = search(queries, gallery, 10), search(queries, gallery, 10, chunk=33)
    np.testing.assert_array_equal(whole[1], parts[1])
    np.testing.assert_allclose(whole[0], parts[0], atol=1e-6)


def test_any_float_type_and_layout() -> None:
    rng = np.random.default_rng(3)
    queries, gallery = unit(rng, 20, 8), unit(rng, 90, 8)
    _, rows = search(queries.astype(np.float64), np.asfortranarray(gallery), 7)
    np.testing.assert_array_equal(rows, naive(queries, gallery, 7)[1])
    half = gallery.astype(np.float16)
    _, rows = search(queries[::2], half, 7)
    np.testing.assert_array_equal(rows, naive(queries[::2], half, 7)[1])


def test_a_gallery_smaller_than_the_neighbours_is_returned_whole() -> None:
    rng = np.random.default_rng(4)
    similarity, rows = search(unit(rng, 5, 8), unit(rng, 3, 8), 200)
    assert similarity.shape == rows.shape == (5, 3)
    assert np.sort(rows, axis=1).tolist() == [[0, 1, 2]] * 5


def test_no_queries() -> None:
    similarity, rows = search(np.empty((0, 8), np.float32), np.ones((3, 8), np.float32), 2)
    assert similarity.shape == rows.shape == (0, 2)


@pytest.mark.parametrize(
    ("queries", "gallery", "neighbours", "message"),
    [
        (np.ones((2, 3)), np.ones((0, 3)), 1, "gallery: no image"),
        (np.ones((2, 3)), np.ones((4, 5)), 1, "3 dimensions, the gallery 5"),
        (np.ones((2, 3)), np.ones((4, 3)), 0, "neighbours 0"),
        (np.ones((2, 3), int), np.ones((4, 3)), 1, "queries: int64"),
        (np.ones(3), np.ones((4, 3)), 1, "queries: float64"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), np.ones((4, 2)), 1, "queries: row 1"),
        (np.ones((1, 2)), np.array([[np.inf, 1.0]]), 1, "gallery: row 0"),
    ],
)
def test_bad_input_is_one_clear_line(queries: np.ndarray, gallery: np.ndarray, neighbours: int, message: str) -> None:
    with pytest.raises(WhaleidError, match=message) as caught:
        search(queries, gallery, neighbours)
    assert "\n" not in str(caught.value)


def test_the_full_matrix_never_exists() -> None:
    """3,000 x 20,000 similarities are 240 MB; a fresh process must not grow by a third of that."""
    grown = subprocess.run([sys.executable, "-c", _GROWTH], capture_output=True, text=True, check=True, timeout=60)
    assert 0 <= int(grown.stdout) < 80_000  # kB


_GROWTH = """
import resource
import numpy as np
from whaleid.retrieval.index import search
queries, gallery = (np.random.default_rng(5).normal(size=(n, 8)).astype(np.float32) for n in (3000, 20000))
search(queries[:100], gallery, 10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
search(queries, gallery, 10, chunk=1000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
