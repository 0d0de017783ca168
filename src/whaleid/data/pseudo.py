"""Pseudo-labels as a table, and the tables that a run trains on with them.

A row says: for the models of `fold`, the test image `image` counts as one of `identity`, because the ensemble of the
round before gave it that name with the probability `confidence`. What is trained on is only ever put together in
memory: images.parquet and folds.csv, which galleries, queries and scores are made of, never hold a pseudo-label.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

FULL = -1
"""In column `fold`: labels for the models that all labelled images taught."""

COLUMNS = {"image": str, "identity": str, "fold": int, "round": int, "confidence": float}


def read_pseudo_labels(path: Path) -> pd.DataFrame:
    """`round<r>.csv`, checked. Columns as `COLUMNS`."""
    if not path.is_file():
        raise WhaleidError(f"{path}: not there; the round before gives these labels: run `make ensemble`")
    try:
        return pd.read_csv(path, dtype=COLUMNS, keep_default_na=False, usecols=list(COLUMNS))
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise WhaleidError(f"{path}: {' '.join(str(error).split())}; remove it and run `make ensemble`") from error


def write_pseudo_labels(labels: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        labels[list(COLUMNS)].to_csv(temporary, index=False)


def labels_of(labels: pd.DataFrame, fold: int | None) -> pd.DataFrame:
    """The rows for the run of `fold`; None: for that on all labelled images."""
    return labels[labels["fold"] == (FULL if fold is None else fold)].reset_index(drop=True)


def with_pseudo_labels(
    images: pd.DataFrame, folds: pd.DataFrame, labels: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables as one run trains on them: its pseudo-labelled test images among the labelled ones.

    images, folds: images.parquet and folds.csv. labels: `image, identity`, each image once, of this run alone. Rows
    keep their places; the added images have the fold -1, which no run leaves out.
    """
    named = labels.set_index("image")["identity"]
    joined = images.copy()
    added = joined["image"].isin(named.index).to_numpy()
    if added.sum() != len(labels) or (joined.loc[added, "split"] != "test").any():
        raise WhaleidError("pseudo-labels: not of these test images; remove the work folder's `pseudo` and run again")
    joined.loc[added, "identity"] = joined.loc[added, "image"].map(named)
    joined.loc[added, "split"] = "train"
    extra = pd.DataFrame({"image": labels["image"], "identity": labels["identity"], "fold": FULL})
    return joined, pd.concat([folds, extra], ignore_index=True)


def describe_pseudo_labels(labels: pd.DataFrame, test_images: int) -> Iterator[str]:
    """What a round adds, a line for each fold."""
    for fold, rows in labels.groupby("fold", sort=True):
        name = "all labelled images" if fold == FULL else f"fold {fold}"
        yield f"{name}: {len(rows):,} of {test_images:,} test images, {rows['identity'].nunique():,} identities"
