"""The form of answer `ranked_images`: gallery images for each query, best first, scored by mAP@k (landmark retrieval).

References
----------
Weyand et al., "Google Landmarks Dataset v2", 2020.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config.competition import RANKED_IMAGES
from whaleid.evaluation import topk
from whaleid.evaluation.form_input import ImagePairs
from whaleid.evaluation.form_score import FormScore, Metric, resampled_means, with_interval
from whaleid.evaluation.frames import read_pair
from whaleid.utils.errors import WhaleidError

NEEDS, TABLES = "pairs", ("to_gallery",)
STRATUM, UNIT = (), ("row",)


def average_precision_at_k(ranked: Sequence[str], relevant: Collection[str], k: int = RANKED_IMAGES) -> float:
    """Average precision among the first k images.

    Parameters
    ----------
    ranked : sequence of str
        Different images, best first.
    relevant : collection of str
        At least one image.
    k : int

    Returns
    -------
    float
        Sum over the ranks i <= k that hold a relevant image of the precision among the first i, divided by
        min(number of relevant images, k).
    """
    found = np.array([image in relevant for image in ranked[:k]], dtype=float)
    precision = np.cumsum(found) / np.arange(1, len(found) + 1)
    return float((precision * found).sum() / min(len(relevant), k))


# ------------------------------------------------------------------------------------------------ answering


def fit(sets: Sequence[ImagePairs], identities: Sequence[np.ndarray], target: ImagePairs | None) -> None:
    """Nothing: P(same) ranks the images."""


def answer(pairs: ImagePairs, fitted: None, unknown: str | None) -> list[str]:
    """The labelled images that most probably show the identity of each image, best first."""
    table = pairs.to_gallery
    order = np.lexsort((table.second, -table.probability, table.first))
    starts = np.searchsorted(table.first[order], np.arange(len(pairs.images) + 1))
    names = pairs.gallery[table.second[order]].tolist()
    return [" ".join(names[start : min(end, start + RANKED_IMAGES)]) for start, end in pairwise(starts)]


def unreadable(image: str, likely: list[str]) -> str:
    """The answer to an image that could not be read: none."""
    return ""


def outcomes(
    answers: Sequence[list[str]], sets: Sequence[ImagePairs], identities: Sequence[np.ndarray], unknown: str | None
) -> pd.DataFrame:
    """`row, truth, precision` of each query with a relevant image: a labelled one of the query's identity."""
    values = []
    for cells, pairs, identity in zip(answers, sets, identities, strict=True):
        order = np.argsort(pairs.gallery_identity, kind="stable")
        labels = pairs.gallery_identity[order]
        starts, ends = (np.searchsorted(labels, identity, side) for side in ("left", "right"))
        for place, (cell, start, end) in enumerate(zip(cells, starts, ends, strict=True)):
            if end > start:
                relevant = set(pairs.gallery[order[start:end]])
                precision = average_precision_at_k(cell.split(), relevant, RANKED_IMAGES)
                values.append((pairs.images[place], identity[place], precision))
    if not values:
        raise WhaleidError("ranked_images: no image has another of its identity in another fold; nothing can be scored")
    return pd.DataFrame(values, columns=["row", "truth", "precision"])


def metric(table: pd.DataFrame) -> Metric:
    """mAP@100."""
    precision = table["precision"].to_numpy()
    return lambda counts: float(counts @ precision / counts.sum())


def evaluate(table: pd.DataFrame, seed: int = 0) -> FormScore:
    """mAP@100 of outcomes, with its interval."""
    return _score(table["precision"].to_numpy(), RANKED_IMAGES, seed)


# -------------------------------------------------------------------------------------------- checking, scoring


def check_submission(
    path: Path, sample: Path, known: Collection[str] | None = None, k: int = RANKED_IMAGES
) -> list[str]:
    """Everything that is wrong with a submission, one line each. Parameters as in `topk`; labels are images."""
    return topk.check_submission(path, sample, known, k)


def score_submission(submission: Path, solution: Path, k: int = RANKED_IMAGES, seed: int = 0) -> FormScore:
    """mAP@k over queries with a relevant image; the interval resamples them.

    Parameters
    ----------
    submission : Path
        Query and at most k different gallery images, separated by spaces.
    solution : Path
        Query and its relevant images; a query with none is ignored.
    k : int
        Number of images that count.
    seed : int
        Of the interval's random draws.
    """
    answers, truths = read_pair(submission, solution)
    cells = answers.position(1)
    ranked = [cell.split() for cell in cells]
    answers.require(
        np.array([len(row) <= k for row in ranked]), cells.str.slice(0, 40), f"... holds more than {k} images"
    )
    distinct = np.array([len(set(row)) == len(row) for row in ranked])
    answers.require(distinct, cells.str.slice(0, 40), "... names an image twice")
    relevant = [set(cell.split()) for cell in truths.position(1)]
    pairs = zip(ranked, relevant, strict=True)
    values = np.array([average_precision_at_k(row, truth, k) for row, truth in pairs if truth])
    if not len(values):
        raise WhaleidError(f"{solution}: no query has a relevant image; at least one is needed")
    return _score(values, k, seed)


def _score(values: np.ndarray, k: int, seed: int) -> FormScore:
    draws = resampled_means(values, np.random.default_rng(seed))
    return with_interval(f"mAP@{k}", float(values.mean()), draws, len(values))
