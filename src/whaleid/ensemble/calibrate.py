"""Scores of any ranker as probabilities, so that a cosine, a softmax and a foreign model's score can be added.

The probability that candidate i of a query is the true one, against the other candidates and against an
unknown identity:

    p_i = exp(a x_i) / (exp(c) + sum_j exp(a x_j)),     p_unknown = exp(c) / (the same)

x is the score (its logarithm where it is a probability), centred and scaled. The slope a is an inverse
temperature (Guo et al., "On calibration of modern neural networks", 2017); c keeps what the **height** of the
best score tells about unknown identities, which a softmax alone loses. Where scores are probabilities over
all classes, those not listed compete as one more j: with a = 1 and no unknown the scores come back as they
were. Two numbers, fitted by Newton's method on a convex loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whaleid.retrieval.candidates import Candidates

_FLOOR = 1e-12  # probabilities below this are read as this one
_RIDGE = 1e-3  # pull of a towards 1 and of c towards 0, in units of the mean loss of a query
_STEPS = 50


@dataclass(frozen=True)
class Calibration:
    """The fitted numbers.

    Attributes
    ----------
    probability : bool
        Whether the logarithm of the scores is taken first.
    center, spread : float
        By which x is centred and scaled.
    slope : float
        a, above 0.
    none : float
        c.
    """

    probability: bool
    center: float
    spread: float
    slope: float
    none: float


def fit_calibration(candidates: Candidates, truth: np.ndarray, weights: np.ndarray, probability: bool) -> Calibration:
    """Calibration with the least weighted log-loss of the truth.

    A true identity that is not listed counts among the classes not listed, or, of similarities, as unknown.

    Parameters
    ----------
    candidates : Candidates
    truth : int64 array, shape (n,)
        -1 = unknown.
    weights : float64 array, shape (n,)
    probability : bool
        Whether scores are probabilities over all classes.
    """
    raw = _raw(candidates.scores, probability)
    first = raw[np.isfinite(raw[:, 0]), 0]
    center = float(np.median(first)) if len(first) else 0.0
    listed = raw[:, : candidates.codes.shape[1]]
    listed = listed[np.isfinite(listed)]
    spread = max(float(listed.std()), 1e-6) if len(listed) else 1.0
    hit = np.zeros(raw.shape, dtype=bool)
    width = candidates.codes.shape[1]
    hit[:, :width] = (candidates.codes == truth[:, None]) & (truth >= 0)[:, None]
    if probability:
        hit[:, width] = (truth >= 0) & ~hit.any(axis=1)
    used = weights > 0
    slope, none = _newton((raw[used] - center) / spread, hit[used], weights[used] / weights[used].sum())
    return Calibration(probability, center, spread, slope, none)


def calibrated(candidates: Candidates, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 (n, m) of the candidates (-inf where padded) and float32 (n,) of none of them."""
    return calibrated_scores(candidates.scores, calibration)


def calibrated_scores(scores: np.ndarray, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """As `calibrated`, of some queries' scores float32 (n, m), descending, -inf padded."""
    x = (_raw(scores, calibration.probability) - calibration.center) / calibration.spread
    p, _ = _probabilities(x, calibration.slope, calibration.none)
    p = np.where(np.isfinite(x), p, -np.inf)[:, : scores.shape[1]]
    none = 1.0 - np.where(np.isfinite(p), p, 0.0).sum(axis=1)
    return p.astype(np.float32), np.maximum(none, 0.0).astype(np.float32)


def _raw(scores: np.ndarray, probability: bool) -> np.ndarray:
    """Scores as x before scaling, float64 (n, m); padding stays -inf.

    Probabilities get one more column: the mass of all classes that are not listed, which compete too.
    """
    scores = scores.astype(np.float64)
    if not probability:
        return scores
    listed = np.where(np.isfinite(scores), scores, 0.0)
    scores = np.column_stack([scores, 1.0 - listed.sum(axis=1)])
    return np.where(np.isfinite(scores), np.log(np.maximum(scores, _FLOOR)), -np.inf)


def _probabilities(x: np.ndarray, slope: float, none: float) -> tuple[np.ndarray, np.ndarray]:
    z = slope * x
    top = np.maximum(z.max(axis=1), none)
    e, e_none = np.exp(z - top[:, None]), np.exp(none - top)
    total = e.sum(axis=1) + e_none
    return e / total[:, None], e_none / total


def _newton(x: np.ndarray, hit: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Slope and none with the least loss. x: float64 (n, m), descending, -inf padded. hit: bool (n, m)."""
    finite = np.where(np.isfinite(x), x, 0.0)
    target = np.array([(weights * (finite * hit).sum(axis=1)).sum(), weights @ ~hit.any(axis=1)])
    point, scale = np.array([1.0, 0.0]), 1.0

    def loss(at: np.ndarray) -> float:
        z = at[0] * x
        top = np.maximum(z.max(axis=1), at[1])
        lse = top + np.log(np.exp(z - top[:, None]).sum(axis=1) + np.exp(at[1] - top))
        return float(weights @ lse - target @ at + _RIDGE / 2 * ((at[0] - 1) ** 2 + at[1] ** 2))

    value = loss(point)
    for _ in range(_STEPS):
        p, none = _probabilities(x, *point)
        mean = (p * finite).sum(axis=1)
        square = (p * finite**2).sum(axis=1)
        gradient = np.array([weights @ mean, weights @ none]) - target + _RIDGE * (point - [1.0, 0.0])
        cross = -(weights @ (mean * none))
        hessian = np.array([[weights @ (square - mean**2), cross], [cross, weights @ (none - none**2)]])
        step = np.linalg.solve(hessian + _RIDGE * np.eye(2), gradient)
        scale = 1.0
        while scale > 1e-6:
            moved = point - scale * step
            if moved[0] > 1e-3 and (new := loss(moved)) <= value:
                break
            scale /= 2
        else:
            break
        done = value - new < 1e-12
        point, value = moved, new
        if done:
            break
    return float(point[0]), float(point[1])
