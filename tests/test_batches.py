"""The plan of an epoch (properties), the training items, and loaders that agree."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.config import SamplerConfig
from whaleid.config.files import load_experiment
from whaleid.data.augmentation import Augmentation
from whaleid.data.cache import build_cache, open_cache
from whaleid.data.samplers import TrainingItems, epoch_batches, make_loader, training_items
from whaleid.utils.errors import WhaleidError

SHUFFLE = SamplerConfig(name="shuffle", images=4, unknown="drop")
sizes_of_classes = st.lists(st.integers(1, 12), min_size=2, max_size=25)


def balanced(images: int) -> SamplerConfig:
    return SamplerConfig(name="balanced", images=images, unknown="drop")


def labels_of(sizes: list[int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int64)


# ---------------------------------------------------------------------------------------------------- plan


@given(count=st.integers(2, 300), batch=st.integers(2, 64), seed=st.integers(-3, 2**40), epoch=st.integers(0, 50))
@settings(deadline=None)
def test_shuffle_shows_every_item_once(count, batch, seed, epoch):
    plan = epoch_batches(np.zeros(count, dtype=np.int64), SHUFFLE, batch, epoch, seed)
    assert sorted(np.concatenate(plan)) == list(range(count))
    sizes = [len(items) for items in plan]
    assert min(sizes) >= 2 and max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch or (batch == 2 and count % 2 == 1 and max(sizes) == 3)
    assert len(plan) == (-(-count // batch) if batch > 2 else count // 2)


@given(sizes=sizes_of_classes, images=st.integers(1, 5), many=st.integers(2, 8), seed=st.integers(0, 9))
@settings(deadline=None)
def test_balanced_batches(sizes, images, many, seed):
    labels, batch = labels_of(sizes), images * many
    plan = epoch_batches(labels, balanced(images), batch, 3, seed)
    identities = min(many, len(sizes))
    for items in plan:
        counts = Counter(labels[items].tolist())
        assert len(counts) == identities and set(counts.values()) == {images}
    counts_of_items = Counter(np.concatenate(plan).tolist())
    assert set(counts_of_items) == set(range(len(labels)))  # nothing is lost, singletons neither
    groups = [-(-size // images) for size in sizes]
    assert len(plan) == max(-(-sum(groups) // identities), max(groups))


@given(sizes=sizes_of_classes, images=st.integers(2, 5))
@settings(deadline=None)
def test_a_balanced_group_repeats_an_image_only_when_it_must(sizes, images):
    labels = labels_of(sizes)
    for items in epoch_batches(labels, balanced(images), images * 2, 0, 0):
        for label in np.unique(labels[items]):
            counts_of_items = Counter(items[labels[items] == label].tolist())
            assert max(counts_of_items.values()) <= -(-images // sizes[label])


@given(sizes=sizes_of_classes, name=st.sampled_from(["shuffle", "balanced"]))
@settings(deadline=None)
def test_plan_is_a_function_of_seed_and_epoch(sizes, name):
    labels, config = labels_of([*sizes, 9]), SamplerConfig(name=name, images=2, unknown="drop")

    def flat(epoch: int, seed: int) -> list[list[int]]:
        return [items.tolist() for items in epoch_batches(labels, config, 4, epoch, seed)]

    assert flat(1, 7) == flat(1, 7)
    assert flat(1, 7) != flat(2, 7) and flat(1, 7) != flat(1, 8) and flat(1, 2) != flat(2, 1)
    assert len(flat(1, 7)) == len(flat(2, 8))


def test_balanced_batches_are_mixed_anew_each_epoch():
    labels = labels_of([4] * 40)
    met = [
        frozenset(labels[items].tolist())
        for epoch in range(5)
        for items in epoch_batches(labels, balanced(4), 16, epoch, 0)
    ]
    assert len(set(met)) > 45  # of 50 batches


def test_plan_of_one_image_is_refused():
    with pytest.raises(WhaleidError, match="at least 2"):
        epoch_batches(np.zeros(1, dtype=np.int64), SHUFFLE, 4, 0, 0)


# --------------------------------------------------------------------------------------------------- items


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows 0..6: b b a a new_whale new_whale c in train, then two test rows."""
    identity = ["b", "b", "a", "a", "new_whale", "new_whale", "c", None, None]
    images = pd.DataFrame(
        {
            "image": [f"{row}.jpg" for row in range(9)],
            "split": ["train"] * 7 + ["test"] * 2,
            "identity": identity,
        }
    )
    folds = images[:7][["image", "identity"]].assign(fold=[0, 1, 0, 1, 0, 1, 1])
    return images, folds.sample(frac=1, random_state=0)


def experiment(**overrides):
    return load_experiment("default", {key.replace("__", "."): value for key, value in overrides.items()})


def test_items_of_all_images():
    items = training_items(*tables(), None, experiment(), "new_whale")
    assert items.rows.tolist() == [0, 1, 2, 3, 6] and items.classes == ["a", "b", "c"]
    assert items.labels.tolist() == [1, 1, 0, 0, 2] and not items.mirrored.any() and len(items) == 5
    assert items.rows.dtype == items.labels.dtype == np.int64


