"""The map for other viewers: `atlas.parquet`, a row an image, and the embeddings for TensorBoard's projector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.features.files import read_features
from whaleid.report.image_map import ImageMap
from whaleid.report.inputs import Results, best_single_features

ATLAS, PROJECTOR = "atlas.parquet", "projector"
"""In the report's folder: a table, and a folder for `tensorboard --logdir`."""


def atlas_table(placed: ImageMap, results: Results) -> pd.DataFrame:
    """The images of the map.

    Returns
    -------
    DataFrame
        Columns of images.parquet (`path` is relative to the competition's root), `x` and `y` in [0, 1], `fold`, and of
        the first guess out of fold `guess`, `score` (its best identity's) and `right`.
    """
    table = results.images.iloc[placed.rows].reset_index(drop=True)
    table[["x", "y"]] = placed.points
    table["fold"] = results.folds.set_index("image")["fold"].reindex(table["image"]).to_numpy()
    final = results.final
    guesses = pd.DataFrame({"guess": final.guesses[:, 0], "score": final.best, "truth": final.truth}, final.rows)
    guesses = guesses.reindex(placed.rows).reset_index(drop=True)
    right = guesses["guess"] == guesses.pop("truth")
    return table.join(guesses).assign(right=right.where(guesses["guess"].notna()).astype("boolean"))


def write_atlas(placed: ImageMap, results: Results, folder: Path) -> None:
    """Write the table, and the embeddings with the table's labels for TensorBoard's projector."""
    table = atlas_table(placed, results)
    table.to_parquet(folder / ATLAS)
    features = best_single_features(results)[1][placed.fold]
    embeddings = read_features(features, results.images, placed.rows, logits=False).embeddings
    _write_projector(embeddings, table[["image", "identity", "fold", "guess", "right"]], folder / PROJECTOR)


def _write_projector(embeddings: np.ndarray, labels: pd.DataFrame, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    rows = labels.astype(str).replace(r"\s+", " ", regex=True).to_numpy().tolist()  # a tab would end a cell
    with SummaryWriter(str(folder)) as writer:
        writer.add_embedding(embeddings, rows, metadata_header=labels.columns.tolist())
