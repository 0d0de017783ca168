"""One humpback whale's fluke: its outline, skin and relief, drawn from a random generator.

The canvas shows the underside of the fluke as a camera straight behind the animal would. Canvas units: x runs from -1
(left tip) to 1 (right tip), y points up, 0 is about the height of the trailing edge, and the peduncle leaves the canvas
at its bottom. `photographs.py` adds light, water and camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from scipy.interpolate import PchipInterpolator

UNIT = 280  # canvas pixels a unit: a span of 560 pixels, slightly finer than a photograph's drawing
LEFT, RIGHT, TOP, BOTTOM = -1.12, 1.12, 0.42, -0.95  # what the canvas shows, in canvas units
WIDTH, HEIGHT = round((RIGHT - LEFT) * UNIT), round((TOP - BOTTOM) * UNIT)
SHAPE = (HEIGHT, WIDTH)
PEDUNCLE = (0.0, -0.85)  # the skin's streaks radiate from here
_SUBPIXEL = 4  # bits of sub-pixel precision in OpenCV's drawing functions


@dataclass(frozen=True)
class Individual:
    """One whale; all its photographs are drawn from these arrays.

    Attributes
    ----------
    outline : float32 array, shape (n, 2)
        Closed polygon in canvas units.
    mask : float32 array, shape (HEIGHT, WIDTH)
        Share of the pixel that is whale, 0 .. 1.
    skin : float32 array, shape (HEIGHT, WIDTH)
        Albedo, 0 (black) .. 1 (white).
    relief : float32 array, shape (HEIGHT, WIDTH)
        Thickness of the fluke; only its slope matters (shading).
    """

    outline: np.ndarray
    mask: np.ndarray
    skin: np.ndarray
    relief: np.ndarray


def draw_individual(rng: np.random.Generator) -> Individual:
    """Draw one animal, which depends on the state of the generator only."""
    outline = _outline(rng)
    mask = _fill(outline)
    inside = cv2.distanceTransform((mask > 0.5).astype(np.uint8), cv2.DIST_L2, 5) / UNIT
    skin = _scarred(rng, _pigmented(rng, outline))
    return Individual(outline, mask, skin, _relief(rng, inside))


def _axes() -> tuple[np.ndarray, np.ndarray]:
    """Canvas units of the pixels: x, float32 (1, WIDTH), and y, float32 (HEIGHT, 1); they broadcast."""
    x = np.linspace(LEFT, RIGHT, WIDTH, dtype=np.float32)
    y = np.linspace(TOP, BOTTOM, HEIGHT, dtype=np.float32)
    return x[None, :], y[:, None]


@cache
def _rays() -> tuple[np.ndarray, np.ndarray]:
    """Polar canvas coordinates around the peduncle, each float32 (HEIGHT, WIDTH).

    Angle: 0 .. 1 from left over straight up (0.5) to right; radius in canvas units.
    """
    x, y = _axes()
    angle = np.arctan2(x - PEDUNCLE[0], np.maximum(y - PEDUNCLE[1], 0.02))
    rays = angle / np.pi + 0.5, np.hypot(x - PEDUNCLE[0], y - PEDUNCLE[1])
    for axis in rays:
        axis.flags.writeable = False  # shared by all callers
    return rays


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Smooth noise, mean 0, deviation 1, float32 `shape`: a random value each `cell` (rows, columns)."""
    coarse = [max(4, int(np.ceil(side / step)) + 3) for side, step in zip(shape, cell, strict=True)]
    grid = rng.standard_normal(coarse).astype(np.float32)
    field = cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    some = field[::3, ::3]  # enough for mean and deviation
    return (field - some.mean()) / (some.std() + 1e-6)


def sigmoid(value: np.ndarray) -> np.ndarray:
    """Logistic function, same shape and dtype; its argument is clipped so that exp never overflows."""
    return 1.0 / (1.0 + np.exp(-np.clip(value, -30, 30)))


# ---------------------------------------------------------------------------------------------- outline


def _outline(rng: np.random.Generator) -> np.ndarray:
    """Closed outline, float32 (n, 2): along the trailing edge from tip to tip, back along the leading edges.

    Both lobes share a build, from which each deviates a little; serration and injuries are its own.
    """
    build = rng.standard_normal(9)
    notch = rng.uniform(0.02, 0.13)
    right, left = (_lobe(rng, build + 0.3 * rng.standard_normal(9), notch) for _ in range(2))
    left = left[::-1] * np.array([-1, 1])
    return np.concatenate([right, left]).astype(np.float32)


