"""`whaleid plan`: hours and money by where the runs happen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whaleid.pipeline.plan import places_table


def test_hours_and_money_of_each_place() -> None:
    """Longest first on two devices: 5 + 1 + 1 and 4 + 3 hours."""
    table = places_table([3.0, 1.0, 4.0, 1.0, 5.0], 2, 2, 10.0)
    assert table.to_dict("list") == {
        "on": ["one device", "2 devices", "SLURM, 5 jobs"],
        "hours": ["28.00", "14.00", "10.00"],
        "device hours": ["28.00", "28.00", "28.00"],
        "money": ["280.00", "280.00", "280.00"],
    }
    assert "money" not in places_table([1.0], 1, 2, None)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 9))
def test_devices_are_paid_while_they_wait_and_none_beats_the_bounds(runs: list[int], gpus: int) -> None:
    table = places_table([float(hours) for hours in runs], 1, gpus, 1.0)
    clock, paid = float(table["hours"][1]), float(table["device hours"][1])
    assert max(max(runs), sum(runs) / gpus) - 0.005 <= clock <= sum(runs) / gpus + max(runs)
    assert paid == pytest.approx(gpus * clock)
