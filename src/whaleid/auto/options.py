"""What `auto` may train: networks from the cheapest to the dearest, and how often each must see a photograph."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from whaleid.auto.facts import Facts

BACKBONES = {
    "cpu": ("tf_efficientnet_lite0",),
    "cuda": ("convnext_base", "convnext_small", "tf_efficientnet_lite0"),
}
"""Networks that are considered, the largest first. The GPU's were not measured."""

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
MANY_IMAGES = 10.0
"""Labelled images of the mean identity from which a mirrored photograph is another identity. Chosen with the figures of
one fold known, of nyala (6.4: mirrored ones hardly learn) and of cattle (14: kNN of the known .909 out of fold and on
the solution instead of .891 and .858)."""
MIRRORED = 25
"""Times from which a mirrored one is another identity there (cattle, kNN out of fold: 10 times .63, 29 times .84; as
the same animal .87, but .78 instead of .82 on the solution)."""
FROZEN = 4
"""Times below which one frozen network stands in for those of all folds, so that learned match scores have the time.
The number was not measured (nyala in five minutes: a frozen network and 20 pairs .408 out of fold)."""
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
    def frozen(self) -> bool:
        """Whether it stays as pretrained."""
        return not self.passes

    @property
    def epochs(self) -> int:
        """Of the experiment; at least 1 where it is trained."""
        return max(1, self.passes // 2) if self.mirrored else self.passes


@dataclass(frozen=True)
class Option:
    """Networks that are trained together where each photograph is seen `enough` times by every one."""

    networks: tuple[Network, ...]
    enough: int


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
