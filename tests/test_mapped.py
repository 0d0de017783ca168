"""Exact search in a gallery that stays in its file: equal to the search in memory, ties and all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.config import KnnConfig
from whaleid.features.files import UnitTable, open_embeddings
from whaleid.retrieval.identities import nearest_identities
from whaleid.retrieval.index import search
from whaleid.retrieval.mapped import MappedGallery, search_mapped


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_blocks_give_what_the_whole_gallery_gives(data: st.DataObject) -> None:
    """Whole numbers are exact in float32, and have many ties, also between blocks."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    width = data.draw(st.integers(1, 4))
    queries = rng.integers(-1, 2, (data.draw(st.integers(1, 20)), width)).astype(np.float32)
    gallery = rng.integers(-1, 2, (data.draw(st.integers(1, 200)), width)).astype(np.float32)
    neighbours, block = data.draw(st.integers(1, 220)), data.draw(st.integers(1, 90))
    for found, expected in zip(
        search_mapped(queries, gallery, neighbours, block), search(queries, gallery, neighbours), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def mapped(tmp_path: Path) -> MappedGallery:
    """Every second of 1,200 images in a file of float16."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(60, 16))
    table = centers[rng.integers(0, 60, 1200)] + 0.4 * rng.normal(size=(1200, 16))
    np.save(tmp_path / "embeddings.npy", table.astype(np.float16))
    images = pd.DataFrame({"image": [f"{number}.jpg" for number in range(1200)]})
    images.to_csv(tmp_path / "rows.csv", index=False)
    return MappedGallery(open_embeddings(tmp_path, images), np.arange(0, 1200, 2))


def test_a_mapped_gallery_is_indexed_like_its_rows(mapped: MappedGallery) -> None:
    whole = mapped.table.rows(mapped.chosen)
    rows = np.array([[3, 599], [0, 3]])
    np.testing.assert_array_equal(mapped[10:20], whole[10:20])
    np.testing.assert_array_equal(mapped[rows], whole[rows])
    np.testing.assert_array_equal(mapped.take(whole[:, 0] > 0)[:], whole[whole[:, 0] > 0])
    assert mapped.shape == whole.shape


@pytest.mark.parametrize("kind", ["exact", "IVF8,Flat", "IVF4,PQ8x4"])
def test_identities_are_those_of_the_gallery_in_memory(mapped: MappedGallery, kind: str) -> None:
    whole, codes = mapped.table.rows(mapped.chosen), np.arange(600) % 70 - 1
    queries = mapped.table.rows(np.arange(1, 1200, 20))
    knn = KnnConfig(index=kind, neighbours=20)
    found, expected = (nearest_identities(queries, gallery, codes, knn, 10) for gallery in (mapped, whole))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


def test_the_recall_of_an_index_is_reported(mapped: MappedGallery) -> None:
    queries, lines = mapped.table.rows(np.arange(1, 1200, 20)), list[str]()
    knn = KnnConfig(index="IVF8,Flat", neighbours=20)
    nearest_identities(queries, mapped, np.zeros(600, np.int64), knn, 1, report=lines.append)
    assert lines == ["index IVF8,Flat: recall@5 of the nearest images 1.000 (8 of 8 cells)"]


def test_blocks_are_the_rows_of_the_gallery_in_the_same_memory(mapped: MappedGallery) -> None:
    whole, memory = mapped[:], None
    for start, block in mapped.blocks(256):
        np.testing.assert_array_equal(block, whole[start : start + 256])
        memory = block.base if memory is None else memory
        assert block.base is memory


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_rows_of_any_type_are_unit_rows(kind: type) -> None:
    """Converted in small parts, each row by its own length."""
    table = (100 * np.random.default_rng(0).normal(size=(9000, 30))).astype(kind)
    lengths = np.linalg.norm(table.astype(np.float64), axis=1)
    chosen = np.random.default_rng(1).permutation(9000)
    rows = UnitTable(table, np.arange(9000), 1 / lengths).rows(chosen)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, (table / lengths[:, None])[chosen], rtol=2e-7)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_read_of_a_file_leaves_this_processs_memory(tmp_path: Path) -> None:
    """Else the search of a large file ends with all of it there."""

    def of_files() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile"))

    np.save(tmp_path / "embeddings.npy", np.ones((16_000, 1024), np.float16))
    images = pd.DataFrame({"image": [f"{number}.jpg" for number in range(16_000)]})
    images.to_csv(tmp_path / "rows.csv", index=False)
    before = of_files()
    gallery = MappedGallery(open_embeddings(tmp_path, images), np.arange(16_000))
    assert of_files() - before < 8 << 20
    gallery[:]
    assert of_files() - before > 24 << 20
    for _ in gallery.blocks(4000):
        pass
    assert of_files() - before < 12 << 20
