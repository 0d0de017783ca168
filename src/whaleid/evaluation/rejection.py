"""Known or unknown: rejection curve, and the threshold for a chosen false acceptance rate.

A query is accepted, that is answered by an identity, where its confidence is at least the threshold. An accepted
unknown query is a false acceptance.
"""

from __future__ import annotations

import numpy as np

from whaleid.utils.errors import WhaleidError

RATES = (0.01, 0.05, 0.1)
"""False acceptance rates that are reported."""


def threshold_for_false_acceptance(confidence: np.ndarray, unknown: np.ndarray, rate: float) -> float:
    """Lowest threshold whose share of accepted unknown queries is at most `rate`; infinity: accept none.

    Parameters
    ----------
    confidence : float array, shape (n,)
    unknown : bool array, shape (n,)
        Both kinds must be there.
    rate : float
        In [0, 1]. Fitted on these queries: score others by the threshold.
    """
    from sklearn.metrics import roc_curve

    _check(confidence, unknown)
    if not 0.0 <= rate <= 1.0:
        raise WhaleidError(f"rejection: a false acceptance rate of {rate}; give one from 0 to 1")
    if unknown.all() or not unknown.any():
        raise WhaleidError("rejection: both known and unknown queries are needed")
    false_acceptance, _, thresholds = roc_curve(~unknown, confidence, drop_intermediate=False)
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
