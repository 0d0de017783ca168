"""What forms of answer are made from: identities ranked for each image, or pairs of images with P(same identity)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


def no_links() -> np.ndarray:
    """No pair at all, int64 (0, 2)."""
    return np.empty((0, 2), dtype=np.int64)


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
class PairTable:
    """Some pairs of images: all others are taken to show two identities.

    Attributes
    ----------
    first, second : int64 arrays, shape (p,)
        Places of the images in their lists.
    probability : float array, shape (p,)
        That both show one identity.
    """

    first: np.ndarray
    second: np.ndarray
    probability: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class ImagePairs:
    """A set of images that are asked about, and how likely each shows the identity of another, or of a labelled image.

    Attributes
    ----------
    images : str array, shape (n,)
    datasets : str array, shape (n,)
        Data set of each image; '' where the competition has no such column.
    gallery, gallery_identity : str arrays, shape (g,)
        Labelled images, and their identities.
    among : PairTable
        Pairs of the images.
    to_gallery : PairTable
        Pairs of an image (first) and a labelled image (second).
    asked : str array, shape (p,), or None
        Names of the pairs `among`, where pairs are asked about.
    must_link, cannot_link : int64 arrays, shape (m, 2)
        Pairs that somebody looked at and found of one identity, or of two: places in `images`, or n + place in
        `gallery`.
    """

    images: np.ndarray
    datasets: np.ndarray
    gallery: np.ndarray
    gallery_identity: np.ndarray
    among: PairTable
    to_gallery: PairTable
    asked: np.ndarray | None = None
    must_link: np.ndarray = field(default_factory=no_links)
    cannot_link: np.ndarray = field(default_factory=no_links)

    @property
    def rows(self) -> np.ndarray:
        """Names of what is answered: of the pairs that are asked about, else of the images."""
        return self.images if self.asked is None else self.asked


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
