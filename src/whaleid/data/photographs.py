"""Photographs of a fluke at sea: pose, framing, water, light and camera, drawn from a random generator.

The fluke is drawn at twice the final size and averaged down, so that its edge is smooth; water, foam and camera, which
have no sharp edges, are drawn at the final size. Image coordinates are pixels, columns to the right and rows down.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from whaleid.data.flukes import HEIGHT, LEFT, TOP, UNIT, WIDTH, Individual, noise, sigmoid

SUPERSAMPLING = 2
DISTANCE = 4.0  # camera to fluke in canvas units: perspective shows, but it looks like a zoom lens


@dataclass(frozen=True)
class Conditions:
    """How difficult the photographs are. Angles in degrees; sd: standard deviation; share: 0 .. 1.

    Pose defeats the comparison of raw pixels; light and water are what a trained network has to ignore. The values are
    chosen so that raw pixels stay far below 0.45 MAP@5 and networks trained for minutes on two cores get well above.
    """

    width: tuple[int, int] = (230, 290)  # pixels; the height follows from the fluke's own proportions
    yaw_sd: float = 9.0  # seen from the side: one lobe is foreshortened
    pitch_sd: float = 7.0  # tilted towards or away from the camera: the fluke looks flat or tall
    roll_sd: float = 6.0  # one tip higher than the other
    droop_sd: float = 0.03  # lobes bent up or down at the tip, canvas units, both together
    flex_sd: float = 0.012  # the same for each lobe on its own
    margin: tuple[float, float] = (0.02, 0.17)  # free room at each side of the fluke, share of its size
    cut_share: float = 0.02  # photographs whose frame cuts a tip off
    waterline: tuple[float, float] = (-0.80, -0.42)  # canvas y at which the tail enters the water
    contrast: tuple[float, float] = (0.8, 1.1)
    gamma_sd: float = 0.12  # of log gamma: exposure
    backlight_share: float = 0.04  # fluke nearly a silhouette before bright water
    gloss: tuple[float, float] = (0.0, 0.15)  # reflections of the sky on wet skin
    splash_share: float = 0.15  # foam and drops hide some of the lower part
    blur: tuple[float, float] = (0.2, 0.7)  # deviation of the lens blur, final pixels
    motion_share: float = 0.03  # photographs blurred by movement
    noise: tuple[float, float] = (0.003, 0.015)  # grain, share of full scale
    grey_share: float = 0.3  # photographs without colour


@dataclass(frozen=True)
class Pose:
    """Mapping from canvas to image: a bend (upwards by `_lift(x)`), then a homography.

    Attributes
    ----------
    homography : float64 array, shape (3, 3)
        Bent canvas units -> pixels of the drawing.
    droop : (float, float)
        How far the left and the right tip are bent up, canvas units.
    size : (int, int)
        Rows and columns of the drawing.
    waterline : float
        Canvas y.
    """

    homography: np.ndarray
    droop: tuple[float, float]
    size: tuple[int, int]
    waterline: float


def photograph(individual: Individual, rng: np.random.Generator, conditions: Conditions | None = None) -> np.ndarray:
    """Photograph of an individual.

    Returns
    -------
    uint8 array, shape (height, width, 3)
        RGB; the channels of a grey photograph are equal.
    """
    conditions = conditions or Conditions()
    pose = _pose(individual, rng, conditions)
    skin, mask, slope_x, slope_y = _view(individual, pose)
    backlit = rng.random() < conditions.backlight_share
    brightness = _lit(rng, skin, slope_x, slope_y, conditions, backlit)
    water = _waterline(rng, pose)
    visible = mask * sigmoid((water - _rows(pose.size)) / 1.2)

    # From here on at the final size; the fluke is averaged over its visible part only, which keeps its edge clean.
    fluke, visible, mask = (_averaged(layer) for layer in (brightness * visible, visible, mask))
    water = water[:, ::SUPERSAMPLING] / SUPERSAMPLING
    sea, waves = _sea(rng, mask.shape)
    if backlit:
        sea = sea * rng.uniform(1.15, 1.6)
    sea = sea * (1 - 0.45 * _reflection(rng, mask, water))[..., None]
    tint = 1 + rng.uniform(-0.03, 0.03, 3).astype(np.float32)
    scene = fluke[..., None] * tint + (1 - visible)[..., None] * sea
    scene = _foamed(rng, scene, mask, water, waves, conditions)
    return _exposed(rng, scene, conditions)


def _averaged(layer: np.ndarray) -> np.ndarray:
    """A layer of the drawing at the final size: float32 (rows, columns) to half of both."""
    size = layer.shape[1] // SUPERSAMPLING, layer.shape[0] // SUPERSAMPLING
    return cv2.resize(layer.astype(np.float32), size, interpolation=cv2.INTER_AREA)


def _rows(size: tuple[int, int]) -> np.ndarray:
    """Row number of every pixel as a column: float32 (rows, 1)."""
    return np.arange(size[0], dtype=np.float32)[:, None]


# --------------------------------------------------------------------------------------------- the pose


def _pose(individual: Individual, rng: np.random.Generator, conditions: Conditions) -> Pose:
    """A random pose, framed as a person would crop it: around the visible part of the fluke."""
    yaw, pitch, roll = np.radians(rng.normal(0, (conditions.yaw_sd, conditions.pitch_sd, conditions.roll_sd)))
    yaw, pitch = np.clip(yaw, -0.95, 0.95), np.clip(pitch, -0.8, 0.8)
    common = rng.normal(0, conditions.droop_sd)
    left, right = common + rng.normal(0, conditions.flex_sd, 2)
    plane = _rotation(yaw, pitch, roll)[:, :2]
    # Camera on the z axis at DISTANCE; rows: x, -y (pixels point down), depth.
    project = np.column_stack([plane * [[1], [-1], [1 / DISTANCE]], [0, 0, 1]])
    waterline = rng.uniform(*conditions.waterline)
    seen = individual.outline[individual.outline[:, 1] > waterline - 0.05].astype(np.float64)
    seen[:, 1] += _lift(seen[:, 0], (left, right))
    corners = cv2.perspectiveTransform(seen[None], project)[0]
    frame, size = _frame(corners, rng, conditions)
    return Pose(frame @ project, (float(left), float(right)), size, float(waterline))


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation matrix float64 (3, 3): first pitch, then yaw, then roll in the image plane; radians."""
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(angle), np.sin(angle)) for angle in (yaw, pitch, roll))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _lift(x: np.ndarray, droop: tuple[float, float]) -> np.ndarray:
    """How far a bent lobe lies above the flat one at canvas x; same shape as x."""
    return np.where(x < 0, x.dtype.type(droop[0]), x.dtype.type(droop[1])) * np.abs(x) ** 1.7


