"""CMC, Recall@k and mINP: what papers on re-identification report beside mean average precision."""

from __future__ import annotations

import numpy as np


def cmc(rank: np.ndarray, k: int) -> np.ndarray:
    """Cumulative matching characteristic.

    Parameters
    ----------
    rank : int array, shape (n,)
        Rank of the first right answer to each query, from 1; 0 where there is none. n is at least 1.
    k : int

    Returns
    -------
    float64 array, shape (k,)
        Share of queries with a right answer among the first 1 .. k. Where one answer is right, this is Recall@k.
    """
    return ((rank[:, None] >= 1) & (rank[:, None] <= np.arange(1, k + 1))).mean(axis=0)


def recall_at_k(ranks: list[np.ndarray], relevant: np.ndarray, k: int) -> float:
    """Mean over queries of the share of their relevant images that are among the first k.

    Parameters
    ----------
    ranks : n int arrays
        Ranks, from 1, at which relevant images of each query stand.
    relevant : int array, shape (n,)
        Number of relevant images of each query, at least 1.
    k : int
    """
    return float(np.mean([(found <= k).sum() for found in ranks] / relevant))


def mean_inverse_negative_penalty(ranks: list[np.ndarray], relevant: np.ndarray) -> float:
    """mINP: mean over queries of the number of relevant images / the rank of the last one.

    A query whose list lacks a relevant image counts 0. Parameters as in `recall_at_k`.

    References
    ----------
    Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", 2021.
    """
    whole = zip(ranks, relevant.tolist(), strict=True)
    return float(np.mean([count / found.max() if len(found) == count else 0.0 for found, count in whole]))
