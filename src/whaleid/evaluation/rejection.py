"""Known or unknown: ROC, rejection curve, and the threshold for a chosen false acceptance rate.

A query is accepted, that is answered by an identity, where its confidence is at least the threshold. An accepted
unknown query is a false acceptance.
"""

from __future__ import annotations

import numpy as np

from whaleid.utils.errors import WhaleidError

RATES = (0.01, 0.05, 0.1)
"""False acceptance rates that are reported."""


def acceptance_curve(confidence: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ROC of accepting known queries.

    Parameters
    ----------
    confidence : float array, shape (n,)
    unknown : bool array, shape (n,)
        Both kinds must be there.

    Returns
    -------
    thresholds : float64 array, shape (m + 1,)
        Infinity, then the different confidences, falling.
    false_acceptance, acceptance : float64 arrays, shape (m + 1,)
        Shares of the unknown and of the known queries that are accepted at each threshold.
    """
    _check(confidence, unknown)
    if unknown.all() or not unknown.any():
        raise WhaleidError("rejection: both known and unknown queries are needed")
    levels, code = np.unique(-confidence, return_inverse=True)
    shares = []
    for kind in (unknown, ~unknown):
        counts = np.bincount(code.reshape(-1)[kind], minlength=len(levels))
        shares.append(np.append(0.0, np.cumsum(counts) / kind.sum()))
    return np.append(np.inf, -levels), shares[0], shares[1]


def threshold_for_false_acceptance(confidence: np.ndarray, unknown: np.ndarray, rate: float) -> float:
    """Lowest threshold whose share of accepted unknown queries is at most `rate`, in [0, 1]; infinity: accept none.

    Other parameters as in `acceptance_curve`. Fitted on these queries: score others by it.
    """
    if not 0.0 <= rate <= 1.0:
        raise WhaleidError(f"rejection: a false acceptance rate of {rate}; give one from 0 to 1")
    thresholds, false_acceptance, _ = acceptance_curve(confidence, unknown)
    return float(thresholds[np.flatnonzero(false_acceptance <= rate)[-1]])


def operating_points(
    confidence: np.ndarray, unknown: np.ndarray, rates: tuple[float, ...] = RATES
) -> list[dict[str, float | None]]:
    """Thresholds for some false acceptance rates, as plain values.

    Parameters as in `threshold_for_false_acceptance`; threshold is None where no query may be accepted.
    """
    points: list[dict[str, float | None]] = []
    for rate in rates:
        threshold = threshold_for_false_acceptance(confidence, unknown, rate)
        accepted = confidence >= threshold
        points.append(
            {
                "rate": rate,
                "threshold": threshold if np.isfinite(threshold) else None,
                "false_acceptance": float(accepted[unknown].mean()),
                "acceptance": float(accepted[~unknown].mean()),
            }
        )
    return points


def rejection_curve(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of the accepted queries against the share that is rejected.

    Parameters
    ----------
    confidence : float array, shape (n,)
    right : bool array, shape (n,)
        Whether the identity that would be answered is right; never for an unknown query.

    Returns
    -------
    rejected, accuracy : float64 arrays, shape (m,)
        One point for each different confidence as threshold, from the highest; the last rejects nothing.
    """
    _check(confidence, right)
    levels, code = np.unique(-confidence, return_inverse=True)
    accepted = np.cumsum(np.bincount(code.reshape(-1), minlength=len(levels)))
    correct = np.cumsum(np.bincount(code.reshape(-1), right, minlength=len(levels)))
    return 1.0 - accepted / len(confidence), correct / accepted


def _check(confidence: np.ndarray, flags: np.ndarray) -> None:
    if not len(confidence) or confidence.shape != flags.shape or confidence.ndim != 1:
        raise WhaleidError(f"rejection: confidences {confidence.shape} and flags {flags.shape}; (n,) each is needed")
    if not np.isfinite(confidence).all():
        raise WhaleidError("rejection: a confidence is NaN or infinite")
