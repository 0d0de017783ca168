"""Pseudo-labels: the table, and the images and folds that a run trains on with them.

A row means: for the models of `fold`, the test image `image` is labelled `identity`, because the previous round's
ensemble gave it that label with probability `confidence`. The tables for training are built in memory only:
images.parquet and folds.csv, from which galleries, queries and scores are made, never hold a pseudo-label.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

FULL = -1
"""Value of column `fold` for the models that are trained on all labelled images."""

COLUMNS = {"image": str, "identity": str, "fold": int, "round": int, "confidence": float}


def read_pseudo_labels(path: Path) -> pd.DataFrame:
    """Table `round<r>.csv` with the columns of `COLUMNS`; WhaleidError if it is missing or damaged."""
    if not path.is_file():
        raise WhaleidError(f"{path}: file not found; the previous round writes it: run `make ensemble`")
    try:
        return pd.read_csv(path, dtype=COLUMNS, keep_default_na=False, usecols=list(COLUMNS))
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise WhaleidError(f"{path}: {' '.join(str(error).split())}; remove it and run `make ensemble`") from error


def write_pseudo_labels(labels: pd.DataFrame, path: Path) -> None:
    """Write the columns of `COLUMNS`."""
    with atomic_path(path) as temporary:
        labels[list(COLUMNS)].to_csv(temporary, index=False)


def labels_of(labels: pd.DataFrame, fold: int | None) -> pd.DataFrame:
    """Rows for the run of a fold, or for the run on all labelled images where `fold` is None."""
    return labels[labels["fold"] == (FULL if fold is None else fold)].reset_index(drop=True)


def with_pseudo_labels(
    images: pd.DataFrame, folds: pd.DataFrame, labels: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Images and folds in which pseudo-labelled test images are labelled training images.

    Parameters
    ----------
    images, folds : DataFrame
        images.parquet and folds.csv.
    labels : DataFrame
        image, identity: pseudo-labels of one run, one row an image.

    Returns
    -------
    images, folds : DataFrame
        Rows keep their order; the added images have fold -1, which no run leaves out.
    """
    identity = labels.set_index("image")["identity"]
    joined = images.copy()
    added = joined["image"].isin(identity.index).to_numpy()
    if added.sum() != len(labels) or (joined.loc[added, "split"] != "test").any():
        raise WhaleidError(
            "pseudo-labels: their images are not the test images; remove the work folder's `pseudo` and run again"
        )
    joined.loc[added, "identity"] = joined.loc[added, "image"].map(identity)
    joined.loc[added, "split"] = "train"
    extra = pd.DataFrame({"image": labels["image"], "identity": labels["identity"], "fold": FULL})
    return joined, pd.concat([folds, extra], ignore_index=True)


def describe_pseudo_labels(labels: pd.DataFrame, test_images: int) -> Iterator[str]:
    """One line for each fold: how many test images a round adds to its training."""
    for fold, rows in labels.groupby("fold", sort=True):
        name = "all labelled images" if fold == FULL else f"fold {fold}"
        yield f"{name}: {len(rows):,} of {test_images:,} test images, {rows['identity'].nunique():,} identities"
