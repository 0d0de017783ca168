"""From image similarities to identities, and the table of candidates: against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.config import KnnConfig
from whaleid.retrieval.candidates import Candidates, read_candidates, write_candidates
from whaleid.retrieval.identities import best_columns, centroids, identity_candidates, nearest_identities
from whaleid.retrieval.index import search
from whaleid.utils.errors import WhaleidError


def naive(similarity: np.ndarray, rows: np.ndarray, codes: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """One query and one neighbour at a time."""
    out_codes = np.full((len(rows), keep), -1)
    out_scores = np.full((len(rows), keep), -np.inf, dtype=np.float32)
    for query in range(len(rows)):
        seen: dict[int, float] = {}  # a dict keeps the order of the best images
        for value, row in zip(similarity[query], rows[query], strict=True):
            if row >= 0 and codes[row] >= 0:
                seen.setdefault(int(codes[row]), float(value))
        scored = sorted(seen.items(), key=lambda item: -item[1])
        for place, (code, score) in enumerate(scored[:keep]):
            out_codes[query, place], out_scores[query, place] = code, score
    return out_codes, out_scores


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_identities_equal_a_plain_loop_with_ties(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    gallery, queries = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 8))
    neighbours = data.draw(st.integers(0, gallery))
    codes = rng.integers(-1, data.draw(st.integers(1, 12)), gallery)
    rows = np.argsort(rng.random((queries, gallery)), axis=1)[:, :neighbours]
    similarity = -np.sort(-rng.integers(-4, 5, (queries, neighbours)) / 4, axis=1).astype(np.float32)
    if data.draw(st.booleans()):  # fewer neighbours than asked for, as faiss says it
        cut = np.arange(neighbours) >= rng.integers(0, neighbours + 1, (queries, 1))
        rows, similarity = np.where(cut, -1, rows), np.where(cut, -np.inf, similarity)
    keep = data.draw(st.integers(1, 15))
    found = identity_candidates(similarity, rows, codes, keep)
    expected = naive(similarity, rows, codes, keep)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[0].dtype == np.int64 and found[1].dtype == np.float32


def test_identities_by_hand() -> None:
    codes = np.array([7, 3, 7, 7, 3])
    similarity, rows = np.array([[0.9, 0.8, 0.75, 0.5, 0.125]], np.float32), np.array([[0, 1, 4, 2, 3]])
    best, scores = identity_candidates(similarity, rows, codes, 3)
    assert best.tolist() == [[7, 3, -1]] and scores[0, :2].tolist() == pytest.approx([0.9, 0.8])


def test_search_widens_until_there_are_enough_identities() -> None:
    """400 images of one identity hide the others: 10 neighbours would find it alone."""
    rng = np.random.default_rng(0)
    crowd = np.tile([1.0, 0.0], (400, 1)) + rng.normal(0, 1e-3, (400, 2))
    others = np.array([[0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    gallery, codes = np.concatenate([crowd, others]), np.array([5] * 400 + [0, 1, 2])
    queries = np.array([[1.0, 0.1], [0.1, 1.0]])
    found, scores = nearest_identities(queries, gallery, codes, KnnConfig(neighbours=10), 3)
    assert found.tolist() == [[5, 0, 2], [0, 5, 1]]
    assert np.isfinite(scores).all()
    found, _ = nearest_identities(queries, gallery, codes, KnnConfig(neighbours=10), 6)
    assert found[0].tolist() == [5, 0, 2, 1, -1, -1]


def test_nearest_max_is_exact_whatever_the_neighbours_and_chunks() -> None:
    rng = np.random.default_rng(1)
    queries, gallery, codes = rng.normal(size=(40, 8)), rng.normal(size=(300, 8)), rng.integers(-1, 30, 300)
    whole = naive(*search(queries, gallery, 300), codes, 12)
    for neighbours, chunk in ((1, 7), (20, 40), (300, 4096)):
        found, scores = nearest_identities(queries, gallery, codes, KnnConfig(neighbours=neighbours), 12, chunk)
        np.testing.assert_array_equal(found, whole[0])
        np.testing.assert_allclose(scores, whole[1], rtol=1e-5)


def test_centroids_are_mean_directions() -> None:
    rng = np.random.default_rng(2)
    table, codes = rng.normal(size=(50, 6)), rng.integers(-1, 9, 50)
    rows, names = centroids(table, codes)
    assert names.tolist() == sorted(set(codes.tolist()) - {-1})
    for row, name in zip(rows, names, strict=True):
        mean = table[codes == name].mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)
    opposite, _ = centroids(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([4, 4]))
    assert opposite.tolist() == [[0.0, 0.0]]


def test_neighbours_are_checked() -> None:
    rows, codes = np.array([[0, 1]]), np.array([0, 1])
    for similarity in ([[0.1, 0.2]], [[np.nan, 0.2]]):
        with pytest.raises(WhaleidError, match="must be descending along each row"):
            identity_candidates(np.array(similarity, np.float32), rows, codes, 2)
    with pytest.raises(WhaleidError, match="no image to compare"):
        nearest_identities(np.ones((1, 2)), np.ones((2, 2)), np.array([-1, -1]), KnnConfig(), 1)


# ------------------------------------------------------------------------------------------------- candidates


def make(codes: list[list[int]], scores: list[list[float]], classes: int = 4) -> Candidates:
    names = np.array([f"q{row}.jpg" for row in range(len(codes))])
    return Candidates(
        names,
        np.array([f"w_{code}" for code in range(classes)]),
        np.array(codes, dtype=np.int64),
        np.array(scores, dtype=np.float32),
    )


INF = float("inf")


def test_short_and_empty_lists_are_candidates() -> None:
    assert len(make([[3, 0, -1], [-1, -1, -1]], [[0.5, 0.25, -INF], [-INF] * 3])) == 2


@pytest.mark.parametrize(
    ("codes", "scores", "problem"),
    [
        ([[0, 4]], [[0.2, 0.1]], "outside -1..3"),
        ([[0, -2]], [[0.2, -INF]], "outside -1..3"),
        ([[-1, 0]], [[-INF, 0.1]], "padding before"),
        ([[1, 1]], [[0.2, 0.1]], "twice"),
        ([[1, 2]], [[0.1, 0.2]], "ascending"),
        ([[1, 2]], [[0.1, float("nan")]], "not finite"),
        ([[1, -1]], [[0.1, 0.0]], "without -inf"),
        ([[1, 2]], [[0.1]], "do not fit"),
        ([[0, 1], [1, 1]], [[0.2, 0.1], [0.2, 0.1]], r"query q1.jpg \(row 1\).*1 of 2"),
    ],
)
def test_impossible_candidates_are_refused(codes: list[list[int]], scores: list[list[float]], problem: str) -> None:
    with pytest.raises(WhaleidError, match=problem):
        make(codes, scores)


def test_names_and_types_are_checked() -> None:
    codes, scores = np.zeros((2, 1), np.int64), np.zeros((2, 1), np.float32)
    with pytest.raises(WhaleidError, match="queries must be"):
        Candidates(np.array(["a", "a"]), np.array(["x"]), codes, scores)
    with pytest.raises(WhaleidError, match="classes must be"):
        Candidates(np.array(["a", "b"]), np.array(["x", "x"]), codes, scores)
    with pytest.raises(WhaleidError, match="int64, float32"):
        Candidates(np.array(["a", "b"]), np.array(["x"]), codes, scores.astype(np.float64))


# -------------------------------------------------------------------------------------------------- the table


def random_candidates(rng: np.random.Generator, queries: int, width: int, classes: int) -> Candidates:
    order = np.argsort(rng.random((queries, classes)), axis=1)[:, :width].astype(np.int64)
    scores = -np.sort(-rng.random((queries, order.shape[1])), axis=1).astype(np.float32)
    padded = np.arange(order.shape[1]) >= rng.integers(0, width + 1, (queries, 1))
    padded[rng.integers(queries)] = np.arange(order.shape[1]) >= width  # one full row keeps the width
    codes, scores = np.where(padded, -1, order), np.where(padded, np.float32(-np.inf), scores)
    names = np.array([f"{name}.jpg" for name in rng.permutation(queries)])
    return Candidates(names, np.array([f"w_{code:02d}" for code in range(classes)]), codes, scores)


def same(one: Candidates, other: Candidates) -> None:
    for name in ("queries", "classes", "codes", "scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_table_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    queries, classes = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 9))
    width = data.draw(st.integers(1, classes))
    blocks = [
        (source, fold, random_candidates(rng, queries, width, classes))
        for source in ("knn", "b3|softmax")
        for fold in (0, 2, -1)
    ]
    path = tmp_path_factory.mktemp("table") / "candidates.parquet"
    write_candidates(path, blocks)
    back = read_candidates(path, blocks[0][2].classes)
    assert [item[:2] for item in back] == [item[:2] for item in blocks]
    for (_, _, one), (_, _, other) in zip(blocks, back, strict=True):
        same(one, other)


def test_the_table_is_the_documented_one(tmp_path: Path) -> None:
    write_candidates(tmp_path / "c.parquet", [("knn", 1, make([[3, 0], [-1, -1]], [[0.5, 0.25], [-INF, -INF]]))])
    table = pd.read_parquet(tmp_path / "c.parquet")
    assert table.columns.tolist() == ["query", "identity", "rank", "score", "source", "fold"]
    assert table.iloc[:2].to_numpy().tolist() == [
        ["q0.jpg", "w_3", 1, 0.5, "knn", 1],
        ["q0.jpg", "w_0", 2, 0.25, "knn", 1],
    ]
    assert table["query"].iloc[2] == "q1.jpg" and table["rank"].iloc[2] == 0
    assert table.iloc[2][["identity", "score"]].isna().all() and len(table) == 3


def foreign(path: Path, **changes: list) -> Path:
    """A table as another program would write it, with plain strings."""
    columns = {
        "query": ["b", "a", "b"],
        "identity": ["w", "w", "v"],
        "rank": [2, 1, 1],
        "score": [0.25, 0.5, 0.75],
        "source": ["x"] * 3,
        "fold": [0] * 3,
    }
    pd.DataFrame(columns | changes).to_parquet(path)
    return path


def test_foreign_tables_in_any_order_are_read(tmp_path: Path) -> None:
    [(source, fold, found)] = read_candidates(foreign(tmp_path / "c.parquet"))
    assert (source, fold) == ("x", 0)
    assert found.queries.tolist() == ["b", "a"] and found.classes.tolist() == ["v", "w"]
    assert found.codes.tolist() == [[0, 1], [1, -1]]
    assert found.scores.tolist() == [[0.75, 0.25], [0.5, -INF]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": [3, 1, 1]}, "ranks must count"),
        ({"rank": [-1, 1, 1]}, "ranks must count"),
        ({"rank": [1, 1, 1]}, "query b .* not finite"),
        ({"rank": [2, 1, 0]}, "padding before"),
        ({"score": [0.9, 0.5, 0.75]}, "ascending"),
        ({"identity": ["v", "w", "v"]}, "twice"),
        ({"identity": ["w", None, "v"]}, "without -inf"),
        ({"query": ["b", None, "b"]}, "'query' has 1 empty"),
        ({"fold": ["a", "b", "c"]}, "wrong type"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = foreign(tmp_path / "c.parquet", **changes)
    with pytest.raises(WhaleidError, match=message) as caught:
        read_candidates(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_broken_files(tmp_path: Path) -> None:
    path = foreign(tmp_path / "c.parquet")
    with pytest.raises(WhaleidError, match="not among the classes, first 'v'"):
        read_candidates(path, np.array(["w"]))
    pd.read_parquet(path).drop(columns="rank").to_parquet(path)
    with pytest.raises(WhaleidError, match="column 'rank' is missing"):
        read_candidates(path)
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(WhaleidError, match="not readable as parquet"):
        read_candidates(path)


def test_a_block_twice_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    block = ("knn", 0, make([[0]], [[1.0]]))
    with pytest.raises(WhaleidError, match="given twice"):
        write_candidates(tmp_path / "c.parquet", [block, block])
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(0, 6),
    width=st.integers(1, 30),
    most=st.integers(1, 35),
    values=st.integers(1, 40),
)
def test_best_columns_are_those_of_a_stable_sort(seed, rows, width, most, values):
    """Also among equals and minus infinities, which few values make many of."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values, (rows, width)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :most]
    best, columns = best_columns(scores, most)
    np.testing.assert_array_equal(columns, order)
    np.testing.assert_array_equal(best, np.take_along_axis(scores, order, axis=1))
