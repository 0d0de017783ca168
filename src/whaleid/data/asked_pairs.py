"""Pairs of test images that a competition asks about, a row each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.listing import read_listed
from whaleid.utils.errors import WhaleidError


@dataclass(frozen=True)
class AskedPairs:
    """Pairs of images.

    Attributes
    ----------
    names : str array, shape (p,)
        The row's name.
    places : int64 array, shape (p, 2)
        Places of both images in the list that was given.
    """

    names: np.ndarray
    places: np.ndarray


def read_asked_pairs(competition: Competition, images: np.ndarray) -> AskedPairs:
    """The pairs of `answer.pairs` of both of whose images there is a photograph.

    Parameters
    ----------
    competition : Competition
        With `test` and `answer.pairs`.
    images : str array, shape (n,)
        Test images that could be read.

    Raises
    ------
    WhaleidError
        For an image that is never a row's first: it is none of the test images.
    """
    test, columns = competition.test, competition.answer.pairs
    assert test is not None and columns is not None
    table = read_listed(competition.root, test, [columns.row, columns.other])
    foreign = table[~table[columns.other].isin(table[test.image])]
    if len(foreign):
        raise WhaleidError(
            f"{competition.root / test.csv}: row {foreign.index[0]}, column {columns.other}: "
            f"{foreign[columns.other].iloc[0]!r} is no image of the column {test.image}; correct it"
        )
    index = pd.Index(images)
    places = np.column_stack([index.get_indexer(pd.Index(table[name])) for name in (test.image, columns.other)])
    readable = (places >= 0).all(axis=1)
    return AskedPairs(table[columns.row].to_numpy(dtype=str)[readable], places[readable].astype(np.int64))
