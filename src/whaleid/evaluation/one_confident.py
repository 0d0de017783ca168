"""The form of answer `one_confident`: one label with a confidence, or nothing, scored by GAP (landmark recognition).

References
----------
Weyand et al., "Google Landmarks Dataset v2", 2020: global average precision (micro AP).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.evaluation.form_score import DRAWS, FormScore, with_interval
from whaleid.evaluation.frames import AnswerFrame, read_pair
from whaleid.evaluation.rejection import operating_points
from whaleid.utils.errors import WhaleidError


def global_average_precision(confidence: np.ndarray, right: np.ndarray, relevant: int) -> float:
    """GAP: (1 / M) times the sum, over answers by falling confidence, of P(i) rel(i).

    Parameters
    ----------
    confidence : float array, shape (n,)
        Of the answers that were given; equal ones keep their order.
    right : bool array, shape (n,)
    relevant : int
        M, the number of queries that have a label, at least 1.

    Returns
    -------
    float
        In [0, 1].
    """
    right = right[np.argsort(-confidence, kind="stable")].astype(float)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return float((precision * right).sum() / relevant)


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
    order = np.lexsort((answers.frame.index, -confidence))  # ties in the order of the submission
    right, given, relevant, confidence = right[order], given[order], relevant[order], confidence[order]

    def gap(rows: np.ndarray) -> float:
        asked = rows[given[rows]]
        return global_average_precision(confidence[asked], right[asked], max(int(relevant[rows].sum()), 1))

    rng, n = np.random.default_rng(seed), len(order)
    draws = np.array([gap(np.sort(rng.integers(n, size=n))) for _ in range(DRAWS)])
    score = with_interval("GAP", gap(np.arange(n)), draws, int(relevant.sum()))
    if relevant.all():
        return score
    accepting = np.where(given, confidence, confidence.min() - 1.0)  # a query without an answer is accepted last
    return replace(score, more={"rejection": operating_points(accepting, ~relevant)})


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
