"""Hard negatives and positives of all training items, and batches that put them together.

A batch is most useful where its identities are easily confused. Mining within a batch finds the hardest pairs of a
random selection; here the whole training set is searched for each item's most similar items of other identities and
least similar items of its own, and batches are built from those.

References
----------
Smirnov et al., "Doppelganger mining for face representation learning", 2017.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from whaleid.data.samplers import members_of, require_batches
from whaleid.utils.errors import WhaleidError

NONE = -1
"""Row of a neighbour that does not exist."""
_MINED = 3  # stream of random numbers; data/samplers.py has 0 and 1, divide/sampler.py 2
_CELLS = 1 << 23  # similarities held at once: 100 MB with their rows
_QUERIES = 4096  # items searched at once
_SPARE = 8  # neighbours searched beyond those wanted: most items then need one search


# ---------------------------------------------------------------------------------------------------- neighbours


def hard_neighbours(
    embeddings: np.ndarray, labels: np.ndarray, negatives: int, positives: int
) -> tuple[np.ndarray, np.ndarray]:
    """Most similar items of other classes and least similar items of the same class, for each item.

    Parameters
    ----------
    embeddings : float32 array, shape (n, d)
        Unit rows.
    labels : int64 array, shape (n,)
    negatives, positives : int
        Number of neighbours of each kind.

    Returns
    -------
    hard_negatives : int64 array, shape (n, negatives)
        Rows, most similar first.
    hard_positives : int64 array, shape (n, positives)
        Rows, least similar first, without the item itself.
        In both, ties are in the order of rows, and NONE fills up where there are too few.

    Raises
    ------
    WhaleidError
        If the shapes do not match or an embedding holds NaN or infinity.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise WhaleidError(
            f"hard mining: embeddings {embeddings.shape} and labels {labels.shape} do not match; give a label for each"
        )
    if not np.isfinite(embeddings).all():
        raise WhaleidError(
            "hard mining: an embedding holds NaN or infinity; set a lower train.lr, or train.precision=no"
        )
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    return _hard_negatives(rows, labels, negatives), _hard_positives(rows, labels, positives)


def _hard_negatives(embeddings: np.ndarray, labels: np.ndarray, wanted: int) -> np.ndarray:
    """An exact search, repeated twice as wide for the items that are not settled.

    An item is settled once enough items of other classes are more similar than the last neighbour found: beyond that
    one there may be ties with a lower row.
    """
    import faiss  # takes a second

    found = np.full((len(labels), wanted), NONE, dtype=np.int64)
    waiting = np.arange(len(labels))
    width = min(wanted + _SPARE, len(labels))
    while len(waiting):
        unsettled = []
        for part in _chunks(waiting, width):
            near = faiss.knn(embeddings[part], embeddings, width, metric=faiss.METRIC_INNER_PRODUCT)
            similarity, rows = _by_row(*near)
            other = labels[rows] != labels[part][:, None]
            found[part] = _first(rows, other, wanted)
            settled = (other & (similarity > similarity[:, -1:])).sum(axis=1) >= wanted
            unsettled.append(part[~settled])
        if width == len(labels):
            break
        waiting = np.concatenate(unsettled)
        width = min(2 * width, len(labels))
    return found


def _hard_positives(embeddings: np.ndarray, labels: np.ndarray, wanted: int) -> np.ndarray:
    """Least similar items of an item's class, class by class."""
    found = np.full((len(labels), wanted), NONE, dtype=np.int64)
    for members in members_of(labels):
        most = min(wanted, len(members) - 1)
        for part in _chunks(np.arange(len(members)), len(members)):
            similarity = embeddings[members[part]] @ embeddings[members].T
            similarity[np.arange(len(part)), part] = np.inf  # the item itself comes last
            order = np.argsort(similarity, axis=1, kind="stable")[:, :most]
            found[members[part], :most] = members[order]
    return found


