"""A picture for each photograph: beside it the best image of each of its first guesses, with the matched keypoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from whaleid.config import LocalConfig
from whaleid.features.files import read_features
from whaleid.identify.rank import Identified
from whaleid.local_matching.detectors import detector_of
from whaleid.local_matching.keypoints import Described, describe, described_together, read_described
from whaleid.local_matching.matchers import matcher_of
from whaleid.pipeline.data_stages import keypoints_folder
from whaleid.pipeline.project import Project
from whaleid.pipeline.workspace import read_images
from whaleid.report.grid import draw_column
from whaleid.report.matches import best_match, draw_image_pair, matches_line
from whaleid.report.thumbnails import box_of
from whaleid.utils.files import atomic_path

GUESSES = 3
"""Identities that a picture shows."""
MOST = 12
"""Images of an identity that are matched with the photograph, the nearest by the first network: a few milliseconds each
by RootSIFT, and up to 0.2 s by a network on a CPU."""
_QUALITY = 90  # of the JPEG


def write_pictures(identified: Identified, folder: Path) -> list[Path]:
    """Write a JPEG for each photograph: `<number>-<name>.jpg`, numbers from 1 in the photographs' order.

    Parameters
    ----------
    identified : Identified
    folder : Path
        Made where it is not there; files of the same names are replaced.

    Returns
    -------
    list of Path
    """
    images = read_images(identified.project.workspace)
    first = int((images["split"] == "train").sum())
    table = identified.table()
    paths = []
    for number, name in enumerate(identified.candidates.queries, start=1):
        path = folder / f"{number}-{Path(name).stem}.jpg"
        guesses = table[table["photograph"] == name]
        picture = _picture(identified.project, images, first + number - 1, guesses)
        with atomic_path(path) as temporary:
            picture.save(temporary, format="JPEG", quality=_QUALITY)
        paths.append(path)
    return paths


def _picture(project: Project, images: pd.DataFrame, query: int, guesses: pd.DataFrame) -> Image.Image:
    """The photograph in row `query` beside each of its guesses that has an image, one below the other."""
    local = project.local_matching or LocalConfig()
    identity = images["identity"].where(images["split"] == "train")
    shown = list(guesses[guesses["identity"] != project.competition.unknown].head(GUESSES).itertuples())
    rows = {guess.identity: _nearest(project, images, query, identity == guess.identity) for guess in shown}
    described = _described(project, images, np.concatenate([[query], *rows.values()]).astype(int), local)
    matcher = matcher_of(described, images, local, project.settings.weights)
    pairs = []
    for guess in shown:
        row, matches = best_match(described, query, rows[guess.identity], local, matcher)
        pair = draw_image_pair(images, project.competition.root, (query, row), matches, local.size)
        text = (
            f"{guess.rank}. {guess.identity} {guess.probability:.1%}, {images['image'][row]}: {matches_line(matches)}"
        )
        pairs.append((text, pair))
    return draw_column(pairs)


def _nearest(project: Project, images: pd.DataFrame, query: int, chosen: pd.Series) -> np.ndarray:
    """Of the chosen rows the MOST nearest to the query by the first network of the first fold, int64."""
    rows = np.flatnonzero(chosen)
    if len(rows) <= MOST:
        return rows
    folder = project.features_folder(project.experiments[0], project.folds[0])
    embeddings = read_features(folder, images, np.append(rows, query), logits=False).embeddings
    return rows[np.argsort(-(embeddings[:-1] @ embeddings[-1]), kind="stable")[:MOST]]


def _described(project: Project, images: pd.DataFrame, rows: np.ndarray, local: LocalConfig) -> Described:
    """Keypoints by row of images.parquet: the recipe's or, where it has no local matching, those of `rows` alone."""
    folder = keypoints_folder(project)
    if folder is not None:
        return read_described(folder, images, local.features)
    detector, root = detector_of(local, project.settings.weights), project.competition.root
    nothing = described_together([], local.features).vectors, np.empty((0, 4), np.float32)
    found = [nothing] * len(images)
    for row in rows:
        found[row] = describe(root / images["path"][row], box_of(images, row), local, None, detector)
    return described_together(found, local.features)
