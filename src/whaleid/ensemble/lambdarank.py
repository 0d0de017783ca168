"""Trees that rank candidates: LightGBM's LambdaRank, as the stack uses it.

Values are binned once for all models that are trained on the same folds; a model that must not use some queries gets
the binned rows of the others. Which rows there are, and so where the bins lie, does not depend on any truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whaleid.config import StackConfig
from whaleid.ensemble.stack_features import Table, directions

_BEHIND = 5  # places after the k-th that a tree still sorts by: what comes further back is worth nothing
_TINY = 1e-9  # what a sum of weights is kept above


@dataclass(frozen=True)
class TrainingTable:
    """The rows that models are trained on: of each query its first candidates.

    Attributes
    ----------
    names : tuple of str
        Of the features.
    data : lightgbm.Dataset
    query : int64 array, shape (r,)
        Query of each row, ascending.
    usable : bool array, shape (queries,)
        Whether a query has a weight and its truth is among its rows.
    weights : float64 array, shape (queries,)
    """

    names: tuple[str, ...]
    data: Any
    query: np.ndarray
    usable: np.ndarray
    weights: np.ndarray


def training_table(table: Table, truth: np.ndarray, weights: np.ndarray, config: StackConfig) -> TrainingTable:
    """The rows of a table that models are trained on, with their labels.

    Parameters
    ----------
    table : Table
    truth : int64 array, shape (queries,)
        -1 = unknown.
    weights : float64 array, shape (queries,)
    config : StackConfig
    """
    import lightgbm as lgb

    count = np.bincount(table.query, minlength=table.queries)
    place = np.arange(len(table.query)) - np.repeat(np.cumsum(count) - count, count)
    rows = np.flatnonzero(place < config.training_candidates)
    query = table.query[rows]
    label = (table.codes[rows] == truth[query]).astype(np.float64)
    sizes = np.bincount(query, minlength=table.queries)
    data = lgb.Dataset(
        table.values[rows],
        label,
        group=sizes[sizes > 0],
        init_score=table.start[rows],
        params=_binning(config),
    )
    has_truth = np.bincount(query, label, table.queries) > 0
    return TrainingTable(table.names, data, query, has_truth & (weights > 0), weights)


def train_models(table: TrainingTable, chosen: np.ndarray, k: int, config: StackConfig, seed: int) -> tuple[Any, ...]:
    """Models of `config.seeds` seeds, trained on the chosen queries alone; none where no chosen query is usable.

    Parameters
    ----------
    table : TrainingTable
    chosen : bool array, shape (queries,)
    k : int
        Number of guesses that count.
    config : StackConfig
    seed : int

    Returns
    -------
    tuple of lightgbm.Booster
    """
    import lightgbm as lgb

    rows = np.flatnonzero((table.usable & chosen)[table.query])
    if not len(rows):
        return ()
    weights = table.weights[table.query[rows]]
    data = table.data.subset(rows.astype(np.int32)).construct()
    data.set_weight(weights / max(weights.mean(), _TINY))
    settings = {
        **_binning(config),
        "objective": "lambdarank",
        "lambdarank_truncation_level": k + _BEHIND,
        "learning_rate": config.learning_rate,
        "num_leaves": config.num_leaves,
        "min_data_in_leaf": config.min_data_in_leaf,
        "lambda_l2": config.lambda_l2,
        "feature_fraction": config.feature_fraction,
        "deterministic": True,
        "monotone_constraints": directions(table.names),
    }
    if config.bagging_fraction < 1:
        settings |= {"bagging_fraction": config.bagging_fraction, "bagging_freq": 1, "bagging_by_query": True}

    def train(number: int) -> Any:
        own = seed + 1000 * number  # `seed` itself would have the rows binned anew
        seeds = {"bagging_seed": own, "feature_fraction_seed": own + 1}
        return lgb.train({**settings, **seeds}, data, config.num_iterations)

    return tuple(train(number) for number in range(config.seeds))


def score_rows(
    models: Sequence[Any], values: np.ndarray, trees: int, config: StackConfig, first: int = 0
) -> np.ndarray:
    """Mean score of the models by their trees first .. trees; 0 where there is no model, or no tree.

    Parameters
    ----------
    models : sequence of lightgbm.Booster
    values : float32 array, shape (r, features)
    trees, first : int
    config : StackConfig

    Returns
    -------
    float64 array, shape (r,)
    """
    if trees == first or not models or not len(values):
        return np.zeros(len(values))
    options = {"start_iteration": first, "num_iteration": trees - first, "raw_score": True}
    return np.mean([model.predict(values, num_threads=config.num_threads, **options) for model in models], axis=0)


def _binning(config: StackConfig) -> dict[str, Any]:
    """Settings that a Dataset and every model trained on it must share."""
    return {"feature_pre_filter": False, "force_row_wise": True, "num_threads": config.num_threads, "verbosity": -1}
