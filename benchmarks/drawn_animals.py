"""What `drawn_sets.py` draws: coats, marks and faces, each an individual and its photographs.

An individual is drawn from a generator of its own; a photograph from generators by name (`photograph`, and where the
set has days also `visit` and `day`), so that what the photographs of a visit or a day share is drawn alike. Photographs
are RGB, uint8 (rows, columns, 3); masks and brightness are float32 (rows, columns), 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from whaleid.data.flukes import noise, sigmoid

Generators = dict[str, np.random.Generator]


# ------------------------------------------------------------------------------------------------ a camera


def exposed(rng: np.random.Generator, scene: np.ndarray, gamma_sd: float = 0.2, grey: float = 0.1) -> np.ndarray:
    """A scene, float32 (h, w, 3) about 0..1, with the blur, exposure, colour and grain of a camera: uint8."""
    scene = cv2.GaussianBlur(scene.astype(np.float32), (0, 0), rng.uniform(0.3, 1.2))
    scene = np.clip(scene, 0, 1) ** np.exp(rng.normal(0, gamma_sd)) * (1 + rng.normal(0, 0.05, 3))
    if rng.random() < grey:
        scene = np.repeat(scene.mean(axis=2, keepdims=True), 3, axis=2)
    grain = rng.standard_normal((*scene.shape[:2], 1))
    return np.round(np.clip(scene + rng.uniform(0.005, 0.03) * grain, 0, 1) * 255).astype(np.uint8)


def blended(below: np.ndarray, above: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`above` over `below` with the share 0..1 of each pixel, (h, w)."""
    return below + share[..., None] * (above - below)


def landscape(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Grass, earth and leaves, with details as coarse as a coat's: float32 (h, w, 3)."""
    colours = rng.uniform(0.15, 0.75, (3, 1)) * rng.uniform((0.7, 0.8, 0.4), (1.1, 1.1, 0.8), (3, 3))
    scene = np.broadcast_to(colours[0], (*shape, 3))
    for colour, cell in zip(colours[1:], rng.uniform(4, 40, 2), strict=True):
        scene = blended(scene, colour, sigmoid(3 * noise(rng, shape, (cell, cell))))
    return (scene + 0.05 * noise(rng, shape, (2, 2))[..., None]).astype(np.float32)


def strokes(rng: np.random.Generator, shape: tuple[int, int], count: int, thick: int, lean: float) -> np.ndarray:
    """Blades or bars that cross the frame from below, as a mask: float32 (h, w)."""
    layer = np.zeros(shape, np.uint8)
    for _ in range(count):
        foot = np.array([rng.uniform(0, shape[1]), shape[0]])
        top = foot + shape[0] * np.array([rng.normal(0, lean), -rng.uniform(0.3, 1.1)])
        ends = np.stack([foot, top]).astype(np.int32)
        cv2.polylines(layer, [ends], False, 255, int(rng.integers(1, thick + 1)), cv2.LINE_AA)
    return layer.astype(np.float32) / 255


def view(
    rng: np.random.Generator, size: tuple[int, int], window: np.ndarray, turn_sd: float, tilt: float
) -> tuple[np.ndarray, tuple[int, int]]:
    """Homography of canvas pixels to a photograph, and the photograph's (columns, rows).

    Parameters
    ----------
    size : (int, int)
        Least and greatest longer side of the photograph.
    window : float array, shape (2, 2)
        Left upper and right lower corner of what is to be seen, canvas pixels.
    turn_sd : float
        Degrees in the image plane.
    tilt : float
        How far corners move, share of the window: obliqueness.
    """
    (left, top), (right, bottom) = window
    middle, span = window.mean(axis=0), window[1] - window[0]
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    angle = np.radians(rng.normal(0, turn_sd))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = (corners - middle) @ rotation.T + middle + rng.uniform(-tilt, tilt, (4, 2)) * span
    scale = rng.integers(*size) / span.max()
    columns, rows = np.round(span * scale).astype(int).tolist()
    frame = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]])
    return cv2.getPerspectiveTransform(corners.astype(np.float32), frame.astype(np.float32)), (columns, rows)


# -------------------------------------------------------------------------------------------------- coats

FLANK = (230, 320)  # rows and columns of the canvas; the animal looks to the left
PREFERRED_SIDE = 0.7  # share of the photographs that show the left side


