"""Folds: even, together, deterministic."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.data.folds import fold_table, make_folds
from whaleid.utils.errors import WhaleidError

UNKNOWN = "new"


def table(identities: list[str], groups: list[int | None] | None = None) -> pd.DataFrame:
    names = [f"i{row:04d}.jpg" for row in range(len(identities))]
    labels = names if groups is None else [f"g{group}" if group is not None else None for group in groups]
    return pd.DataFrame({"image": names, "split": "train", "identity": identities, "group": labels})


identity_lists = st.lists(st.sampled_from([*"abcdefghijkl", UNKNOWN, UNKNOWN]), min_size=5, max_size=60)
fold_counts = st.integers(2, 5)


def spread(counts: pd.Series, folds: int) -> int:
    """Difference of the fullest and the emptiest fold."""
    full = counts.reindex(range(folds), fill_value=0)
    return int(full.max() - full.min())


@settings(deadline=None, max_examples=60)
@given(identity_lists, fold_counts, st.integers(0, 3))
def test_every_part_is_even(identities, folds, seed):
    assigned = make_folds(table(identities), folds, UNKNOWN, seed)
    assert assigned["image"].tolist() == table(identities)["image"].tolist()
    assert assigned["fold"].between(0, folds - 1).all()
    assert spread(assigned["fold"].value_counts(), folds) <= 1
    for _, rows in assigned.groupby("identity"):
        assert spread(rows["fold"].value_counts(), folds) <= 1
    size = assigned.groupby("identity")["image"].transform("size")
    singles = assigned[(size == 1) & (assigned["identity"] != UNKNOWN)]
    assert spread(singles["fold"].value_counts(), folds) <= 1


@settings(deadline=None, max_examples=60)
@given(st.data(), fold_counts)
def test_groups_stay_together(data, folds):
    identities = data.draw(identity_lists)
    numbers = st.one_of(st.none(), st.integers(0, 12))
    groups = data.draw(st.lists(numbers, min_size=len(identities), max_size=len(identities)))
    images = table(identities, groups)
    number = len({group for group in groups if group is not None}) + sum(group is None for group in groups)
    if folds > number:
        with pytest.raises(WhaleidError, match="folds are more than"):
            make_folds(images, folds, UNKNOWN)
        return
    assigned = make_folds(images, folds, UNKNOWN)
    together = assigned.assign(group=images["group"]).dropna(subset="group")
    assert (together.groupby("group")["fold"].nunique() == 1).all()


@settings(deadline=None, max_examples=25)
@given(st.data(), fold_counts)
def test_row_order_and_group_names_do_not_matter(data, folds):
    identities = data.draw(identity_lists)
    images = table(identities, [row // 2 if row % 7 == 1 else row for row in range(100, 100 + len(identities))])
    renamed = images.assign(group="other" + images["group"])
    order = data.draw(st.permutations(range(len(images))))
    if images["group"].nunique() < folds:
        return
    first = make_folds(images, folds, UNKNOWN, seed=1).set_index("image")["fold"]
    second = make_folds(renamed.iloc[order], folds, UNKNOWN, seed=1)
    assert second["image"].tolist() == images["image"].iloc[order].tolist()
    assert second.set_index("image")["fold"].sort_index().equals(first.sort_index())


def test_seed_changes_the_folds():
    images = table([f"w{row // 3}" for row in range(60)])
    first, again, other = (make_folds(images, 4, None, seed)["fold"].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_remainders_do_not_pile_up():
    """1,000 identities of 6 images in 5 folds: each identity has one image over, which must go round."""
    images = table([f"w{row // 6}" for row in range(6000)])
    assert spread(make_folds(images, 5, None)["fold"].value_counts(), 5) <= 1


@pytest.fixture
def encounters() -> pd.DataFrame:
    """40 identities seen in encounters of 1 to 11 images, then 83 singletons and 101 unknown images."""
    sizes = np.random.default_rng(0).integers(1, 12, 300)
    groups = np.repeat(np.arange(300), sizes)
    names = [f"w{group % 40}" for group in groups] + [f"s{row}" for row in range(83)] + [UNKNOWN] * 101
    return table(names, [*groups.tolist(), *[None] * 184])


def test_encounters_of_unequal_size_balance(encounters):
    counts = make_folds(encounters, 5, UNKNOWN)["fold"].value_counts()
    assert spread(counts, 5) <= 0.05 * counts.mean()


def test_encounters_do_not_unbalance_the_rest(encounters):
    assigned = make_folds(encounters, 5, UNKNOWN)
    for first, rows in assigned.groupby(assigned["identity"].str[0]):
        if first in ("s", UNKNOWN[0]):
            assert spread(rows["fold"].value_counts(), 5) <= 1


def test_every_identity_spreads_over_all_folds(encounters):
    """Each of the 40 was met 7 or 8 times, so that no fold of 5 need be without it, nor full of it."""
    assigned = make_folds(encounters, 5, UNKNOWN)
    seen = assigned[assigned["identity"].str.startswith("w")].groupby("identity")["fold"]
    assert (seen.nunique() == 5).all()
    assert seen.agg(lambda folds: spread(folds.value_counts(), 5)).max() <= 11  # the largest encounter


def test_test_rows_take_no_part():
    images = table(["a", "b", "a", "b"])
    images.loc[3, ["split", "identity"]] = ["test", None]
    assert make_folds(images, 2, None)["image"].tolist() == images["image"].tolist()[:3]


@pytest.mark.parametrize(
    ("groups", "folds", "words"),
    [
        ([0, 1, 2, 3], 5, "5 folds are more than the 4 training images can fill"),
        ([0, 0, 1, 1], 3, "4 training images can fill, as they form 2 groups of copies.*the largest has 2"),
        ([0, 1, 2, 3], 1, "at least 2"),
    ],
)
def test_too_many_folds(groups, folds, words):
    with pytest.raises(WhaleidError, match=words):
        make_folds(table(list("aabb"), groups), folds, None)


def test_no_labelled_image():
    with pytest.raises(WhaleidError, match="more than the 0 training images"):
        make_folds(table(["a"]).assign(split="test"), 2, None)


def naive_table(assigned: pd.DataFrame, unknown: str | None) -> list[list[int]]:
    rows = []
    for fold in sorted(set(assigned["fold"])):
        inside = [row for row in assigned.itertuples() if row.fold == fold]
        rest = [row for row in assigned.itertuples() if row.fold != fold]
        known = [row for row in inside if row.identity != unknown]
        everyone = assigned["identity"].tolist()
        unseen = [row for row in known if row.identity not in {other.identity for other in rest}]
        singles = [row for row in known if everyone.count(row.identity) == 1]
        names = {row.identity for row in known}
        rows.append([fold, len(inside), len(names), len(singles), len(inside) - len(known), len(unseen)])
    return rows


@settings(deadline=None, max_examples=25)
@given(identity_lists, st.sampled_from([UNKNOWN, None]), st.integers(0, 99))
def test_fold_table_equals_a_naive_count(identities, unknown, seed):
    assigned = table(identities).assign(fold=np.random.default_rng(seed).integers(0, 3, len(identities)))
    counted = fold_table(assigned[["image", "identity", "fold"]], unknown)
    columns = ["fold", "images", "identities", "singletons", "unknown", "unseen"]
    assert counted[columns].to_numpy().tolist() == naive_table(assigned, unknown)
    share = (counted["unknown"] + counted["unseen"]) / counted["images"]
    np.testing.assert_allclose(counted["unknown_share"], share)
