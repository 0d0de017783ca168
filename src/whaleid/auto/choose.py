"""The choice: from facts, minutes and measured throughput to networks, folds and local matching, with the reasons.

A pure function. Few networks that learn come before many that do not: one network sees each photograph often enough,
then more pixels, then a second network joins it. Local matching comes first where it fits, for it is the strongest
where data is scarce. Folds are left out only where not even one network would learn otherwise.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace

from whaleid.auto.facts import Facts, Machine
from whaleid.auto.options import FEW, FROZEN, MOST, Network, fold_number, options, training_images
from whaleid.auto.reasons import reasons_for
from whaleid.auto.throughput import Throughput
from whaleid.config import LocalConfig
from whaleid.config.local_matching import LearnedConfig, PairsConfig
from whaleid.config.recipe import FEWEST_FOLDS
from whaleid.local_matching.cost import PAIRS, local_cost, within_budget

USED = 0.9
"""Share of the minutes that is planned: estimates are right to about a tenth."""
START = 15.0
"""Seconds until a run's process has started and its network is built."""
AROUND = 40.0
"""Seconds of everything else that does not grow with the images: programs that start, files that are written."""
AROUND_IMAGE = 0.03
"""Core-seconds an image of the images table, caches, rankers and stack."""
VIEWS = 2
"""Forward passes of an image for its features: as it is, and mirrored."""
FORWARD = 0.5
"""Time of a forward pass as a share of a training step's, whose first stages are frozen (EfficientNet-Lite0 on a core,
five stages: 0.30 at 9,216 pixels, 0.37 at 16,384, 0.43 at 30,976)."""
SHARED, DOUBLED = 0.24, 0.21
"""What each further thread of a run adds to the first at 8,192 pixels, and what twice the pixels add to that
(EfficientNet-Lite0, two cores: a run of two threads trains 1.24, 1.46 and 1.66 times as fast as each of two runs of one
at 8,192, 16,384 and 32,768 pixels)."""

LOCAL_SHARE, LOCAL_IMAGES = 0.6, 5000
"""Largest share of the planned time that local matching may take, up to so many images; of more, ever less."""
MOST_PAIRS = 400_000
"""Pairs of images in all (nyala, 1,942 queries: peak memory 2.4 GiB with 100 pairs a query)."""
AGAIN = 0.05
"""Largest share of the minutes for the scores with the full gallery, which no answer depends on."""


@dataclass(frozen=True)
class Choice:
    """A recipe, and what it is expected to take.

    Attributes
    ----------
    folds : int
        Parts that the labelled images are split into.
    trained : tuple of int
        Folds that are trained.
    networks : tuple of Network
    local : LocalConfig or None
    full_gallery : bool
        Whether there is time to estimate the scores with the full gallery, for which all is ranked once more.
    seconds : dict
        Part -> expected seconds.
    reasons : tuple of str
        Sentences for the reader of the recipe.
    """

    folds: int
    trained: tuple[int, ...]
    networks: tuple[Network, ...]
    local: LocalConfig | None
    full_gallery: bool
    seconds: dict[str, float]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Budget:
    """Facts and throughput, and what they say of the time of runs."""

    facts: Facts
    rates: Mapping[str, Throughput]

    def run_seconds(self, network: Network, runs: int) -> float:
        """Of one run and its features, `runs` being all that there are to do."""
        image = self.rates[network.backbone].seconds(network.pixels) / _speed(self.facts.machine, runs, network.pixels)
        trained = training_images(self.facts) * network.passes
        embedded = self.facts.census.all_images * VIEWS * FORWARD
        return START + image * (trained + embedded)

    def training_seconds(self, networks: tuple[Network, ...], trained: int) -> float:
        """Of all runs, each slot taking the next one as the executor does."""
        runs = [network for network in networks for _ in range(trained)]
        slots = [0.0] * min(self.facts.machine.slots, len(runs))
        for network in runs:
            place = slots.index(min(slots))
            slots[place] += self.run_seconds(network, len(runs))
        return max(slots)

    def longest(self, networks: tuple[Network, ...], trained: int, seconds: float) -> tuple[Network, ...] | None:
        """The networks with the most passes that fit into the seconds; None where not one does."""

        def longer(passes: int) -> tuple[Network, ...]:
            return tuple(replace(item, passes=passes) for item in networks)

        def needed(passes: int) -> float:
            return self.training_seconds(longer(passes), trained)

        fits = bisect_right(range(1, MOST + 1), seconds, key=needed)
        return longer(fits) if fits else None


