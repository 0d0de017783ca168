"""Value of a form's metric with its bootstrap interval, for all forms but `topk`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

DRAWS = 1000
"""Resamples of an interval."""
Metric = Callable[[np.ndarray], float]
"""How often each row of a form's outcomes counts, int (n,) -> the form's metric."""


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


def resampled_counts(
    table: pd.DataFrame, unit: Sequence[str], stratum: Sequence[str], rng: np.random.Generator, draws: int = DRAWS
) -> Iterator[np.ndarray]:
    """How often each row comes where units are resampled with replacement within their stratum.

    Parameters
    ----------
    table : DataFrame
        Of n rows.
    unit, stratum : sequences of str
        Columns whose values together name the unit, and the stratum, of a row; none: all rows are one stratum.
    rng : Generator
    draws : int

    Yields
    ------
    int array, shape (n,)
    """
    of_row = table.groupby([*stratum, *unit], sort=True).ngroup().to_numpy()
    within = np.zeros(len(table), int) if not stratum else table.groupby(list(stratum), sort=True).ngroup().to_numpy()
    strata = [np.unique(of_row[within == one]) for one in range(within.max() + 1)]
    for _ in range(draws):
        counts = np.zeros(of_row.max() + 1, dtype=int)
        for units in strata:
            counts[units] = np.bincount(rng.integers(len(units), size=len(units)), minlength=len(units))
        yield counts[of_row]


def unit_shares(table: pd.DataFrame, unit: Sequence[str]) -> np.ndarray:
    """1 / number of rows of each row's unit, float (n,): the weights of a mean over units of the mean over their rows.

    unit: columns whose values together name the unit of a row.
    """
    return 1.0 / table.groupby(list(unit))[unit[0]].transform("size").to_numpy()


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean of values (n,); 0 where no weight is above 0."""
    return float(weights @ values / weights.sum()) if weights.any() else 0.0
