"""A pair of photographs side by side, with lines between the keypoints that were matched."""

from __future__ import annotations

import difflib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from whaleid.config import LocalConfig
from whaleid.data.images import prepare
from whaleid.data.masks import masks_of
from whaleid.local_matching.detectors import detector_of
from whaleid.local_matching.geometric_verification import Matcher, matched_keypoints, matcher_of
from whaleid.local_matching.keypoints import Described, describe, described_size, described_together
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run
from whaleid.pipeline.workspace import read_images
from whaleid.report.pictures import box_of, view_size
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

VIEW = (470, 360)
"""Largest width and height of either photograph, in pixels: two of them fill the width of a page."""
Matches = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Points float (n, 2) in the query, (n, 2) in the gallery image, and which of them count, bool (n,)."""

_USED, _REFUSED = (60, 200, 60), (170, 170, 170)  # RGB
_DOT = 2  # pixels
_GAP = 6  # pixels between the two photographs


def draw_matches(
    query: np.ndarray, gallery: np.ndarray, query_points: np.ndarray, gallery_points: np.ndarray, used: np.ndarray
) -> np.ndarray:
    """Picture of two photographs and their matches: those that count green, on top; the refused grey.

    query, gallery: uint8 (h, w, 3), RGB; they are not changed. query_points, gallery_points: float (n, 2), x and y
    in pixels of each. used: bool (n,).
    Returns uint8 (larger h, w + gap + other w, 3), RGB, black where there is no photograph.
    Raises WhaleidError where points and `used` differ in number.
    """
    if not len(query_points) == len(gallery_points) == len(used):
        raise WhaleidError(
            f"matches: {len(query_points)} and {len(gallery_points)} points, {len(used)} marks; one each is needed"
        )
    left = query.shape[1] + _GAP
    canvas = np.zeros((max(len(query), len(gallery)), left + gallery.shape[1], 3), dtype=np.uint8)
    canvas[: len(query), : query.shape[1]] = query
    canvas[: len(gallery), left:] = gallery
    for place in np.argsort(used, kind="stable"):  # those that count come last, over the others
        colour = _USED if used[place] else _REFUSED
        start = tuple(int(value) for value in np.rint(query_points[place]))
        end = tuple(int(value) for value in np.rint(gallery_points[place] + [left, 0]))
        cv2.line(canvas, start, end, colour, 1, cv2.LINE_AA)
        for point in (start, end):
            cv2.circle(canvas, point, _DOT, colour, -1, cv2.LINE_AA)
    return canvas


def matches_picture(images: pd.DataFrame, root: Path, rows: tuple[int, int], matches: Matches, size: int) -> np.ndarray:
    """Picture of two images, cut to their boxes as they were described, and their matches: uint8 (h, w, 3), RGB.

    images: images.parquet, `path` relative to `root`. rows: of the query and of the gallery image. matches: as
    `matched_keypoints` gives them. size: `LocalConfig.size`, in whose pixels the points are.
    """
    views, points = [], []
    for row, found in zip(rows, matches[:2], strict=True):
        box = box_of(images, row)
        described, shown = np.array(described_size(box, size)), view_size(box, VIEW)
        views.append(prepare(root / images["path"].iloc[row], box, 0.0, shown))
        points.append((found + 0.5) * np.array(shown) / described - 0.5)  # a whole number is the middle of a pixel
    return draw_matches(views[0], views[1], points[0], points[1], matches[2])


def best_match(
    described: Described, query: int, rows: np.ndarray, config: LocalConfig, matcher: Matcher | None = None
) -> tuple[int, Matches]:
    """Of some images the one with most matches that count, the first of equals, and these matches.

    query: row of images.parquet. rows: int64 (m,), likewise, at least one; the query is none of them. matcher: as
    `matched_keypoints` takes it.
    """
    found = [matched_keypoints(described, query, int(row), config, matcher) for row in rows]
    best = int(np.argmax([used.sum() for _, _, used in found]))
    return int(rows[best]), found[best]


def matches_line(matches: Matches) -> str:
    used = int(matches[2].sum())
    return f"{used} of {len(matches[2])} mutual matches agree"


def write_matches(project: Project, names: tuple[str, str], path: Path) -> Matches:
    """Describe two images of a competition, match them, and draw the matches to `path`, a PNG; returns the matches.

    names: of images, as in the CSV. By the recipe's local matching, or its defaults where the recipe has none.
    """
    from PIL import Image

    if path.suffix.lower() != ".png":
        raise WhaleidError(f"{path}: the picture is a PNG; give it a name that ends in .png")
    run(project, "images")
    images, local = read_images(project.workspace), project.local_matching or LocalConfig()
    rows = _row_of(images, names[0]), _row_of(images, names[1])
    weights = project.settings.weights
    detector = detector_of(local, weights)
    root, masks = project.competition.root, masks_of(project.competition, images.iloc[list(rows)]) or (None, None)
    described = described_together(
        [
            describe(root / images["path"].iloc[row], box_of(images, row), local, mask, detector)
            for row, mask in zip(rows, masks, strict=True)
        ],
        local.features,
    )
    matcher = matcher_of(described, images.iloc[list(rows)], local, weights)
    matches = matched_keypoints(described, 0, 1, local, matcher)
    drawn = matches_picture(images, root, rows, matches, local.size)
    with atomic_path(path) as temporary:
        Image.fromarray(drawn).save(temporary, format="PNG", optimize=True)
    return matches


def _row_of(images: pd.DataFrame, name: str) -> int:
    """Row of images.parquet of the image of that name."""
    names = images["image"].astype(str)
    found = np.flatnonzero(names == name)
    if not len(found):
        near = difflib.get_close_matches(name, names.tolist(), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise WhaleidError(f"no image '{name}' in the competition{hint} (names stand in its CSV)")
    return int(found[0])