def choose(facts: Facts, minutes: float, rates: Mapping[str, Throughput]) -> Choice:
    """The recipe for the minutes.

    Parameters
    ----------
    facts : Facts
    minutes : float
        From the command to the submission.
    rates : mapping
        Backbone -> measured throughput.

    Returns
    -------
    Choice
        Its passes are the most that fit; with fewer minutes than anything takes, the smallest recipe there is.
    """
    budget = _Budget(facts, rates)
    around = _seconds_around(facts)
    planned = max(0.0, 60 * minutes * USED - around)
    folds = fold_number(facts)
    local, matching, networks = _shared_out(budget, folds, planned)
    trained = tuple(range(folds))
    if (networks is None or _too_seldom(networks, facts)) and (local is None or local.learned is None):
        fewer = _fewer_folds(budget, planned - matching)
        if fewer is None:
            local, matching = None, 0.0
            fewer = _fewer_folds(budget, planned)
        networks, trained = fewer or (options(facts)[0].networks, (0,))
    assert networks is not None
    training = budget.training_seconds(networks, 1 if networks[0].frozen else len(trained))
    seconds = {"training": training, "local matching": matching, "the rest": around}
    again = _seconds_again(facts, folds, local)
    full_gallery = again <= min(AGAIN * 60 * minutes, 60 * minutes - sum(seconds.values()))
    if full_gallery:
        seconds["the full gallery"] = again
    choice = Choice(folds, trained, networks, local, full_gallery, seconds, ())
    return replace(
        choice, reasons=tuple(reasons_for(choice, facts, minutes, rates, local_share(facts.census.all_images)))
    )


def local_share(images: int) -> float:
    """Largest share of the planned time that local matching may take, of all images: it is worth most where few are."""
    return LOCAL_SHARE * min(1.0, LOCAL_IMAGES / max(1, images))


def _shared_out(
    budget: _Budget, folds: int, planned: float
) -> tuple[LocalConfig | None, float, tuple[Network, ...] | None]:
    """Local matching, its seconds, and the networks in the rest of the planned seconds; None where not one pass fits.

    Pairs are given up while the networks see each photograph under FEW times. Learned match scores need all folds:
    where networks would see each of a few photographs under FROZEN times there, a frozen one takes their place.
    """
    facts = budget.facts
    most = planned * local_share(facts.census.all_images)
    learned = [LearnedConfig(pairs=PairsConfig(images=images)) for images in _pair_numbers(facts)]
    found = None
    for config in learned if folds >= FEWEST_FOLDS else []:
        local, matching = _local_within(facts, folds, most, config)
        networks = _networks(budget, folds, planned - matching)
        if networks is not None:
            found = local, matching, networks
            if not _too_seldom(networks, facts):
                break
    if (found is None or found[2][0].passes < FROZEN) and facts.census.all_images <= LOCAL_IMAGES:
        found = _frozen(budget, folds, planned) or found
    if found is not None:
        return found
    local, matching = _local_within(facts, folds, most, None)
    return local, matching, _networks(budget, folds, planned - matching)


def _frozen(budget: _Budget, folds: int, planned: float) -> tuple[LocalConfig, float, tuple[Network, ...]] | None:
    """Learned match scores beside the cheapest network as pretrained; None where they do not fit."""
    cheapest = options(budget.facts)[0].networks[0]
    networks = (replace(cheapest, base="frozen", mirrored=False, passes=0),)
    learned = LearnedConfig(pairs=PairsConfig(images=_pair_numbers(budget.facts)[0]))
    local, matching = _local_within(budget.facts, folds, planned - budget.training_seconds(networks, 1), learned)
    if local is None or local.learned is None or folds < FEWEST_FOLDS:
        return None
    return local, matching, networks