def _chunks(items: np.ndarray, width: int) -> list[np.ndarray]:
    """Items in chunks whose tables of `width` columns fit into _CELLS."""
    step = max(1, min(_QUERIES, _CELLS // width))
    return [items[start : start + step] for start in range(0, len(items), step)]


def _by_row(similarity: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours (q, m), most similar first, ties by row."""
    order = np.lexsort((rows, -similarity), axis=-1)
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _first(rows: np.ndarray, chosen: np.ndarray, wanted: int) -> np.ndarray:
    """First `wanted` chosen entries of each row of (q, m), then NONE: (q, wanted)."""
    order = np.argsort(~chosen, axis=1, kind="stable")[:, :wanted]
    values = np.where(np.take_along_axis(chosen, order, axis=1), np.take_along_axis(rows, order, axis=1), NONE)
    return np.pad(values, ((0, 0), (0, wanted - order.shape[1])), constant_values=NONE)


# ------------------------------------------------------------------------------------------------------- batches


def mined_batches(
    labels: np.ndarray,
    hard_negatives: np.ndarray,
    hard_positives: np.ndarray,
    batch: int,
    images: int,
    epoch: int,
    seed: int,
) -> list[np.ndarray]:
    """Batches of P = batch // K distinct identities that look alike, with K images each.

    Each identity's items are split into groups of K, an item with its least similar ones; the last group is filled
    with items of other groups, and an identity with fewer than K items repeats them. A batch begins with a random
    group, then takes the groups of its items' hardest negatives, then of theirs, and so on; once they are used up,
    another random one.

    Parameters
    ----------
    labels : int64 array, shape (n,)
    hard_negatives, hard_positives : int64 arrays, shape (n, a) and (n, b)
        From `hard_neighbours`.
    batch : int
        Images in a batch.
    images : int
        K.
    epoch, seed : int

    Returns
    -------
    list of int64 arrays
        Indices into the items. Every item occurs; number and sizes are those of the balanced batches. The last batches
        built are hardly harder than random ones. With fewer than P identities a batch holds them all, and is smaller.
    """
    require_batches(labels, batch)
    generator = np.random.default_rng([seed % 2**64, epoch, _MINED])
    builder = _Builder(labels, hard_negatives, hard_positives, images, generator)
    per_batch = min(max(1, batch // images), len(builder.members))
    count = max(-(-int(builder.left.sum()) // per_batch), int(builder.left.max()))
    built = [builder.build(count - number, per_batch) for number in range(count)]
    return [built[number] for number in generator.permutation(count)]


Inside = dict[int, list[int]]
"""Identities in a batch -> their group of items."""


class _Builder:
    """Builds the batches of one epoch from groups of items.

    members: items of each identity. unused: its groups that are in no batch yet; left: their number, int64 (c,).
    """

    def __init__(
        self,
        labels: np.ndarray,
        hard_negatives: np.ndarray,
        hard_positives: np.ndarray,
        size: int,
        generator: np.random.Generator,
    ):
        self.members = members_of(labels)
        self._identity = np.unique(labels, return_inverse=True)[1].tolist()
        self._negatives, self._positives = hard_negatives.tolist(), hard_positives.tolist()
        self._size, self._generator = size, generator
        self.unused = [hard_groups(items, self._positives, size, generator) for items in self.members]
        self.left = np.array([len(groups) for groups in self.unused], dtype=np.int64)
        self._line = deque(generator.permutation(np.repeat(np.arange(len(self.members)), self.left)).tolist())

    def build(self, batches: int, wanted: int) -> np.ndarray:
        """The next batch, of `wanted` identities. batches: number of batches to come, including this one.

        An identity with as many groups as there are batches must be in each, so that the last batch can take the rest.
        """
        inside: Inside = {}
        for identity in self._generator.permutation(np.flatnonzero(self.left == batches)).tolist():
            self._add(inside, identity, None)
        to_follow = deque(inside.values())
        self._follow(inside, to_follow, wanted, only_unused=True)
        while len(inside) < wanted and (waiting := self._next(inside)) is not None:
            self._add(inside, waiting, None)
            to_follow.append(inside[waiting])
            self._follow(inside, to_follow, wanted, only_unused=True)
        self._follow(inside, deque(inside.values()), wanted, only_unused=False)
        self._fill(inside, wanted)
        chosen = list(inside.values())
        return np.concatenate([chosen[place] for place in self._generator.permutation(len(chosen))])

    def _follow(self, inside: Inside, groups: deque[list[int]], wanted: int, only_unused: bool) -> None:
        """Add the groups of these groups' hardest negatives: all first ones, all second ones, ..., then of theirs."""
        while groups and len(inside) < wanted:
            for item in self._hardest(groups.popleft()):
                identity = self._identity[item]
                if identity in inside or (only_unused and not self.left[identity]):
                    continue
                self._add(inside, identity, item)
                groups.append(inside[identity])
                if len(inside) == wanted:
                    return

    def _hardest(self, group: list[int]) -> Iterable[int]:
        nearest = (self._negatives[item] for item in dict.fromkeys(group))
        return (item for place in zip(*nearest, strict=True) for item in place if item != NONE)

    def _next(self, inside: Inside) -> int | None:
        """Next identity in line that has a group left and is not in the batch; None if there is none."""
        passed: list[int] = []
        found = None
        while self._line and found is None:
            identity = self._line.popleft()
            if identity in inside:
                passed.append(identity)
            elif self.left[identity]:
                found = identity
        self._line.extendleft(reversed(passed))
        return found

    def _fill(self, inside: Inside, wanted: int) -> None:
        """Fill the batch with random identities, whether their groups are used or not."""
        missing = wanted - len(inside)
        if missing:
            free = np.setdiff1d(np.arange(len(self.members)), list(inside))
            for identity in self._generator.permutation(free)[:missing].tolist():
                self._add(inside, identity, None)

    def _add(self, inside: Inside, identity: int, item: int | None) -> None:
        """Add a group of an identity: an unused one if there is one, preferably that of `item`."""
        if identity in inside:
            return
        groups = self.unused[identity]
        self.left[identity] -= bool(groups)
        groups = groups or hard_groups(self.members[identity], self._positives, self._size, self._generator)
        place = next((number for number, group in enumerate(groups) if item in group), 0)
        inside[identity] = groups.pop(place)


def hard_groups(
    items: np.ndarray, hard_positives: list[list[int]], size: int, generator: np.random.Generator
) -> list[list[int]]:
    """Items of one identity in groups of exactly `size`, each item followed by its least similar ones.

    Groups begin with random items. The last one is filled with items of other groups, least similar ones first; fewer
    items than `size` are repeated.
    """
    shuffled = generator.permutation(items).tolist()
    if len(shuffled) <= size:
        return [np.resize(shuffled, size).tolist()]
    groups: list[list[int]] = []
    free = dict.fromkeys(shuffled)  # an ordered set
    while free:
        group: list[int] = []
        _fill_group(group, free, hard_positives, size)
        if len(group) < size:
            _fill_group(group, dict.fromkeys(item for item in shuffled if item not in group), hard_positives, size)
        groups.append(group)
    return groups


def _fill_group(group: list[int], free: dict[int, None], hard_positives: list[list[int]], size: int) -> None:
    """Move items from `free` to the group until it holds `size`: least similar to those in it first, then any."""
    while len(group) < size and free:
        far = (other for item in group for other in hard_positives[item] if other in free)
        chosen = next(far, None)
        chosen = next(iter(free)) if chosen is None else chosen
        group.append(chosen)
        del free[chosen]
