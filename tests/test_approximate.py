"""Approximate indexes: true similarities, enough recall, the same twice, and lists that are never short."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from whaleid.config import KnnConfig
from whaleid.retrieval import approximate
from whaleid.retrieval.approximate import RECALL, index_kind, open_for, open_index
from whaleid.retrieval.graph import find_neighbours
from whaleid.retrieval.identities import nearest_identities
from whaleid.retrieval.index import search
from whaleid.utils.errors import WhaleidError


def world(images: int = 3000, dim: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(images // 10, dim))
    table = centers[rng.integers(0, len(centers), images)] + 0.3 * rng.normal(size=(images, dim))
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    "kind", ["exact", "auto", "Flat", "IVF32,Flat", "HNSW16", "IVF32,SQ8", "RR16,IVF32,RaBitQ", "PCA8,Flat"]
)
def test_similarities_are_true_and_most_neighbours_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "PROBES", 16)
    table = world()
    opened = open_index(table[200:], kind)
    similarity, rows = opened.search(table[:200], 10)
    true = np.einsum("qd,qmd->qm", table[:200], table[200:][rows])
    np.testing.assert_allclose(similarity, true, atol=1e-5)
    assert (np.diff(similarity, axis=1) <= 0).all()
    again = open_index(table[200:], kind).search(table[:200], 10)
    np.testing.assert_array_equal(again[1], rows)
    _, exact = search(table[:200], table[200:], 10)
    recall = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(rows, exact, strict=True)])
    assert recall > (0.6 if kind == "PCA8,Flat" else 0.9)
    assert opened.exact == (kind in ("exact", "auto"))


@pytest.mark.parametrize("kind", ["PQ4", "IVF4,PQ4", "PCA8,IVF4,PQ4", "PQ4,Refine(Flat)"])
def test_codes_are_trained_without_what_no_search_uses(kind: str) -> None:
    """Polysemous codes are nine tenths of faiss's training time."""
    index = approximate._build(world(300), kind)
    assert approximate._innermost(index).do_polysemous_training is False


@pytest.mark.parametrize("kind", ["IVF64,Flat", "RR16,IVF64,RaBitQ", "HNSW4", "IVF16,PQ4"])
def test_an_index_is_widened_until_it_finds_enough(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "PROBES", 1)
    monkeypatch.setattr(approximate, "_BREADTH", 1)
    queries, gallery, lines = world()[:200], world()[200:], list[str]()
    first, index = open_index(gallery, kind), open_for(queries, gallery, 5, kind, lines.append)
    true = search(queries, gallery, 5)[1]
    found = approximate._share(index, queries, 5, true)
    assert found >= RECALL and first.effort is not None and index.effort is not None
    if (before := approximate._share(first, queries, 5, true)) < RECALL:
        assert index.effort != first.effort
    else:
        assert index.effort == first.effort, before
    assert lines[0].startswith(f"index {kind}: recall@5 of the nearest images {found:.3f}") and "less" not in lines[0]


def test_codes_fetch_enough_images_for_few_neighbours_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched, plain = list[int](), approximate._true_similarity

    def seen(queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fetched.append(rows.shape[1])
        return plain(queries, gallery, rows)

    monkeypatch.setattr(approximate, "_true_similarity", seen)
    index = open_index(world()[200:], "RR16,IVF16,RaBitQ")
    for neighbours in (5, 100, 2000):
        index.search(world()[:3], neighbours)
    assert fetched == [200, 400, 2800]  # all images of the gallery at most


def test_an_index_that_finds_too_little_says_what_to_do() -> None:
    rng, lines = np.random.default_rng(0), list[str]()
    table = rng.normal(size=(3000, 16)).astype(np.float32)
    index = open_for(table[:200], table[200:], 1, "PQ1x1", lines.append)
    assert index.effort is not None and index.effort.fetch > 1
    assert lines[0].endswith(f"compared exactly), less than {RECALL}: combine.knn.index=exact finds all")


def test_lists_are_never_short() -> None:
    """One cell of 64 holds few identities: those queries are searched exactly."""
    table = world()
    codes = np.arange(len(table)) // 10
    knn = KnnConfig(index="IVF64,Flat", neighbours=60)
    found, scores = nearest_identities(table[:50], table, codes, knn, 250)
    assert (found >= 0).all() and np.isfinite(scores).all()
    assert all(len(set(row)) == 250 for row in found)


def test_a_graph_of_an_approximate_index_has_no_gap() -> None:
    table = world(600)
    nearest = find_neighbours(table, 100, "IVF32,Flat")
    assert (nearest.rows >= 0).all() and not (nearest.rows == np.arange(600)[:, None]).any()


def test_auto_goes_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "gpus", lambda: 0)
    assert index_kind("auto", approximate.EXACT_MOST, 512) == "exact"
    assert index_kind("auto", 1_000_000, 64) == "RR64,IVF1024,RaBitQ"
    assert index_kind("auto", 10_000_000, 512) == "RR512,IVF4096,RaBitQ"
    assert index_kind("HNSW32", 10, 4) == "HNSW32"
    assert index_kind("auto", 10_000_000, 512, approximate.EXACT_QUERIES) == "exact"
    assert index_kind("auto", 1_000_000, 64, approximate.EXACT_QUERIES + 1) == "RR64,IVF1024,RaBitQ"
    monkeypatch.setattr(approximate, "EXACT_MOST", 2000)
    assert open_index(world()).kind == "RR16,IVF64,RaBitQ"
    assert open_index(world(), queries=200).exact


def test_few_queries_are_compared_with_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` builds no index for them; for more than it pays for, it does."""
    monkeypatch.setattr(approximate, "gpus", lambda: 0)
    monkeypatch.setattr(approximate, "EXACT_MOST", 500)
    built: list[str] = []
    plain = approximate._build
    monkeypatch.setattr(approximate, "_build", lambda gallery, kind: built.append(kind) or plain(gallery, kind))
    table = world(600)
    nearest_identities(table[:50], table, np.arange(600) // 10, KnnConfig(neighbours=20), 5)
    find_neighbours(table, 5)
    assert not built
    monkeypatch.setattr(approximate, "EXACT_QUERIES", 40)
    nearest_identities(table[:50], table, np.arange(600) // 10, KnnConfig(neighbours=20), 5)
    find_neighbours(table, 5)
    assert built == ["RR16,IVF32,RaBitQ"] * 2


def test_bad_input_is_one_clear_line() -> None:
    table = world(300)
    threads = faiss.omp_get_max_threads()
    for kind in ("nonsense", "IVF16,PQ5", "IVF9999,Flat"):
        with pytest.raises(WhaleidError, match=f"index '{kind}' of 300 images x 16") as caught:
            open_index(table, kind)
        assert "\n" not in str(caught.value)
    table[7] = np.nan
    with pytest.raises(WhaleidError, match="gallery: row 7"):
        open_index(table, "IVF4,Flat")
    assert faiss.omp_get_max_threads() == threads
