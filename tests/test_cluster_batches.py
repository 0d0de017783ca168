"""The plan of a divided epoch: one cluster a batch, every item, no batch too large, as long as was said."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.config import SamplerConfig
from whaleid.data.samplers import epoch_batches
from whaleid.divide.sampler import cluster_batches, divided_length


def sampler(name: str, images: int = 4) -> SamplerConfig:
    return SamplerConfig(name=name, images=images, unknown="drop", every=2)  # type: ignore[arg-type]


def case(seed: int, count: int, identities: int, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and a lopsided assignment with at least two items in every cluster."""
    generator = np.random.default_rng(seed)
    labels = np.unique(generator.integers(0, identities, count), return_inverse=True)[1]
    assignment = np.minimum(generator.geometric(0.5, count) - 1, clusters - 1)
    assignment[: 2 * clusters] = np.repeat(np.arange(clusters), 2)
    return labels, assignment


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(20, 200),
    st.integers(2, 60),
    st.integers(2, 8),
    st.sampled_from([("shuffle", 4, 16), ("balanced", 4, 16), ("balanced", 2, 32), ("balanced", 3, 6)]),
)
def test_every_item_in_batches_of_one_cluster(seed: int, count: int, identities: int, clusters: int, setting):
    name, images, batch = setting
    labels, assignment = case(seed, count, identities, clusters)
    plan = cluster_batches(labels, assignment, clusters, sampler(name, images), batch, 3, seed)
    length, seen = divided_length(labels, sampler(name, images), batch, clusters)
    assert len(plan.batches) == len(plan.parts) == length
    assert set(np.concatenate(plan.batches)) == set(range(count))
    for items, cluster in zip(plan.batches, plan.parts, strict=True):
        assert set(assignment[items]) == {cluster}
        assert 2 <= len(items) <= batch
    # as many images as without clusters; only batches that would stand empty or alone take a few more
    assert sum(plan.sizes) <= max(seen, count) + 2 * length
    again = cluster_batches(labels, assignment, clusters, sampler(name, images), batch, 3, seed)
    assert all(np.array_equal(one, other) for one, other in zip(plan.batches, again.batches, strict=True))


def test_a_divided_epoch_has_the_images_of_a_plain_one():
    labels = np.repeat(np.arange(60), 8)
    assignment = np.arange(480) % 4
    whole = epoch_batches(labels, sampler("balanced"), 32, 0, 0)
    plan = cluster_batches(labels, assignment, 4, sampler("balanced"), 32, 0, 0)
    assert sum(plan.sizes) == sum(len(items) for items in whole) == 480


def test_lone_images_appear_in_every_epoch_and_as_pairs_where_there_is_room():
    labels = np.concatenate([np.repeat(np.arange(10), 6), np.arange(10, 40)])  # 30 identities of one image
    assignment = np.arange(90) % 3
    for epoch in range(5):
        plan = cluster_batches(labels, assignment, 3, sampler("balanced"), 24, epoch, 0)
        times = Counter(np.concatenate(plan.batches).tolist())
        assert all(times[item] >= 2 for item in range(60, 90))


def test_groups_of_an_identity_are_whole_and_apart():
    labels = np.repeat(np.arange(30), 4)
    assignment = np.zeros(120, dtype=np.int64)
    assignment[labels >= 15] = 1
    plan = cluster_batches(labels, assignment, 2, sampler("balanced"), 24, 0, 0)
    for items in plan.batches:
        assert set(Counter(labels[items].tolist()).values()) == {4}


def test_epochs_differ_and_clusters_take_turns():
    labels, assignment = np.repeat(np.arange(50), 4), np.arange(200) % 2
    first, second = (cluster_batches(labels, assignment, 2, sampler("shuffle"), 10, epoch, 0) for epoch in (0, 1))
    assert not np.array_equal(first.batches[0], second.batches[0])
    changes = sum(one != other for one, other in zip(first.parts, first.parts[1:], strict=False))
    assert changes >= 4  # not one cluster after the other
