"""What training sees: its items, the plan of an epoch's batches, and the loader that carries the plan out.

A plan is a pure function of labels, settings, seed and epoch, and an image's augmentation is a function of
seed, epoch and place in the plan. So any epoch can be taken up at any batch, with any number of workers.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from pandas import DataFrame
from torch.utils.data import DataLoader, Dataset

from whaleid.config import Experiment, SamplerConfig
from whaleid.data.cache import ImageCache
from whaleid.utils.errors import WhaleidError

MIRROR = "|mirror"
AHEAD = 2  # batches prepared ahead of the one in training
_PLAN, _AUGMENT = range(2)  # independent streams of random numbers that come from one seed

Batch = tuple[torch.Tensor, torch.Tensor]
"""images uint8 (b, h, w, 3), labels int64 (b,)"""


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch trains on, in order."""

    batches: list[np.ndarray]
    """int64 indices into the training items, for each batch."""
    parts: list[int]
    """Which learner of a divided head each batch belongs to; 0 for every other head."""

    @property
    def sizes(self) -> list[int]:
        """Images in each batch."""
        return [len(batch) for batch in self.batches]


# --------------------------------------------------------------------------------------------------- items


@dataclass(frozen=True)
class TrainingItems:
    """The images of one run: n items of c classes. A mirrored image is an item of its own."""

    rows: np.ndarray  # int64 (n,), row of images.parquet
    mirrored: np.ndarray  # bool (n,), shown left-right reversed
    labels: np.ndarray  # int64 (n,), 0..c-1, place in `classes`
    classes: list[str]  # sorted; with mirrors: c/2 names, then the same with `|mirror`

    def __len__(self) -> int:
        return len(self.rows)


def training_items(
    images: DataFrame, folds: DataFrame, fold: int | None, experiment: Experiment, unknown: str | None
) -> TrainingItems:
    """Items of the run of `fold`: the labelled images of the other folds; of all of them where fold is None.

    images, folds: images.parquet and folds.csv. unknown: the competition's unknown label; its images are left
    out, or each becomes a class `<unknown>|<image>`, as experiment.sampler.unknown says.
    """
    rows = _training_rows(images, folds, fold)
    names = images["identity"].to_numpy(dtype=object)[rows].astype(str)
    if unknown is not None:
        foreign = names == unknown
        if experiment.sampler.unknown == "drop":
            rows, names = rows[~foreign], names[~foreign]
        else:
            image = images["image"].to_numpy(dtype=object)[rows].astype(str)
            names = np.where(foreign, np.char.add(f"{unknown}|", image), names)
    classes, labels = np.unique(names, return_inverse=True)
    if len(classes) < 2:
        where = "" if fold is None else f" outside of fold {fold}"
        raise WhaleidError(
            f"experiment {experiment.name}: training needs images of at least 2 identities and found "
            f"{len(classes)}{where}; add labelled images, or take fewer folds"
        )
    items = TrainingItems(rows, np.zeros(len(rows), dtype=bool), labels.astype(np.int64), classes.tolist())
    return _with_mirrors(items) if experiment.image.mirror_identities else items


def _training_rows(images: DataFrame, folds: DataFrame, fold: int | None) -> np.ndarray:
    labelled = np.flatnonzero((images["split"] == "train").to_numpy() & images["identity"].notna().to_numpy())
    if fold is None:
        return labelled.astype(np.int64)
    fold_of = images["image"].iloc[labelled].map(folds.set_index("image")["fold"])
    missing = images["image"].iloc[labelled][fold_of.isna().to_numpy()]
    if len(missing):
        raise WhaleidError(
            f"folds.csv: {len(missing)} labelled images have no fold, the first is "
            f"{missing.iloc[0]}; make the folds again"
        )
    if not (fold_of == fold).any():
        known = ", ".join(str(int(number)) for number in sorted(fold_of.unique()))
        raise WhaleidError(f"folds.csv: there is no fold {fold}; folds: {known}")
    return labelled[(fold_of != fold).to_numpy()].astype(np.int64)


def _with_mirrors(items: TrainingItems) -> TrainingItems:
    """Every image a second time, reversed, as one of the identity's mirror class c + n_classes."""
    return TrainingItems(
        rows=np.concatenate([items.rows, items.rows]),
        mirrored=np.concatenate([items.mirrored, ~items.mirrored]),
        labels=np.concatenate([items.labels, items.labels + len(items.classes)]),
        classes=items.classes + [name + MIRROR for name in items.classes],
    )


# ---------------------------------------------------------------------------------------------------- plan


def epoch_batches(labels: np.ndarray, config: SamplerConfig, batch: int, epoch: int, seed: int) -> list[np.ndarray]:
    """Plan of one epoch: for each batch, int64 indices into the training items.

    labels: int64 (n,). The number of batches depends on the labels and settings, not on epoch and seed.
    shuffle: every item once, in batches whose sizes differ by at most 1, none above `batch` and none of a
        single item, which batch normalisation cannot take (an odd number in batches of 2 has a batch of 3).
    balanced: see `_balanced`.
    """
    if len(labels) < 2 or batch < 2:
        raise WhaleidError(f"batches of {batch} from {len(labels)} training images: at least 2 of each are needed")
    generator = _generator(seed, epoch, _PLAN)
    if config.name == "shuffle":
        return _shuffled(len(labels), batch, generator)
    return _balanced(labels, batch, config.images, generator)