@dataclass(frozen=True)
class Coat:
    """sides: float32 (2, *FLANK), share of the dark colour. colours: (2, 3), light, dark. build: (4,), 0 +- 1."""

    sides: np.ndarray
    colours: np.ndarray
    build: np.ndarray


def draw_coat(rng: np.random.Generator) -> Coat:
    spacing = np.exp(rng.normal(np.log(4.2), 0.12))
    stretch, bias = rng.uniform(1.0, 2.2), rng.uniform(-0.12, 0.25)
    sides = np.stack([turing_pattern(rng, spacing, stretch, bias) for _ in range(2)])
    light, dark = rng.uniform(0.6, 0.8) * np.array([1, 0.9, 0.72]), rng.uniform(0.1, 0.25) * np.array([1, 0.8, 0.65])
    return Coat(sides, np.stack([light, dark]), rng.standard_normal(4))


def turing_pattern(rng: np.random.Generator, spacing: float, stretch: float, bias: float) -> np.ndarray:
    """Stripes and spots that grow from noise, by local activation and wider inhibition: float32 FLANK, 0..1.

    spacing: deviation of the activator in pixels. stretch: how much longer than broad the stripes tend to be.
    bias: above 0 the dark parts join, below 0 they break up into spots.
    """
    field = rng.standard_normal(FLANK).astype(np.float32)
    for _ in range(10):
        near = cv2.GaussianBlur(field, (0, 0), spacing, sigmaY=spacing * stretch)
        wide = cv2.GaussianBlur(field, (0, 0), 1.8 * spacing, sigmaY=1.8 * spacing * stretch)
        field = np.tanh(12 * (near - wide) + bias).astype(np.float32)
    return sigmoid(4 * field).astype(np.float32)


