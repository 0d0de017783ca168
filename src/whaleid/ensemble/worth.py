"""What the blend is worth over its best member, and what each member is worth to the blend.

All scores are cross-fitted: a fold's answers come from weights and thresholds that the other folds taught, also those
of the blends that lack a member, which are tuned again without it. The best member is the one whose reported score is
the highest, which is a little lucky: the gain over it is rather too small than too large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from whaleid.ensemble.gains import Gain, paired_gain


@dataclass(frozen=True)
class MemberWorth:
    """map: of the member alone. gain: of the blend over the same blend tuned without it; None where there is no
    other member. dropped: weight 0 in the blend tuned on all folds: it does not help.
    """

    name: str
    map: float
    gain: Gain | None
    dropped: bool


@dataclass(frozen=True)
class BlendWorth:
    """map: of the blend. best: name of the best member. gain: of the blend over it. members: in the blend's order."""

    map: float
    best: str
    gain: Gain
    members: tuple[MemberWorth, ...]

    def as_json(self) -> dict[str, Any]:
        """Every figure as plain types."""
        return asdict(self)


def blend_worth(
    blend: np.ndarray,
    alone: Mapping[str, np.ndarray],
    without: Mapping[str, np.ndarray],
    shares: Mapping[str, float],
    weights: np.ndarray,
    seed: int = 0,
) -> BlendWorth:
    """Compare query by query, with paired bootstrap intervals.

    blend: float64 (n,), score of each query by the blend. alone: the same of each member by itself; without: of the
    blend tuned without that member, empty where there is only one. shares: weight of each member in the blend.
    weights: float64 (n,), of the queries.
    """

    def mean(scores: np.ndarray) -> float:
        return float(weights @ scores / weights.sum())

    best = max(alone, key=lambda name: mean(alone[name]))
    members = [
        MemberWorth(
            name=name,
            map=mean(own),
            gain=paired_gain(blend - without[name], weights, seed) if name in without else None,
            dropped=shares[name] == 0.0,
        )
        for name, own in alone.items()
    ]
    return BlendWorth(mean(blend), best, paired_gain(blend - alone[best], weights, seed), tuple(members))


def worth_lines(worth: Mapping[str, Any]) -> list[str]:
    """`BlendWorth.as_json` as text: the blend, then a line a member."""
    lines = [f"blend {worth['map']:.5f}: {_shown(worth['gain'])} over its best member, {worth['best']}"]
    for one in worth["members"]:
        gain = "" if one["gain"] is None else f", worth {_shown(one['gain'])} to the blend"
        dropped = " (dropped: it does not help)" if one["dropped"] else ""
        lines.append(f"  {one['name']} alone {one['map']:.5f}{gain}{dropped}")
    return lines


def _shown(gain: Mapping[str, float]) -> str:
    return f"{gain['gain']:+.5f} [{gain['low']:+.5f}, {gain['high']:+.5f}]"
