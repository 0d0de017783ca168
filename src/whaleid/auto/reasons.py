"""Why a recipe was chosen, in sentences for its reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from whaleid.auto.facts import Facts
from whaleid.auto.options import FEW, FROZEN, options
from whaleid.auto.throughput import Throughput
from whaleid.config import LocalConfig

if TYPE_CHECKING:
    from whaleid.auto.choose import Choice


def reasons_for(
    choice: Choice, facts: Facts, minutes: float, rates: Mapping[str, Throughput], share: float
) -> list[str]:
    """Sentences for the reader of the recipe. share: of the planned time that local matching may take at most."""
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
        seen = "as pretrained" if network.frozen else f"each photograph {network.passes} times"
        lines.append(f"{network.base}: {network.backbone} at {network.pixels:,} pixels, {seen}")
    lines.append(_option_reason(choice, facts))
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
    if choice.networks[0].frozen:
        return f"{choice.folds} folds, for the learned match scores"
    if len(choice.trained) == choice.folds:
        return f"{choice.folds} folds: they keep {facts.machine.slots} runs at once busy to the end"
    few = f"with more, a run would see a photograph under {FEW} times"
    return f"of {choice.folds} folds only {len(choice.trained)} trained: {few}"


def _option_reason(choice: Choice, facts: Facts) -> str:
    considered = options(facts)
    if choice.networks[0].frozen:
        return f"trained ones would see a photograph under {FROZEN} times beside learned match scores"
    chosen = tuple(replace(network, passes=1) for network in choice.networks)
    place = [option.networks for option in considered].index(chosen)
    if place == len(considered) - 1:
        return "nothing larger is considered on such a machine"
    larger = considered[place + 1]
    words = " and ".join(f"{item.base} at {item.pixels:,} pixels" for item in larger.networks)
    return f"next would be {words}, for which the minutes do not suffice: {larger.enough} times a photograph"
