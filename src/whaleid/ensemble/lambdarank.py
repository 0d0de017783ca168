"""Trees that order candidates: LambdaRank of LightGBM as the stack uses it.

Values are binned once for all models that learn from the same folds: a model that must not see some queries gets the
binned rows of the others. Which rows are there, and so where the bins lie, is nothing that a truth has a part in.
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
class Lesson:
    """The rows that rankers learn from: of each query its first candidates, and unknown.

    names: of the features. data: lightgbm's Dataset of them. query: int64 (r,), ascending, of each row. teaches: bool
    (queries,), whether the truth is among the rows, so that there is something to learn. weights: float64 (queries,).
    """

    names: tuple[str, ...]
    data: Any
    query: np.ndarray
    teaches: np.ndarray
    weights: np.ndarray


def prepare_lesson(table: Table, truth: np.ndarray, weights: np.ndarray, config: StackConfig) -> Lesson:
    """The table's rows as rankers learn from them.

    truth: int64 (queries,), -1 = unknown. weights: float64 (queries,).
    """
    import lightgbm as lgb

    unknown = table.values[:, table.names.index("unknown")] > 0
    count = np.bincount(table.query, minlength=table.queries)
    place = np.arange(len(table.query)) - np.repeat(np.cumsum(count) - count, count)
    rows = np.flatnonzero((place < config.training_candidates) | unknown)
    query, own = table.query[rows], truth[table.query[rows]]
    label = np.where(own >= 0, table.codes[rows] == own, unknown[rows]).astype(np.float64)
    sizes = np.bincount(query, minlength=table.queries)
    data = lgb.Dataset(
        table.values[rows],
        label,
        group=sizes[sizes > 0],
        init_score=table.start[rows],
        params=_binning(config),
    )
    teaches = np.bincount(query, label, table.queries) > 0
    return Lesson(table.names, data, query, teaches & (weights > 0), weights)


def train_rankers(lesson: Lesson, chosen: np.ndarray, k: int, config: StackConfig, seed: int) -> tuple[Any, ...]:
    """LightGBM boosters of `config.seeds` seeds, taught by the chosen queries alone; none where these teach nothing.

    chosen: bool (queries,).
    """
    import lightgbm as lgb

    rows = np.flatnonzero((lesson.teaches & chosen)[lesson.query])
    if not len(rows):
        return ()
    weights = lesson.weights[lesson.query[rows]]
    data = lesson.data.subset(rows.astype(np.int32)).construct()
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
        "monotone_constraints": directions(lesson.names),
        "deterministic": True,
    }
    if config.bagging_fraction < 1:
        settings |= {"bagging_fraction": config.bagging_fraction, "bagging_freq": 1, "bagging_by_query": True}

    def trained(number: int) -> Any:
        own = seed + 1000 * number  # `seed` itself would have the rows binned anew
        return lgb.train(
            {**settings, "bagging_seed": own, "feature_fraction_seed": own + 1}, data, config.num_iterations
        )

    return tuple(trained(number) for number in range(config.seeds))


def score_rows(
    models: Sequence[Any], values: np.ndarray, rounds: int, config: StackConfig, first: int = 0
) -> np.ndarray:
    """Mean score float64 (r,) of the models by their trees first .. rounds; 0 where there is no model, or no tree."""
    if rounds == first or not models or not len(values):
        return np.zeros(len(values))
    options = {"start_iteration": first, "num_iteration": rounds - first, "raw_score": True}
    return np.mean([model.predict(values, num_threads=config.num_threads, **options) for model in models], axis=0)


def _binning(config: StackConfig) -> dict[str, Any]:
    """Settings that a Dataset and every model trained on it must share."""
    return {"feature_pre_filter": False, "force_row_wise": True, "num_threads": config.num_threads, "verbosity": -1}
