"""Hard neighbours of all training items, and the plan of an epoch that lets them meet.

A batch teaches most where its identities are easily taken for one another. Mining within a batch finds the hardest
of what chance put there; here the whole training set is searched for each item's most similar items of other
identities and least similar ones of its own, and batches are grown from those. Batches of identities that look alike:
Smirnov et al., "Doppelganger mining for face representation learning", 2017.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from whaleid.data.samplers import members_of
from whaleid.utils.errors import WhaleidError

NONE = -1
"""Place of a neighbour that an item does not have."""
_MINED = 3  # stream of random numbers; data/samplers.py has 0 and 1, divide/sampler.py 2
_CELLS = 1 << 23  # similarities held at a time: 100 MB with their rows
_QUERIES = 4096  # items searched at a time
_SPARE = 8  # neighbours looked at beyond those wanted: most items then need one search


# -------------------------------------------------------------------------------------------------- neighbours


def hard_neighbours(
    embeddings: np.ndarray, labels: np.ndarray, negatives: int, positives: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each item its most similar items of other classes and its least similar ones of its own.

    embeddings: float32 (n, d), unit rows. labels: int64 (n,), any numbers.
    Returns near_others int64 (n, negatives), most similar first, and far_own int64 (n, positives), least similar
    first and without the item itself: rows, equals in their order, -1 where there are no more.
    Raises WhaleidError where the tables do not fit, or an embedding holds NaN or infinity.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise WhaleidError(
            f"hard mining: embeddings {embeddings.shape} and labels {labels.shape} do not fit; one a row"
        )
    if not np.isfinite(embeddings).all():
        raise WhaleidError(
            "hard mining: an embedding holds NaN or infinity; take a lower train.lr or train.precision=no"
        )
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    return _near_others(rows, labels, negatives), _far_own(rows, labels, positives)


def _near_others(embeddings: np.ndarray, labels: np.ndarray, wanted: int) -> np.ndarray:
    """An exact search, twice as wide again and again for the items that it leaves in doubt.

    An item is in doubt until it has enough others that are more similar than the last neighbour found: beyond that
    one there may be equals with a lower row.
    """
    import faiss  # a second to import, and few runs mine

    found = np.full((len(labels), wanted), NONE, dtype=np.int64)
    open_items = np.arange(len(labels))
    wide = min(wanted + _SPARE, len(labels))
    while len(open_items):
        in_doubt = []
        for part in _chunks(open_items, wide):
            near = faiss.knn(embeddings[part], embeddings, wide, metric=faiss.METRIC_INNER_PRODUCT)
            similarity, rows = _by_row(*near)
            other = labels[rows] != labels[part][:, None]
            found[part] = _first(rows, other, wanted)
            settled = (other & (similarity > similarity[:, -1:])).sum(axis=1) >= wanted
            in_doubt.append(part[~settled])
        whole = wide == len(labels)
        open_items = open_items[:0] if whole else np.concatenate(in_doubt)
        wide = min(2 * wide, len(labels))
    return found


def _far_own(embeddings: np.ndarray, labels: np.ndarray, wanted: int) -> np.ndarray:
    """Least similar items of an item's own class, class by class."""
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
    """The items in chunks, of which a table of `width` columns is not too large."""
    step = max(1, min(_QUERIES, _CELLS // width))
    return [items[start : start + step] for start in range(0, len(items), step)]


def _by_row(similarity: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours (q, m), most similar first, equals by ascending row."""
    order = np.lexsort((rows, -similarity), axis=-1)
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _first(rows: np.ndarray, chosen: np.ndarray, wanted: int) -> np.ndarray:
    """The first `wanted` chosen entries of each row of (q, m), -1 where there are fewer: (q, wanted)."""
    order = np.argsort(~chosen, axis=1, kind="stable")[:, :wanted]
    values = np.where(np.take_along_axis(chosen, order, axis=1), np.take_along_axis(rows, order, axis=1), NONE)
    return np.pad(values, ((0, 0), (0, wanted - order.shape[1])), constant_values=NONE)


# -------------------------------------------------------------------------------------------------------- plan


def mined_batches(
    labels: np.ndarray,
    near_others: np.ndarray,
    far_own: np.ndarray,
    batch: int,
    images: int,
    epoch: int,
    seed: int,
) -> list[np.ndarray]:
    """Plan of one epoch: batches of P = batch / K distinct identities that look alike, K = `images` images of each.

    labels: int64 (n,). near_others: int64 (n, a), far_own: int64 (n, b), of `hard_neighbours`.
    Each identity's items are dealt into groups of K, an item with those of its own that look least like it; the last
    group is filled up with items that stand elsewhere, and an identity of fewer than K repeats its own. A batch
    begins with one group at random, then takes the groups of its items' hardest negatives, of theirs, and so on; where
    those are used up, another at random.
    Every item occurs. The number and sizes of the batches are those of the balanced plan, whatever the neighbours:
    in the end what is left must do, and the last batches grown are little harder than chance. An identity is in a
    batch once; with fewer than P identities a batch holds them all, and is smaller.
    """
    if len(labels) < 2 or batch < 2:
        raise WhaleidError(f"batches of {batch} from {len(labels)} training images: at least 2 of each are needed")
    generator = np.random.default_rng([seed % 2**64, epoch, _MINED])
    deal = _Deal(labels, near_others, far_own, images, generator)
    per_batch = min(max(1, batch // images), len(deal.members))
    count = max(-(-int(deal.left.sum()) // per_batch), int(deal.left.max()))
    grown = [deal.grow(count - number, per_batch) for number in range(count)]
    return [grown[number] for number in generator.permutation(count)]


class _Deal:
    """One epoch's groups while they are dealt into batches.

    members: items of each identity. unused: its groups that are in no batch yet; left: how many, int64 (c,).
    """

    def __init__(
        self,
        labels: np.ndarray,
        near_others: np.ndarray,
        far_own: np.ndarray,
        size: int,
        generator: np.random.Generator,
    ):
        self.members = members_of(labels)
        self._identity = np.unique(labels, return_inverse=True)[1].tolist()
        self._near, self._far = near_others.tolist(), far_own.tolist()
        self._size, self._generator = size, generator
        self.unused = [hard_groups(items, self._far, size, generator) for items in self.members]
        self.left = np.array([len(groups) for groups in self.unused], dtype=np.int64)
        self._line = deque(generator.permutation(np.repeat(np.arange(len(self.members)), self.left)).tolist())

    def grow(self, batches: int, wanted: int) -> np.ndarray:
        """The next batch, of `wanted` identities. batches: how many there are to come, with this one.

        An identity with as many groups as there are batches must be in each; so the last batch can take the rest.
        """
        inside: dict[int, list[int]] = {}
        for identity in self._generator.permutation(np.flatnonzero(self.left == batches)).tolist():
            self._add(inside, identity, None)
        to_follow = deque(inside.values())
        self._follow(inside, to_follow, wanted, only_unused=True)
        while len(inside) < wanted and (waiting := self._next(inside)) is not None:
            self._add(inside, waiting, None)
            to_follow.append(inside[waiting])
            self._follow(inside, to_follow, wanted, only_unused=True)
        self._follow(inside, deque(inside.values()), wanted, only_unused=False)
        self._draw(inside, wanted)
        chosen = list(inside.values())
        return np.concatenate([chosen[place] for place in self._generator.permutation(len(chosen))])

    def _follow(self, inside: dict[int, list[int]], groups: deque[list[int]], wanted: int, only_unused: bool) -> None:
        """Let the batch grow to these groups' hardest negatives: all first ones, all second ones, ..., then theirs."""
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
        nearest = (self._near[item] for item in dict.fromkeys(group))
        return (item for place in zip(*nearest, strict=True) for item in place if item != NONE)

    def _next(self, inside: dict[int, list[int]]) -> int | None:
        """The next identity in line that has a group left and is not in the batch; None where there is none."""
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

    def _draw(self, inside: dict[int, list[int]], wanted: int) -> None:
        """Fill the batch with identities at random, used up or not."""
        missing = wanted - len(inside)
        if missing:
            free = np.setdiff1d(np.arange(len(self.members)), list(inside))
            for identity in self._generator.permutation(free)[:missing].tolist():
                self._add(inside, identity, None)

    def _add(self, inside: dict[int, list[int]], identity: int, item: int | None) -> None:
        """Put a group of an identity into the batch, one that is unused if there is, that of `item` if it is one."""
        if identity in inside:
            return
        groups = self.unused[identity]
        self.left[identity] -= bool(groups)
        groups = groups or hard_groups(self.members[identity], self._far, self._size, self._generator)
        place = next((number for number, group in enumerate(groups) if item in group), 0)
        inside[identity] = groups.pop(place)


def hard_groups(
    items: np.ndarray, far_own: list[list[int]], size: int, generator: np.random.Generator
) -> list[list[int]]:
    """The items of one identity in groups of exactly `size`, each item followed by its least similar ones.

    Groups begin with items at random. The last one is filled up with items of other groups, again least similar ones
    first; fewer items than `size` are repeated.
    """
    shuffled = generator.permutation(items).tolist()
    if len(shuffled) <= size:
        return [np.resize(shuffled, size).tolist()]
    groups: list[list[int]] = []
    free = dict.fromkeys(shuffled)  # an ordered set
    while free:
        group: list[int] = []
        _fill(group, free, far_own, size)
        if len(group) < size:
            _fill(group, dict.fromkeys(item for item in shuffled if item not in group), far_own, size)
        groups.append(group)
    return groups


def _fill(group: list[int], free: dict[int, None], far_own: list[list[int]], size: int) -> None:
    """Move items from `free` to the group until it holds `size`: least similar to those inside first, then any."""
    while len(group) < size and free:
        far = (other for item in group for other in far_own[item] if other in free)
        chosen = next(far, None)
        chosen = next(iter(free)) if chosen is None else chosen
        group.append(chosen)
        del free[chosen]
