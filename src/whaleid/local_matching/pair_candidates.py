"""Which images are matched with a query pair by pair: those of its likeliest identities, by keypoints and by networks.

The number of pairs does not grow with the gallery. Networks name other identities than votes, and each way gives every
second one: the true identity is among the 50 images for 94.0 % of the queries instead of 84.5 % (cow faces out of fold;
networks alone: 95.4 %), and for 61.5 % instead of 56.5 % (161 queries of nyala; 44.1 %).
"""

from __future__ import annotations

import numpy as np

from whaleid.retrieval.identities import PADDING


def in_turn(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two lists of identities as one: the first of each, the second of each, ..., every identity once.

    Parameters
    ----------
    one, other : int64 arrays, shape (q, m) and (q, n)
        Codes, best first, -1 padded.

    Returns
    -------
    int64 array, shape (q, m + n)
        Codes, -1 padded; `one` has the first place.
    """
    merged = np.full((len(one), one.shape[1] + other.shape[1]), PADDING)
    places = np.argsort(np.concatenate([np.arange(one.shape[1]), np.arange(other.shape[1])]), kind="stable")
    for row, both in enumerate(np.concatenate([one, other], axis=1)[:, places].tolist()):
        distinct = [code for code in dict.fromkeys(both) if code != PADDING]
        merged[row, : len(distinct)] = distinct
    return merged


def images_of_identities(identities: np.ndarray, codes: np.ndarray, most: int) -> np.ndarray:
    """The gallery images of some identities, identity after identity.

    Parameters
    ----------
    identities : int64 array, shape (q, m)
        Codes, best first, -1 padded.
    codes : int64 array, shape (n,)
        Identity of every image of images.parquet, -1 = not in the gallery.
    most : int
        Largest number of images of a query.

    Returns
    -------
    int64 array, shape (q, most)
        Rows of images.parquet, -1 padded.
    """
    found = np.full((len(identities), most), PADDING)
    gallery = np.flatnonzero(codes != PADDING)
    order = gallery[np.argsort(codes[gallery], kind="stable")]
    starts, ends = (np.searchsorted(codes[order], identities, side) for side in ("left", "right"))
    for place in range(len(identities)):  # no image has the code of padding
        of_identities = [order[slice(*bounds)] for bounds in zip(starts[place], ends[place], strict=True)]
        images = np.concatenate([np.empty(0, np.int64), *of_identities])[:most]
        found[place, : len(images)] = images
    return found