def _frame(corners: np.ndarray, rng: np.random.Generator, conditions: Conditions) -> tuple[np.ndarray, tuple[int, int]]:
    """Scale and shift (3, 3) of projected points (n, 2) into a drawing, and its size (rows, columns)."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    span = high - low
    before, after = rng.uniform(*conditions.margin, (2, 2)) * span
    if rng.random() < conditions.cut_share:
        side = before if rng.random() < 0.5 else after
        side[0] = -rng.uniform(0.03, 0.15) * span[0]
    low, high = low - before, high + after
    columns = int(rng.integers(*conditions.width)) * SUPERSAMPLING
    scale = columns / (high[0] - low[0])
    # Very flat or very tall views get a frame of usual proportions: real crops range from 1.3 to 3.2.
    rows = float(np.clip(scale * (high[1] - low[1]), columns / 3.2, columns / 1.3))
    spare = rows - scale * (high[1] - low[1])
    size = (int(rows) // SUPERSAMPLING * SUPERSAMPLING, columns)
    offset = (-scale * low[0], -scale * low[1] + max(spare, 0.0) * 0.5)
    return np.array([[scale, 0, offset[0]], [0, scale, offset[1]], [0, 0, 1]]), size


def _view(individual: Individual, pose: Pose) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Skin, mask and the relief's slopes (right, down) in this pose: each float32 (rows, columns)."""
    columns, rows = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in pose.size[::-1]))
    back = np.linalg.inv(pose.homography).astype(np.float32)
    depth = back[2, 0] * columns + back[2, 1] * rows + back[2, 2]
    x = (back[0, 0] * columns + back[0, 1] * rows + back[0, 2]) / depth
    y = (back[1, 0] * columns + back[1, 1] * rows + back[1, 2]) / depth
    y = y - _lift(x, pose.droop)
    at = (x - LEFT) * UNIT - 0.5, (TOP - y) * UNIT - 0.5
    layers = np.dstack([individual.skin, individual.mask, individual.relief])
    # Below its canvas the peduncle simply goes on: clamp rows there, but not columns.
    at = at[0], np.minimum(at[1], HEIGHT - 1.5)
    seen = cv2.remap(layers, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    steepness = UNIT * WIDTH / pose.size[1] / 8
    slope_x = cv2.Sobel(seen[..., 2], cv2.CV_32F, 1, 0) * steepness
    slope_y = cv2.Sobel(seen[..., 2], cv2.CV_32F, 0, 1) * steepness
    return seen[..., 0], seen[..., 1], slope_x, slope_y


def _lit(
    rng: np.random.Generator,
    skin: np.ndarray,
    slope_x: np.ndarray,
    slope_y: np.ndarray,
    conditions: Conditions,
    backlit: bool,
) -> np.ndarray:
    """Brightness of the fluke under a random light, float32 like skin, about 0..1."""
    angle = rng.uniform(0, 2 * np.pi)
    across = np.cos(angle) * slope_x + np.sin(angle) * slope_y
    shade = np.clip(1 + rng.uniform(0.15, 0.5) * across, 0.35, 1.6)
    bands = noise(rng, skin.shape, (skin.shape[0] / 2, skin.shape[1] / 3))  # uneven light over the fluke
    shade = shade * (1 + 0.12 * bands)
    wet = noise(rng, skin.shape, (16, 10)) + 1.5 * across
    gloss = rng.uniform(*conditions.gloss) * sigmoid(3 * (wet - rng.uniform(0.6, 2.2)))
    contrast = rng.uniform(*conditions.contrast) * (rng.uniform(0.3, 0.6) if backlit else 1.0)
    haze = rng.uniform(0.0, 0.12)
    return (haze + contrast * skin * shade + 0.6 * gloss).astype(np.float32)


# ------------------------------------------------------------------------------------------------ water


def _sea(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The scene without a whale, float32 (rows, columns, 3), and its waves, float32 (rows, columns)."""
    rows, columns = size
    horizon = rng.uniform(-1.6, 0.35) * rows  # mostly above the frame: nothing but water behind the fluke
    waves = _waves(rng, rows, columns, horizon)
    hue = np.array([0.84, 0.94, 1.0], np.float32) * (1 + rng.uniform(-0.06, 0.06, 3).astype(np.float32))
    far = np.clip(1 - (_rows(size) - horizon) / (1.5 * rows), 0, 1)  # brighter towards the horizon
    level = rng.uniform(0.25, 0.5) + rng.uniform(0.0, 0.3) * far
    glints = np.clip(waves - rng.uniform(1.5, 3.0), 0, 1.5) * rng.uniform(0.0, 0.5)
    water = (level * (1 + rng.uniform(0.1, 0.3) * waves) + glints)[..., None] * hue
    sky = rng.uniform(0.65, 0.95) * (0.75 + 0.25 * hue)
    land = horizon - rows * _land(rng, columns)
    is_sky = sigmoid(2 * (horizon - _rows(size)))
    is_land = is_sky * sigmoid(1.5 * (_rows(size) - land[None, :]))
    scene = water + is_sky[..., None] * (sky - water)
    scene = scene + is_land[..., None] * (0.45 * sky - scene)
    return np.clip(scene, 0, 1.3), waves


def _land(rng: np.random.Generator, columns: int) -> np.ndarray:
    """Height of a distant coast over the horizon, share of the image's height, float32 (columns,)."""
    if rng.random() < 0.5:
        return np.full(columns, -1.0, np.float32)  # under the horizon: none
    hills = np.interp(np.linspace(0, 1, columns), np.linspace(0, 1, 9), rng.uniform(0, 1, 9))
    return (rng.uniform(0.02, 0.15) * hills).astype(np.float32)


def _waves(rng: np.random.Generator, rows: int, columns: int, horizon: float) -> np.ndarray:
    """Waves in perspective: a tiling texture laid flat on the sea. float32 (rows, columns), 0 +- 1."""
    tile = noise(rng, (256, 256), (8, 14))
    below = np.maximum(_rows((rows, columns)) - horizon, 2.0)
    nearness = below / rows
    x = (np.arange(columns, dtype=np.float32)[None, :] - columns / 2) / below
    total = np.zeros((rows, columns), np.float32)
    choppy = rng.uniform(0.6, 1.6)
    for octave, weight in enumerate((1.0, 0.8, 0.6)):
        frequency = 45 * choppy * 2.1**octave
        shift = rng.uniform(0, 256, 2)
        map_x = np.broadcast_to(frequency * x + shift[0], total.shape).astype(np.float32)
        map_y = np.broadcast_to(2.2 * frequency / nearness + shift[1], total.shape).astype(np.float32)
        # Waves finer than a pixel would only flicker: fade them out towards the horizon.
        fade = np.clip(nearness * 2.5 / 2.1**octave, 0, 1)
        total += weight * fade * cv2.remap(tile, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return total / 1.3


def _waterline(rng: np.random.Generator, pose: Pose) -> np.ndarray:
    """Row at which the tail enters the water, for each column: float32 (1, columns)."""
    entry = cv2.perspectiveTransform(np.array([[[0.0, pose.waterline]]]), pose.homography)[0, 0]
    columns = pose.size[1]
    swell = np.interp(np.arange(columns), np.linspace(0, columns, 7), rng.standard_normal(7))
    chop = np.interp(np.arange(columns), np.linspace(0, columns, 60), rng.standard_normal(60))
    line = entry[1] + 0.03 * pose.size[0] * rng.uniform(0.3, 1.5) * swell + 1.2 * chop
    return line[None, :].astype(np.float32)


def _reflection(rng: np.random.Generator, mask: np.ndarray, water: np.ndarray) -> np.ndarray:
    """Dark reflection of the fluke on the water in front of it: float32 (rows, columns), 0..1."""
    rows, columns = mask.shape
    down = _rows(mask.shape)
    shake = 2.5 * noise(rng, mask.shape, (2.5, 20))
    map_x = np.arange(columns, dtype=np.float32) + 2 * shake
    mirrored = cv2.remap(mask, map_x, 2 * water - down + shake, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    fade = np.clip(1 - (down - water) / (0.5 * rows), 0, 1)
    return cv2.GaussianBlur(mirrored, (0, 0), 1.2) * fade * (down > water)


def _foamed(
    rng: np.random.Generator,
    scene: np.ndarray,
    mask: np.ndarray,
    water: np.ndarray,
    waves: np.ndarray,
    conditions: Conditions,
) -> np.ndarray:
    """The scene with white water around the tail and sometimes a splash: float32 (rows, columns, 3)."""
    rows, columns = mask.shape
    distance = _rows(mask.shape) - water
    at_water = mask[np.clip(water[0].astype(int), 0, rows - 1), np.arange(columns)][None, :]
    near = cv2.GaussianBlur(np.ascontiguousarray(at_water), (0, 0), 0.06 * columns)
    near = near / (near.max() + 1e-3)
    splash = rng.random() < conditions.splash_share
    reach = rng.uniform(0.05, 0.22) * rows if splash else rng.uniform(0.01, 0.03) * rows
    fall_off = np.where(distance < 0, reach, 2 * reach)  # foam floats further than it rises
    height = np.exp(-np.abs(distance) / fall_off)
    texture = noise(rng, mask.shape, (6, 8)) + 0.8 * noise(rng, mask.shape, (2, 2.5)) + 0.3 * waves
    spread = near * (1.0 if splash else 0.7) + (0.3 if splash else 0.05)
    presence = np.clip(height * spread, 0, 1)
    white = sigmoid(2.2 * (texture + 6.0 * presence - rng.uniform(2.5, 4.0))) * np.clip(4 * presence, 0, 1)
    white = cv2.GaussianBlur(white.astype(np.float32), (0, 0), 0.6) * rng.uniform(0.6, 0.95)
    drops = (noise(rng, mask.shape, (1.5, 1)) > 2.6) * np.clip(2 * presence, 0, 1) * splash
    white = np.maximum(white, 0.6 * cv2.GaussianBlur(drops.astype(np.float32), (0, 0), 0.5))
    shade = np.clip(0.85 + 0.08 * texture, 0.5, 1.05)[..., None]
    return scene + white[..., None] * (shade - scene)


# ----------------------------------------------------------------------------------------------- camera


def _exposed(rng: np.random.Generator, scene: np.ndarray, conditions: Conditions) -> np.ndarray:
    """The scene, float32 (rows, columns, 3), with blur, exposure, colour and grain of a camera: uint8."""
    scene = cv2.GaussianBlur(scene.astype(np.float32), (0, 0), rng.uniform(*conditions.blur))
    if rng.random() < conditions.motion_share:
        scene = cv2.filter2D(scene, -1, _motion(rng))
    scene = np.clip(scene, 0.0, 1.0) ** np.exp(rng.normal(0, conditions.gamma_sd))
    cast = 1 + rng.normal(0, 0.03, 3).astype(np.float32)
    scene = scene * cast
    channels = 3
    if rng.random() < conditions.grey_share:
        scene, channels = scene.mean(axis=2, keepdims=True), 1
    grain = rng.standard_normal((*scene.shape[:2], channels), np.float32)
    scene = np.clip(scene + rng.uniform(*conditions.noise) * grain, 0, 1)
    return np.repeat(np.round(scene * 255).astype(np.uint8), 3 // channels, axis=2)


def _motion(rng: np.random.Generator) -> np.ndarray:
    """Kernel of a straight movement, float32 (9, 9), sum 1."""
    kernel = np.zeros((9, 9), np.float32)
    angle, half = rng.uniform(0, np.pi), rng.uniform(1, 3)
    step = np.array([np.cos(angle), np.sin(angle)]) * half
    start, end = (tuple(int(v) for v in np.round(4 + sign * step)) for sign in (-1, 1))
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_AA)
    return kernel / kernel.sum()
