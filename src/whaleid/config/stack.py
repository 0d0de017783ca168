"""The learned order of candidates on top of all rankings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from whaleid.config.base import Model, Positive

_NotNegative = Annotated[float, Field(ge=0)]


class StackConfig(Model):
    """LambdaRank (LightGBM) over each query's candidates from all rankings."""

    first: Positive = 20
    """Identities from the head of every ranking that become candidates."""
    candidates: Positive = 50
    """Candidates of a query at most: those that stand nearest to the front of the most rankings."""
    taught: Positive = 20
    """Candidates of a query that the trees learn from, beside unknown: of these places more hardly reach the first k,
    and all candidates are ordered by what was learnt."""
    groups: Annotated[int, Field(ge=2)] = 3
    """Identities are dealt into this many groups; a query is ordered by a model that saw no identity of its group."""
    num_trees: Positive = 100
    """Trees at most; how many are used is found on the other folds' queries, each by a model without its identity."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    num_leaves: Annotated[int, Field(ge=2)] = 7
    min_data_in_leaf: Positive = 40
    """Candidates in a leaf at least."""
    lambda_l2: _NotNegative = 5.0
    """L2 penalty on the value of a leaf."""
    feature_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the features that a tree may use."""
    bagging_fraction: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the queries that a tree is grown on."""
    monotone: bool = True
    """A higher score or a better place in a ranking never lowers a candidate, all else being equal."""
    start: bool = True
    """Trees correct the blend's odds instead of starting from nothing."""
    seeds: Positive = 2
    """Models trained from other seeds and averaged."""
    embeddings: bool = True
    """Further columns from the whitened features: centroids, spread of galleries, density around the query."""
    unknown: Literal["candidate", "threshold"] = "candidate"
    """The unknown identity stands where its own score puts it; or its score is moved by what is best out of fold."""
    threads: Annotated[int, Field(ge=0)] = 1
    """Processor threads; 0: all. The result does not depend on it. Small tables are slower with more than one, many
    times so where other work shares the machine: the threads wait for one another at every split."""
