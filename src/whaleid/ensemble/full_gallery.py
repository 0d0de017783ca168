"""What a ranking would score with every labelled image in the gallery, estimated out of fold.

Out of fold, a query's gallery lacks the images of its own fold; a test image's lacks none. So the score out of fold is
too low where identities have few images. Here every fold's queries are ranked once more with half of each identity's
images, chosen at random and at least one; networks, whitening and classifiers stay as they are, for the test set does
not change them either. The odds of the score are taken to be linear in the logarithm of the images of the query's
identity, through the score with half of the gallery and the one out of fold, and read off at the number of images that
the identity has in all. On drawn features a third point, at three quarters of the gallery, changed nothing, and a line
in the score itself went too far where scores are near 1.

Not in the estimate: that the test set's scores are means over the folds' models, and whatever else makes test images
easier or harder than labelled ones. Queries that are not scored out of fold, for no other image of their identity is
labelled, are none here either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit

from whaleid.ensemble.protocol import FoldPart, Protocol
from whaleid.evaluation.metrics import reciprocal_rank_at_k

FARTHEST = 1.25
"""How far the line is followed, in lengths of the piece that was measured; where the full gallery is farther away,
there is no estimate. Two folds need a little more than 1; identities of two images, which cannot be halved, far
more."""
BOOTSTRAPS = 1000


@dataclass(frozen=True)
class GallerySizes:
    """Images of a query's identity in the gallery: geometric means over the queries whose identity is in it.

    Attributes
    ----------
    half, out_of_fold, full : float
        With half of each identity's images, out of fold, and with all labelled images.
    """

    half: float
    out_of_fold: float
    full: float

    @property
    def reach(self) -> float:
        """Length of the line beyond what was measured, in lengths of that; infinite where nothing could be halved."""
        half, own, full = np.log([self.half, self.out_of_fold, self.full])
        return float((full - own) / (own - half)) if own > half else float("inf")


@dataclass(frozen=True)
class FullGallery:
    """The estimated score, its 95 % bootstrap interval over queries, and the score with half of the gallery."""

    map: float
    low: float
    high: float
    half: float


def halved(protocol: Protocol, seed: int) -> Protocol:
    """The protocol with half of each identity's images in every fold's gallery, at least one, and no test images.

    Parameters
    ----------
    protocol : Protocol
        Without simulated unknown queries. An identity's images are left out at random.
    seed : int
    """
    order = np.random.default_rng(seed).permutation(int(protocol.gallery.max()) + 1)
    return replace(
        protocol,
        parts=tuple(_halved_part(part, order, len(protocol.classes)) for part in protocol.parts),
        test_rows=protocol.test_rows[:0],
        test_names=protocol.test_names[:0],
        full_data=None,
    )


def gallery_sizes(protocol: Protocol, half: Protocol) -> GallerySizes:
    """Mean numbers of images of the queries' identities. half: `halved` of the protocol, of the same queries."""
    truth, weights = protocol.truth(protocol.places), protocol.weights(protocol.places)
    known = (truth >= 0) & (weights > 0)
    in_all = np.bincount(protocol.gallery_codes, minlength=len(protocol.classes))

    def mean(sizes: np.ndarray) -> float:
        return float(np.exp(np.average(np.log(sizes[known]), weights=weights[known])))

    return GallerySizes(mean(_sizes(half)), mean(_sizes(protocol)), mean(in_all[truth]))


def estimate(rank: np.ndarray, half: np.ndarray, weights: np.ndarray, k: int, reach: float, seed: int) -> FullGallery:
    """The score with the full gallery.

    Parameters
    ----------
    rank, half : int arrays, shape (n,)
        Rank of the truth of every query out of fold, and with half of the gallery; 0 where it was not guessed.
    weights : float array, shape (n,)
        >= 0, one above 0.
    k : int
        Number of guesses that count.
    reach : float
        `GallerySizes.reach`, at most FARTHEST.
    seed : int
        Of the bootstrap, which draws queries with both of their ranks.
    """
    used = weights > 0
    scores = np.stack([reciprocal_rank_at_k(one[used], k) for one in (rank, half)], axis=1)
    # ranks and weights take few values: sampling queries is sampling how often each triple of them comes
    triples, counts = np.unique(np.column_stack([scores, weights[used]]), axis=0, return_counts=True)
    values, weight = triples[:, :2], triples[:, 2]
    queries = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(queries, counts / queries, size=BOOTSTRAPS)
    own, smaller = np.average(values, axis=0, weights=counts * weight)
    of_drawn = (drawn * weight) @ values / (drawn @ weight)[:, None]
    mean = float(_extrapolated(own, smaller, reach, queries))
    low, high = np.quantile(_extrapolated(of_drawn[:, 0], of_drawn[:, 1], reach, queries), (0.025, 0.975))
    return FullGallery(mean, min(float(low), mean), max(float(high), mean), float(smaller))


def _extrapolated(own: np.ndarray, half: np.ndarray, reach: float, queries: int) -> np.ndarray:
    """The line in the odds, followed by `reach`. Scores of 0 and 1 have no odds: half a query is taken off."""
    least = 0.5 / queries
    start, before = (np.clip(score, least, 1 - least) for score in (own, half))
    gain = expit(logit(start) + reach * (logit(start) - logit(before))) - start
    return np.where(start == before, own, np.clip(own + gain, 0.0, 1.0))


def _halved_part(part: FoldPart, order: np.ndarray, classes: int) -> FoldPart:
    """order: int (n,), a number for every image; an identity's images with the larger ones are left out."""
    sizes = np.bincount(part.gallery_codes, minlength=classes)
    kept = np.maximum(sizes // 2, 1)
    sorted_rows = np.lexsort((order[part.gallery], part.gallery_codes))
    codes = part.gallery_codes[sorted_rows]
    turn = np.arange(len(codes)) - np.searchsorted(codes, codes)  # place of each image among its identity's
    left_out = np.sort(part.gallery[sorted_rows[turn >= kept[codes]]])
    known = part.truth >= 0
    return replace(part, left_out=left_out, sizes=np.where(known, kept[part.truth], 0))


def _sizes(protocol: Protocol) -> np.ndarray:
    return np.concatenate([part.sizes for part in protocol.parts])
