"""The form of answer `pairs`: a similarity for each pair of images (Jaguar Re-ID 2026), by identity-balanced mAP.

The average precision of each query is averaged within its identity, then over identities. Equal similarities are one
step, whatever their order, as in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.evaluation.form_input import ImagePairs
from whaleid.evaluation.form_score import FormScore, Metric, resampled_means, unit_shares, weighted_mean, with_interval
from whaleid.evaluation.frames import AnswerFrame, read_pair
from whaleid.evaluation.submission_file import cell_problems, is_finite
from whaleid.utils.errors import WhaleidError

NEEDS, TABLES = "pairs", ("among",)
STRATUM, UNIT = (), ("truth",)


def precision_of_queries(
    query: np.ndarray, identity: np.ndarray, similarity: np.ndarray, relevant: np.ndarray
) -> pd.DataFrame:
    """Average precision of each query; the mean over identities of their queries' mean is identity-balanced mAP.

    Parameters
    ----------
    query, identity : str arrays, shape (n,)
        Query of each pair, and the query's identity.
    similarity : float array, shape (n,)
    relevant : bool array, shape (n,)
        Whether the pair shows one identity. A query without such a pair is ignored.

    Returns
    -------
    DataFrame
        `row` (the query), `truth` (its identity), `precision`.
    """
    from sklearn.metrics import average_precision_score

    values = []
    for rows in pd.Series(np.arange(len(query))).groupby(query).indices.values():
        if relevant[rows].any():
            precision = average_precision_score(relevant[rows], similarity[rows])
            values.append((query[rows[0]], identity[rows[0]], precision))
    return pd.DataFrame(values, columns=["row", "truth", "precision"])


# ------------------------------------------------------------------------------------------------ answering


def fit(sets: Sequence[ImagePairs], identities: Sequence[np.ndarray], target: ImagePairs | None) -> None:
    """Nothing: P(same) is the similarity."""


def answer(pairs: ImagePairs, fitted: None, unknown: str | None) -> list[str]:
    """P(same) of each pair, with as many digits as keep different ones apart."""
    return [f"{value:.9g}" for value in pairs.among.probability]


def unreadable(row: str, likely: list[str]) -> str:
    """The similarity of a pair with an image that could not be read: none."""
    return "0"


def outcomes(
    answers: Sequence[list[str]], sets: Sequence[ImagePairs], identities: Sequence[np.ndarray], unknown: str | None
) -> pd.DataFrame:
    """As `precision_of_queries`, of all pairs of the images of each set."""
    columns = []
    for cells, pairs, identity in zip(answers, sets, identities, strict=True):
        first, second = pairs.among.first, pairs.among.second
        same = identity[first] == identity[second]
        columns.append((pairs.images[first], identity[first], np.array(cells, dtype=float), same))
    query, identity, similarity, relevant = (np.concatenate(column) for column in zip(*columns, strict=True))
    return precision_of_queries(query, identity, similarity, relevant)


def metric(table: pd.DataFrame) -> Metric:
    """Identity-balanced mAP."""
    precision, share = table["precision"].to_numpy(), unit_shares(table, UNIT)
    return lambda counts: weighted_mean(precision, counts * share)


def evaluate(table: pd.DataFrame, seed: int = 0) -> FormScore:
    """Identity-balanced mAP of outcomes, with its interval."""
    return _score(table, len(table), seed)


# -------------------------------------------------------------------------------------------- checking, scoring


def check_submission(path: Path, sample: Path, known: Collection[str] | None = None, k: int = 1) -> list[str]:
    """Everything that is wrong with a submission, one line each.

    Parameters
    ----------
    path : Path
        Submission: row id and similarity.
    sample : Path
        Sample submission; header, ids and their order must be its own.
    known, k
        Not used: no label is answered.

    Raises
    ------
    WhaleidError
        If the sample cannot be read.
    """
    return cell_problems(path, sample, is_finite, "is not a number")


def score_submission(submission: Path, solution: Path, seed: int = 0) -> FormScore:
    """Identity-balanced mAP; the interval resamples identities.

    Parameters
    ----------
    submission : Path
        Row id and similarity.
    solution : Path
        Row id, and the columns `query_image`, `query_identity` and `gallery_identity`.
    seed : int
        Of the interval's random draws.
    """
    answers, truths = read_pair(submission, solution)
    similarity = _similarities(answers)
    query, identity, other = (_filled(truths, name) for name in ("query_image", "query_identity", "gallery_identity"))
    first = identity.groupby(query).transform("first")
    truths.require(identity == first, identity, "is a second identity of one query image")
    found = precision_of_queries(query.to_numpy(), identity.to_numpy(), similarity, (identity == other).to_numpy())
    if not len(found):
        raise WhaleidError(f"{solution}: no pair shows one identity; nothing to find")
    return _score(found, query.nunique(), seed)


def _score(found: pd.DataFrame, queries: int, seed: int) -> FormScore:
    """found: as of `precision_of_queries`."""
    means = found.groupby("truth")["precision"].mean()
    draws = resampled_means(means.to_numpy(), np.random.default_rng(seed))
    return with_interval("identity-balanced mAP", float(means.mean()), draws, queries)


def _similarities(answers: AnswerFrame) -> np.ndarray:
    cells = answers.position(1)
    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=float)
    answers.require(np.isfinite(numbers), cells, "is not a number; a similarity is needed")
    return numbers


def _filled(truths: AnswerFrame, name: str) -> pd.Series:
    cells = truths.named(name)
    truths.require(cells != "", cells, "is empty")
    return cells
