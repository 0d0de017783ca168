"""The form of answer `ranked_images`: gallery images for each query, best first, scored by mAP@k (landmark retrieval).

References
----------
Weyand et al., "Google Landmarks Dataset v2", 2020.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from whaleid.evaluation.form_score import FormScore, resampled_means, with_interval
from whaleid.evaluation.frames import read_pair
from whaleid.utils.errors import WhaleidError


def average_precision_at_k(ranked: Sequence[str], relevant: Collection[str], k: int = 100) -> float:
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


def score_submission(submission: Path, solution: Path, k: int = 100, seed: int = 0) -> FormScore:
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
    draws = resampled_means(values, np.random.default_rng(seed))
    return with_interval(f"mAP@{k}", float(values.mean()), draws, len(values))
