"""Value of a form's metric with its bootstrap interval, for all forms but `topk`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

DRAWS = 1000
"""Resamples of an interval."""


@dataclass(frozen=True)
class FormScore:
    """A metric with its 95 % interval.

    Attributes
    ----------
    metric : str
        Its name, as printed.
    value, low, high : float
        low <= value <= high.
    queries : int
        Rows of the solution that count.
    parts : mapping
        Name -> value of what the metric is the mean of: data sets and their components.
    more : mapping
        Further figures as plain values, for the command line's JSON.
    """

    metric: str
    value: float
    low: float
    high: float
    queries: int
    parts: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    def line(self, label: str, interval: bool = False) -> str:
        """`ARI (label): 0.91234`, and ` ± 0.00456` (half the interval's width) if `interval`."""
        spread = f" ± {(self.high - self.low) / 2:.5f}" if interval else ""
        return f"{self.metric} ({label}): {self.value:.5f}{spread}"

    def part_lines(self) -> list[str]:
        """`name: 0.91234` of each part."""
        return [f"{name}: {value:.5f}" for name, value in self.parts.items()]

    def as_json(self) -> dict[str, Any]:
        """The values as plain types, without `more`."""
        return {name: value for name, value in asdict(self).items() if name != "more"}

    def details(self) -> dict[str, Any]:
        """Further figures, for the command line's JSON."""
        return dict(self.more)


def with_interval(
    metric: str, value: float, draws: np.ndarray, queries: int, parts: Mapping[str, float] | None = None
) -> FormScore:
    """Score with the 95 % percentile interval of `draws`, float (n,); the interval always holds the value itself."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return FormScore(metric, float(value), min(float(low), value), max(float(high), value), queries, dict(parts or {}))


def resampled_means(values: np.ndarray, rng: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
    """Means of `values`, float (n,), resampled with replacement: float (draws,); NaN where there are no values."""
    if not len(values):
        return np.full(draws, np.nan)
    return np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)])
