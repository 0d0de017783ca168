"""The form of answer `one_confident`: one label with a confidence, or nothing, scored by GAP (landmark recognition).

References
----------
Weyand et al., "Google Landmarks Dataset v2", 2020: global average precision (micro AP).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.evaluation.form_input import RankedIdentities, Truth
from whaleid.evaluation.form_score import DRAWS, FormScore, Metric, with_interval
from whaleid.evaluation.frames import AnswerFrame, read_pair
from whaleid.evaluation.rejection import operating_points
from whaleid.evaluation.submission_file import file_problems, is_finite, listed
from whaleid.utils.errors import WhaleidError

NEEDS = "identities"
STRATUM, UNIT = (), ("row",)
_COLUMNS = ("given", "confidence", "right", "relevant", "weight")


def global_average_precision(
    confidence: np.ndarray, right: np.ndarray, relevant: float, weights: np.ndarray | None = None
) -> float:
    """GAP: (1 / M) times the sum, over answers by falling confidence, of P(i) rel(i).

    Parameters
    ----------
    confidence : float array, shape (n,)
        Of the answers that were given; equal ones keep their order.
    right : bool array, shape (n,)
    relevant : float
        M, the number (or total weight) of the queries that have a label, above 0.
    weights : float array, shape (n,), optional
        How often each answer counts.

    Returns
    -------
    float
        In [0, 1].
    """
    order = np.argsort(-confidence, kind="stable")
    counted = (np.ones(len(right)) if weights is None else weights)[order]
    hits = counted * right[order]
    precision = np.cumsum(hits) / np.maximum(np.cumsum(counted), np.finfo(float).tiny)
    return float((precision * hits).sum() / relevant)


# ------------------------------------------------------------------------------------------------ answering


def fit(ranked: RankedIdentities, truth: Truth) -> None:
    """Nothing: only the order of the confidences counts."""


def answer(ranked: RankedIdentities, fitted: None, unknown: str | None) -> list[str]:
    """The best identity of each image with its probability. An answer below all others costs nothing: all are given."""
    pairs = zip(ranked.best, ranked.confidence, strict=True)
    return [f"{name} {value:.8g}" if name else "" for name, value in pairs]


def unreadable(image: str, likely: list[str]) -> str:
    """The answer to an image that could not be read: none."""
    return ""


def outcomes(answers: list[str], ranked: RankedIdentities, truth: Truth, unknown: str | None) -> pd.DataFrame:
    """`row, truth, given, confidence, right, relevant, weight` of each image of the truth that has a weight."""
    used = truth.weights > 0
    words = [cell.split() for cell, counts in zip(answers, used, strict=True) if counts]
    label = np.array([row[0] if row else "" for row in words], dtype=object)
    confidence = np.array([float(row[1]) if row else 0.0 for row in words])
    identity, known = truth.identity[used], truth.known[used]
    columns = {"row": ranked.images[used], "truth": identity, "given": label != "", "confidence": confidence}
    return pd.DataFrame(
        {**columns, "right": (label == identity) & known, "relevant": known, "weight": truth.weights[used]}
    )


def metric(table: pd.DataFrame) -> Metric:
    """GAP."""
    gap = _gap(*_columns(table))
    place = np.arange(len(table))
    order = np.argsort(-table["confidence"].to_numpy(), kind="stable")
    return lambda counts: gap(np.repeat(place, counts[order]))


def evaluate(table: pd.DataFrame, seed: int = 0) -> FormScore:
    """As `score_submission`, of outcomes, with their weights."""
    return _score(*_columns(table), seed)


def _columns(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    given, confidence, right, relevant, weight = (table[name].to_numpy() for name in _COLUMNS)
    return given, confidence, right, relevant, weight


# -------------------------------------------------------------------------------------------- checking, scoring


def check_submission(path: Path, sample: Path, known: Collection[str] | None = None, k: int = 1) -> list[str]:
    """Everything that is wrong with a submission, one line each.

    Parameters
    ----------
    path : Path
        Submission: image, and `label confidence` or nothing.
    sample : Path
        Sample submission; header, images and their order must be its own.
    known : collection of str, optional
        Labels that may be given; None: any.
    k : int
        Not used: one label is given.

    Raises
    ------
    WhaleidError
        If the sample cannot be read.
    """
    table, problems = file_problems(path, sample)
    if table is None:
        return problems
    words = [str(cell).split() for cell in table.columns[1].to_pylist()]
    malformed = np.flatnonzero([not _is_answer(row) for row in words])
    problems += listed(malformed, lambda i: f"row {table.rows[i]} ({table.images[i]}): not a label and its confidence")
    if known is not None:
        allowed = set(known)
        foreign = np.flatnonzero([bool(row) and row[0] not in allowed for row in words])
        problems += listed(
            foreign, lambda i: f"row {table.rows[i]} ({table.images[i]}): {words[i][0]!r} is not a label here"
        )
    return problems


def _is_answer(words: list[str]) -> bool:
    """Whether a cell is empty, or a label and a finite number."""
    if not words:
        return True
    return len(words) == 2 and is_finite(words[1])


def score_submission(submission: Path, solution: Path, seed: int = 0) -> FormScore:
    """GAP; the interval resamples queries. Where some queries have no label, thresholds that reject these are added.

    Parameters
    ----------
    submission : Path
        Image and `label confidence`, or an empty cell.
    solution : Path
        Image and its label (several, separated by spaces, are all right), or an empty cell: no label is right.
    seed : int
        Of the interval's random draws.
    """
    answers, truths = read_pair(submission, solution)
    label, confidence = _answers(answers)
    truth = truths.position(1)
    right = np.array([one in cell.split() for one, cell in zip(label, truth, strict=True)])
    given, relevant = label != "", (truth != "").to_numpy()
    if not relevant.any():
        raise WhaleidError(f"{solution}: no row has a label; at least one is needed")
    order = np.argsort(answers.frame.index)  # ties in the order of the submission
    given, confidence, right, relevant = given[order], confidence[order], right[order], relevant[order]
    score = _score(given, confidence, right, relevant, np.ones(len(order)), seed)
    if relevant.all():
        return score
    accepting = np.where(given, confidence, confidence.min() - 1.0)  # a query without an answer is accepted last
    return replace(score, more={"rejection": operating_points(accepting, ~relevant)})


def _score(
    given: np.ndarray,
    confidence: np.ndarray,
    right: np.ndarray,
    relevant: np.ndarray,
    weights: np.ndarray,
    seed: int,
) -> FormScore:
    """GAP of queries, (n,) each, with its interval."""
    gap = _gap(given, confidence, right, relevant, weights)
    rng, n = np.random.default_rng(seed), len(given)
    draws = np.array([gap(np.sort(rng.integers(n, size=n))) for _ in range(DRAWS)])
    return with_interval("GAP", gap(np.arange(n)), draws, int(relevant.sum()))


def _gap(
    given: np.ndarray, confidence: np.ndarray, right: np.ndarray, relevant: np.ndarray, weights: np.ndarray
) -> Callable[[np.ndarray], float]:
    """GAP of some of the queries, (n,) each: of ascending places in their order by falling confidence."""
    order = np.argsort(-confidence, kind="stable")
    given, confidence, right, relevant, weights = (
        values[order] for values in (given, confidence, right, relevant, weights)
    )

    def gap(rows: np.ndarray) -> float:
        asked, labelled = rows[given[rows]], weights[rows][relevant[rows]].sum()
        if not labelled:
            return 0.0
        return global_average_precision(confidence[asked], right[asked], labelled, weights[asked])

    return gap


def _answers(answers: AnswerFrame) -> tuple[np.ndarray, np.ndarray]:
    """Label ('': none) and confidence (0 where none) of each row."""
    cells = answers.position(1)
    words = [cell.split() for cell in cells]
    answers.require(
        np.array([len(row) in (0, 2) for row in words]), cells, "is not a label, a space and its confidence"
    )
    label = np.array([row[0] if row else "" for row in words], dtype=object)
    confidence = pd.to_numeric(pd.Series([row[1] if row else "0" for row in words]), errors="coerce").to_numpy(float)
    answers.require(np.isfinite(confidence), cells, "has a confidence that is not a number")
    return label, confidence
