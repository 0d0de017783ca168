"""Two images side by side, with lines between the keypoints that were matched."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from whaleid.config import LocalConfig
from whaleid.data.images import prepare
from whaleid.data.masks import masks_of
from whaleid.local_matching.detectors import detector_of
from whaleid.local_matching.geometric_verification import matched_keypoints
from whaleid.local_matching.keypoints import Described, describe, described_size, described_together
from whaleid.local_matching.matchers import Matcher, matcher_of
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run
from whaleid.pipeline.workspace import read_images
from whaleid.report.examples import Example, gallery_rows
from whaleid.report.inputs import Results
from whaleid.report.thumbnails import box_of, fit_size
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

SIZE = (470, 360)
"""Largest width and height of either image, in pixels: two of them fill the width of a page."""
Matches = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Points float (n, 2) in the query, (n, 2) in the gallery image, and which matches are verified, bool (n,)."""

_VERIFIED, _REJECTED = (60, 200, 60), (170, 170, 170)  # RGB
_RADIUS = 2  # pixels of a keypoint's dot
_GAP = 6  # pixels between the two images


@dataclass(frozen=True)
class MatchedPair:
    """A query beside the image of an identity that matches it best. query, row: rows of images.parquet."""

    query: int
    row: int
    identity: str
    right: bool
    matches: Matches


def draw_matches(
    query: np.ndarray, gallery: np.ndarray, query_points: np.ndarray, gallery_points: np.ndarray, verified: np.ndarray
) -> np.ndarray:
    """Draw two images and their matches: verified ones green and on top, rejected ones grey.

    Parameters
    ----------
    query, gallery : uint8 arrays, shape (h, w, 3)
        RGB; they are not changed.
    query_points, gallery_points : float arrays, shape (n, 2)
        x and y in pixels of each image.
    verified : bool array, shape (n,)

    Returns
    -------
    uint8 array, shape (larger h, both w and a gap, 3)
        RGB; black where there is no image.

    Raises
    ------
    WhaleidError
        If the numbers of points and of `verified` differ.
    """
    if not len(query_points) == len(gallery_points) == len(verified):
        raise WhaleidError(
            f"matches: {len(query_points)} and {len(gallery_points)} points, {len(verified)} marks; "
            "one of each is needed"
        )
    left, canvas = query.shape[1] + _GAP, side_by_side(query, gallery)
    for match in np.argsort(verified, kind="stable"):  # verified matches last, so that they lie on top
        colour = _VERIFIED if verified[match] else _REJECTED
        start = tuple(int(value) for value in np.rint(query_points[match]))
        end = tuple(int(value) for value in np.rint(gallery_points[match] + [left, 0]))
        cv2.line(canvas, start, end, colour, 1, cv2.LINE_AA)
        for point in (start, end):
            cv2.circle(canvas, point, _RADIUS, colour, -1, cv2.LINE_AA)
    return canvas


def side_by_side(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Two images, uint8 (h, w, 3), on one canvas with a gap between them; black where there is no image."""
    left = query.shape[1] + _GAP
    canvas = np.zeros((max(len(query), len(gallery)), left + gallery.shape[1], 3), dtype=np.uint8)
    canvas[: len(query), : query.shape[1]] = query
    canvas[: len(gallery), left:] = gallery
    return canvas


def draw_image_pair(images: pd.DataFrame, root: Path, rows: tuple[int, int], matches: Matches, size: int) -> np.ndarray:
    """Draw two images, cut to their boxes, and their matches: uint8 (h, w, 3), RGB.

    images: images.parquet, whose paths start from `root`. rows: of the query and of the gallery image.
    size: the local matching's image size; the points are in its pixels.
    """
    views, points = [], []
    for row, found in zip(rows, matches[:2], strict=True):
        box = box_of(images, row)
        described, shown = np.array(described_size(box, size)), fit_size(box, SIZE)
        views.append(prepare(root / images["path"].iloc[row], box, 0.0, shown))
        points.append((found + 0.5) * np.array(shown) / described - 0.5)  # integers are the centres of pixels
    return draw_matches(views[0], views[1], points[0], points[1], matches[2])


def best_match(
    described: Described, query: int, rows: np.ndarray, config: LocalConfig, matcher: Matcher | None = None
) -> tuple[int, Matches]:
    """Of several images the one with most verified matches (the first of equals), and these matches.

    query: row of images.parquet. rows: int64 (m,), at least one, without the query.
    """
    found = [matched_keypoints(described, query, int(row), config, matcher) for row in rows]
    best = int(np.argmax([verified.sum() for _, _, verified in found]))
    return int(rows[best]), found[best]


def match_example(
    example: Example, results: Results, described: Described, local: LocalConfig, matcher: Matcher | None = None
) -> list[MatchedPair]:
    """Match a query with its first guess and, where that is wrong, with its true identity.

    An identity without an image in the gallery gives no pair.
    """
    part = next(part for part in results.protocol.parts if part.fold == example.fold)
    gallery = gallery_rows(part, results.protocol.classes)
    pairs = []
    for identity in dict.fromkeys([example.guesses[0].identity, example.truth]):
        if identity in gallery:
            row, matches = best_match(described, example.row, gallery[identity], local, matcher)
            pairs.append(MatchedPair(example.row, row, identity, identity == example.truth, matches))
    return pairs


def matches_line(matches: Matches) -> str:
    """How many of the matches are verified, in words."""
    return f"{int(matches[2].sum())} of {len(matches[2])} mutual matches agree in geometry"


def write_matches(project: Project, names: tuple[str, str], path: Path) -> Matches:
    """Match two images of a competition and draw the matches to `path`, a PNG.

    names: of the images, as in the CSV. Settings: the recipe's local matching, or the defaults if it has none.
    """
    from PIL import Image

    if path.suffix.lower() != ".png":
        raise WhaleidError(f"{path}: the image is written as PNG; give a name that ends in .png")
    run(project, "images")
    images = read_images(project.workspace)
    matches, drawn = match_pair(project, images, (row_of(images, names[0]), row_of(images, names[1])))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(drawn).save(temporary, format="PNG")
    return matches


def match_pair(project: Project, images: pd.DataFrame, rows: tuple[int, int]) -> tuple[Matches, np.ndarray]:
    """The matches of two images, described anew, and their picture, uint8 (h, w, 3)."""
    local, pair = project.local_matching or LocalConfig(), images.iloc[list(rows)]
    weights, root = project.settings.weights, project.competition.root
    detector, masks = detector_of(local, weights), masks_of(project.competition, pair) or (None, None)
    described = described_together(
        [
            describe(root / images["path"].iloc[row], box_of(images, row), local, mask, detector)
            for row, mask in zip(rows, masks, strict=True)
        ],
        local.features,
    )
    matches = matched_keypoints(described, 0, 1, local, matcher_of(described, pair, local, weights))
    return matches, draw_image_pair(images, root, rows, matches, local.size)


def row_of(images: pd.DataFrame, name: str) -> int:
    """Row of images.parquet of the image of that name."""
    names = images["image"].astype(str)
    found = np.flatnonzero(names == name)
    if not len(found):
        near = difflib.get_close_matches(name, names.tolist(), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise WhaleidError(f"no image '{name}' in the competition{hint} (names as in its CSV)")
    return int(found[0])
