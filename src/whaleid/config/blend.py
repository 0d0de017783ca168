"""How the members of the blend are weighed."""

from __future__ import annotations

from typing import Literal

from whaleid.config.base import Model


class BlendConfig(Model):
    """Weights and exponents of the members, found on out-of-fold queries (`ensemble.blend`)."""

    search: Literal["coordinate", "pairwise"] = "coordinate"
    """coordinate: every member in turn, until nothing improves. pairwise: the best member first, then one more at a
    time with its best share and exponent, as long as that helps; shares given earlier keep their proportions."""
    form: Literal["score", "rank"] = "score"
    """score: calibrated probabilities. rank: each query's probabilities replaced by 1 / (60 + rank), brought to the
    same sum."""
    calibration: Literal["softmax", "isotonic"] = "softmax"
    """How a member's scores become probabilities (`ensemble.calibrate`). softmax: its candidates compete. isotonic:
    how often a score of that height is right."""
    exponents: bool = False
    """Search an exponent for each member too; false: all 1."""
