"""The kernel's time limit: how much is left, and what to leave out if it is not enough.

First the weakest experiments lose their test-time augmentation, then the weakest are dropped. The strongest always
stays, with one view if need be: the kernel must write a submission.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

RESERVE_SHARE = 0.15
"""Share of the limit that is kept for ranking and writing, ..."""
RESERVE_MOST = 3600.0
"""... but at most these seconds."""
CAUTION = 1.15
"""Factor on measured costs: a speed found on a few images is an estimate."""


@dataclass(frozen=True)
class Budget:
    """A time limit.

    Attributes
    ----------
    seconds : float
        The whole limit.
    started : float
        When the kernel started, by `clock`.
    """

    seconds: float
    started: float
    clock: Callable[[], float] = time.monotonic

    @property
    def reserve(self) -> float:
        return min(RESERVE_MOST, RESERVE_SHARE * self.seconds)

    def elapsed(self) -> float:
        return self.clock() - self.started

    def left(self) -> float:
        """Seconds left for feature extraction; negative once the reserve is in use."""
        return self.seconds - self.reserve - self.elapsed()


@dataclass(frozen=True)
class Cost:
    """Seconds that one experiment's feature extraction takes.

    Attributes
    ----------
    experiment : str
    score : float
        Its out-of-fold MAP@k.
    one_view, all_views : float
        Seconds for all test images by all its runs, without and with test-time augmentation.
    """

    experiment: str
    score: float
    one_view: float
    all_views: float


@dataclass(frozen=True)
class Plan:
    """Which experiments are used.

    Attributes
    ----------
    kept, dropped : tuple of str
        Experiments, strongest first.
    one_view : frozenset of str
        Kept experiments without test-time augmentation.
    seconds : float
        What the kept ones are expected to take.
    """

    kept: tuple[str, ...]
    one_view: frozenset[str]
    dropped: tuple[str, ...]
    seconds: float


def make_plan(costs: list[Cost], left: float, keep_one: bool = True) -> Plan:
    """The most that can be extracted in `left` seconds.

    Parameters
    ----------
    costs : list of Cost
    left : float
        Seconds.
    keep_one : bool
        Keep the strongest experiment even if the time is too short for it.
    """
    order = sorted(costs, key=lambda cost: -cost.score)
    kept, one_view = list(order), set[str]()

    def total() -> float:
        return CAUTION * sum(cost.one_view if cost.experiment in one_view else cost.all_views for cost in kept)

    for cost in reversed(order):
        if total() > left and cost.all_views > cost.one_view:
            one_view.add(cost.experiment)
    while total() > left and len(kept) > int(keep_one):
        kept.pop()
    names = tuple(cost.experiment for cost in kept)
    dropped = tuple(cost.experiment for cost in order if cost.experiment not in names)
    return Plan(names, frozenset(one_view & set(names)), dropped, total())
