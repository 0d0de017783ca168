"""Which images may be compared: those of one species (or data set) and of one view, as far as either is known.

A query's candidates come from the part of the gallery that it may be compared with, and nothing else is searched: its
truth is still what it is, so that an individual whose gallery images all show another view is missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.utils.errors import WhaleidError

if TYPE_CHECKING:
    from whaleid.ensemble.protocol import QuerySet

NOT_KNOWN = ""
"""Species or view of an image that is compared with all."""
LISTED = 5  # images that a message names


@dataclass(frozen=True)
class Comparable:
    """What divides the images.

    Attributes
    ----------
    species, view : str arrays, shape (n,)
        Of every row of images.parquet; `NOT_KNOWN` where it is not known, or the competition does not divide by it.
    """

    species: np.ndarray
    view: np.ndarray

    def pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Whether images in these rows may be compared, bool; both int64, of shapes that broadcast."""
        return _alike(self.species, first, second) & _alike(self.view, first, second)

    def pieces(self, queries: QuerySet) -> Iterator[tuple[np.ndarray, QuerySet]]:
        """The queries that are compared with one part of the gallery: their places, and they alone with that part."""
        kinds = np.array([self.species[queries.rows], self.view[queries.rows]], dtype=str)
        _, first, code = np.unique(kinds, axis=1, return_index=True, return_inverse=True)
        for number, one in enumerate(queries.rows[first]):
            places = np.flatnonzero(code.reshape(-1) == number)
            seen, labelled = self.pairs(one, queries.gallery), self.pairs(one, queries.labelled)
            yield (
                places,
                replace(
                    queries,
                    rows=queries.rows[places],
                    names=queries.names[places],
                    gallery=queries.gallery[seen],
                    gallery_codes=queries.gallery_codes[seen],
                    labelled=queries.labelled[labelled],
                ),
            )


def read_comparable(images: pd.DataFrame, competition: Competition) -> Comparable | None:
    """What divides the images of a competition; None where nothing does.

    Raises
    ------
    WhaleidError
        For a labelled image without species, an identity of two species and, where no identity is unknown, a species
        that no labelled image has.
    """
    if competition.species_column is None and competition.view is None:
        return None
    species, view = (_column(images, name) for name in (competition.species_column, competition.view))
    if competition.species_column is not None:
        _check_species(images, species, competition)
    return Comparable(species, view)


def _column(images: pd.DataFrame, name: str | None) -> np.ndarray:
    return np.full(len(images), NOT_KNOWN, dtype=object) if name is None else images[name].fillna("").to_numpy(object)


def _alike(kind: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    one, other = kind[first], kind[second]
    return (one == other) | (one == NOT_KNOWN) | (other == NOT_KNOWN)


def _check_species(images: pd.DataFrame, species: np.ndarray, competition: Competition) -> None:
    name, labelled = competition.species_column, (images["split"] == "train").to_numpy()
    empty = images["image"][labelled & (species == NOT_KNOWN)]
    if len(empty):
        raise WhaleidError(
            f"{competition.root / competition.train.csv}: {len(empty):,} labelled images have no '{name}', first "
            f"{', '.join(empty[:LISTED])}; fill it in"
        )
    named = labelled & (images["identity"] != (competition.unknown or NOT_KNOWN)).to_numpy()
    of_identity = pd.Series(species[named]).groupby(images["identity"][named].to_numpy()).unique()
    for identity, found in of_identity[of_identity.map(len) > 1].items():
        raise WhaleidError(
            f"{competition.root / competition.train.csv}: identity {identity} has images of {' and of '.join(found)} "
            f"('{name}'); an individual is of one species: correct the column, or give the identities different names"
        )
    strange = sorted(set(species[~labelled]) - set(species[labelled]) - {NOT_KNOWN})
    if strange and competition.unknown is None:
        raise WhaleidError(
            f"test images are of {', '.join(strange[:LISTED])} ('{name}'), of which no image is labelled, and the "
            "competition has no unknown label: correct the column, or set unknown"
        )
