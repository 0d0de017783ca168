"""What local matching costs before it is done, and what of it a budget allows.

The model counts what is done most: images described, descriptors compared whole or by their codes, queries scored, and
keypoints of two images compared. Each has one measured constant, which `Core` brings to this machine. A query costs the
same whatever the number of queries; a larger gallery makes its lists longer only above `compressed.MOST_LISTS` of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from whaleid.config import LocalConfig
from whaleid.local_matching.compressed import BRANCHES, COMPARED, LISTED, MOST_LISTS, PROBES, TRAINING
from whaleid.local_matching.kmeans import ROUNDS
from whaleid.local_matching.mutual import product_seconds
from whaleid.local_matching.query_pairs import MOST
from whaleid.local_matching.votes import EXACT
from whaleid.utils.machine import slowness

# Seconds of one core of an EPYC with AVX-512, shared with other programs: that of `Core()`.
_DESCRIBED = 0.025  # an image of 256 pixels, by RootSIFT (nyala); grows with its area
_WHOLE = 3e-9  # two descriptors of 128 numbers
_CODES = 4e-9  # two descriptors by their codes
_ADDED = 5e-6  # a descriptor of the gallery read, encoded and added
_FITTED = 3.0  # the codes' centres
_AGAIN = 1.2e-7  # a descriptor read and compared once more: most of it waits for memory
_SCORED = 1.3e-5  # a query's descriptor in votes and learned match scores, fitting included
_PRODUCT = 3.6e-10  # of two descriptors of a pair of images, by the instructions for bytes
_PAIRED = 7.4e-10  # and everything else for two keypoints of a pair
_PIXELS = 256  # of the side that `_DESCRIBED` was measured at

PAIRS = (100, 50, 30, 20)
"""Numbers of pairs of each query that `within_budget` tries."""
KEYPOINTS = (1000, 700, 500, 350, 250)
"""Numbers of keypoints, tried with the fewest pairs: they cost more (nyala, local matching alone, MAP@5 out of fold:
0.476 with 200 and with 100 pairs of 1,000 keypoints, 0.467 with 50, 0.436 with 20, 0.377 with 50 of 500 keypoints)."""


@dataclass(frozen=True)
class Core:
    """How fast a core is while all of them are busy; by default that of the constants.

    Attributes
    ----------
    slowness : float
        `utils.machine.slowness`.
    product : float
        `mutual.product_seconds`, which differs more between processors (5.7e-9 without AVX-512, where slowness is 2.4).
    """

    slowness: float = 1.0
    product: float = _PRODUCT


def this_core() -> Core:
    """A core of this machine, measured."""
    return Core(slowness(), product_seconds())


@dataclass(frozen=True)
class LocalCost:
    """Core-seconds of the parts of local matching.

    Attributes
    ----------
    keypoints : float
        Images described.
    search : float
        Nearest descriptors, their index included.
    scores : float
        Votes and learned match scores.
    pairs : float
        Pairs of images.
    """

    keypoints: float
    search: float
    scores: float
    pairs: float

    @property
    def total(self) -> float:
        return self.keypoints + self.search + self.scores + self.pairs


def local_cost(
    known: int, unknown: int, test: int, folds: int, config: LocalConfig, core: Core, full_gallery: bool = False
) -> LocalCost:
    """Cost of local matching for a competition: every labelled image is a query out of fold, every test image is one.

    Parameters
    ----------
    known, unknown, test : int
        Images: labelled ones of a known identity, which are the gallery; labelled ones of none; test images.
    folds : int
        0: the test images are the only queries.
    config : LocalConfig
        Geometric verification is not counted.
    core : Core
    full_gallery : bool
        Whether the folds' queries are ranked once more, with half of the gallery.
    """
    labelled = known + unknown
    others = known * (1 - 1 / max(folds, 1))
    galleries = ([others, others / 2] if full_gallery else [others]) if folds else []
    queries = test + len(galleries) * labelled
    search = search_cost(test * config.keypoints, known * config.keypoints)
    for gallery in galleries:
        search += folds * search_cost(labelled / folds * config.keypoints, gallery * config.keypoints)
    learned, pairs = config.learned, 0
    if learned is not None and learned.pairs is not None:
        pairs = learned.pairs.images + MOST
        search += search_cost(test * config.keypoints, test * config.keypoints)
        of_fold = labelled / max(folds, 1) * config.keypoints
        search += len(galleries) * folds * search_cost(of_fold, of_fold)
    return LocalCost(
        keypoints=core.slowness * _DESCRIBED * (labelled + test) * (config.size / _PIXELS) ** 2,
        search=core.slowness * search,
        scores=core.slowness * _SCORED * queries * config.keypoints * (learned is not None),
        pairs=(core.product + core.slowness * _PAIRED) * queries * pairs * config.keypoints**2,
    )


def search_cost(queries: float, gallery: float) -> float:
    """Seconds of `Core()` for the search of `queries` descriptors among `gallery` others."""
    if not queries:
        return 0.0
    if gallery <= EXACT:
        return _WHOLE * queries * gallery
    lists = min(MOST_LISTS, max(1.0, gallery // LISTED))
    centres = (1 + BRANCHES) * lists**0.5  # compared with each descriptor
    fitting = 2 * ROUNDS * TRAINING * lists * lists**0.5
    of_query = PROBES * gallery / lists * _CODES + COMPARED * _AGAIN
    index = _FITTED + gallery * _ADDED
    return _WHOLE * (fitting + (queries + gallery) * centres) + index + queries * of_query


def within_budget(
    known: int, unknown: int, test: int, folds: int, config: LocalConfig, core: Core, core_seconds: float
) -> tuple[LocalConfig | None, LocalCost]:
    """As much of local matching as a budget allows: fewer pairs first, then fewer keypoints, no pairs, plain votes.

    Parameters
    ----------
    known, unknown, test, folds, core
        As for `local_cost`.
    config : LocalConfig
        What is wanted.
    core_seconds : float

    Returns
    -------
    LocalConfig or None
        None where even the votes of the fewest keypoints take too long.
    LocalCost
        Its cost; that of the least where it is None.
    """
    cost = local_cost(known, unknown, test, folds, config, core)
    for choice in _choices(config):
        cost = local_cost(known, unknown, test, folds, choice, core)
        if cost.total <= core_seconds:
            return choice, cost
    return None, cost


def _choices(config: LocalConfig) -> list[LocalConfig]:
    """What is wanted, and ever less of it."""
    keypoints = [count for count in KEYPOINTS if count < config.keypoints]
    learned = config.learned
    made = [config]
    if learned is not None and learned.pairs is not None:
        wanted = learned.pairs
        fewer = [wanted.model_copy(update={"images": images}) for images in PAIRS if images < wanted.images]
        made += [_with(config, learned=learned.model_copy(update={"pairs": pairs})) for pairs in fewer]
    made += [_with(made[-1], keypoints=count) for count in keypoints]
    if learned is not None and learned.pairs is not None:
        made.append(_with(made[-1], learned=learned.model_copy(update={"pairs": None})))
    if learned is not None:
        made.append(_with(made[-1], learned=None))
    return made


def _with(config: LocalConfig, **changes: object) -> LocalConfig:
    return config.model_copy(update=changes)
