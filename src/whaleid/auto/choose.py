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
from whaleid.auto.throughput import Throughput
from whaleid.config import LocalConfig
from whaleid.config.local_matching import LearnedConfig, PairsConfig
from whaleid.config.recipe import FEWEST_FOLDS
from whaleid.local_matching.cost import PAIRS, local_cost, within_budget

BACKBONES = {
    "cpu": ("tf_efficientnet_lite0",),
    "cuda": ("convnext_base", "convnext_small", "tf_efficientnet_lite0"),
}
"""Networks that are considered, the largest first. The GPU's were not measured."""

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
LARGER, ANOTHER = 4, 8
"""Times that a network sees each photograph before more pixels, and before a second network, may be worth more (drawn
flukes, 3,000 images of 2,000 whales, equal time; kNN out of fold: 7 at 8,192 pixels .213, 4 at 16,384 .268).
ANOTHER was not measured; on GPUs it holds for both."""
SEEN = 78
"""And images that a run sees in all, for each pixel of a picture's side: 10,000 at 16,384 pixels. At about equal cost,
kNN out of fold of one fold of four: cattle, with mirror images, 8,192 pixels 18,700 seen .774, 16,384 pixels 10,000
seen .795; nyala, 16,384 pixels 30,700 seen .236, 32,768 pixels 14,800 seen .236; without frozen stages nyala, 16,384
pixels 18,000 seen .214, 32,768 pixels 9,000 seen .219; lion (two folds), 8,192 pixels 7,000 seen .153, 16,384 pixels
3,500 seen .131. That the number grows with the side is a guess."""
AGAIN = 0.05
"""Largest share of the minutes for the scores with the full gallery, which no answer depends on."""
MANY_IMAGES = 10.0
"""Labelled images of the mean identity from which a mirrored photograph is another identity. Chosen with the figures of
one fold known, of nyala (6.4: mirrored ones hardly learn) and of cattle (14: kNN of the known .909 out of fold and on
the solution instead of .891 and .858)."""
MIRRORED = 25
"""Times from which a mirrored one is another identity there (cattle, kNN out of fold: 10 times .63, 29 times .84; as
the same animal .87, but .78 instead of .82 on the solution)."""
FROZEN = 4
"""Times below which one frozen network stands in for those of all folds, so that learned match scores have the time."""
FEW = 15
"""Times below which fewer folds are trained (10,081 drawn flukes, top-1 of the known: six runs of 2 epochs had .18, one
of 25 epochs .49)."""
MOST = 100
"""Times above which nothing is expected to be gained."""