def _lobe(rng: np.random.Generator, build: np.ndarray, notch: float) -> np.ndarray:
    """The right half of an outline, from the median notch over the tip to the peduncle: float64 (n, 2)."""
    bulge = 0.075 + 0.035 * build[0]  # height of the convex part next to the notch
    waist = 0.035 + 0.035 * build[1]  # height of the concave part towards the tip
    tip = np.array([1.0 + 0.02 * build[2], 0.10 + 0.06 * build[3]])
    trailing = _trailing_edge(rng, notch, bulge, waist, tip, 0.26 + 0.04 * build[4])
    chord = 0.05 * build[5]  # broad or slender lobes
    width = 0.105 + 0.012 * build[6]  # half width of the peduncle at its narrowest
    sweep = 0.03 * build[7]
    knots = np.array(
        [
            tip,
            [0.965 + 0.01 * build[8], tip[1] - 0.075],
            [0.86 + sweep, tip[1] - 0.185 - 0.3 * chord],
            [0.66 + sweep, tip[1] - 0.315 - 0.7 * chord],
            [0.42 + 0.5 * sweep, -0.335 - chord],
            [0.24, -0.46 - chord],
            [width + 0.035, -0.60 - chord],
            [width, -0.74],
            [width + 0.03, -0.9],
            [width + 0.07, BOTTOM - 0.05],
        ]
    )
    return np.concatenate([trailing, _through(knots, 120)])


def _trailing_edge(
    rng: np.random.Generator, notch: float, bulge: float, waist: float, tip: np.ndarray, crest: float
) -> np.ndarray:
    """From the notch (x = 0) to the tip, serrated and perhaps injured: float64 (300, 2)."""
    x = np.concatenate([np.linspace(0, 0.12, 50, endpoint=False), np.linspace(0.12, 1, 250)])
    shoulder = 0.05 + 0.4 * notch  # deep notches are wide ones too
    knots_x = [0, 0.012, shoulder, crest, 0.62, 0.86, 1.0]
    knots_y = [-notch, -0.85 * notch, 0.6 * bulge, bulge, waist, 0.5 * (waist + tip[1]) - 0.015, tip[1]]
    y = PchipInterpolator(knots_x, knots_y)(x)
    y += _serration(rng, x) - _injuries(rng, x)
    return np.stack([x * tip[0], y], axis=1)


