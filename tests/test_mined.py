"""Hard neighbours against loops, and what holds of every mined epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from whaleid.config import SamplerConfig
from whaleid.config.files import load_experiment
from whaleid.data import mined_samplers as mined
from whaleid.data.mined_samplers import hard_groups, hard_neighbours, mined_batches
from whaleid.data.samplers import epoch_batches
from whaleid.utils.errors import WhaleidError

sizes_of_classes = st.lists(st.integers(1, 12), min_size=2, max_size=25)


def labels_of(sizes: list[int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int64)


def unit(table: np.ndarray) -> np.ndarray:
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


def random_rows(count: int, dims: int = 6, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, dims)))


def corners(count: int, seed: int = 0) -> np.ndarray:
    """Unit rows of +-1/2 in four dimensions: only five similarities, all exact, so that ties are everywhere."""
    return np.random.default_rng(seed).choice([-0.5, 0.5], size=(count, 4)).astype(np.float32)


def naive(embeddings: np.ndarray, labels: np.ndarray, negatives: int, positives: int) -> tuple[list, list]:
    """Both tables by a loop over items, ties by row."""
    similarity = embeddings.astype(np.float64) @ embeddings.astype(np.float64).T
    near, far = [], []
    for item, label in enumerate(labels):
        rows = range(len(labels))
        others = sorted((row for row in rows if labels[row] != label), key=lambda row: (-similarity[item, row], row))
        own = sorted(
            (row for row in rows if labels[row] == label and row != item), key=lambda row: (similarity[item, row], row)
        )
        near.append((others + [-1] * negatives)[:negatives])
        far.append((own + [-1] * positives)[:positives])
    return near, far


# -------------------------------------------------------------------------------------------------- neighbours


@given(
    sizes=sizes_of_classes,
    negatives=st.integers(0, 20),
    positives=st.integers(0, 5),
    tied=st.booleans(),
    cells=st.sampled_from([1, 50, mined._CELLS]),
)
@settings(max_examples=60, deadline=None)
def test_neighbours_equal_a_loop(sizes, negatives, positives, tied, cells):
    labels = labels_of(sizes)
    embeddings = corners(len(labels)) if tied else random_rows(len(labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mined, "_CELLS", cells)
        near, far = hard_neighbours(embeddings, labels, negatives, positives)
    expected_near, expected_far = naive(embeddings, labels, negatives, positives)
    assert near.dtype == far.dtype == np.int64
    assert near.shape == (len(labels), negatives) and far.shape == (len(labels), positives)
    assert near.tolist() == expected_near and far.tolist() == expected_far


def test_an_item_in_the_midst_of_a_large_class_is_searched_wider():
    """Three hundred items of its own are nearer than any other; and all items at one place are one large tie."""
    rng = np.random.default_rng(0)
    crowd = unit(np.array([1.0, 0, 0, 0]) + 0.01 * rng.normal(size=(300, 4)))
    labels = np.repeat([0, 1], [300, 40])
    embeddings = np.concatenate([crowd, random_rows(40, 4)])
    near, far = hard_neighbours(embeddings, labels, 3, 2)
    assert (near.tolist(), far.tolist()) == naive(embeddings, labels, 3, 2)
    collapsed = np.tile(np.array([[0.5, 0.5, 0.5, 0.5]], dtype=np.float32), (100, 1))
    near, _ = hard_neighbours(collapsed, np.arange(100) // 2, 3, 1)
    assert near[0].tolist() == [2, 3, 4] and near[99].tolist() == [0, 1, 2]


def test_tables_that_do_not_fit_and_broken_embeddings():
    with pytest.raises(WhaleidError, match=r"\(4, 6\) and labels \(3,\)"):
        hard_neighbours(random_rows(4), np.zeros(3, dtype=np.int64), 1, 1)
    broken = random_rows(4)
    broken[2, 1] = np.nan
    with pytest.raises(WhaleidError, match="NaN"):
        hard_neighbours(broken, np.arange(4), 1, 1)


# -------------------------------------------------------------------------------------------------------- plan


def plan_of(labels: np.ndarray, batch: int, images: int, epoch: int = 3, seed: int = 0, mining: int = 0):
    neighbours = hard_neighbours(random_rows(len(labels), seed=mining), labels, 6, 2)
    return mined_batches(labels, *neighbours, batch, images, epoch, seed)


@given(sizes=sizes_of_classes, images=st.integers(1, 5), many=st.integers(2, 8), seed=st.integers(-2, 9))
@settings(max_examples=80, deadline=None)
def test_mined_batches_are_of_the_balanced_form(sizes, images, many, seed):
    labels, batch = labels_of(sizes), images * many
    plan = plan_of(labels, batch, images, seed=seed)
    balanced = epoch_batches(
        labels, SamplerConfig(name="balanced", images=images, unknown="drop", every=1), batch, 3, seed
    )
    assert [len(items) for items in plan] == [len(items) for items in balanced]
    for items in plan:
        counts = Counter(labels[items].tolist())
        assert len(counts) == min(many, len(sizes)) and set(counts.values()) == {images}
        for label in counts:
            counts_of_items = Counter(items[labels[items] == label].tolist())
            assert max(counts_of_items.values()) <= -(-images // sizes[label])  # repeated only where it must be
    assert set(np.concatenate(plan).tolist()) == set(range(len(labels)))
    assert all(items.dtype == np.int64 for items in plan)


@given(sizes=sizes_of_classes, mining=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_plan_is_a_function_of_neighbours_seed_and_epoch(sizes, mining):
    labels = labels_of([*sizes, 9])

    def flat(epoch: int, seed: int, mining: int = mining) -> list[list[int]]:
        return [items.tolist() for items in plan_of(labels, 4, 2, epoch, seed, mining)]

    assert flat(1, 7) == flat(1, 7)
    assert flat(1, 7) != flat(2, 7) and flat(1, 7) != flat(1, 8)
    assert len(flat(1, 7)) == len(flat(5, 8, mining + 1))


def together(plan: list[np.ndarray], labels: np.ndarray, near: np.ndarray) -> float:
    """Share of the places in batches where an item meets the identity of its hardest negative."""
    return float(np.mean([np.isin(labels[near[items, 0]], labels[items]).mean() for items in plan]))


def test_hard_negatives_sit_together():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(120), rng.integers(1, 9, 120))
    centers = rng.normal(size=(30, 16))  # four identities around each
    embeddings = unit(centers[labels // 4] + 0.3 * rng.normal(size=(120, 16))[labels])
    near, far = hard_neighbours(embeddings, labels, 8, 2)
    hard = [together(mined_batches(labels, near, far, 32, 4, epoch, 0), labels, near) for epoch in range(3)]
    sampler = SamplerConfig(name="balanced", images=4, unknown="drop", every=1)
    chance = [together(epoch_batches(labels, sampler, 32, epoch, 0), labels, near) for epoch in range(3)]
    assert min(hard) > 4 * max(chance) and min(hard) > 0.5


def test_a_batch_grows_from_its_items_hardest_negatives():
    """Identities in pairs, each other's only hard negatives: with P = 2 every pair is a batch."""
    labels = np.repeat(np.arange(20), 4)
    partner = np.where(labels % 2 == 0, np.arange(80) + 4, np.arange(80) - 4)[:, None]
    plan = mined_batches(labels, partner, np.full((80, 2), -1), 8, 4, 0, 0)
    assert len(plan) == 10
    assert all(len(set((labels[items] // 2).tolist())) == 1 for items in plan)


def test_the_group_of_the_hard_item_comes():
    """Item 7 of identity 1 looks like identity 0. When 1 joins 0 it comes with that group more often than by chance."""
    labels = np.repeat([0, 1, 2], [2, 8, 8])
    near = np.full((18, 1), -1)
    near[:2] = 7
    met = []
    for seed in range(200):
        plan = mined_batches(labels, near, np.full((18, 1), -1), 4, 2, 0, seed)
        met += [7 in items for items in plan if {0, 1} <= set(labels[items].tolist())]
    assert np.mean(met) > 0.4  # one of four groups by chance


def test_hard_pairs_stand_in_one_group():
    items = np.arange(10, 18)
    far_own = [[] for _ in range(10)] + [[17 - (item - 10)] for item in items.tolist()]  # 10 with 17, 11 with 16, ...
    for seed in range(10):
        groups = hard_groups(items, far_own, 2, np.random.default_rng(seed))
        assert sorted(tuple(sorted(group)) for group in groups) == [(10, 17), (11, 16), (12, 15), (13, 14)]


def test_an_incomplete_group_is_filled_with_hard_items_that_stand_elsewhere():
    far_own = [[3], [3], [3], [0]]
    for seed in range(20):
        groups = hard_groups(np.arange(4), far_own, 3, np.random.default_rng(seed))
        assert len(groups) == 2 and {len(set(group)) for group in groups} == {3}
        assert all({0, 3} & set(group) for group in groups)
    assert [sorted(group) for group in hard_groups(np.arange(2), [[1], [0]], 5, np.random.default_rng(0))] in (
        [[0, 0, 0, 1, 1]],
        [[0, 0, 1, 1, 1]],
    )


def test_without_neighbours_it_is_a_plan_all_the_same():
    labels = labels_of([1, 2, 3, 9])
    plan = mined_batches(labels, np.full((15, 2), -1), np.empty((15, 0), dtype=np.int64), 4, 2, 0, 0)
    assert set(np.concatenate(plan).tolist()) == set(range(15))


def test_plan_of_one_image_is_refused():
    with pytest.raises(WhaleidError, match="at least 2"):
        mined_batches(np.zeros(1, dtype=np.int64), np.empty((1, 0)), np.empty((1, 0)), 4, 2, 0, 0)


# ---------------------------------------------------------------------------------------------------- settings


def test_settings():
    experiment = load_experiment("default", {"sampler.name": "mined", "train.batch": 32})
    assert experiment.sampler.every == 2
    with pytest.raises(WhaleidError, match=r"must be a multiple of sampler\.images"):
        load_experiment("default", {"sampler.name": "mined", "train.batch": 30})
    with pytest.raises(ValidationError, match="every"):
        SamplerConfig(name="mined", images=4, unknown="drop", every=0)