@dataclass(frozen=True)
class Network:
    """One experiment: `auto/<base>`, or `frozen`, with a backbone and a size.

    Attributes
    ----------
    base, backbone : str
    pixels : int
    mirrored : bool
        Whether a mirrored photograph is another identity: an epoch is then as long as two.
    passes : int
        Times that a photograph is seen, mirrored or not; 0: a frozen network, one run for all folds.
    """

    base: str
    backbone: str
    pixels: int
    mirrored: bool = False
    passes: int = 1

    @property
    def epochs(self) -> int:
        """Of the experiment; at least 1 where it is trained."""
        return max(1, self.passes // 2) if self.mirrored else self.passes


@dataclass(frozen=True)
class Option:
    """Networks that are trained together where each photograph is seen `enough` times by every one."""

    networks: tuple[Network, ...]
    enough: int


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
    training = budget.training_seconds(networks, len(trained) if networks[0].passes else 1)
    seconds = {"training": training, "local matching": matching, "the rest": around}
    again = _seconds_again(facts, folds, local)
    full_gallery = again <= min(AGAIN * 60 * minutes, 60 * minutes - sum(seconds.values()))
    if full_gallery:
        seconds["the full gallery"] = again
    choice = Choice(folds, trained, networks, local, full_gallery, seconds, ())
    return replace(choice, reasons=tuple(_reasons(choice, facts, minutes, rates)))


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
    census = facts.census
    counted = local.model_copy(update={"keypoints": min(local.keypoints, facts.keypoints)})
    once, twice = (
        local_cost(census.labelled, census.unknown, census.test, folds, counted, full_gallery=again).total
        for again in (False, True)
    )
    return _seconds_around(facts) + (twice - once) * _core_share(facts.machine)


def _too_seldom(networks: tuple[Network, ...], facts: Facts) -> bool:
    """Whether the networks see each photograph under FEW times; larger ones than the smallest see them often enough."""
    smallest = min(network.pixels for option in options(facts) for network in option.networks)
    return networks[0].passes < FEW and networks[0].pixels == smallest


def _local_within(
    facts: Facts, folds: int, seconds: float, learned: LearnedConfig | None
) -> tuple[LocalConfig | None, float]:
    """The most of local matching that fits into the seconds of all cores, and its own seconds; (None, 0) for none."""
    census, share = facts.census, _core_share(facts.machine)
    wanted = LocalConfig(learned=learned)
    all_there_are = min(wanted.keypoints, facts.keypoints)
    counted = wanted.model_copy(update={"keypoints": all_there_are})
    found, cost = within_budget(census.labelled, census.unknown, census.test, folds, counted, seconds / share)
    if found is None:
        return None, 0.0
    limit = wanted.keypoints if found.keypoints == all_there_are else found.keypoints
    return found.model_copy(update={"keypoints": limit}), cost.total * share


def _core_share(machine: Machine) -> float:
    """Seconds of all cores here for a core-second of the machine that local matching was measured on."""
    return machine.slowness / machine.cores


def _pair_numbers(facts: Facts) -> list[int]:
    """Numbers of pairs of each query that the memory allows, the largest first; at least the smallest there is."""
    queries = facts.census.all_images
    return [images for images in PAIRS if queries * images <= MOST_PAIRS] or [PAIRS[-1]]


def fold_number(facts: Facts) -> int:
    """Folds: 5 on GPUs; else as many runs as fill the slots to the end, 3 to 5."""
    machine = facts.machine
    wanted = 5 if machine.gpus or machine.slots > 4 else 4 if machine.slots in (2, 4) else 3
    return max(2, min(wanted, facts.groups))


def training_images(facts: Facts) -> float:
    """Labelled images that a run is trained on."""
    folds = fold_number(facts)
    return facts.census.labelled * (folds - 1) / folds


def options(facts: Facts) -> list[Option]:
    """Networks to choose from, the cheapest first; none has more pixels than the images have."""
    names = facts.machine.backbones
    small, middle, large = names[-1], names[len(names) // 2], names[0]
    mirrored = bool(facts.machine.gpus) or facts.mean_images >= MANY_IMAGES
    if facts.machine.gpus:
        first, second = "large_arcface", "large_softmax"
        considered = [
            [(first, small, 50176)],
            [(first, middle, 50176)],
            [(first, large, 82944)],
            [(first, large, 147456)],
            [(first, large, 147456), (second, middle, 147456)],
        ]
    else:
        first = "mirrored" if mirrored else "arcface"
        second = f"{first}_softmax"
        single = [[(first, small, pixels)] for pixels in (8192, 16384, 32768, 49152)]
        considered = [*single, [*single[-1], (second, small, 32768)]]
    made = [
        tuple(Network(base, name, int(min(pixels, facts.area)), mirrored) for base, name, pixels in option)
        for option in considered
    ]
    listed = [
        Option(option, _enough(option, facts) if place else 1) for place, option in enumerate(dict.fromkeys(made))
    ]
    if first != "mirrored":
        return listed
    plain = tuple(replace(network, base="arcface", mirrored=False) for network in listed[0].networks)
    return [Option(plain, 1), replace(listed[0], enough=MIRRORED), *listed[1:]]


def _enough(option: tuple[Network, ...], facts: Facts) -> int:
    """Passes from which an option is worth more than the one before it."""
    fewest = LARGER if len(option) == 1 and not facts.machine.gpus else ANOTHER
    return max(fewest, math.ceil(SEEN * math.sqrt(option[0].pixels) / training_images(facts)))


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


def _reasons(choice: Choice, facts: Facts, minutes: float, rates: Mapping[str, Throughput]) -> list[str]:
    census, first = facts.census, choice.networks[0]
    speed = 1 / rates[first.backbone].seconds(first.pixels)
    lines = [
        f"{minutes:g} minutes on {facts.machine.words}; {facts.machine.slots} runs at once, each of {speed:.0f} images "
        f"a second in training ({first.backbone}, {first.pixels:,} pixels; measured)",
        f"{census.labelled:,} labelled images of {census.identities:,} identities (median {facts.median_images:g}, "
        f"{facts.singletons:,} with one), {census.unknown:,} unknown, {census.test:,} to identify; "
        f"the median image has {facts.area:,.0f} pixels, a drawn one {facts.keypoints:,} keypoints",
    ]
    if census.unknown:
        lines.append("unknown images are not trained on: each would be a class of one image; they are queries")
    if facts.grouped:
        lines.append(f"{facts.grouped:,} labelled images are copies or of one encounter with others: they share folds")
    lines.append(_fold_reason(choice, facts))
    for network in choice.networks:
        seen = f"each photograph {network.passes} times" if network.passes else "as pretrained"
        lines.append(f"{network.base}: {network.backbone} at {network.pixels:,} pixels, {seen}")
    lines.append(_option_reason(choice, facts))
    share = local_share(census.all_images)
    lines.append(f"local matching: {_local_words(choice.local)}; at most {share:.0%} of the time may go to it")
    if not choice.full_gallery:
        lines.append("scores with the full gallery are not estimated: local matching would take too long once more")
    total = sum(choice.seconds.values())
    parts = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in choice.seconds.items())
    lines.append(f"expected minutes: {parts}; {total / 60:.1f} in all")
    if total > 60 * minutes:
        lines.append("the smallest recipe takes longer than the minutes given")
    return lines


def _local_words(local: LocalConfig | None) -> str:
    if local is None:
        return "left out"
    if local.learned is None:
        return f"plain votes of at most {local.keypoints:,} keypoints an image"
    pairs = local.learned.pairs
    also = "" if pairs is None else f", and {pairs.images} pairs a query"
    return f"learned match scores of at most {local.keypoints:,} keypoints an image{also}"


def _fold_reason(choice: Choice, facts: Facts) -> str:
    if not choice.networks[0].passes:
        return f"{choice.folds} folds, for the learned match scores"
    if len(choice.trained) == choice.folds:
        return f"{choice.folds} folds: they keep {facts.machine.slots} runs at once busy to the end"
    few = f"with more, a run would see a photograph under {FEW} times"
    return f"of {choice.folds} folds only {len(choice.trained)} trained: {few}"


def _option_reason(choice: Choice, facts: Facts) -> str:
    considered = options(facts)
    if not choice.networks[0].passes:
        return f"trained ones would see a photograph under {FROZEN} times beside learned match scores"
    chosen = tuple(replace(network, passes=1) for network in choice.networks)
    place = [option.networks for option in considered].index(chosen)
    if place == len(considered) - 1:
        return "nothing larger is considered on such a machine"
    larger = considered[place + 1]
    words = " and ".join(f"{item.base} at {item.pixels:,} pixels" for item in larger.networks)
    return f"next would be {words}, for which the minutes do not suffice: {larger.enough} times a photograph"