def _serration(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Height of the small teeth along a trailing edge, float64 like x; 0 at notch and tip."""
    fine, coarse = rng.integers(35, 70), rng.integers(9, 18)  # teeth a lobe
    where = np.linspace(0, 1, 90)
    strength = np.abs(np.interp(x, np.linspace(0, 1, 6), rng.uniform(0.1, 1.0, 6)))
    teeth = [np.interp(x, np.linspace(0, 1, n), rng.standard_normal(n)) for n in (fine, coarse)]
    fade = np.interp(x, [0, 0.08, 0.9, 1], [0, 1, 1, 0])
    wobble = np.interp(x, where, rng.standard_normal(90)) * 0.002
    height = rng.uniform(0.003, 0.011) * teeth[0] + rng.uniform(0.004, 0.013) * teeth[1]
    return fade * (strength * height + wobble)


def _injuries(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Depth cut out of a trailing edge, float64 like x: V-shaped nicks, round bites, rarely a lost tip."""
    cut = np.zeros_like(x)
    for _ in range(rng.poisson(1.3)):
        middle, half, depth = rng.uniform(0.1, 0.9), rng.uniform(0.012, 0.05), rng.uniform(0.02, 0.085)
        away = np.abs(x - middle) / half
        profile = np.sqrt(np.clip(1 - away**2, 0, 1)) if rng.random() < 0.4 else np.clip(1 - away, 0, 1)
        cut = np.maximum(cut, depth * profile)
    if rng.random() < 0.06:
        cut += np.clip((x - rng.uniform(0.84, 0.93)) / 0.03, 0, 1) * rng.uniform(0.04, 0.09)
    return cut


def _through(knots: np.ndarray, count: int) -> np.ndarray:
    """A smooth curve through knots (k, 2), parametrised by chord length: float64 (count, 2)."""
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
    return PchipInterpolator(length, knots)(np.linspace(0, length[-1], count))


def _pixels(points: np.ndarray) -> np.ndarray:
    """Canvas units (n, 2) to the fixed-point canvas pixels that OpenCV draws with: int32 (n, 2)."""
    pixels = (np.asarray(points) - (LEFT, TOP)) * (UNIT, -UNIT)
    return np.round(pixels * 2**_SUBPIXEL).astype(np.int32)


def _fill(outline: np.ndarray) -> np.ndarray:
    """Anti-aliased inside of a polygon in canvas units: float32 (HEIGHT, WIDTH) in 0..1."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(mask, [_pixels(outline)], 255, cv2.LINE_AA, _SUBPIXEL)
    return mask.astype(np.float32) / 255


# ----------------------------------------------------------------------------------------- pigmentation


def _pigmented(rng: np.random.Generator, outline: np.ndarray) -> np.ndarray:
    """Albedo without scars, float32 (HEIGHT, WIDTH): white where a field is positive, else black.

    The field is a sum of the features that biologists describe: white lobes, a dark middle, dark margins, patches that
    are partly symmetric, and streaks that radiate from the peduncle.
    """
    kind = rng.choice([-1.9, -0.7, 0.1, 0.7, 1.6], p=[0.2, 0.25, 0.2, 0.2, 0.15])  # nearly black .. nearly white
    level = kind + 0.3 * rng.standard_normal()
    cell = rng.uniform(0.2, 0.38) * UNIT
    patches = noise(rng, SHAPE, (0.8 * cell, cell))
    mirrored = patches + patches[:, ::-1]
    asymmetric = noise(rng, SHAPE, (0.8 * cell, cell))
    rays = _rays()
    streaks = _fan(rng, rays, angular=rng.uniform(14, 30), radial=3.0)
    field = level + 0.55 * mirrored + rng.uniform(0.4, 0.9) * asymmetric + rng.uniform(0.2, 0.8) * streaks
    field += 0.35 * noise(rng, SHAPE, (9, 9)) + _lobes_middle_margins(rng, outline)
    white = sigmoid(field / rng.uniform(0.12, 0.4))
    dark, light = rng.uniform(0.07, 0.15), rng.uniform(0.62, 0.92)
    texture = 0.025 * _fan(rng, rays, 90, 6.0) + 0.02 * noise(rng, SHAPE, (3, 3))
    return np.clip(dark + (light - dark) * white + texture * (0.5 + white), 0.02, 1).astype(np.float32)


def _lobes_middle_margins(rng: np.random.Generator, outline: np.ndarray) -> np.ndarray:
    """Regular part of the pigmentation field, float32 (HEIGHT, WIDTH): where skin tends to be white."""
    x, y = _axes()
    field = np.zeros(SHAPE, np.float32)
    for side in (-1, 1):
        across = np.exp(-(((x - side * rng.uniform(0.3, 0.6)) / rng.uniform(0.2, 0.42)) ** 2))
        down = np.exp(-(((y - rng.uniform(-0.22, -0.02)) / rng.uniform(0.12, 0.25)) ** 2))
        field += rng.uniform(0.4, 1.9) * across * down
    middle = np.exp(-((x / rng.uniform(0.06, 0.2)) ** 2))
    tips = np.clip((np.abs(x) - 0.7) / 0.3, 0, 1)
    stem = np.clip((-0.4 - y) / 0.2, 0, 1)
    below_edge = np.interp(x[0], *_top_edge(outline)).astype(np.float32)[None, :] - y
    margin = np.exp(-((np.maximum(below_edge, 0) / rng.uniform(0.03, 0.09)) ** 2))
    field -= rng.uniform(0, 2.2) * middle + rng.uniform(-0.6, 1.6) * tips
    return field - rng.uniform(2.5, 4.5) * stem - rng.uniform(0.3, 2.2) * margin


def _top_edge(outline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x (increasing) and y of the trailing edge of an outline, for np.interp."""
    edge = outline[np.abs(outline[:, 1]) < 0.45]
    columns = np.round(edge[:, 0], 2)
    x = np.unique(columns)
    return x, np.array([edge[columns == value, 1].max() for value in x])


def _fan(rng: np.random.Generator, rays: tuple[np.ndarray, np.ndarray], angular: float, radial: float) -> np.ndarray:
    """Noise along `_rays()`, float32 (HEIGHT, WIDTH): `angular` cells in a half turn, `radial` in a unit."""
    tile = noise(rng, (96, 384), (96 / (2 * radial), 384 / angular))
    return cv2.remap(tile, 383 * rays[0], 95 / 2 * np.minimum(rays[1], 2), cv2.INTER_LINEAR)


# -------------------------------------------------------------------------------------- scars and relief


def _scarred(rng: np.random.Generator, skin: np.ndarray) -> np.ndarray:
    """The skin with its scars: light marks on dark skin, dark ones on white skin; float32 like skin."""
    layer = np.zeros(skin.shape, np.uint8)
    for _ in range(rng.poisson(2.0)):
        _draw_line(layer, _somewhere(rng), rng.uniform(0, np.pi), rng.uniform(0.08, 0.45), rng)
    if rng.random() < 0.3:
        _draw_rake(layer, rng)
    for _ in range(rng.poisson(1.0)):
        _draw_ring(layer, rng)
    for _ in range(rng.poisson(0.8)):
        centre = _somewhere(rng)
        for _ in range(rng.integers(4, 14)):
            _draw_dot(layer, centre + 0.035 * rng.standard_normal(2), rng.uniform(0.003, 0.011))
    mark = cv2.GaussianBlur(layer, (0, 0), 0.8).astype(np.float32) / 255
    contrast = np.where(cv2.GaussianBlur(skin, (0, 0), 6) < 0.4, 0.8, 0.14)
    return (skin + rng.uniform(0.5, 0.95) * mark * (contrast - skin)).astype(np.float32)


def _somewhere(rng: np.random.Generator) -> np.ndarray:
    """A random place on a lobe or just beside it, float64 (2,) in canvas units."""
    x = rng.uniform(-0.85, 0.85)
    return np.array([x, rng.uniform(-0.32 + 0.3 * abs(x), 0.03)])


def _draw_line(
    layer: np.ndarray,
    start: np.ndarray,
    angle: float,
    length: float,
    rng: np.random.Generator,
    width: int = 0,
) -> None:
    """Draw a slightly bent scar into a uint8 layer, in place; width 0 draws a random one."""
    along = np.linspace(0, length, 24)
    bend = angle + rng.uniform(-1, 1) * along / max(length, 0.05)
    steps = np.stack([np.cos(bend), np.sin(bend)], axis=1) * (length / 24)
    width = width or int(rng.integers(1, 5))
    points = start + np.cumsum(steps, axis=0)
    cv2.polylines(layer, [_pixels(points)], False, 255, width, cv2.LINE_AA, _SUBPIXEL)


def _draw_rake(layer: np.ndarray, rng: np.random.Generator) -> None:
    """Draw the parallel tooth marks of a killer whale into a uint8 layer, in place."""
    start, angle, length = _somewhere(rng), rng.uniform(0, np.pi), rng.uniform(0.1, 0.3)
    across = np.array([-np.sin(angle), np.cos(angle)]) * rng.uniform(0.022, 0.036)
    for tooth in range(rng.integers(3, 6)):
        _draw_line(layer, start + tooth * across, angle, length * rng.uniform(0.7, 1.0), rng, width=2)


def _draw_ring(layer: np.ndarray, rng: np.random.Generator) -> None:
    """Draw the scar of a barnacle, a more or less closed ring, into a uint8 layer, in place."""
    turn = np.linspace(0, rng.uniform(1.1, 2.0) * np.pi, 40) + rng.uniform(0, 2 * np.pi)
    radii = rng.uniform(0.014, 0.05) * rng.uniform(0.75, 1.0, 2)
    points = _somewhere(rng) + radii * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    cv2.polylines(layer, [_pixels(points)], False, 255, int(rng.integers(2, 5)), cv2.LINE_AA, _SUBPIXEL)


def _draw_dot(layer: np.ndarray, centre: np.ndarray, radius: float) -> None:
    """Draw a filled circle into a uint8 layer, in place."""
    x, y = (int(value) for value in _pixels(centre[None])[0])
    cv2.circle(layer, (x, y), int(radius * UNIT * 2**_SUBPIXEL), 255, -1, cv2.LINE_AA, _SUBPIXEL)


def _relief(rng: np.random.Generator, inside: np.ndarray) -> np.ndarray:
    """Thickness, float32 (HEIGHT, WIDTH): rounded at the edges, thick along the middle, with radial wrinkles.

    inside: float32 (HEIGHT, WIDTH), distance to the outline in canvas units, 0 outside.
    """
    x, y = _axes()
    rounded = np.sqrt(np.clip(inside, 0, 0.2))
    spine = 0.22 * np.exp(-((x / 0.13) ** 2)) * np.clip(0.35 - y, 0, 1)
    wrinkles = 0.012 * _fan(rng, _rays(), 26, 3.0)
    return cv2.GaussianBlur((0.5 * rounded + spine + wrinkles).astype(np.float32), (0, 0), 4)
