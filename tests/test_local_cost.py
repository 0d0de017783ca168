"""The model of local matching's cost, and what a budget allows."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.config import LearnedConfig, LocalConfig, PairsConfig
from whaleid.local_matching.cost import PAIRS, Core, local_cost, search_cost, this_core, within_budget
from whaleid.local_matching.mutual import product_seconds
from whaleid.local_matching.query_pairs import MOST
from whaleid.local_matching.votes import EXACT
from whaleid.utils.machine import slowness

FULL = LocalConfig(learned=LearnedConfig(pairs=PairsConfig()))
CORE = Core()


def test_time_is_linear_in_queries():
    one, two = local_cost(2000, 0, 1000, 0, FULL, CORE), local_cost(2000, 0, 2000, 0, FULL, CORE)
    assert two.scores == pytest.approx(2 * one.scores) and two.pairs == pytest.approx(2 * one.pairs)
    gallery = 100 * EXACT
    by_queries = [search_cost(queries, gallery) for queries in (1e5, 2e5, 3e5)]
    assert by_queries[2] - by_queries[1] == pytest.approx(by_queries[1] - by_queries[0])


@pytest.mark.parametrize("gallery", [EXACT, 10 * EXACT, 500 * EXACT])
def test_a_larger_gallery_costs_less_than_in_proportion(gallery):
    assert search_cost(1e6, 2 * gallery) < 2 * search_cost(1e6, gallery)


def test_8000_queries_against_25000_images_take_less_than_an_hour_of_two_cores():
    assert local_cost(25_000, 0, 8_000, 0, FULL, CORE).total < 2 * 3600


def test_out_of_fold_every_labelled_image_is_a_query_too():
    alone, once = local_cost(2000, 500, 1000, 0, FULL, CORE), local_cost(2000, 500, 1000, 3, FULL, CORE)
    with_folds = local_cost(2000, 500, 1000, 3, FULL, CORE, full_gallery=True)
    assert with_folds.keypoints == once.keypoints == alone.keypoints
    for part in ("scores", "pairs"):
        assert getattr(once, part) == pytest.approx(getattr(alone, part) * (1000 + 2500) / 1000)
        assert getattr(with_folds, part) == pytest.approx(getattr(alone, part) * (1000 + 2 * 2500) / 1000)
    assert alone.search < once.search < with_folds.search < 2 * once.search


def test_queries_are_matched_with_one_another_too():
    alone = FULL.model_copy(update={"learned": LearnedConfig(pairs=None)})
    cost, without = (local_cost(2000, 0, 1000, 4, config, CORE) for config in (FULL, alone))
    keypoints = [1000 * 1000, *[500 * 1000] * 4]
    assert cost.search - without.search == pytest.approx(sum(search_cost(one, one) for one in keypoints))
    assert cost.pairs == pytest.approx(3000 * (50 + MOST) * 1000**2 * 1.1e-9)


def test_parts_that_are_left_out_cost_nothing():
    assert (
        local_cost(1000, 0, 100, 3, LocalConfig(), CORE).scores
        == 0
        == local_cost(1000, 0, 100, 3, LocalConfig(), CORE).pairs
    )
    without = LocalConfig(learned=LearnedConfig(pairs=None))
    assert local_cost(1000, 0, 100, 3, without, CORE).pairs == 0 < local_cost(1000, 0, 100, 3, without, CORE).scores


@settings(max_examples=50, deadline=None)
@given(
    known=st.integers(10, 100_000),
    unknown=st.integers(0, 50_000),
    test=st.integers(0, 50_000),
    share=st.floats(0.01, 2),
)
def test_a_budget_is_kept_and_more_is_never_less(known, unknown, test, share):
    wanted = local_cost(known, unknown, test, 3, FULL, CORE).total
    chosen, cost = within_budget(known, unknown, test, 3, FULL, CORE, share * wanted)
    if chosen is None:
        assert cost.total > share * wanted
        return
    assert cost == local_cost(known, unknown, test, 3, chosen, CORE) and cost.total <= share * wanted
    if share >= 1:
        assert chosen == FULL
    more, _ = within_budget(known, unknown, test, 3, FULL, CORE, 1.5 * share * wanted)
    assert more is not None and more.keypoints >= chosen.keypoints
    if chosen.learned is not None and chosen.learned.pairs is not None and chosen.keypoints < FULL.keypoints:
        assert chosen.learned.pairs.images == PAIRS[-1]  # pairs are given up before keypoints


def test_pairs_take_as_long_as_products_and_everything_else_as_the_core():
    slow_products, slow = Core(product=3 * CORE.product), Core(2.0, 2 * CORE.product)
    plain, one, two = (local_cost(2000, 500, 1000, 3, FULL, core) for core in (CORE, slow_products, slow))
    pairs = 3500 * (50 + MOST) * 1000**2
    assert one == replace(plain, pairs=plain.pairs + 2 * pairs * CORE.product)
    assert asdict(two) == {part: pytest.approx(2 * seconds) for part, seconds in asdict(plain).items()}


def test_a_core_is_measured():
    core = this_core()
    assert core == Core(slowness(), product_seconds()) and 1e-12 < core.product < 1e-6
