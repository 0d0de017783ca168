"""Training items, the batches of an epoch, and the loader that prepares them.

The batches are a pure function of labels, settings, seed and epoch, and an image's augmentation is one of seed, epoch
and position. So training can be resumed at any batch, with any number of workers.
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
from whaleid.data.cache import Inputs
from whaleid.utils.errors import WhaleidError

MIRROR = "|mirror"
AHEAD = 2  # batches prepared in advance
_PLAN, _AUGMENT = range(2)  # independent streams of random numbers from one seed

Batch = tuple[torch.Tensor, torch.Tensor]
"""images uint8 (b, h, w, 3), labels int64 (b,)"""


@dataclass(frozen=True)
class EpochPlan:
    """Batches of one epoch, in order.

    Attributes
    ----------
    batches : list of int64 arrays
        Indices into the training items.
    parts : list of int
        Learner of a divided head that each batch trains; 0 for every other head.
    """

    batches: list[np.ndarray]
    parts: list[int]

    @property
    def sizes(self) -> list[int]:
        """Images in each batch."""
        return [len(batch) for batch in self.batches]


# --------------------------------------------------------------------------------------------------------- items


@dataclass(frozen=True)
class TrainingItems:
    """The n images of one run, of c classes. A mirrored image is an item of its own.

    Attributes
    ----------
    rows : int64 array, shape (n,)
        Row of images.parquet.
    mirrored : bool array, shape (n,)
        Whether the image is flipped left to right.
    labels : int64 array, shape (n,)
        Position in `classes`.
    classes : list of str, length c
        Sorted; with mirrored identities, c / 2 names followed by the same with `|mirror`.
    """

    rows: np.ndarray
    mirrored: np.ndarray
    labels: np.ndarray
    classes: list[str]

    def __len__(self) -> int:
        return len(self.rows)


def training_items(
    images: DataFrame, folds: DataFrame, fold: int | None, experiment: Experiment, unknown: str | None
) -> TrainingItems:
    """Training items of one run.

    Parameters
    ----------
    images, folds : DataFrame
        images.parquet and folds.csv.
    fold : int or None
        The run's fold, whose images are left out; None: train on all labelled images.
    experiment : Experiment
        `sampler.unknown`: whether unknown images are left out or each is a class `<unknown>|<image>`.
    unknown : str or None
        The competition's unknown label.
    """
    rows = _training_rows(images, folds, fold)
    names = images["identity"].to_numpy(dtype=object)[rows].astype(str)
    if unknown is not None:
        is_unknown = names == unknown
        if experiment.sampler.unknown == "drop":
            rows, names = rows[~is_unknown], names[~is_unknown]
        else:
            image = images["image"].to_numpy(dtype=object)[rows].astype(str)
            names = np.where(is_unknown, np.char.add(f"{unknown}|", image), names)
    classes, labels = np.unique(names, return_inverse=True)
    if len(classes) < 2:
        where = "" if fold is None else f" outside of fold {fold}"
        raise WhaleidError(
            f"experiment {experiment.name}: training needs images of at least 2 identities and found "
            f"{len(classes)}{where}; add labelled images, or use fewer folds"
        )
    items = TrainingItems(rows, np.zeros(len(rows), dtype=bool), labels.astype(np.int64), classes.tolist())
    return _with_mirrors(items, experiment.name) if experiment.image.mirror_identities else items


def _training_rows(images: DataFrame, folds: DataFrame, fold: int | None) -> np.ndarray:
    labelled = np.flatnonzero((images["split"] == "train").to_numpy() & images["identity"].notna().to_numpy())
    if fold is None:
        return labelled.astype(np.int64)
    fold_of = images["image"].iloc[labelled].map(folds.set_index("image")["fold"])
    missing = images["image"].iloc[labelled][fold_of.isna().to_numpy()]
    if len(missing):
        raise WhaleidError(
            f"folds.csv: {len(missing)} labelled images have no fold, the first is {missing.iloc[0]}; "
            "remove the file and run again"
        )
    if not (fold_of == fold).any():
        known = ", ".join(str(int(number)) for number in sorted(fold_of.unique()))
        raise WhaleidError(f"folds.csv: there is no fold {fold}; folds: {known}")
    return labelled[(fold_of != fold).to_numpy()].astype(np.int64)


def _with_mirrors(items: TrainingItems, experiment: str) -> TrainingItems:
    """The items, followed by their mirror images as classes of their own."""
    taken = sorted({name + MIRROR for name in items.classes} & set(items.classes))
    if taken:
        raise WhaleidError(
            f"experiment {experiment}: identity '{taken[0]}' has the name that image.mirror_identities gives to the "
            f"mirrored '{taken[0].removesuffix(MIRROR)}'; rename it by rename_values in the competition's YAML"
        )
    return TrainingItems(
        rows=np.concatenate([items.rows, items.rows]),
        mirrored=np.concatenate([items.mirrored, ~items.mirrored]),
        labels=np.concatenate([items.labels, items.labels + len(items.classes)]),
        classes=items.classes + [name + MIRROR for name in items.classes],
    )


# ------------------------------------------------------------------------------------------------------- batches


def epoch_batches(labels: np.ndarray, config: SamplerConfig, batch: int, epoch: int, seed: int) -> list[np.ndarray]:
    """Batches of one epoch.

    Parameters
    ----------
    labels : int64 array, shape (n,)
    config : SamplerConfig
        name shuffle: every item once, in batches whose sizes differ by at most 1; no batch has a single item, which
        batch normalisation cannot take (an odd number of items in batches of 2 has a batch of 3).
        name balanced: P = batch // K identities with K = `images` images each, every item at least once.
    batch : int
        Images in a batch.
    epoch, seed : int

    Returns
    -------
    list of int64 arrays
        Indices into the items. Their number depends neither on epoch nor on seed.
    """
    require_batches(labels, batch)
    generator = _generator(seed, epoch, _PLAN)
    if config.name == "shuffle":
        batches = min(-(-len(labels) // batch), len(labels) // 2)
        return np.array_split(generator.permutation(len(labels)), batches)
    return _balanced(labels, batch, config.images, generator)


def require_batches(labels: np.ndarray, batch: int) -> None:
    """Raise WhaleidError where there are too few images for a batch."""
    if len(labels) < 2 or batch < 2:
        raise WhaleidError(f"batches of {batch} from {len(labels)} training images: at least 2 of each are needed")


def _balanced(labels: np.ndarray, batch: int, size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Batches of P = batch // K distinct identities with K = `size` images each; every item at least once.

    An identity's images are split into groups of K. Its last group is filled with images of its other groups; an
    identity with fewer than K images repeats them (two augmented views are a valid positive pair). The groups of all
    identities are handed to the batches in turn: no identity has more groups than there are batches, so it is in no
    batch twice. Free places go to random identities. With fewer than P identities a batch holds them all, and is
    smaller.
    """
    members = members_of(labels)
    per_batch = min(max(1, batch // size), len(members))
    groups_of = [-(-len(items) // size) for items in members]
    batches = max(-(-sum(groups_of) // per_batch), max(groups_of))
    identities: list[list[int]] = [[] for _ in range(batches)]
    groups: list[list[np.ndarray]] = [[] for _ in range(batches)]
    place = 0
    for identity in generator.permutation(len(members)):
        for group in _groups(members[identity], size, generator):
            identities[place % batches].append(int(identity))
            groups[place % batches].append(group)
            place += 1
    for inside, chosen in zip(identities, groups, strict=True):
        free = per_batch - len(inside)
        if free > 0:
            absent = np.setdiff1d(np.arange(len(members)), inside)
            for identity in generator.choice(absent, size=free, replace=False).tolist():
                chosen.append(_groups(members[identity], size, generator)[0])
    order = generator.permutation(batches)
    return [np.concatenate([groups[number][g] for g in generator.permutation(per_batch)]) for number in order]


def members_of(labels: np.ndarray) -> list[np.ndarray]:
    """Items of each class, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _groups(items: np.ndarray, size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Items of one identity, shuffled, in groups of exactly `size`; the last one overlaps or repeats."""
    shuffled = generator.permutation(items)
    if len(items) <= size:
        return [np.resize(shuffled, size)]
    starts = [*range(0, len(items) - size, size), len(items) - size]
    return [shuffled[start : start + size] for start in starts]


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed % 2**64, epoch, stream])


# -------------------------------------------------------------------------------------------------------- loader


class _Batches(Dataset[Batch]):
    """Batch number -> its images and labels; the same in any process."""

    def __init__(
        self,
        items: TrainingItems,
        cache: Inputs,
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
            image = cv2.flip(images[place], 1) if self._items.mirrored[item] else images[place]
            images[place] = image if self._augmentation is None else self._augmentation(image, int(seeds[place]))
        return torch.from_numpy(images), torch.from_numpy(self._items.labels[chosen])


def make_loader(
    items: TrainingItems,
    cache: Inputs,
    augmentation: Callable[[np.ndarray, int], np.ndarray] | None,
    plan: list[np.ndarray],
    epoch: int,
    seed: int,
    workers: int,
    start: int = 0,
) -> Iterator[Batch]:
    """Batches of an epoch as tensors, prepared a little in advance.

    Parameters
    ----------
    items : TrainingItems
    cache : Inputs
    augmentation : callable, optional
        (image uint8 (h, w, 3), seed) -> image.
    plan : list of int64 arrays
        Items of each batch.
    epoch, seed : int
        Of the augmentation.
    workers : int
        Processes that prepare batches; 0: a thread of this process. The batches are the same.
    start : int
        First batch; the others are the same as with 0.

    Yields
    ------
    Batch
        An error in a worker is raised here.
    """
    batches = _Batches(items, cache, augmentation, plan, epoch, seed)
    numbers = range(start, len(plan))
    if workers == 0:
        return _in_advance(batches, numbers)
    loader = DataLoader(batches, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=AHEAD)
    return iter(loader)


def _in_advance(batches: _Batches, numbers: range) -> Iterator[Batch]:
    """The batches of `numbers`, prepared by a thread while the caller trains on the previous one."""
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
    finally:  # also when the caller leaves early: the thread must stop using the augmentation
        stopped.set()
        while thread.is_alive():
            try:
                ready.get(timeout=0.05)
            except queue.Empty:
                continue
        thread.join()
