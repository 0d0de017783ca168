"""Settings of the stack: LambdaRank over the candidates of all rankers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from whaleid.config.base import Model, Positive

_Fraction = Annotated[float, Field(gt=0, le=1)]


class StackConfig(Model):
    """LambdaRank (LightGBM) over each query's candidates from all rankers.

    `num_iterations` and the fields below it are LightGBM's parameters of the same names.
    """

    first: Positive = 20
    """Identities at the head of every ranking that become candidates."""
    candidates: Positive = 50
    """Largest number of candidates of a query: those with the best places in the most rankings."""
    training_candidates: Positive = 20
    """Candidates of a query that the trees are trained on, beside the unknown identity. Later ones hardly reach the
    first k; all candidates are ranked by the trained trees."""
    groups: Annotated[int, Field(ge=2)] = 3
    """Identities are split into this many groups; a query is ranked by a model that was not trained on its group."""
    seeds: Positive = 2
    """Models trained with different seeds and averaged."""
    num_iterations: Positive = 100
    """Largest number of trees; how many are used is chosen on the training folds, by models without the query's
    identity."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """Shrinkage of each tree."""
    num_leaves: Annotated[int, Field(ge=2)] = 7
    """Largest number of leaves of a tree."""
    min_data_in_leaf: Positive = 40
    """Smallest number of candidates in a leaf."""
    lambda_l2: Annotated[float, Field(ge=0)] = 5.0
    """L2 penalty on the values of leaves."""
    feature_fraction: _Fraction = 0.5
    """Share of the features that a tree may use."""
    bagging_fraction: _Fraction = 0.8
    """Share of the queries that a tree is grown on."""
    num_threads: Annotated[int, Field(ge=0)] = 1
    """0: all. The result does not depend on it. With several threads small tables are slower, many times so where
    other work shares the machine: the threads wait for one another at every split."""
