"""`whaleid explain`: why two images are similar, as one picture and a few lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pandas as pd
import torch

from whaleid.data.cache import build_cache, open_cache
from whaleid.data.masks import masks_of
from whaleid.models.embedder import Embedder, build_embedder
from whaleid.models.explanations import Regions, agreeing_regions, deletion_scores, saliency_maps, similarity_maps
from whaleid.pipeline.project import Project
from whaleid.pipeline.rounds import in_used_round
from whaleid.pipeline.workspace import read_folds, read_images
from whaleid.report.grid import draw_column
from whaleid.report.matches import SIZE, match_pair, matches_line, row_of, side_by_side
from whaleid.report.thumbnails import box_of, fit_size
from whaleid.training.checkpoint import CHECKPOINT, TrainedRun, load_run
from whaleid.utils.device import default_device
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

LINES = 15
"""Pairs of regions that are drawn: more lines hide the images."""
CONTROL = "saliency of random weights"
"""Name of the map that the others must be better than."""
_STRENGTH = 0.8  # of a map's colour where it is largest


@dataclass(frozen=True)
class Explanation:
    """What a network sees in two images.

    Attributes
    ----------
    cosine : float
        Similarity of their embeddings.
    exact : bool
        Whether the pooling is linear, so that the similarity map is exact.
    maps : dict of str to float32 array, shape (2, h, w)
        Name of a map to its values on both images.
    deletion : dict of str to float
        Name of a map to its deletion score.
    regions : Regions or None
        Those that match; None where no layer of the network shows them.
    """

    cosine: float
    exact: bool
    maps: dict[str, np.ndarray]
    deletion: dict[str, float]
    regions: Regions | None


def write_explanations(project: Project, image: str, paths: Mapping[str, Path]) -> Iterator[list[str]]:
    """Draw why an image of a competition is similar to others, one after the other, and say it in lines.

    The network is the recipe's first one; of its runs, the one that was trained without the image.

    Parameters
    ----------
    project : Project
        Trained.
    image : str
        As in the CSV.
    paths : mapping of str to Path
        Name of another image -> the PNG to write.

    Yields
    ------
    list of str
        Lines about the similarity to the next of the others; the last is its path.

    Raises
    ------
    WhaleidError
        Where an image is not in the competition, or the network is not trained.
    """
    for path in paths.values():
        if path.suffix.lower() != ".png":
            raise WhaleidError(f"{path}: the image is written as PNG; give a name that ends in .png")
    project = in_used_round(project)
    images = read_images(project.workspace)
    rows = [row_of(images, name) for name in (image, *paths)]
    folder = _run_of(project, image)
    networks = load_networks(folder)
    first = f"by {folder.relative_to(project.workspace.root / 'runs').as_posix()}"
    pixels = network_pixels(project, images.iloc[rows], networks.run)
    for place, path in enumerate(paths.values(), start=1):
        pair = rows[0], rows[place]
        found = explain(networks, pixels[[0, place]])
        panels = _panels(project, found, pixels[[0, place]], images, pair)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            draw_column(panels).save(temporary, format="PNG", compress_level=1)
        yield [f"similarity {found.cosine:.4f} {first}", *(text for text, _ in panels), str(path)]


@dataclass(frozen=True)
class Networks:
    """A trained run, and the same network with weights that were never trained."""

    run: TrainedRun
    untrained: Embedder


def load_networks(folder: Path) -> Networks:
    """The run of a folder and its control, on the default device."""
    run = load_run(folder, default_device())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, slices = run.experiment.model, run.experiment.head.slices
        made = build_embedder(model, pretrained=False, size=run.size, slices=slices)
    return Networks(run, made.to(default_device()).eval().requires_grad_(False))


def explain(networks: Networks, pixels: np.ndarray) -> Explanation:
    """Maps of two images, uint8 (2, h, w, 3) as the network sees them, and their deletion scores."""
    embedder = networks.run.embedder
    cosine, similarity = similarity_maps(embedder, pixels)
    maps = {"similarity map": similarity, "saliency": saliency_maps(embedder, pixels)}
    regions = agreeing_regions(embedder, pixels)
    if regions is not None:
        maps["activation map of a middle layer"] = regions.relevance
    maps[CONTROL] = saliency_maps(networks.untrained, pixels)
    return Explanation(cosine, embedder.pool.exact, maps, deletion_scores(embedder, pixels, maps), regions)


def _run_of(project: Project, image: str) -> Path:
    """Folder of the first network's run without the image; of the first fold for an image that is in none."""
    folds = read_folds(project.workspace)
    fold = folds.loc[folds["image"] == image, "fold"].tolist()
    numbers = [number for number in fold if number in project.folds] or project.folds
    networks = [item for item in project.experiments if not item.is_adapter]
    if not networks:
        raise WhaleidError(f"recipe {project.recipe.name} has no network: there is none to explain")
    folder = project.run_folder(networks[0], None if networks[0].frozen else numbers[0])
    if not (folder / CHECKPOINT).is_file():
        raise WhaleidError(f"{folder}: not trained yet; run whaleid train with the same options first")
    return folder


