"""Which images are matched with a query pair by pair."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.local_matching.pair_candidates import images_of_identities, in_turn


def naive(one: list[int], other: list[int]) -> list[int]:
    """Two lists in turn, each identity once, by a loop."""
    merged: list[int] = []
    for place in range(max(len(one), len(other))):
        for row in (one, other):
            if place < len(row) and row[place] not in (-1, *merged):
                merged.append(row[place])
    return merged


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), widths=st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_lists_are_taken_in_turn(seed, widths):
    rng = np.random.default_rng(seed)
    one, other = (rng.integers(-1, 6, (4, width)) for width in widths)
    merged = in_turn(one, other)
    assert merged.shape == (4, sum(widths))
    for row, first, second in zip(merged, one.tolist(), other.tolist(), strict=True):
        expected = naive(first, second)
        assert row.tolist() == expected + [-1] * (sum(widths) - len(expected))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), most=st.integers(1, 12))
def test_images_stand_identity_after_identity(seed, most):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 4, 12)
    identities = np.array([rng.permutation(4) for _ in range(3)])
    identities[:, 3] = -1
    for row, found in zip(identities, images_of_identities(identities, codes, most), strict=True):
        expected = [image for code in row[:3] for image in np.flatnonzero(codes == code)][:most]
        assert found.tolist() == expected + [-1] * (most - len(expected))
