"""A second look at the best candidates: keypoints of the query and of one gallery image matched pair by pair.

A vote says that a mark like this one is rare; that two pictures share many marks in one arrangement says more.
A match is mutual, stands out from the second nearest keypoint of the same picture (the ratio test of Lowe,
"Distinctive image features from scale-invariant keypoints", 2004), and its two keypoints agree in size,
direction and place, as animals that fill their frames do (Jegou, Douze and Schmid, "Hamming embedding and weak
geometric consistency", 2008, prune by size and direction alone). Where a recipe asks for it, MAGSAC (Barath et
al., "MAGSAC++", 2020) finds the affine map of a pair and keeps the matches that it explains.

With ALIKED's keypoints a network may match instead (`local_matching/lightglue.py`); all that follows is the same.

The score of an identity adds to the logarithm of its share of votes. Nothing here is learnt from labels, so that
a fold's lists can teach any other fold's blend, which weighs and calibrates them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from whaleid.config import LocalConfig, VerifyConfig
from whaleid.config.settings import read_settings
from whaleid.local_matching.keypoints import Described, frames_of
from whaleid.local_matching.weights import LIGHTGLUE, find_published
from whaleid.retrieval.identities import PADDING
from whaleid.utils.errors import WhaleidError

Matcher = Callable[[int, np.ndarray], Iterable[tuple[np.ndarray, np.ndarray]]]
"""(query, rows), rows of images.parquet -> for each of `rows` the matched keypoints: places in the query's and in its
own, int64 (matches,) each."""
_FEWEST = 4  # an affine map goes through any 3 matches: fewer than 4 prove nothing
_TRIES = 300  # maps that MAGSAC tries
_SEED = 0


def matcher_of(described: Described, images: pd.DataFrame, config: LocalConfig, weights: Path | None = None) -> Matcher:
    """The recipe's matcher. images: images.parquet, or the rows that are described. weights: folder of a network's
    weights, default WEIGHTS_DIR. Raises WhaleidError where they are not there.
    """
    verify = config.verify or VerifyConfig()
    if verify.matcher == "mutual":
        return mutual_matcher(described, verify.ratio)
    from whaleid.local_matching.lightglue import lightglue_matcher

    file = find_published(LIGHTGLUE, weights or read_settings().weights)
    return lightglue_matcher(described, frames_of(images, config.size), file)


def mutual_matcher(described: Described, ratio: float) -> Matcher:
    """Matches by `mutual_matches`."""

    def match(query: int, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        vectors, _ = described.image(query)
        for row in rows:
            yield mutual_matches(vectors, described.image(int(row))[0], ratio)

    return match


def mutual_matches(query: np.ndarray, gallery: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of descriptors that are each other's nearest, nearer than `ratio` times the query's second nearest.

    query: float32 (n, d), gallery: float32 (m, d). Returns two int64 (matches,): places in each; none where the
    gallery has fewer than 2 descriptors. Of equal distances the first counts.
    """
    return measured_matches(query, gallery, ratio)[:2]


