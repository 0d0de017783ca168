"""A pair of photographs side by side, with lines between the keypoints that were matched."""

from __future__ import annotations

import cv2
import numpy as np

from whaleid.errors import WhaleidError

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
