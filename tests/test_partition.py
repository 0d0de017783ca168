"""Clustering: K-means as faiss does it, matching the right way round, repair, and the lines for what cannot be."""

from __future__ import annotations

from itertools import permutations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from whaleid.divide.clustering import cluster_counts, match, recluster, repair, share_of_pairs_together, split
from whaleid.training.kmeans import kmeans_partition
from whaleid.utils.errors import WhaleidError


def blobs(clusters: int, each: int, dim: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around well separated directions, and which direction."""
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(generator.normal(size=(dim, dim)))[0][:clusters]
    truth = np.repeat(np.arange(clusters), each)
    rows = directions[truth] + generator.normal(0, 0.05, (len(truth), dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), truth


# ---------------------------------------------------------------------------------------------------- K-means


def test_kmeans_finds_planted_clusters_and_its_centres_are_the_means():
    rows, truth = blobs(6, 30)
    assignment, centres = kmeans_partition(rows, 6, seed=3)
    assert adjusted_rand_score(truth, assignment) == 1.0
    for cluster in range(6):
        np.testing.assert_allclose(centres[cluster], rows[assignment == cluster].mean(axis=0), atol=1e-5)


def test_kmeans_is_that_of_faiss_and_the_same_for_the_same_seed():
    rows = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    assignment, centres = kmeans_partition(rows, 7, seed=5)
    theirs = faiss.Kmeans(8, 7, niter=20, seed=5, min_points_per_centroid=1, max_points_per_centroid=4096)
    theirs.train(rows)
    assert theirs.index is not None
    np.testing.assert_array_equal(centres, theirs.centroids)
    np.testing.assert_array_equal(assignment, theirs.index.search(rows, 1)[1][:, 0])
    np.testing.assert_array_equal(assignment, kmeans_partition(rows, 7, seed=5)[0])
    assert not np.array_equal(assignment, kmeans_partition(rows, 7, seed=6)[0])


def test_every_cluster_is_cut_into_as_many_parts():
    rows, truth = blobs(8, 20)
    halves = truth // 4  # two clusters of four directions each
    cut = split(rows, halves, 2, 2, seed=0)
    np.testing.assert_array_equal(cut // 2, halves)
    again = split(rows, cut, 4, 2, seed=0)
    np.testing.assert_array_equal(again // 2, cut)
    assert set(again) == set(range(8))
    at_once = split(rows, halves, 2, 4, seed=0)
    np.testing.assert_array_equal(at_once // 4, halves)
    assert set(at_once) == set(range(8))


def test_reclustering_keeps_a_partition_that_fits_and_corrects_one_that_drifted():
    rows, truth = blobs(5, 20)
    np.testing.assert_array_equal(recluster(rows, truth, 5, 0), truth)
    astray = truth.copy()
    astray[::20] = (astray[::20] + 1) % 5  # one image of each cluster
    np.testing.assert_array_equal(recluster(rows, astray, 5, 0), truth)


# --------------------------------------------------------------------------------------------------- matching


@settings(max_examples=200)
@given(st.integers(1, 32), st.integers(0, 2**31))
def test_a_renamed_partition_leaves_every_learner_where_it_was(clusters: int, seed: int):
    generator = np.random.default_rng(seed)
    old = np.concatenate([np.arange(clusters), generator.integers(0, clusters, 200)])  # none is empty
    renamed = generator.permutation(clusters)[old]
    np.testing.assert_array_equal(match(old, renamed, clusters), old)


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(0, 2**31))
def test_matching_keeps_as_many_images_as_any_renaming_can(clusters: int, seed: int):
    generator = np.random.default_rng(seed)
    old, new = generator.integers(0, clusters, (2, 40))
    kept = (match(old, new, clusters) == old).sum()
    assert kept == max((np.array(names)[new] == old).sum() for names in permutations(range(clusters)))


# ----------------------------------------------------------------------------------------------------- repair


@settings(max_examples=100)
@given(st.integers(2, 6), st.integers(0, 2**31))
def test_repair_leaves_no_cluster_too_small_or_of_one_identity(clusters: int, seed: int):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(60, 4)).astype(np.float32)
    labels = generator.integers(0, 20, 60)
    lopsided = np.minimum(generator.geometric(0.6, 60) - 1, clusters - 1)
    repaired, moved = repair(rows, lopsided, labels, clusters, 5)
    assert moved == (repaired != lopsided).sum()
    for cluster in range(clusters):
        assert (repaired == cluster).sum() >= 5
        assert len(set(labels[repaired == cluster])) >= 2


def test_repair_takes_the_nearest_and_leaves_a_sound_partition_alone():
    rows = np.array([[0.0], [0.1], [0.2], [5.0], [1.0], [0.9]], dtype=np.float32)
    labels = np.array([0, 1, 2, 3, 4, 5])
    partition = np.array([0, 0, 0, 1, 0, 0])  # cluster 1 holds the image at 5 alone
    repaired, moved = repair(rows, partition, labels, 2, 2)
    assert moved == 1
    np.testing.assert_array_equal(repaired, [0, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(repair(rows, repaired, labels, 2, 2)[0], repaired)


def test_facts_count_images_identities_and_lone_images():
    counts = cluster_counts(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 0, 2]), 2)
    assert [tuple(cluster.values()) for cluster in counts] == [(3, 2, 1), (2, 2, 2)]
    assert list(counts[0]) == ["images", "identities", "single"]


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_pairs_together_counts_pairs_as_a_loop_does(seed: int, clusters: int):
    generator = np.random.default_rng(seed)
    labels, assignment = generator.integers(0, 6, 15), generator.integers(0, clusters, 15)
    pairs = [(i, j) for i in range(15) for j in range(i) if labels[i] == labels[j]]
    inside = [pair for pair in pairs if assignment[pair[0]] == assignment[pair[1]]]
    assert share_of_pairs_together(assignment, labels) == (len(inside) / len(pairs) if pairs else 1.0)


# -------------------------------------------------------------------------------------------------- bad input


def test_features_that_are_not_finite_are_named():
    rows, _ = blobs(2, 5)
    rows[7, 3] = np.nan
    with pytest.raises(WhaleidError, match="row 7 of 10 holds NaN or infinity"):
        kmeans_partition(rows, 2, 0)


def test_more_clusters_than_images_and_a_cluster_of_one_identity_are_refused():
    rows, _ = blobs(2, 3)
    with pytest.raises(WhaleidError, match=r"head.clusters=7, but there are only 6 images"):
        kmeans_partition(rows, 7, 0)
    with pytest.raises(WhaleidError, match="cluster 0 of 2 is left with one identity"):
        repair(rows, np.array([0, 0, 0, 1, 1, 1]), np.zeros(6, dtype=np.int64), 2, 2)
    with pytest.raises(WhaleidError, match=r"left with 3 of 6, and needs 4"):
        repair(rows, np.array([0, 0, 0, 1, 1, 1]), np.arange(6), 2, 4)
