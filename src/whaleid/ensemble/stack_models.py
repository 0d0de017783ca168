"""What the stack has learnt for the test set, in memory and as files.

Trees cut where two values differ: scores that differ in their last digit, as another processor or another build of
a library gives them, grow other trees, and other trees order a few queries in a hundred otherwise. Whoever answers on
another machine (a Kaggle kernel) therefore takes along what was learnt and validated at home, as text: `orders.json`
and `group<g>-seed<s>.txt`, LightGBM's own form, whose numbers come back as they were.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whaleid.config import StackConfig
from whaleid.ensemble.calibrate import Calibration
from whaleid.ensemble.lambdarank import score_rows
from whaleid.ensemble.stack_features import Table
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, write_json

_ORDERS = "orders.json"

STACK_FOLDER = "stack"
"""Beside a recipe's candidates: the fitted stack, for the test set."""


@dataclass(frozen=True)
class StackModels:
    """Models and all that they look through.

    names: of the features. models: of every group, of every seed; no seed where a group had nothing to learn from.
    rounds: trees used of each. limit: score of unknown; None without unknown label. calibrations, limits: of every
    ranking and, last, of the blend; a limit is the score of unknown there, None without unknown label.
    """

    names: tuple[str, ...]
    models: tuple[tuple[Any, ...], ...]
    rounds: int
    limit: float | None
    calibrations: tuple[Calibration, ...]
    limits: tuple[float | None, ...]

    def score(self, group: int, table: Table, rows: np.ndarray | slice, config: StackConfig) -> np.ndarray:
        """Score float64 of some rows by the models of one group."""
        return table.start[rows] + score_rows(self.models[group], table.values[rows], self.rounds, config)

    def mean_score(self, table: Table, config: StackConfig) -> np.ndarray:
        """Score float64 (r,) averaged over the groups' models: for images that no model was taught by."""
        return np.mean([self.score(group, table, slice(None), config) for group in range(len(self.models))], axis=0)


def write_stack_models(orders: StackModels, folder: Path) -> None:
    """Write them to the folder, which appears whole or not at all."""
    said = asdict(replace(orders, models=()))
    said["models"] = [len(seeds) for seeds in orders.models]
    with atomic_path(folder) as out:
        out.mkdir()
        for group, seeds in enumerate(orders.models):
            for seed, model in enumerate(seeds):
                (out / _name(group, seed)).write_text(model.model_to_string(num_iteration=orders.rounds))
        write_json(out / _ORDERS, said)


def read_stack_models(folder: Path) -> StackModels:
    """What `write_stack_models` wrote. Raises WhaleidError for a file that is missing or not whole."""
    import lightgbm as lgb

    try:
        said = json.loads((folder / _ORDERS).read_text())
        models = tuple(
            tuple(lgb.Booster(model_str=(folder / _name(group, seed)).read_text()) for seed in range(seeds))
            for group, seeds in enumerate(said["models"])
        )
        return StackModels(
            names=tuple(said["names"]),
            models=models,
            rounds=said["rounds"],
            limit=said["limit"],
            calibrations=tuple(Calibration(**one) for one in said["calibrations"]),
            limits=tuple(said["limits"]),
        )
    except (OSError, ValueError, KeyError, TypeError, lgb.basic.LightGBMError) as error:
        raise WhaleidError(
            f"{folder}: no readable orders of the stack here ({error}); make the ensemble again"
        ) from error


def _name(group: int, seed: int) -> str:
    return f"group{group}-seed{seed}.txt"
