"""Compressed search of descriptors, its centres, and tables of neighbours on disk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.config import LocalConfig
from whaleid.local_matching import compressed, votes
from whaleid.local_matching.compressed import CompressedIndex, compressed_index
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.kmeans import integer_kmeans, kmeans_tree
from whaleid.local_matching.votes import build_index, local_candidates, nearest_descriptors

LENGTH = 128
QUERIES, GALLERY = np.arange(8), np.arange(79, 7, -1)  # not in the order of the file


@pytest.fixture
def described() -> Described:
    """Descriptors of 80 images, one of them without any; each query's are noisy copies of some in the gallery."""
    rng = np.random.default_rng(3)
    counts = np.where(np.arange(80) == 50, 0, 20)
    vectors = np.minimum(rng.gamma(0.6, 60, (counts.sum(), LENGTH)), 240)
    seen = 20 * len(QUERIES)
    vectors[:seen] = vectors[rng.permutation(np.arange(seen, len(vectors)))[:seen]] + rng.uniform(0, 15, (seen, LENGTH))
    return Described(vectors.astype(np.uint8), np.cumsum([0, *counts], dtype=np.int64))


def exact(described: Described, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and rows of the nearest, ties by row, by a loop."""
    rows = np.sort(described.places(GALLERY))
    whole = described.vectors[rows].astype(int)
    distances = np.array([((whole - query) ** 2).sum(axis=1) for query in described.take(QUERIES)[0].astype(int)])
    best = np.argsort(distances, axis=1, kind="stable")[:, :neighbours]
    return np.take_along_axis(distances, best, axis=1), rows[best]


def test_all_compared_is_exact(described, monkeypatch):
    """With all lists looked into and all codes compared again, nothing is missed."""
    for name in ("PROBES", "BRANCHES", "COMPARED"):
        monkeypatch.setattr(compressed, name, 10_000)
    distance, rows = compressed_index(described, GALLERY).search(described.take(QUERIES)[0], 5)
    expected, expected_rows = exact(described, 5)
    np.testing.assert_array_equal(distance, expected)
    np.testing.assert_array_equal(rows, expected_rows)


def test_distances_are_exact_and_most_neighbours_are_found(described):
    index = compressed_index(described, GALLERY)
    vectors, _ = described.take(QUERIES)
    distance, rows = index.search(vectors, 12)
    true = ((described.vectors[rows].astype(int) - vectors[:, None].astype(int)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(distance, true)
    assert (np.diff(distance, axis=1) >= 0).all()
    assert np.isin(rows, described.places(GALLERY)).all()
    assert (rows[:, 0] == exact(described, 1)[1][:, 0]).mean() > 0.95


def test_it_repeats_whatever_the_pieces(described, monkeypatch):
    vectors, _ = described.take(QUERIES)
    once = compressed_index(described, GALLERY).search(vectors, 12)
    monkeypatch.setattr(compressed, "_PIECE", 7)
    again = compressed_index(described, GALLERY).search(vectors, 12)
    np.testing.assert_array_equal(once[0], again[0])
    np.testing.assert_array_equal(once[1], again[1])


def test_missing_neighbours_are_padded(described, monkeypatch):
    monkeypatch.setattr(compressed, "PROBES", 1)
    monkeypatch.setattr(compressed, "LISTED", 2)
    distance, rows = compressed_index(described, GALLERY).search(described.take(QUERIES)[0], 12)
    assert (rows == -1).any() and np.array_equal(rows == -1, np.isinf(distance))
    assert (np.diff(np.isinf(distance).astype(int), axis=1) >= 0).all()


def test_queries_change_nothing(described):
    """Other queries, and other images beside the gallery, leave a query's neighbours as they are."""
    other = described.vectors.copy()
    other[described.offsets[4] : described.offsets[8]] = 7
    before = compressed_index(described, GALLERY).search(described.take(QUERIES[:4])[0], 12)
    changed = Described(other, described.offsets)
    after = compressed_index(changed, GALLERY).search(changed.take(QUERIES[:4])[0], 12)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


def test_large_galleries_are_compressed(described, monkeypatch):
    codes = GALLERY % 12
    whole = local_candidates(described, QUERIES, GALLERY, codes, LocalConfig(), 5)
    monkeypatch.setattr(votes, "EXACT", 100)
    assert isinstance(build_index(described, GALLERY), CompressedIndex)
    few = local_candidates(described, QUERIES, GALLERY, codes, LocalConfig(), 5)
    assert (whole[0][:, 0] == few[0][:, 0]).mean() >= 0.8


def test_a_large_table_is_on_disk(described, tmp_path, monkeypatch):
    np.save(tmp_path / "descriptors.npy", described.vectors)
    stored = Described(np.load(tmp_path / "descriptors.npy", mmap_mode="r"), described.offsets)
    in_memory = nearest_descriptors(stored, QUERIES, GALLERY, 4)
    monkeypatch.setattr(votes, "_IN_MEMORY", 100)
    on_disk = nearest_descriptors(stored, QUERIES, GALLERY, 4)
    assert isinstance(on_disk.places, np.memmap) and not isinstance(in_memory.places, np.memmap)
    np.testing.assert_array_equal(in_memory.distance, on_disk.distance)
    np.testing.assert_array_equal(in_memory.places, on_disk.places)
    assert [path.name for path in tmp_path.iterdir()] == ["descriptors.npy"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 9))
def test_integer_kmeans_equals_a_loop(seed, count):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(0, 256, (40, 8)).astype(np.float32)
    centres = vectors[np.random.default_rng(0).choice(40, count, replace=False)].astype(int)
    for _ in range(10):
        groups: list[list[np.ndarray]] = [[] for _ in centres]
        for vector in vectors.astype(int):
            groups[int(np.argmin([((vector - centre) ** 2).sum() for centre in centres]))].append(vector)
        centres = [
            np.rint(np.mean(own, axis=0)) if own else centre for own, centre in zip(groups, centres, strict=True)
        ]
    found = integer_kmeans(vectors, count)
    np.testing.assert_array_equal(found, np.array(centres))
    assert found.dtype == np.float32 and (found == np.rint(found)).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 40))
def test_tree_has_about_as_many_centres_near_the_vectors(seed, count):
    vectors = np.random.default_rng(seed).integers(0, 256, (80, 8)).astype(np.float32)
    branches, centres = kmeans_tree(vectors, count)
    assert len(branches) == max(1, round(count**0.5))
    assert count - len(branches) <= len(centres) <= count + len(branches)
    assert (centres == np.rint(centres)).all() and centres.min() >= 0 and centres.max() <= 255
