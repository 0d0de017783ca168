"""`recipe: auto`: the choice keeps the minutes and grows with them; what is written is an ordinary recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.auto import facts as facts_module
from whaleid.auto import throughput
from whaleid.auto.choose import FORWARD, LOCAL_IMAGES, MOST_PAIRS, START, VIEWS, Choice, choose, local_share
from whaleid.auto.facts import Facts, Machine, facts_of, find_machine
from whaleid.auto.options import ANOTHER, FEW, FROZEN, LARGER, MIRRORED, MOST, fold_number, options
from whaleid.auto.throughput import Throughput, line_through
from whaleid.local_matching.cost import PAIRS, Core, local_cost
from whaleid.pipeline.plan import Census

LITE = "tf_efficientnet_lite0"
LAPTOP = Machine(cores=2, gpus=0, slots=2, backbones=(LITE,))
STATION = Machine(cores=16, gpus=1, slots=1, backbones=("convnext_base", "convnext_small", LITE))
NYALA = Facts(Census(1514, 0, 237, 428, 1.5, estimated=False), 5.0, 9, 1500, 20, 43_000.0, 800, LAPTOP)
FLUKES = replace(NYALA, census=Census(4000, 4000, 2000, 2000, 1.0, estimated=False), area=10_000.0, groups=8000)
RATE = Throughput(0.002, 0.008 / 8192)
"""100 images a second at 8,192 pixels."""


def rates(machine: Machine, rate: Throughput = RATE) -> dict[str, Throughput]:
    return dict.fromkeys(machine.backbones, rate)


def chosen(facts: Facts, minutes: float, rate: Throughput = RATE) -> Choice:
    return choose(facts, minutes, rates(facts.machine, rate))


def enough(facts: Facts) -> int:
    """Passes that a network gets before a larger one is considered."""
    return ANOTHER if facts.machine.gpus else LARGER


def frozen(choice: Choice) -> bool:
    return choice.networks[0].base == "frozen"


# ----------------------------------------------------------------------------------------------------- the choice


def all_facts() -> st.SearchStrategy[Facts]:
    machines = st.one_of(
        st.integers(1, 16).flatmap(
            lambda cores: st.builds(
                Machine,
                st.just(cores),
                st.just(0),
                st.integers(1, cores),
                st.just(LAPTOP.backbones),
                core=st.builds(Core, st.floats(0.3, 5), st.floats(1e-10, 1e-8)),
            )
        ),
        st.just(STATION),
    )
    counts = st.builds(
        Census,
        labelled=st.integers(4, 50_000),
        unknown=st.integers(0, 20_000),
        identities=st.integers(2, 10_000),
        test=st.integers(0, 20_000),
        aspect=st.just(1.0),
        estimated=st.just(False),
    )
    return st.builds(
        Facts,
        counts,
        st.just(3.0),
        st.just(0),
        groups=st.one_of(st.just(2), st.integers(2, 50_000)),
        grouped=st.just(0),
        area=st.floats(1000, 1e7),
        keypoints=st.integers(1, 1000),
        machine=machines,
    )


all_rates = st.builds(Throughput, st.floats(0, 0.1), st.floats(1e-8, 1e-5))


@settings(max_examples=80, deadline=None)
@given(all_facts(), st.floats(1, 3000), all_rates)
def test_the_choice_keeps_the_minutes_or_is_the_smallest(facts: Facts, minutes: float, rate: Throughput) -> None:
    choice = chosen(facts, minutes, rate)
    total = sum(choice.seconds.values())
    smallest = choice.networks == options(facts)[0].networks and choice.local is None and choice.trained == (0,)
    assert total <= 60 * minutes or smallest
    assert len(choice.trained) == choice.folds or choice.trained in ((0,), (0, 1))
    learned = choice.local is not None and choice.local.learned is not None
    assert not learned or len(choice.trained) >= 3
    if choice.local is not None and choice.local.learned is not None and choice.local.learned.pairs is not None:
        pairs = choice.local.learned.pairs.images
        assert pairs == PAIRS[-1] or pairs * facts.census.all_images <= MOST_PAIRS
    if frozen(choice):
        assert learned and len(choice.networks) == 1 and facts.census.all_images <= LOCAL_IMAGES
    else:
        assert choice.seconds["local matching"] <= 60 * minutes * local_share(facts.census.all_images)
        assert all(1 <= network.epochs <= network.passes <= MOST for network in choice.networks)
    assert all(network.pixels <= facts.area for network in choice.networks)
    assert (len(choice.networks) == 1) or choice.networks[0].passes >= 8


@settings(max_examples=80, deadline=None)
@given(all_facts(), st.floats(1, 1000), st.floats(1, 10), all_rates)
def test_more_minutes_never_see_less(facts: Facts, minutes: float, factor: float, rate: Throughput) -> None:
    """While local matching and folds stay: the same networks see photographs as often, others are larger or more."""
    few, many = chosen(facts, minutes, rate), chosen(facts, minutes * factor, rate)
    smallest = options(facts)[0].networks[0].pixels
    gave_way = (few.trained, many.trained) == ((0, 1), (0,)) and few.networks[0].pixels == smallest
    assert len(many.trained) >= len(few.trained) or (gave_way and many.networks[0].pixels > smallest)
    if few.local == many.local and few.trained == many.trained:
        size = [(len(choice.networks), choice.networks[0].pixels) for choice in (few, many)]
        assert size[1] >= size[0]
        seen = [choice.networks[0].passes for choice in (few, many)]
        same = [network.base for network in few.networks] == [network.base for network in many.networks]
        assert seen[1] >= (seen[0] if same and size[0] == size[1] else min(seen[0], enough(facts)))


@pytest.mark.parametrize(
    ("facts", "minutes", "networks", "trained"),
    [(NYALA, 15, 1, 4), (NYALA, 60, 1, 4), (NYALA, 400, 2, 4), (FLUKES, 12, 1, 2), (FLUKES, 4, 1, 1)],
)
def test_choices_of_known_data(facts: Facts, minutes: float, networks: int, trained: int) -> None:
    choice = chosen(facts, minutes)
    assert (len(choice.networks), len(choice.trained)) == (networks, trained)
    assert (choice.local is not None) == (facts is NYALA)
    assert choice.networks[0].passes >= enough(facts) or minutes <= 15


def test_few_folds_get_larger_pictures_too() -> None:
    """One fold of larger pictures comes before two folds of the smallest."""
    made = [chosen(replace(FLUKES, area=30_000.0), minutes) for minutes in (6, 10, 15)]
    assert [len(choice.trained) for choice in made] == [1, 1, 2]
    assert [choice.networks[0].pixels for choice in made] == [8192, 16384, 16384]
    between = [chosen(replace(FLUKES, area=30_000.0), float(minutes)) for minutes in np.arange(8, 11, 0.1)]
    passes = [choice.networks[0].passes for choice in between if choice.networks[0].pixels == 16384]
    assert min(passes) == 4


def test_many_images_are_seen_four_times_before_larger_pictures_and_eight_before_a_second_network() -> None:
    many = replace(FLUKES, census=Census(8000, 0, 2000, 100, 1.0, estimated=False), area=60_000.0)
    made = [chosen(many, float(minutes)) for minutes in range(10, 500, 2)]
    larger = [one.networks[0].passes for one in made if len(one.networks) == 1 and one.networks[0].pixels > 8192]
    second = [one.networks[0].passes for one in made if len(one.networks) == 2]
    assert (min(larger), min(second)) == (4, 8)


def test_two_folds_of_the_smallest_pictures_are_seen_half_of_few_times() -> None:
    smallest = replace(FLUKES, area=8192.0)
    made = [chosen(smallest, float(minutes)) for minutes in np.arange(6, 14, 0.25)]
    assert {len(choice.trained) for choice in made} == {1, 2}
    assert min(choice.networks[0].passes for choice in made if len(choice.trained) == 2) == FEW // 2


def test_one_run_has_the_other_core_too() -> None:
    """By the measured speeds: with larger pictures a second thread is worth more."""
    for minutes, area, pixels, faster in ((6, 3e4, 8192, 1.24), (10, 3e4, 16384, 1.45), (5, 1e3, 1000, 1.0)):
        choice = chosen(replace(FLUKES, area=area), minutes)
        assert (choice.trained, choice.networks[0].pixels) == ((0,), pixels)
        images = 3000 * choice.networks[0].passes + FLUKES.census.all_images * VIEWS * FORWARD
        naive = START + RATE.seconds(pixels) / faster * images
        assert choice.seconds["training"] == pytest.approx(naive, rel=1e-6)


def test_the_full_gallery_costs_all_rankers_once_more() -> None:
    choice, census = chosen(NYALA, 90), NYALA.census
    assert choice.full_gallery and choice.local is not None
    counted = choice.local.model_copy(update={"keypoints": NYALA.keypoints})
    whole, own = (
        local_cost(census.labelled, census.unknown, census.test, choice.folds, counted, Core(), full_gallery=full).total
        for full in (True, False)
    )
    naive = choice.seconds["the rest"] + (whole - own) / LAPTOP.cores
    assert choice.seconds["the full gallery"] == pytest.approx(naive, rel=1e-9)


def pairs_of(choice: Choice) -> int:
    assert choice.local is not None and choice.local.learned is not None and choice.local.learned.pairs is not None
    return choice.local.learned.pairs.images


def often_enough(choice: Choice) -> bool:
    return choice.networks[0].passes >= FEW or choice.networks[0].pixels > 8192


def test_pairs_are_given_up_while_networks_see_a_photograph_too_seldom() -> None:
    """And no further: with fewer pairs than it has, each choice's networks reach FEW only by the pairs given up. Larger
    networks see photographs often enough."""
    hasty, calm = chosen(NYALA, 8), chosen(NYALA, 30)
    assert pairs_of(hasty) == PAIRS[-1] and hasty.networks[0].passes < FEW
    assert pairs_of(calm) == PAIRS[0] and often_enough(calm)
    larger = chosen(NYALA, 15)  # whose networks had time for smaller pictures often enough
    assert pairs_of(larger) == PAIRS[0] and larger.networks[0].passes < FEW
    between = [chosen(NYALA, minutes) for minutes in np.arange(8, 30, 0.25)]
    assert any(PAIRS[-1] < pairs_of(choice) < PAIRS[0] for choice in between)
    assert all(often_enough(choice) for choice in between if pairs_of(choice) > PAIRS[-1])


def test_the_full_gallery_is_estimated_where_it_takes_little() -> None:
    made = {minutes: chosen(NYALA, minutes) for minutes in (15, 90, 400)}
    assert [choice.full_gallery for choice in made.values()] == [False, True, True]
    for minutes, choice in made.items():
        assert choice.seconds.get("the full gallery", 0.0) <= 3 * minutes


def test_votes_stay_beside_fewer_folds_where_they_fit() -> None:
    many = replace(NYALA, census=Census(4500, 0, 900, 800, 1.0, estimated=False), groups=4500)
    hasty = chosen(many, 8)
    assert hasty.local is not None and hasty.local.learned is None and len(hasty.trained) < hasty.folds
    assert sum(hasty.seconds.values()) <= 480
    assert chosen(many, 3).local is None  # the seconds are the networks'


def test_a_frozen_network_stands_in_where_those_of_all_folds_would_hardly_be_trained() -> None:
    """As long as learned match scores, which need all folds, have the time for it."""
    made = {float(minutes): chosen(NYALA, minutes) for minutes in np.arange(1, 12, 0.05)}
    first, last = (pick(minutes for minutes, choice in made.items() if frozen(choice)) for pick in (min, max))
    assert all(frozen(choice) == (first <= minutes <= last) for minutes, choice in made.items())
    assert first > 1 and last < 12
    before, trained = (max(m for m in made if m < first), min(m for m in made if m > last))
    assert made[before].local is None
    trained = made[trained]
    assert trained.networks[0].passes == FROZEN and len(trained.trained) == 4
    hasty = made[first]
    embedded = NYALA.census.all_images * VIEWS * FORWARD * RATE.seconds(8192) / 1.24
    assert hasty.seconds["training"] == pytest.approx(START + embedded) and hasty.networks[0].epochs == 0
    assert pairs_of(made[last]) > pairs_of(trained)
    assert all(choice.local.learned for choice in made.values() if frozen(choice) and choice.local)
    assert not any(frozen(chosen(replace(NYALA, groups=2), minutes)) for minutes in made), "two folds are too few"
    crowd = replace(NYALA, census=replace(NYALA.census, test=LOCAL_IMAGES))
    assert not any(frozen(chosen(crowd, minutes)) for minutes in range(1, 40))


def slower_core(factor: float) -> Core:
    """A core that takes `factor` times as long for everything."""
    return Core(factor, factor * Core().product)


def test_on_a_slower_core_local_matching_is_reckoned_to_take_longer() -> None:
    slow = replace(NYALA, machine=replace(LAPTOP, core=slower_core(2)))
    at_ease, pressed = chosen(slow, 60), chosen(slow, 12)
    assert at_ease.local == chosen(NYALA, 60).local
    assert at_ease.seconds["local matching"] == 2 * chosen(NYALA, 60).seconds["local matching"]
    assert at_ease.seconds["training"] < chosen(NYALA, 60).seconds["training"]
    assert pairs_of(pressed) < pairs_of(chosen(NYALA, 12))
    slower = replace(NYALA, machine=replace(LAPTOP, core=slower_core(5)))
    for minutes in range(4, 40, 2):
        choice = chosen(slower, minutes)
        assert sum(choice.seconds.values()) <= 60 * minutes
        assert frozen(choice) or choice.seconds["local matching"] <= 60 * minutes * local_share(2000)
    long = chosen(slow, 400), chosen(NYALA, 400)
    again = [choice.seconds["the full gallery"] - choice.seconds["the rest"] for choice in long]
    assert again[0] == pytest.approx(2 * again[1])


def test_products_alone_may_be_slow() -> None:
    slow = replace(NYALA, machine=replace(LAPTOP, core=Core(product=10 * Core().product)))
    plain, paired = chosen(NYALA, 60), chosen(slow, 60)
    assert paired.seconds["local matching"] > 2 * plain.seconds["local matching"]
    assert pairs_of(chosen(slow, 12)) < pairs_of(chosen(NYALA, 12))


def test_a_machine_is_as_slow_as_its_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "this_core", lambda: slower_core(7))
    assert find_machine(Path("weights")).core == slower_core(7)


def test_a_mirrored_photograph_is_another_identity_where_identities_have_many() -> None:
    many = replace(NYALA, census=replace(NYALA.census, identities=100))
    base = {facts.mean_images >= 10: chosen(facts, 60).networks[0] for facts in (NYALA, many)}
    assert (base[False].base, base[False].mirrored) == ("arcface", False)
    assert (base[True].base, base[True].mirrored) == ("mirrored", True)
    assert base[True].epochs == base[True].passes // 2 >= enough(many)
    hasty = chosen(many, 8).networks[0]
    assert hasty.passes < MIRRORED and (hasty.base, hasty.mirrored) == ("arcface", False)


def test_mirrored_identities_need_many_passes() -> None:
    many = replace(NYALA, census=replace(NYALA.census, identities=100))
    made = [chosen(many, minutes).networks[0] for minutes in range(2, 40)]
    assert {one.mirrored for one in made} == {False, True}
    assert all(one.passes >= MIRRORED for one in made if one.mirrored and one.pixels == 8192)


@settings(max_examples=80, deadline=None)
@given(all_facts(), st.floats(1, 3000), all_rates)
def test_more_pixels_come_after_enough_images(facts: Facts, minutes: float, rate: Throughput) -> None:
    """Naively: a run of larger pictures than the smallest sees 78 images for each pixel of their side."""
    choice = chosen(facts, minutes, rate)
    first, smallest = choice.networks[0], options(facts)[0].networks[0].pixels
    if first.pixels > smallest:
        folds = fold_number(facts)
        seen = first.passes * facts.census.labelled * (folds - 1) / folds
        assert seen >= 78 * first.pixels**0.5
        assert first.passes >= (8 if facts.machine.gpus else 4)


def test_folds_fill_the_slots() -> None:
    numbers = {
        slots: fold_number(replace(NYALA, machine=replace(LAPTOP, cores=16, slots=slots))) for slots in range(1, 9)
    }
    assert numbers == {1: 3, 2: 4, 3: 3, 4: 4, 5: 5, 6: 5, 7: 5, 8: 5}
    assert fold_number(replace(NYALA, machine=STATION)) == 5
    assert fold_number(replace(NYALA, groups=2)) == 2


def test_few_keypoints_cost_less_and_are_all_kept() -> None:
    few, many = (chosen(replace(NYALA, keypoints=count), 5) for count in (200, 1000))
    assert few.local is not None and few.local.learned is not None and few.local.keypoints == 1000
    assert few.seconds["local matching"] < many.seconds["local matching"]


def test_a_gpu_gets_larger_networks_as_the_minutes_grow() -> None:
    facts = replace(NYALA, machine=STATION)
    fast = Throughput(0.0, 1 / 2000 / 50_000)
    names = [chosen(facts, minutes, fast).networks[0].backbone for minutes in (1, 600)]
    assert names == [LITE, "convnext_base"]


def test_facts_of_a_table() -> None:
    images = pd.DataFrame(
        {
            "image": list("abcdefg"),
            "split": ["train"] * 5 + ["test"] * 2,
            "identity": ["x", "x", "y", "new", "new", None, None],
            "group": ["a", "b", "b", "d", "e", "f", "g"],
            "x0": 0.0,
            "y0": 0.0,
            "x1": 20.0,
            "y1": 10.0,
        }
    )
    facts = facts_of(images, "new", 300, LAPTOP)
    assert facts.census == Census(3, 2, 2, 2, 2.0, estimated=False)
    assert (facts.median_images, facts.singletons, facts.groups, facts.grouped, facts.area, facts.keypoints) == (
        1.5,
        1,
        4,
        2,
        200.0,
        300,
    )


# -------------------------------------------------------------------------------------------------- the throughput


def test_two_sizes_give_every_other() -> None:
    line = line_through((100, 300), (2.0, 4.0))
    assert line.seconds(200) == pytest.approx(3.0)
    assert line_through((100, 300), (2.0, 1.0)) == Throughput(2.0, 0.0)


def test_real_steps_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "SECONDS", 0.1)
    tiny = throughput.seconds_an_image("auto/arcface", "test_efficientnet", 1024, 5, 1, 0, Path("weights"))
    assert 1e-5 < tiny < 1