def measured_matches(
    query: np.ndarray, gallery: np.ndarray, ratio: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `mutual_matches`, with the squared distances float32 (matches,) of the nearest and the second nearest."""
    if not len(query) or len(gallery) < 2:
        none, nothing = np.empty(0, np.int64), np.empty(0, np.float32)
        return none, none, nothing, nothing
    distance = _squared_distances(query, gallery)
    rows, nearest = np.arange(len(query)), distance.argmin(axis=1)
    first = distance[rows, nearest]
    distance[rows, nearest] = np.inf
    second = distance.min(axis=1)
    distance[rows, nearest] = first
    kept = np.flatnonzero(first < ratio**2 * second)
    kept = kept[distance[:, nearest[kept]].argmin(axis=0) == kept]  # down the columns is slow: of few of them
    return kept, nearest[kept], first[kept], second[kept]


def _squared_distances(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """float32 (n, m), in one product: what is stored as bytes gives whole numbers that float32 holds exactly."""
    own = np.column_stack([-2 * query, (query**2).sum(axis=1), np.ones(len(query), np.float32)])
    other = np.column_stack([gallery, np.ones(len(gallery), np.float32), (gallery**2).sum(axis=1)])
    return own @ other.T


def agreeing(query: np.ndarray, gallery: np.ndarray, size: int, config: VerifyConfig) -> np.ndarray:
    """Which matches agree in size, direction and place, bool (n,).

    query, gallery: float32 (n, 4), matched points (`detectors.Found`). size: longer side of a picture in pixels.
    """
    factor = np.abs(np.log(gallery[:, 2] / query[:, 2]))
    turn = np.abs((gallery[:, 3] - query[:, 3] + 180) % 360 - 180)
    shift = np.hypot(*(gallery[:, :2] - query[:, :2]).T)
    return (factor <= np.log(config.scale)) & (turn <= config.turn) & (shift <= config.shift * size)


def affine_inliers(query: np.ndarray, gallery: np.ndarray, pixels: float) -> np.ndarray:
    """Which matches the affine map found by MAGSAC explains, bool (n,); the same each time.

    query, gallery: float32 (n, 2), x and y. None is explained where there are fewer than 4, or no map is found.
    """
    none = np.zeros(len(query), dtype=bool)
    if len(query) < _FEWEST:
        return none
    asked = cv2.UsacParams()
    asked.randomGeneratorState, asked.maxIterations, asked.threshold = _SEED, _TRIES, pixels
    asked.confidence, asked.score, asked.isParallel = 0.99, cv2.SCORE_METHOD_MAGSAC, False
    found, inlier = cv2.estimateAffine2D(np.ascontiguousarray(query), np.ascontiguousarray(gallery), asked)
    return none if found is None or inlier is None else inlier.ravel().astype(bool)


def matched_keypoints(
    described: Described, query: int, gallery: int, config: LocalConfig, matcher: Matcher | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All matches of two images and which of them count.

    query, gallery: rows of images.parquet. config: with `verify`; without, its defaults are taken. matcher: the
    recipe's (`matcher_of`); None: mutual matches.
    Returns points float32 (n, 2) in the query and (n, 2) in the gallery image, in pixels of the pictures as they
    were described (`original_points` brings them back), and bool (n,).
    """
    verify = config.verify or VerifyConfig()
    matcher = matcher or mutual_matcher(described, verify.ratio)
    return next(iter(_matched(described, query, np.array([gallery]), matcher, config.size, verify)))


def original_points(points: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Points of a described picture in pixels of the original one, float32 (n, 2).

    box: x0, y0, x1, y1 that the picture was cropped to. size: `LocalConfig.size`, to which its longer side shrank.
    """
    factor = min(1.0, size / max(float(box[2] - box[0]), float(box[3] - box[1]), 1.0))
    return (points / factor + np.asarray(box[:2])).astype(np.float32)


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
    """The voted candidates in a new order: votes and matches of each identity's best image together.

    queries: int64 (q,), gallery: int64 (g,), rows of images.parquet. gallery_codes: int64 (g,). voted: codes int64
    (q, m) and scores float32 (q, m), logarithms, as `local_candidates` gives them. The images of the first
    identities are looked at, best identity first, until there are `verify.images`; the others have no matches and
    keep the score of their votes. workers: threads, default as many as cores; they change nothing. matcher: as
    `matched_keypoints` takes it.
    Returns codes and scores as `voted`; equals stand by votes. Memory: one pair's distances a thread.
    Raises WhaleidError where a query is in the gallery.
    """
    verify = config.verify or VerifyConfig()
    if len(np.intersect1d(queries, gallery)):
        raise WhaleidError("local matching: a query is in its own gallery; take it out")
    order = np.argsort(gallery_codes, kind="stable")
    sorted_codes = gallery_codes[order]
    codes, scores = voted
    found_by = matcher or mutual_matcher(described, verify.ratio)

    def one(place: int) -> np.ndarray:
        ranks, rows = [], []
        for rank, code in enumerate(codes[place]):
            left = verify.images - len(rows)
            if code == PADDING or not left:
                break
            own = order[np.searchsorted(sorted_codes, code) : np.searchsorted(sorted_codes, code, "right")][:left]
            ranks += [rank] * len(own)
            rows += gallery[own].tolist()
        pictures = np.array(rows, dtype=np.int64)
        counts = np.zeros(codes.shape[1])
        found = _matched(described, int(queries[place]), pictures, found_by, config.size, verify)
        for rank, (_, _, used) in zip(ranks, found, strict=True):
            counts[rank] = max(counts[rank], used.sum())
        return counts

    # one thread a product: those of the pool are enough. A network has the pool's threads take turns, and needs its own
    with (
        threadpool_limits(1 if matcher is None else None, "blas"),
        ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
    ):
        counts = np.array(list(pool.map(one, range(len(queries))))).reshape(codes.shape)
    total = (scores + verify.weight * np.log1p(counts)).astype(np.float32)
    best = np.argsort(-total, axis=1, kind="stable")
    return np.take_along_axis(codes, best, axis=1), np.take_along_axis(total, best, axis=1)


def _matched(
    described: Described, query: int, rows: np.ndarray, matcher: Matcher, size: int, config: VerifyConfig
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each of `rows` where the matches are in both pictures, float32 (n, 2) each, and which count, bool (n,)."""
    _, points = described.image(query)
    for row, (asked, known) in zip(rows, matcher(query, rows), strict=True):
        one, other = points[asked], described.image(int(row))[1][known]
        used = agreeing(one, other, size, config)
        if config.magsac is not None:
            used[used] = affine_inliers(one[used, :2], other[used, :2], config.magsac)
        yield one[:, :2], other[:, :2], used
