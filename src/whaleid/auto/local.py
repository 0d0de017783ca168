"""How much of local matching fits into a number of seconds. Constants until `local_matching/cost.py` is there."""

from __future__ import annotations

from whaleid.auto.facts import Facts
from whaleid.config import LocalConfig
from whaleid.config.local_matching import LearnedConfig

VOTES = 0.12
"""Core-seconds an image of plain votes of keypoints, keypoints included (nyala, 1,942 images)."""
LEARNED = 0.56
"""Core-seconds an image of votes, learned match score and pairs (nyala, 1,942 images: 18 minutes of a core)."""


def local_within(facts: Facts, folds: int, seconds: float, learned: bool) -> tuple[LocalConfig | None, float]:
    """The most of local matching that fits, and the seconds that it takes on all cores; (None, 0) where none does.

    Parameters
    ----------
    facts : Facts
    folds : int
        That are trained.
    seconds : float
        On all cores.
    learned : bool
        Whether learned match scores may be a part of it.
    """
    ways = [(LocalConfig(learned=LearnedConfig()), LEARNED)] if learned else []
    for config, cost in [*ways, (LocalConfig(), VOTES)]:
        needed = cost * facts.census.all_images / facts.machine.cores
        if needed <= seconds:
            return config, needed
    return None, 0.0
