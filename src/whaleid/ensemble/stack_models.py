"""The models of a fitted stack, in memory and as files.

Trees split where two values differ: scores that differ in their last digit, as another processor or another build of
a library gives them, grow other trees, and other trees rank a few queries in a hundred otherwise. What ranks the test
set on another machine (a Kaggle kernel) therefore uses the models that were trained and validated at home, as text:
`stack.json` and `group<g>-seed<s>.txt`, LightGBM's own format, whose numbers come back as they were.
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

STACK_FOLDER = "stack"
"""Folder of the files, beside a recipe's candidates."""
_FILE = "stack.json"


@dataclass(frozen=True)
class StackModels:
    """Models, and everything that gives them their features.

    Attributes
    ----------
    names : tuple of str
        Of the features.
    models : tuple of tuple of Booster
        One tuple a group of identities, one model a seed; empty where a group had nothing to train on.
    trees : int
        Number of trees that are used of each model.
    calibrations : tuple of Calibration
        Of every ranking and, last, of the blend.
    limit : float or None
        Score of the unknown identity in the stack's lists; None without unknown label.
    """

    names: tuple[str, ...]
    models: tuple[tuple[Any, ...], ...]
    trees: int
    calibrations: tuple[Calibration, ...]
    limit: float | None

    def score(self, group: int, table: Table, rows: np.ndarray | slice, config: StackConfig) -> np.ndarray:
        """Score float64 of some rows by the models of one group."""
        return table.start[rows] + score_rows(self.models[group], table.values[rows], self.trees, config)

    def mean_score(self, table: Table, config: StackConfig) -> np.ndarray:
        """Score float64 (r,) averaged over the groups' models: for queries that no model was trained on."""
        return np.mean([self.score(group, table, slice(None), config) for group in range(len(self.models))], axis=0)


def write_stack_models(stack: StackModels, folder: Path) -> None:
    """Write them to the folder, which appears whole or not at all."""
    content = asdict(replace(stack, models=()))
    content["models"] = [len(seeds) for seeds in stack.models]
    with atomic_path(folder) as out:
        out.mkdir()
        for group, seeds in enumerate(stack.models):
            for seed, model in enumerate(seeds):
                (out / _name(group, seed)).write_text(model.model_to_string(num_iteration=stack.trees))
        write_json(out / _FILE, content)


def read_stack_models(folder: Path) -> StackModels:
    """What `write_stack_models` wrote. Raises WhaleidError for a file that is missing or not whole."""
    import lightgbm as lgb

    try:
        content = json.loads((folder / _FILE).read_text())
        models = tuple(
            tuple(lgb.Booster(model_str=(folder / _name(group, seed)).read_text()) for seed in range(seeds))
            for group, seeds in enumerate(content["models"])
        )
        return StackModels(
            names=tuple(content["names"]),
            models=models,
            trees=content["trees"],
            calibrations=tuple(Calibration(**one) for one in content["calibrations"]),
            limit=content["limit"],
        )
    except (OSError, ValueError, KeyError, TypeError, lgb.basic.LightGBMError) as error:
        raise WhaleidError(f"{folder}: no readable models of a stack ({error}); make the ensemble again") from error


def _name(group: int, seed: int) -> str:
    return f"group{group}-seed{seed}.txt"
