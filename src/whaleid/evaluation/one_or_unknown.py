"""The form of answer `one_or_unknown`: one identity for each image, or the unknown label (AnimalCLEF 2025).

The score of a data set is sqrt(BAKS x BAUS); that of a submission is their mean. Every identity weighs the same,
whatever its number of images.

References
----------
Adam et al., "Overview of AnimalCLEF 2025", 2025.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.evaluation import topk
from whaleid.evaluation.form_input import RankedIdentities, Truth
from whaleid.evaluation.form_score import FormScore, Metric, resampled_means, unit_shares, weighted_mean, with_interval
from whaleid.evaluation.frames import AnswerFrame, read_pair, require_one_label

NEEDS = "identities"
STRATUM, UNIT = ("dataset", "known"), ("truth",)
KNOWN = "known"
"""Column of a solution that says whether the identity is in the training data."""
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")


def known_shares(truth: np.ndarray, answer: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Share of each known identity's images that are answered by it, float64 (identities,). Parameters as in `baks`."""
    return _shares(truth[known], (answer == truth)[known])


def unknown_shares(truth: np.ndarray, answer: np.ndarray, known: np.ndarray, unknown: str) -> np.ndarray:
    """Share of each unknown identity's images that are answered `unknown`, float64 (identities,)."""
    return _shares(truth[~known], (answer == unknown)[~known])


def baks(truth: np.ndarray, answer: np.ndarray, known: np.ndarray) -> float:
    """Balanced accuracy on known samples: mean over known identities of the share of their images that are right.

    Parameters
    ----------
    truth, answer : str arrays, shape (n,)
    known : bool array, shape (n,)
        Whether the true identity is in the training data.

    Returns
    -------
    float
        In [0, 1]; NaN without known identities.
    """
    return _mean(known_shares(truth, answer, known))


def baus(truth: np.ndarray, answer: np.ndarray, known: np.ndarray, unknown: str = "new_individual") -> float:
    """Balanced accuracy on unknown samples: as `baks` over unknown identities, right being the answer `unknown`."""
    return _mean(unknown_shares(truth, answer, known, unknown))


# ------------------------------------------------------------------------------------------------ answering


def fit(ranked: RankedIdentities, truth: Truth) -> dict[str, float]:
    """Threshold of each data set on the probability of the best identity that maximises sqrt(BAKS x BAUS), exactly.

    BAKS and BAUS do not depend on the share of unknown images: weights are not used. A data set without known or
    without unknown images has no entry.
    """
    thresholds = {}
    for name in sorted(set(ranked.datasets)):
        rows = ranked.datasets == name
        known = truth.known[rows]
        if known.any() and not known.all():
            right = ranked.best[rows] == truth.identity[rows]
            thresholds[name] = best_threshold(ranked.confidence[rows], right, truth.identity[rows], known)
    return thresholds


def best_threshold(confidence: np.ndarray, right: np.ndarray, identity: np.ndarray, known: np.ndarray) -> float:
    """Threshold with the largest BAKS x BAUS where images below it are answered by the unknown label.

    Parameters
    ----------
    confidence : float array, shape (n,)
    right : bool array, shape (n,)
        Whether the best identity is the true one.
    identity : str array, shape (n,)
    known : bool array, shape (n,)
        Both kinds must be there.

    Returns
    -------
    float
        Halfway between two confidences; of several best ones the lowest.
    """
    sizes = pd.Series(identity).groupby([identity, known]).transform("size").to_numpy(dtype=float)
    share = 1.0 / sizes
    order = np.argsort(confidence, kind="stable")
    levels, confidence = np.unique(confidence), confidence[order]
    below = np.searchsorted(confidence, np.append(levels, np.inf))  # images below each level, and below none
    gained = np.append(0.0, np.cumsum(np.where(known, 0.0, share)[order]))[below]
    lost = np.append(0.0, np.cumsum(np.where(known & right, share, 0.0)[order]))[below]
    best = int(np.argmax((lost[-1] - lost) * gained))
    low = levels[best - 1] if best else levels[0] - 1.0
    return float((low + (levels[best] if best < len(levels) else levels[-1] + 1.0)) / 2)


def answer(ranked: RankedIdentities, fitted: dict[str, float], unknown: str) -> list[str]:
    """The best identity of each image, or `unknown` where it is less probable than its data set's threshold.

    In a data set without a threshold, which no known image of the training data belongs to, all are unknown.
    """
    limits = np.array([fitted.get(name, np.inf) for name in ranked.datasets])
    return np.where((ranked.confidence >= limits) & (ranked.best != ""), ranked.best, unknown).tolist()


