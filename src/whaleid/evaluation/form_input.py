"""What forms of answer are made from: identities ranked for each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RankedIdentities:
    """Identities of some images, best first.

    Attributes
    ----------
    images : str array, shape (n,)
    identities : str array, shape (n, m)
        The unknown label is not among them; '' is padding.
    probabilities : float array, shape (n, m)
        Of the identities, descending along a row; 0 where padded. What is left of 1 is that of an unknown identity.
    datasets : str array, shape (n,)
        Data set of each image; '' where the competition has no such column.
    """

    images: np.ndarray
    identities: np.ndarray
    probabilities: np.ndarray
    datasets: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """Most probable identity of each image, str (n,)."""
        return self.identities[:, 0]

    @property
    def confidence(self) -> np.ndarray:
        """Its probability, float (n,)."""
        return self.probabilities[:, 0]


@dataclass(frozen=True)
class Truth:
    """True identities of some images.

    Attributes
    ----------
    identity : str array, shape (n,)
    known : bool array, shape (n,)
        Whether the gallery holds the identity.
    weights : float array, shape (n,)
        Weight of each image that gives unknown ones their expected share, at least 0.
    """

    identity: np.ndarray
    known: np.ndarray
    weights: np.ndarray
