"""How much of a network's accuracy comes from the background: the context ratio.

A network that knows the places of a data set, and not its animals, fails on the next data set. It is asked twice about
the same queries: with the animal alone, and with the background alone; the rest is grey in query and gallery alike. The
animal's outline can be seen in both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.data.boxes import CORNERS
from whaleid.data.images import prepare
from whaleid.data.masks import Mask, prepare_mask, take_out
from whaleid.utils.progress import progress_bar

_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Context:
    """Top-1 accuracies of a run's features, by the nearest gallery image.

    Attributes
    ----------
    queries : int
    whole, animal, background : float
        With whole images, with the animal alone, with the background alone, in [0, 1].
    ratio : float or None
        background / animal: 0 where the network looks at the animal alone. None where `animal` is 0.
    low, high : float or None
        95 % interval of the ratio, by bootstrap over queries.
    """

    queries: int
    whole: float
    animal: float
    background: float
    ratio: float | None
    low: float | None
    high: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_context(
    run: Path, images: pd.DataFrame, queries: np.ndarray, gallery: np.ndarray, root: Path, masks: list[Mask]
) -> Context:
    """The context ratio of a trained run.

    Parameters
    ----------
    run : Path
        Folder of the run.
    images : DataFrame
        images.parquet; `path` is relative to `root`.
    queries, gallery : int arrays
        Rows of labelled images; the run was trained without the queries, and the gallery has their identities.
    root : Path
    masks : list of Mask
        One for each row of `images`.
    """
    rows = np.concatenate([queries, gallery])
    whole, animal, background = _embed(run, images, rows, root, masks)
    identity = images["identity"].to_numpy(dtype=object)

    def hits(vectors: np.ndarray) -> np.ndarray:
        own, others = vectors[: len(queries)], vectors[len(queries) :]
        return nearest_is_right(own, others, identity[queries], identity[gallery])

    return context_of(hits(whole), hits(animal), hits(background))


def context_of(whole: np.ndarray, animal: np.ndarray, background: np.ndarray, seed: int = 0) -> Context:
    """The context ratio of the hits, bool (q,), of each way of looking at the same queries."""
    drawn = np.random.default_rng(seed).integers(0, len(animal), (_BOOTSTRAPS, len(animal)))
    over, under = background[drawn].mean(axis=1), animal[drawn].mean(axis=1)
    ratio = low = high = None
    if animal.any():
        ratio = float(background.mean() / animal.mean())
        low, high = (float(value) for value in np.quantile(over[under > 0] / under[under > 0], [0.025, 0.975]))
    means = float(whole.mean()), float(animal.mean()), float(background.mean())
    return Context(len(animal), *means, ratio, low, high)


def nearest_is_right(
    queries: np.ndarray, gallery: np.ndarray, query_identity: np.ndarray, gallery_identity: np.ndarray
) -> np.ndarray:
    """Whether each query's nearest gallery image by cosine is of its identity, bool (q,). Rows are unit vectors."""
    return gallery_identity[(queries @ gallery.T).argmax(axis=1)] == query_identity


def _embed(run: Path, images: pd.DataFrame, rows: np.ndarray, root: Path, masks: list[Mask]) -> list[np.ndarray]:
    """Unit embeddings (n, d) of the rows: whole, the animal alone, the background alone."""
    from whaleid.features.extractor import load_extractor

    extractor = load_extractor(run, images["identity"].dropna().astype(str).unique())
    margin, size = extractor.run.experiment.image.box_margin, extractor.size
    boxes, paths = images[CORNERS].to_numpy(dtype=float), images["path"].to_numpy()
    found: list[list[np.ndarray]] = [[], [], []]
    with progress_bar("context", len(rows), images=True) as bar:
        for start in range(0, len(rows), extractor.batch):
            part = rows[start : start + extractor.batch].tolist()
            whole = np.stack([prepare(root / paths[row], boxes[row], margin, size) for row in part])
            white = np.stack([prepare_mask(masks[row], boxes[row], margin, size) for row in part]) > 0
            for vectors, shown in zip(found, (whole, take_out(whole, ~white), take_out(whole, white)), strict=True):
                vectors.append(np.nan_to_num(extractor.embed(shown)[0]))
            bar.advance(len(part))
    return [np.concatenate(vectors) for vectors in found]
