"""Geometric verification: keypoints of the query matched with single gallery images of its best candidates.

A vote says that a mark like this one is rare; many marks in the same arrangement in two images say more. A match counts
where its two keypoints agree in size, direction and place, since animals fill their frames (Jegou, Douze and Schmid,
"Hamming embedding and weak geometric consistency", 2008, prune by size and direction only). Where a recipe asks for it,
MAGSAC (Barath et al., "MAGSAC++", 2020) estimates the affine map of a pair and keeps the matches that it explains.

Nothing here is fitted on labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from whaleid.config import LocalConfig, VerifyConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.matchers import Matcher
from whaleid.local_matching.mutual import matching_threads, mutual_matcher
from whaleid.retrieval.identities import PADDING
from whaleid.utils.errors import WhaleidError
from whaleid.utils.machine import cores

_FEWEST = 4  # an affine map fits any 3 matches: fewer than 4 prove nothing
_TRIES = 300  # maps that MAGSAC tries
_SEED = 0


def agreeing(query: np.ndarray, gallery: np.ndarray, size: int, config: VerifyConfig) -> np.ndarray:
    """Which matches agree in size, direction and place.

    Parameters
    ----------
    query, gallery : float32 arrays, shape (n, 4)
        Matched points (`detectors.Found`).
    size : int
        Longer side of an image in pixels.
    config : VerifyConfig

    Returns
    -------
    bool array, shape (n,)
    """
    factor = np.abs(np.log(gallery[:, 2] / query[:, 2]))
    turn = np.abs((gallery[:, 3] - query[:, 3] + 180) % 360 - 180)
    shift = np.hypot(*(gallery[:, :2] - query[:, :2]).T)
    return (factor <= np.log(config.scale)) & (turn <= config.turn) & (shift <= config.shift * size)


def affine_inliers(query: np.ndarray, gallery: np.ndarray, pixels: float) -> np.ndarray:
    """Which matches the affine map found by MAGSAC explains; deterministic.

    Parameters
    ----------
    query, gallery : float32 arrays, shape (n, 2)
        x and y of the matched points.
    pixels : float
        Largest distance of an inlier.

    Returns
    -------
    bool array, shape (n,)
        All False where there are fewer than 4 matches, or no map is found.
    """
    none = np.zeros(len(query), dtype=bool)
    if len(query) < _FEWEST:
        return none
    usac = cv2.UsacParams()
    usac.randomGeneratorState, usac.maxIterations, usac.threshold = _SEED, _TRIES, pixels
    usac.confidence, usac.score, usac.isParallel = 0.99, cv2.SCORE_METHOD_MAGSAC, False
    found, inlier = cv2.estimateAffine2D(np.ascontiguousarray(query), np.ascontiguousarray(gallery), usac)
    return none if found is None or inlier is None else inlier.ravel().astype(bool)


def matched_keypoints(
    described: Described, query: int, gallery: int, config: LocalConfig, matcher: Matcher | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All matches of two images, and which of them count.

    Parameters
    ----------
    described : Described
    query, gallery : int
        Rows of images.parquet.
    config : LocalConfig
        Defaults of `verify` are used where it is None.
    matcher : Matcher or None
        The recipe's (`matchers.matcher_of`); None: mutual matches.

    Returns
    -------
    float32 arrays, shape (n, 2), twice
        Points in the query and in the gallery image, in pixels of the images as described.
    bool array, shape (n,)
        Which matches count.
    """
    verify = config.verify or VerifyConfig()
    matcher = matcher or mutual_matcher(described, verify.ratio)
    return next(iter(_matched(described, query, np.array([gallery]), matcher, config.size, verify)))


def verified_candidates(
    described: Described,
    queries: np.ndarray,
    gallery: np.ndarray,
    gallery_codes: np.ndarray,
    voted: tuple[np.ndarray, np.ndarray],
    config: LocalConfig,
    workers: int | None = None,
    matcher: Matcher | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The candidates by votes, ranked again by votes and by the matches of each identity's best image.

    Images of the first identities are matched, best identity first, up to `verify.images`; other identities have no
    matches and keep the score of their votes.

    Parameters
    ----------
    described : Described
    queries : int64 array, shape (q,)
        Rows of images.parquet.
    gallery, gallery_codes : int64 arrays, shape (g,)
        Rows of images.parquet, and their identities.
    voted : int64 and float32 arrays, shape (q, m)
        Codes and scores (logarithms) as `votes.local_candidates` gives them.
    config : LocalConfig
    workers : int or None
        Threads, default as many as cores; the result does not depend on them.
    matcher : Matcher or None
        As for `matched_keypoints`.

    Returns
    -------
    int64 and float32 arrays, shape (q, m)
        Codes and scores, ties in the order of votes.

    Raises
    ------
    WhaleidError
        Where a query is in the gallery.
    """
    verify = config.verify or VerifyConfig()
    if len(np.intersect1d(queries, gallery)):
        raise WhaleidError("local matching: a query is in its own gallery; take it out")
    codes, scores = voted
    order = np.argsort(gallery_codes, kind="stable")
    images, sorted_codes = gallery[order], gallery_codes[order]
    find = matcher or mutual_matcher(described, verify.ratio)

    def best_counts(place: int) -> np.ndarray:
        """Matches that count of each candidate's best image, float64 (m,)."""
        rows, ranks = _first_images(codes[place], images, sorted_codes, verify.images)
        counts = np.zeros(codes.shape[1])
        matched = _matched(described, int(queries[place]), rows, find, config.size, verify)
        for rank, (_, _, used) in zip(ranks, matched, strict=True):
            counts[rank] = max(counts[rank], used.sum())
        return counts

    # threads of the pool suffice for products; a network makes the pool's threads take turns, and needs its library's
    threads = matching_threads if verify.matcher == "mutual" else ThreadPoolExecutor
    with threads(workers or cores()) as pool:
        counts = np.array(list(pool.map(best_counts, range(len(queries))))).reshape(codes.shape)
    total = (scores + verify.weight * np.log1p(counts)).astype(np.float32)
    best = np.argsort(-total, axis=1, kind="stable")
    return np.take_along_axis(codes, best, axis=1), np.take_along_axis(total, best, axis=1)


def _first_images(
    codes: np.ndarray, images: np.ndarray, sorted_codes: np.ndarray, most: int
) -> tuple[np.ndarray, list[int]]:
    """The first `most` images of a query's candidates, and the rank of each image's identity."""
    rows, ranks = [], []
    for rank, code in enumerate(codes):
        left = most - len(rows)
        if code == PADDING or not left:
            break
        first, end = np.searchsorted(sorted_codes, code), np.searchsorted(sorted_codes, code, "right")
        of_identity = images[first:end][:left].tolist()
        rows += of_identity
        ranks += [rank] * len(of_identity)
    return np.array(rows, dtype=np.int64), ranks


def _matched(
    described: Described, query: int, rows: np.ndarray, matcher: Matcher, size: int, config: VerifyConfig
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each of `rows` the matched points in both images, float32 (n, 2) each, and which count, bool (n,)."""
    _, points = described.image(query)
    for row, (matched, other_matched) in zip(rows, matcher(query, rows), strict=True):
        one, other = points[matched], described.image(int(row))[1][other_matched]
        used = agreeing(one, other, size, config)
        if config.magsac is not None:
            used[used] = affine_inliers(one[used, :2], other[used, :2], config.magsac)
        yield one[:, :2], other[:, :2], used