def network_pixels(project: Project, chosen: pd.DataFrame, run: TrainedRun) -> np.ndarray:
    """Images (rows of images.parquet) as a network sees them, uint8 (n, h, w, 3)."""
    masks = masks_of(project.competition, chosen)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "cache")
        build_cache(chosen, project.competition.root, folder, run.size, run.experiment.image, 1, masks)
        return open_cache(folder).read_many(np.arange(len(chosen)))


def _panels(
    project: Project, found: Explanation, pixels: np.ndarray, images: pd.DataFrame, rows: tuple[int, int]
) -> list[tuple[str, np.ndarray]]:
    """Texts and pictures of an explanation. pixels: uint8 (2, h, w, 3). rows: of images.parquet."""
    matches, drawn = match_pair(project, images, rows)
    panels = [(f"keypoints: {matches_line(matches)}", drawn)]
    if found.regions is not None and len(found.regions.pairs):
        panels.append(_region_panel(pixels, found.regions, images, rows))
    return panels + [(_title(name, found), _overlays(pixels, maps, images, rows)) for name, maps in found.maps.items()]


def _title(name: str, found: Explanation) -> str:
    """The text above a map."""
    deletion = f"similarity while it is deleted {found.deletion[name]:.3f}"
    if name != "similarity map":
        return f"{name}: {deletion}"
    return f"{name} ({'exact' if found.exact else 'approximate: the pooling is not linear'}): {deletion}"


def _region_panel(
    pixels: np.ndarray, regions: Regions, images: pd.DataFrame, rows: tuple[int, int]
) -> tuple[str, np.ndarray]:
    """Text and picture of the regions that match: lines between their middles, the strongest the brightest."""
    sizes = [fit_size(box_of(images, row), SIZE) for row in rows]
    views = [cv2.resize(image, size) for image, size in zip(pixels, sizes, strict=True)]
    canvas = side_by_side(*views)
    height, width = regions.relevance.shape[1:]
    left = np.array([0, canvas.shape[1] - sizes[1][0]])
    shown, strength = regions.pairs[:LINES], regions.strength[:LINES]
    columns, lines = (shown % width + 0.5) / width, (shown // width + 0.5) / height
    x = np.rint(columns * [size[0] for size in sizes] + left).astype(int)
    y = np.rint(lines * [size[1] for size in sizes]).astype(int)
    shades = (95 + 160 * strength / float(strength[0])).astype(np.uint8)[:, None]
    colours = cv2.applyColorMap(shades, cv2.COLORMAP_INFERNO).reshape(-1, 3)[:, ::-1].tolist()
    for pair in reversed(range(len(shown))):  # the strongest on top
        start, end = ((int(x[pair, side]), int(y[pair, side])) for side in range(2))
        cv2.line(canvas, start, end, colours[pair], 2, cv2.LINE_AA)
        for place in (start, end):
            cv2.circle(canvas, place, 4, colours[pair], -1, cv2.LINE_AA)
    share = float(strength.sum() / regions.strength.sum())
    return f"regions of a middle layer: {len(shown)} of {len(regions.pairs)} pairs, {share:.0%} of their weight", canvas


def _overlays(pixels: np.ndarray, maps: np.ndarray, images: pd.DataFrame, rows: tuple[int, int]) -> np.ndarray:
    """Both images, grey, with their maps in colour, side by side: uint8 (h, w, 3)."""
    views = []
    for image, values, row in zip(pixels, maps, rows, strict=True):
        size = fit_size(box_of(images, row), SIZE)
        large = cv2.resize(np.maximum(values, 0), size, interpolation=cv2.INTER_LINEAR)
        share = (large / max(float(large.max()), 1e-12))[:, :, None]
        grey = cv2.cvtColor(cv2.resize(image, size), cv2.COLOR_RGB2GRAY)[:, :, None]
        colour = cv2.applyColorMap((255 * share).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
        views.append(((1 - _STRENGTH * share) * grey + _STRENGTH * share * colour).astype(np.uint8))
    return side_by_side(*views)
