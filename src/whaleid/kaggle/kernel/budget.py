"""The kernel's time: what is left of it, what the sources cost at the speed measured so far, and what has to go.

Too slow for the limit, the views of test-time augmentation go first, of the weakest source first; then whole
sources, the weakest first. The strongest stays, in its plainest form, whatever the clock says: an answer is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

RESERVE_SHARE = 0.15
"""Part of the limit kept for what follows the embedding (blending, writing); at most an hour of it."""
RESERVE_MOST = 3600.0
CAUTION = 1.15
"""Costs are taken this much higher than measured: a speed found on a few images is a guess."""


@dataclass(frozen=True)
class Budget:
    """seconds: the whole limit. started: when it began to run, by `clock`."""

    seconds: float
    started: float
    clock: Callable[[], float] = time.monotonic

    @property
    def reserve(self) -> float:
        return min(RESERVE_MOST, RESERVE_SHARE * self.seconds)

    def left(self) -> float:
        """Seconds left for embedding; negative when the reserve is being used up."""
        return self.seconds - self.reserve - (self.clock() - self.started)


@dataclass(frozen=True)
class Cost:
    """What a source still costs. score: out of fold, larger is stronger. Seconds, measured on a few images.

    plain: one view of every image by every fold's model. views: all its views (equal where it has one).
    """

    source: str
    score: float
    plain: float
    views: float


@dataclass(frozen=True)
class Plan:
    """In the order of the sources' strength. plain: those embedded without further views. dropped: those left out."""

    kept: tuple[str, ...]
    plain: frozenset[str]
    dropped: tuple[str, ...]
    seconds: float

    def full(self, source: str) -> bool:
        return source not in self.plain


def make_plan(costs: list[Cost], left: float, must: bool = True) -> Plan:
    """The most that can be done in `left` seconds.

    must: at least one source stays; False where others are done already.
    """
    order = sorted(costs, key=lambda cost: -cost.score)
    plain: set[str] = set()
    kept = list(order)

    def total() -> float:
        return CAUTION * sum(cost.plain if cost.source in plain else cost.views for cost in kept)

    for cost in reversed(order):
        if total() <= left:
            break
        if cost.views > cost.plain:
            plain.add(cost.source)
    while total() > left and len(kept) > int(must):
        kept.pop()
    names = tuple(cost.source for cost in kept)
    return Plan(names, frozenset(plain & set(names)), tuple(c.source for c in order if c.source not in names), total())