def unreadable(image: str, likely: list[str]) -> str:
    """The answer to an image that could not be read: unknown."""
    return likely[0]


def outcomes(answers: list[str], ranked: RankedIdentities, truth: Truth, unknown: str) -> pd.DataFrame:
    """`row, truth, known, dataset, answer, unknown` of each image."""
    columns = {"truth": truth.identity, "known": truth.known, "dataset": ranked.datasets, "answer": answers}
    return pd.DataFrame({"row": ranked.images, **columns, "unknown": unknown})


def metric(table: pd.DataFrame) -> Metric:
    """Mean over data sets of sqrt(BAKS x BAUS)."""
    truth, given, known = (table[name].to_numpy() for name in ("truth", "answer", "known"))
    right = np.where(known, given == truth, given == table["unknown"]).astype(float)
    share = unit_shares(table, (*STRATUM, *UNIT))
    datasets = [table["dataset"].to_numpy() == name for name in sorted(set(table["dataset"]))]
    kinds = [(np.flatnonzero(rows & known), np.flatnonzero(rows & ~known)) for rows in datasets]

    def value(counts: np.ndarray) -> float:
        weights = counts * share
        parts = [[weighted_mean(right[rows], weights[rows]) for rows in both] for both in kinds]
        return float(np.sqrt(np.prod(parts, axis=1)).mean())

    return value


def evaluate(table: pd.DataFrame, seed: int = 0) -> FormScore:
    """As `score_submission`, of outcomes."""
    given, truth, known, datasets = (table[name].to_numpy() for name in ("answer", "truth", "known", "dataset"))
    return _score(given, truth, known, datasets, table["unknown"].iloc[0], seed)


# -------------------------------------------------------------------------------------------- checking, scoring


def check_submission(path: Path, sample: Path, known: Collection[str] | None = None, k: int = 1) -> list[str]:
    """Everything that is wrong with a submission, one line each. Parameters as in `topk`; one label is allowed."""
    return topk.check_submission(path, sample, known, 1)


def score_submission(submission: Path, solution: Path, seed: int = 0, *, unknown: str = "new_individual") -> FormScore:
    """Mean over data sets of sqrt(BAKS x BAUS), NaN counting 0; the interval resamples identities.

    Parameters
    ----------
    submission : Path
        Image and identity.
    solution : Path
        Image and identity; optionally `dataset`, and `known` (true or false). Without `known`, the identity `unknown`
        is the only one that is unknown.
    seed : int
        Of the interval's random draws.
    unknown : str
        Label of the unknown identity.
    """
    answers, truths = read_pair(submission, solution)
    given, truth = require_one_label(answers).to_numpy(), require_one_label(truths).to_numpy()
    return _score(given, truth, _known(truths, truth, unknown), truths.datasets(), unknown, seed)


def _score(
    given: np.ndarray, truth: np.ndarray, known: np.ndarray, datasets: np.ndarray, unknown: str, seed: int
) -> FormScore:
    rng = np.random.default_rng(seed)
    parts, values, draws = {}, [], []
    for name in sorted(set(datasets)):
        rows = datasets == name
        here = truth[rows], given[rows], known[rows]
        shares = known_shares(*here), unknown_shares(*here, unknown)
        both = np.nan_to_num([_mean(share) for share in shares])
        values.append(float(np.sqrt(both.prod())))
        draws.append(np.sqrt(np.prod([np.nan_to_num(resampled_means(share, rng)) for share in shares], axis=0)))
        prefix = f"{name} " if name else ""
        parts |= {name: values[-1]} if name else {}
        parts |= {f"{prefix}BAKS": float(both[0]), f"{prefix}BAUS": float(both[1])}
    return with_interval("sqrt(BAKS x BAUS)", float(np.mean(values)), np.mean(draws, axis=0), len(truth), parts)


def _known(truths: AnswerFrame, truth: np.ndarray, unknown: str) -> np.ndarray:
    """Whether each row's identity is known, bool (n,)."""
    if KNOWN not in truths.frame.columns:
        return truth != unknown
    cells = truths.named(KNOWN)
    lower = cells.str.lower()
    truths.require(lower.isin(_TRUE + _FALSE), cells, "is neither true nor false")
    return lower.isin(_TRUE).to_numpy()


def _shares(identity: np.ndarray, right: np.ndarray) -> np.ndarray:
    return pd.Series(right.astype(float)).groupby(identity).mean().to_numpy()


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