def _seconds_around(facts: Facts) -> float:
    """What everything takes but training and local matching."""
    return AROUND + AROUND_IMAGE * facts.census.all_images / facts.machine.cores


def _seconds_again(facts: Facts, folds: int, local: LocalConfig | None) -> float:
    """What it takes to rank, blend and stack once more, for the scores with the full gallery."""
    if local is None:
        return 0.0
    census, core = facts.census, facts.machine.core
    counted = local.model_copy(update={"keypoints": min(local.keypoints, facts.keypoints)})
    once, twice = (
        local_cost(census.labelled, census.unknown, census.test, folds, counted, core, full_gallery=again).total
        for again in (False, True)
    )
    return _seconds_around(facts) + (twice - once) / facts.machine.cores


def _too_seldom(networks: tuple[Network, ...], facts: Facts) -> bool:
    """Whether the networks see each photograph under FEW times; larger ones than the smallest see them often enough."""
    smallest = min(network.pixels for option in options(facts) for network in option.networks)
    return networks[0].passes < FEW and networks[0].pixels == smallest


def _local_within(
    facts: Facts, folds: int, seconds: float, learned: LearnedConfig | None
) -> tuple[LocalConfig | None, float]:
    """The most of local matching that fits into the seconds of all cores, and its own seconds; (None, 0) for none."""
    census, machine = facts.census, facts.machine
    wanted = LocalConfig(learned=learned)
    all_there_are = min(wanted.keypoints, facts.keypoints)
    counted = wanted.model_copy(update={"keypoints": all_there_are})
    given = census.labelled, census.unknown, census.test, folds, counted, machine.core
    found, cost = within_budget(*given, seconds * machine.cores)
    if found is None:
        return None, 0.0
    limit = wanted.keypoints if found.keypoints == all_there_are else found.keypoints
    return found.model_copy(update={"keypoints": limit}), cost.total / machine.cores


def _pair_numbers(facts: Facts) -> list[int]:
    """Numbers of pairs of each query that the memory allows, the largest first; at least the smallest there is."""
    queries = facts.census.all_images
    return [images for images in PAIRS if queries * images <= MOST_PAIRS] or [PAIRS[-1]]


def _networks(budget: _Budget, trained: int, seconds: float) -> tuple[Network, ...] | None:
    """The most expensive option that gets enough passes; None where the cheapest does not get one."""
    for option in reversed(options(budget.facts)):
        longer = budget.longest(option.networks, trained, seconds)
        if longer is not None and longer[0].passes >= option.enough:
            return longer
    return None


def _fewer_folds(budget: _Budget, seconds: float) -> tuple[tuple[Network, ...], tuple[int, ...]] | None:
    """Networks on two folds, or on one; None where not one pass fits.

    Two folds of the smallest pictures give way to one fold of larger pictures, and to one fold where they would be seen
    under half of FEW times.
    """
    one, two = (_networks(budget, folds, seconds) for folds in (1, 2))
    if one is None:
        return None
    smallest = options(budget.facts)[0].networks[0].pixels
    if two is not None and two[0].pixels > smallest:
        return two, (0, 1)
    if two is None or one[0].pixels > smallest or two[0].passes < FEW // 2:
        return one, (0,)
    return two, (0, 1)


def _speed(machine: Machine, runs: int, pixels: float) -> float:
    """How much faster a run is than measured, where there are fewer runs than slots: it has the others' threads."""
    if machine.gpus:
        return 1.0
    threads = machine.cores // min(machine.slots, runs) / max(1, machine.cores // machine.slots)
    added = min(1.0, max(0.0, SHARED + DOUBLED * math.log2(pixels / 8192)))
    return 1 + added * (threads - 1) if threads > 1 else 1.0