def _shuffled(count: int, batch: int, generator: np.random.Generator) -> list[np.ndarray]:
    batches = min(-(-count // batch), count // 2)
    return np.array_split(generator.permutation(count), batches)


def _balanced(labels: np.ndarray, batch: int, size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Batches of P = batch / K distinct identities with K = `size` images each; every item at least once.

    An identity's images are dealt into groups of K. Its last group is filled up with images that it already
    has elsewhere; an identity with fewer than K images repeats them (two augmented views are a fair positive
    pair). All groups, identity by identity, are dealt round the batches like cards: no identity has more
    groups than there are batches, so it meets no batch twice. Places left over go to identities at random.
    With fewer than P identities a batch holds them all, and is smaller.
    """
    members = members_of(labels)
    per_batch = min(max(1, batch // size), len(members))
    groups_of = [-(-len(items) // size) for items in members]
    batches = max(-(-sum(groups_of) // per_batch), max(groups_of))
    dealt: list[list[int]] = [[] for _ in range(batches)]  # identities of each batch
    groups: list[list[np.ndarray]] = [[] for _ in range(batches)]
    place = 0
    for identity in generator.permutation(len(members)):
        for group in _groups(members[identity], size, generator):
            dealt[place % batches].append(int(identity))
            groups[place % batches].append(group)
            place += 1
    for inside, chosen in zip(dealt, groups, strict=True):
        for identity in _others(len(members), inside, per_batch - len(inside), generator):
            chosen.append(_groups(members[identity], size, generator)[0])
    order = generator.permutation(batches)
    return [np.concatenate([groups[number][g] for g in generator.permutation(per_batch)]) for number in order]


def members_of(labels: np.ndarray) -> list[np.ndarray]:
    """Item indices of each class, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _groups(items: np.ndarray, size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """The items of one identity, shuffled, in groups of exactly `size`; the last one overlaps or repeats."""
    shuffled = generator.permutation(items)
    if len(items) <= size:
        return [np.resize(shuffled, size)]
    starts = [*range(0, len(items) - size, size), len(items) - size]
    return [shuffled[start : start + size] for start in starts]


def _others(count: int, inside: list[int], wanted: int, generator: np.random.Generator) -> list[int]:
    """`wanted` identities of 0..count-1 that are not `inside`."""
    if wanted <= 0:
        return []
    free = np.setdiff1d(np.arange(count), inside)
    return generator.choice(free, size=wanted, replace=False).tolist()


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed % 2**64, epoch, stream])


# -------------------------------------------------------------------------------------------------- loader


class _Batches(Dataset[Batch]):
    """Batch number -> its images and labels; the same in any process."""

    def __init__(
        self,
        items: TrainingItems,
        cache: ImageCache,
        augmentation: Callable[[np.ndarray, int], np.ndarray] | None,
        plan: list[np.ndarray],
        epoch: int,
        seed: int,
    ):
        self._items, self._cache, self._augmentation, self._plan = items, cache, augmentation, plan
        self._starts = np.cumsum([0, *(len(batch) for batch in plan)])
        self._seeds = _generator(seed, epoch, _AUGMENT).integers(2**63, size=self._starts[-1])

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, number: int) -> Batch:
        chosen = self._plan[number]
        images = self._cache.read_many(self._items.rows[chosen])
        seeds = self._seeds[self._starts[number] :]
        for place, item in enumerate(chosen):
            images[place] = self._shown(images[place], bool(self._items.mirrored[item]), int(seeds[place]))
        return torch.from_numpy(images), torch.from_numpy(self._items.labels[chosen])

    def _shown(self, image: np.ndarray, mirrored: bool, seed: int) -> np.ndarray:
        if mirrored:
            image = cv2.flip(image, 1)
        return image if self._augmentation is None else self._augmentation(image, seed)


def make_loader(
    items: TrainingItems,
    cache: ImageCache,
    augmentation: Callable[[np.ndarray, int], np.ndarray] | None,
    plan: list[np.ndarray],
    epoch: int,
    seed: int,
    workers: int,
    start: int = 0,
) -> Iterator[Batch]:
    """The batches `plan[start:]` of an epoch as tensors, prepared a little ahead.

    workers: processes that prepare them; 0: a thread of this one. The batches are the same either way, and
    the same from `start` on as without it. An error in a worker is raised here.
    """
    batches = _Batches(items, cache, augmentation, plan, epoch, seed)
    numbers = range(start, len(plan))
    if workers == 0:
        return _ahead(batches, numbers)
    loader = DataLoader(batches, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=AHEAD)
    return iter(loader)


def _ahead(batches: _Batches, numbers: range) -> Iterator[Batch]:
    """The batches of `numbers`, made by one thread while the caller trains on the one before."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
    stopped = threading.Event()

    def produce() -> None:
        try:
            for number in numbers:
                if stopped.is_set():
                    return
                ready.put(batches[number])
            ready.put(None)
        except BaseException as error:  # raised again by the consumer, in its own thread
            ready.put(error)

    thread = threading.Thread(target=produce, name="batches", daemon=True)
    thread.start()
    try:
        while (made := ready.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            yield made
    finally:  # also when the caller leaves early: the thread must not touch the augmentation any more
        stopped.set()
        while thread.is_alive():
            try:
                ready.get(timeout=0.05)
            except queue.Empty:
                continue
        thread.join()