def photograph_coat(coat: Coat, rngs: Generators) -> np.ndarray:
    rng = rngs["photograph"]
    side = int(rng.random() > PREFERRED_SIDE)
    shape = silhouette(rng, coat.build)
    bend = [5 * noise(rng, FLANK, (70, 90)) for _ in range(2)]
    columns, rows = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in FLANK[::-1]))
    pattern = cv2.remap(
        coat.sides[side], columns + bend[0], rows + bend[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    window = np.array([[18.0, 12.0], [302.0, 226.0]]) + rng.normal(0, 10, (2, 2))
    narrow = rng.uniform(0, 0.22) * 284  # seen obliquely, the flank is foreshortened
    window += [[-narrow / 2, 0], [narrow / 2, 0]]
    homography, size = view(rng, (170, 256), window, turn_sd=5, tilt=0.07)
    seen = cv2.warpPerspective(np.dstack([pattern, *shape]), homography, size)
    if side:
        seen = seen[:, ::-1]
    fur, inside, relief = seen[..., 0], seen[..., 1], seen[..., 2]
    extent = fur.shape
    body = coat.colours[0] + fur[..., None] * (coat.colours[1] - coat.colours[0])
    scene = blended(landscape(rng, extent), body * lit(rng, relief)[..., None], inside)
    dapple = sigmoid(4 * (noise(rng, extent, (12, 14)) - rng.uniform(0.2, 2.5)))
    scene = scene * (1 - rng.uniform(0.2, 0.6) * dapple)[..., None]
    grass = strokes(rng, extent, int(rng.integers(0, 40)), 3, 0.15)
    return exposed(rng, blended(scene, rng.uniform(0.2, 0.7) * np.array([0.9, 1.0, 0.5]), grass))


def lit(rng: np.random.Generator, relief: np.ndarray) -> np.ndarray:
    """Brightness of a rounded body in light from a random direction above: float32 like relief."""
    angle = rng.uniform(0.15, 0.85) * np.pi
    slope = [cv2.GaussianBlur(cv2.Sobel(relief, cv2.CV_32F, *order), (0, 0), 3) for order in ((1, 0), (0, 1))]
    shade = np.cos(angle) * slope[0] + np.sin(angle) * slope[1]
    return np.clip(rng.uniform(0.75, 1.1) + rng.uniform(2, 8) * shade, 0.3, 1.5)


def silhouette(rng: np.random.Generator, build: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A walking four-legged animal: its mask and its roundness, each float32 FLANK, 0..1."""
    mask = np.zeros(FLANK, np.uint8)
    depth = 44 + 4 * build[0]
    cv2.ellipse(mask, (165, 105), (92, int(depth)), 0, 0, 360, 255, -1, cv2.LINE_AA)
    for x in (98, 116, 222, 238):
        foot = np.array([x + rng.normal(0, 14), 218])
        knee = (np.array([x, 118]) + foot) / 2 + (rng.normal(0, 5), 0)
        line = np.round(np.stack([np.array([x, 118]), knee, foot])).astype(np.int32)
        cv2.polylines(mask, [line], False, 255, int(17 + 2 * build[1]), cv2.LINE_AA)
    lift = rng.normal(0, 14)  # of the head
    neck = np.round([[100, 80], [56, 44 + lift], [40, 40 + lift]]).astype(np.int32)
    cv2.polylines(mask, [neck], False, 255, int(34 + 4 * build[2]), cv2.LINE_AA)
    cv2.ellipse(mask, (36, int(48 + lift)), (30, 15), 25 + 5 * build[3], 0, 360, 255, -1, cv2.LINE_AA)
    inside = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 5)
    return mask.astype(np.float32) / 255, np.sqrt(np.minimum(inside, 40) / 40)


# -------------------------------------------------------------------------------------------------- marks

SKIN = (600, 800)  # rows and columns of the canvas, large enough for the nearest photographs
GLYPHS = "●■▲◆★✦✚✖♠♣♥♦☀☁☂☎✈✂✉✿❄❖☯☮♞♛♜♪♫⚑⚙⚡⚓☘☠⌘§¶&@"
NEAREST = 4.0  # as large as the farthest photographs show the marks


@dataclass(frozen=True)
class Skin:
    """pyramid: brightness of the skin at full, half and quarter size, float32."""

    pyramid: tuple[np.ndarray, ...]


@cache
def glyph(letter: str, size: int) -> np.ndarray:
    """A mark, uint8 (3 size, 3 size)."""
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    picture = Image.new("L", (3 * size, 3 * size))
    draw = ImageDraw.Draw(picture)
    draw.text((1.5 * size, 1.5 * size), letter, 255, ImageFont.truetype(str(font), size), anchor="mm")
    return np.asarray(picture)


def draw_skin(rng: np.random.Generator) -> Skin:
    """Marks are dense about the middle, the place that photographers aim at; they do not overlap."""
    ground = 0.24 + 0.04 * noise(rng, SKIN, (40, 60)) + 0.02 * noise(rng, SKIN, (6, 6))
    marks = np.zeros(SKIN, np.float32)
    places = np.zeros((0, 2))
    for _ in range(int(rng.integers(60, 100))):
        place = rng.normal(0.5, (0.19, 0.21)) * SKIN
        if ((places - place) ** 2).sum(axis=1).min(initial=np.inf) < 26**2 or (np.abs(place / SKIN - 0.5) > 0.44).any():
            continue
        places = np.concatenate([places, place[None]])
        add_mark(rng, marks, place)
    full = np.clip(ground + marks, 0, 1).astype(np.float32)
    half = cv2.resize(full, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return Skin((full, half, cv2.resize(half, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)))


def add_mark(rng: np.random.Generator, marks: np.ndarray, place: np.ndarray) -> None:
    """Draw one mark into the layer, in place, turned by any angle."""
    size = int(rng.choice([14, 18, 24, 30]))
    small = glyph(GLYPHS[rng.integers(len(GLYPHS))], size)
    turn = cv2.getRotationMatrix2D((1.5 * size, 1.5 * size), rng.uniform(0, 360), 1.0)
    turn[:, 2] += place[::-1] - 1.5 * size
    layer = cv2.warpAffine(small, turn, SKIN[::-1], flags=cv2.INTER_LINEAR)
    marks += rng.uniform(0.25, 0.6) / 255 * layer


def photograph_skin(skin: Skin, rngs: Generators) -> np.ndarray:
    rng = rngs["photograph"]
    zoom = NEAREST ** rng.uniform()
    span = np.array([800.0, 600.0]) / zoom * rng.uniform(0.9, 1.1, 2)
    middle = np.array([400.0, 300.0]) + rng.normal(0, 0.08, 2) * span
    homography, size = view(rng, (150, 256), np.stack([middle - span / 2, middle + span / 2]), turn_sd=14, tilt=0.08)
    level = int(np.clip(np.log2(span.max() / max(size)), 0, 2))  # the finest that does not alias
    to_full = np.diag([2.0**level, 2.0**level, 1.0])
    seen = cv2.warpPerspective(
        skin.pyramid[level],
        homography @ to_full,
        size,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(0.45,),
    )
    return under_water(rng, seen)


def under_water(rng: np.random.Generator, seen: np.ndarray) -> np.ndarray:
    """Brightness (h, w) with haze, net-like light from the waves, drifting particles and the colour of water."""
    shape = seen.shape
    waves = np.exp(-8 * np.abs(noise(rng, shape, (25, 30)))) * rng.uniform(0, 0.7)
    fall_off = 1 + rng.uniform(-0.4, 0.4) * np.linspace(-1, 1, shape[1])[None, :]
    light = seen * (rng.uniform(0.7, 1.2) + waves) * fall_off
    drift = (noise(rng, shape, (1.6, 1.6)) > rng.uniform(2.4, 3.2)).astype(np.float32)
    light = light + 0.35 * cv2.GaussianBlur(drift, (0, 0), 0.8)
    haze = rng.uniform(0.0, 0.55)
    water = np.array([0.12, 0.42, 0.5]) * rng.uniform(0.7, 1.2, 3)
    tint = np.array([0.75, 1.0, 1.05])
    return exposed(rng, (1 - haze) * light[..., None] * tint + haze * water)


# -------------------------------------------------------------------------------------------------- faces

MAP = (192, 384)  # rows and columns of the map of a head: latitude from above to below, longitude from -180 to 180
HEAD, MUZZLE, EAR = (
    (0.66, 0.95, 0.8),
    (0.4, 0.34, 0.42),
    (0.3, 0.15, 0.07),
)  # half axes: x right, y down, z to the camera


@dataclass(frozen=True)
class Face:
    """coat: float32 (*MAP, 3); muzzle, ears: colours (3,); shape: (3,) about 1, factors of the axes."""

    coat: np.ndarray
    muzzle: np.ndarray
    ears: np.ndarray
    shape: np.ndarray


def draw_face(rng: np.random.Generator) -> Face:
    """Dark blotches, more or less alike left and right, a light blaze between them, and eyes."""
    longitude, latitude = np.meshgrid(np.linspace(-180, 180, MAP[1]), np.linspace(-90, 90, MAP[0]))
    cell = rng.uniform(20, 34)
    patches = noise(rng, MAP, (cell, cell))
    likeness = rng.uniform(0.3, 0.9)
    level = likeness * (patches + patches[:, ::-1]) / 2 + (1 - likeness) * noise(rng, MAP, (cell, cell))
    level = level + 0.25 * noise(rng, MAP, (7, 7)) + rng.normal(0.4, 0.4)
    middle = rng.normal(0, 5) + rng.uniform(2, 7) * noise(rng, MAP, (40, MAP[1]))
    level = level - rng.uniform(0, 4) * np.exp(-(((longitude - middle) / rng.uniform(8, 26)) ** 2))
    dark = sigmoid(9 * level)
    light, black = (
        rng.uniform(0.68, 0.85) * np.array([1, 0.97, 0.92]),
        rng.uniform(0.08, 0.2) * np.array([1, 0.85, 0.75]),
    )
    coat = blended(np.broadcast_to(light, (*MAP, 3)), black, dark)
    for side in (-1, 1):
        away = np.hypot((longitude - side * 52) / 9, (latitude + 14) / 6)
        coat = blended(coat, np.array([0.03, 0.03, 0.03]), sigmoid(8 * (1 - away)))
    coat = coat + 0.02 * noise(rng, MAP, (3, 3))[..., None]
    muzzle = blended(np.array([[[0.75, 0.6, 0.56]]]), np.array([0.16, 0.14, 0.14]), np.full((1, 1), rng.uniform()))[
        0, 0
    ]
    return Face(coat.astype(np.float32), muzzle, black + rng.uniform(0, 0.3), np.exp(rng.normal(0, 0.04, 3)))


def photograph_face(face: Face, rngs: Generators) -> np.ndarray:
    rng, visit, day = rngs["photograph"], rngs["visit"], rngs["day"]
    yaw = visit.uniform(-75, 75) + rng.normal(0, 12)
    turn = rotation(np.radians([yaw, rng.normal(8, 9), rng.normal(0, 7)]))
    rows = int(rng.integers(190, 257))
    columns = round(rows * rng.uniform(0.82, 0.94))
    y, x = np.meshgrid(np.linspace(-1.15, 1.35, rows), np.linspace(-1.1, 1.1, columns), indexing="ij")
    zoom = rng.uniform(0.85, 1.1)
    x, y = ((axis * zoom + rng.normal(0, 0.05)).astype(np.float32) for axis in (x, y))
    colour, normal, inside = head(face, turn, x, y)
    night = day.random() < 0.3
    source = day.normal((0, -0.7, 0.7), (0.9, 0.3, 0.3)) if not night else np.array([0, 0, 1.0])
    bright = np.clip(normal @ (source / np.linalg.norm(source)), 0, 1)
    light = day.uniform(0.25, 0.6) + day.uniform(0.4, 0.9) * bright
    scene = blended(stable(visit, (rows, columns)), colour * light[..., None], inside)
    scene = scene * (day.uniform(0.55, 1.3) * (1 + day.normal(0, 0.1, 3)))
    if rng.random() < 0.3:
        bars = strokes(rng, (rows, columns), 2, 12, 0.1)
        scene = blended(scene, np.full(3, rng.uniform(0.2, 0.6)), bars)
    return exposed(rng, scene, gamma_sd=0.1, grey=1.0 if night else 0.0)


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix float32 (3, 3) of yaw (about y), pitch (about x) and roll (about z), radians."""
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(angle), np.sin(angle)) for angle in angles)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return (about_z @ about_x @ about_y).astype(np.float32)


def head(face: Face, turn: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour (h, w, 3), normal (h, w, 3) and mask (h, w) of a head turned by `turn`, at image coordinates x, y.

    It is four ellipsoids: skull, muzzle and ears; of those that a ray meets, the nearest is seen.
    """
    parts = [(np.zeros(3), HEAD * face.shape, None), (np.array([0, 0.62, 0.5]), np.array(MUZZLE), face.muzzle)]
    parts += [(np.array([side * 0.72, -0.42, 0.0]), np.array(EAR), face.ears) for side in (-1, 1)]
    colour, normal = np.zeros((*x.shape, 3), np.float32), np.zeros((*x.shape, 3), np.float32)
    depth = np.full(x.shape, -np.inf, np.float32)
    for centre, axes, plain in parts:
        near, unit, outward = ellipsoid(turn, centre.astype(np.float32), axes.astype(np.float32), x, y)
        seen = near > depth
        depth[seen], normal[seen] = near[seen], outward[seen]
        colour[seen] = on_map(face.coat, unit)[seen] if plain is None else plain
    return colour, normal, cv2.GaussianBlur(np.isfinite(depth).astype(np.float32), (0, 0), 0.7)


def ellipsoid(
    turn: np.ndarray, centre: np.ndarray, axes: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth (h, w; -inf: not met), point on the unit sphere, and normal (h, w, 3) where rays meet it."""
    moved = turn @ centre
    across = np.stack([x - moved[0], y - moved[1], np.zeros_like(x)], axis=-1) @ turn / axes  # own axes, unit sphere
    along = turn[2] / axes
    half, square = across @ along, along @ along
    inner = half**2 - square * ((across**2).sum(axis=-1) - 1)
    step = (np.sqrt(np.maximum(inner, 0)) - half) / square
    unit = across + step[..., None] * along
    outward = (unit / axes) @ turn.T
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True) + 1e-9
    return np.where(inner > 0, step + moved[2], -np.inf), unit, outward


def on_map(coat: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) of the map at points of the unit sphere (h, w, 3)."""
    longitude = np.arctan2(unit[..., 0], unit[..., 2]) / np.pi
    latitude = np.arcsin(np.clip(unit[..., 1], -1, 1)) / np.pi
    columns, rows = (longitude + 1) / 2 * (MAP[1] - 1), (latitude + 0.5) * (MAP[0] - 1)
    return cv2.remap(coat, columns.astype(np.float32), rows.astype(np.float32), cv2.INTER_LINEAR)


def stable(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """The barn behind a head, the same in all pictures of a visit: float32 (h, w, 3)."""
    wall = rng.uniform(0.15, 0.5) + 0.08 * noise(rng, shape, (30, 30))
    bars = strokes(rng, shape, int(rng.integers(2, 8)), 14, 0.05)
    return blended(np.repeat(wall[..., None], 3, axis=2), rng.uniform(0.2, 0.7) * rng.uniform(0.8, 1.2, 3), bars)