def test_items_leave_the_fold_out():
    items = training_items(*tables(), 1, experiment(), "new_whale")
    assert items.rows.tolist() == [0, 2] and items.classes == ["a", "b"]


def test_unknown_images_are_identities_of_their_own():
    items = training_items(*tables(), None, experiment(sampler__unknown="own"), "new_whale")
    assert items.classes == ["a", "b", "c", "new_whale|4.jpg", "new_whale|5.jpg"]
    assert items.labels[items.rows == 5].tolist() == [4] and len(items) == 7


def test_new_whale_is_an_identity_like_any_where_nothing_is_unknown():
    assert training_items(*tables(), None, experiment(), None).classes == ["a", "b", "c", "new_whale"]


def test_mirrors_are_classes_of_their_own():
    items = training_items(*tables(), None, experiment(image__mirror_identities=True), "new_whale")
    assert items.classes == ["a", "b", "c", "a|mirror", "b|mirror", "c|mirror"]
    assert items.rows.tolist() == [0, 1, 2, 3, 6] * 2
    assert items.labels.tolist() == [1, 1, 0, 0, 2, 4, 4, 3, 3, 5]
    assert items.mirrored.tolist() == [False] * 5 + [True] * 5


def test_too_few_identities_are_refused():
    images, folds = tables()
    with pytest.raises(WhaleidError, match="at least 2 identities and found 1"):
        training_items(images[:2], folds[:2], None, experiment(), "new_whale")
    with pytest.raises(WhaleidError, match="no fold 7; folds: 0, 1"):
        training_items(images, folds, 7, experiment(), "new_whale")
    with pytest.raises(WhaleidError, match=r"2 labelled images have no fold"):
        training_items(images, folds[~folds["image"].isin(["2.jpg", "3.jpg"])], 0, experiment(), None)


# -------------------------------------------------------------------------------------------------- loader


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    import cv2

    root = tmp_path_factory.mktemp("pictures")
    for row in range(7):
        noise = np.random.default_rng(row).integers(0, 256, (20, 40, 3), dtype=np.uint8)
        cv2.imwrite(str(root / f"{row}.png"), noise)
    names = [f"{row}.png" for row in range(7)]
    images = pd.DataFrame({"path": names, "digest": names, "x0": 0.0, "y0": 0.0, "x1": 40.0, "y1": 20.0})
    build_cache(images, root, root / "cache", (40, 20), experiment().image)
    return open_cache(root / "cache")


def items_of(cache) -> TrainingItems:
    mirrored = np.arange(14) >= 7
    return TrainingItems(np.arange(14) % 7, mirrored, np.arange(14), [str(number) for number in range(14)])


def load(cache, workers: int, start: int = 0, epoch: int = 2, augmentation: bool = True):
    items = items_of(cache)
    plan = epoch_batches(items.labels, SHUFFLE, 4, epoch, 5)
    augment = Augmentation(experiment().augment, (40, 20)) if augmentation else None
    return plan, list(make_loader(items, cache, augment, plan, epoch, 5, workers, start))


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_loader_shows_the_items_of_the_plan(cache):
    plan, batches = load(cache, 0, augmentation=False)
    for chosen, (images, labels) in zip(plan, batches, strict=True):
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert labels.tolist() == chosen.tolist()
        for item, image in zip(chosen, images.numpy(), strict=True):
            stored = cache.read(int(item) % 7)
            assert np.array_equal(image, stored[:, ::-1] if item >= 7 else stored)


def test_loader_does_not_depend_on_workers_nor_on_where_it_starts(cache):
    _, whole = load(cache, 0)
    assert same(whole, load(cache, 1)[1]) and same(whole, load(cache, 2)[1])
    assert same(whole[2:], load(cache, 0, start=2)[1]) and same(whole[2:], load(cache, 2, start=2)[1])
    assert load(cache, 0, start=len(whole))[1] == []


def test_augmentation_differs_between_epochs_and_between_repeats_of_an_image(cache):
    items = items_of(cache)
    augment = Augmentation(experiment().augment, (40, 20))
    plan = [np.array([3, 3, 3])]
    views = [
        image.numpy().tobytes()
        for epoch in range(2)
        for images, _ in make_loader(items, cache, augment, plan, epoch, 0, 0)
        for image in images
    ]
    assert len(set(views)) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_hands_on_errors(cache, workers):
    def broken(image: np.ndarray, seed: int) -> np.ndarray:
        raise ZeroDivisionError("in the augmentation")

    with pytest.raises(ZeroDivisionError, match="in the augmentation"):
        list(make_loader(items_of(cache), cache, broken, [np.arange(3)], 0, 0, workers))


def test_loader_left_early_leaves_no_thread_behind(cache):
    import threading

    items = items_of(cache)
    loader = make_loader(items, cache, None, [np.arange(4)] * 50, 0, 0, 0)
    next(loader)
    loader.close()
    assert not any(thread.name == "batches" for thread in threading.enumerate())
