"""Near duplicates across folds: pictures that look like one photograph, of which one is in the other one's gallery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from whaleid.data.duplicates import similar_hashes, standardised_detail
from whaleid.data.images_table import fingerprint_rows
from whaleid.report.inputs import Results

DISTANCE = 10
"""Greatest Hamming distance of two hashes that are looked at; images of one fold's group are within 6."""
CORRELATION = 0.9
"""Least correlation of the thumbnails' detail: what no unrelated pair reached (`data/duplicates.py`)."""
LOOKED_AT = 500
"""Most pairs whose pictures are read, those with the nearest hashes."""
SHOWN = 12


@dataclass(frozen=True)
class Copies:
    """Two labelled images of different folds that look alike. rows: of images.parquet. correlation: of their detail."""

    rows: tuple[int, int]
    correlation: float


def copies_across_folds(results: Results) -> list[Copies]:
    """Pairs of labelled images of different folds that look like copies of a photograph, the most alike first.

    Copies that the folds know of share a fold; these are the ones that they did not take for copies, or were not to
    look for (`find_copies: false`).
    """
    images, folds = results.images, results.folds
    rows = np.array([place for place, split in enumerate(images["split"]) if split == "train"])
    fold = folds.set_index("image")["fold"].reindex(images["image"].iloc[rows]).to_numpy()
    hashes = np.array([int(text, 16) for text in images["phash"].iloc[rows]], dtype=np.uint64)
    pairs = _nearest_pairs(hashes, fold)
    if not len(pairs):
        return []
    used, place = np.unique(pairs, return_inverse=True)
    found = fingerprint_rows(results.project.competition, images.iloc[rows[used]].reset_index(drop=True))
    detail = standardised_detail(found.thumbnail)
    left, right = place.reshape(-1, 2).T
    correlation = np.einsum("nd,nd->n", detail[left], detail[right])
    order = [at for at in np.argsort(-correlation, kind="stable").tolist() if correlation[at] >= CORRELATION]
    return [Copies((int(rows[pairs[at, 0]]), int(rows[pairs[at, 1]])), float(correlation[at])) for at in order]


def _nearest_pairs(hashes: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Pairs of different folds with the nearest hashes, int64 (m, 2), at most LOOKED_AT."""
    parts = [np.empty((0, 2), np.int64)]
    for left, right in similar_hashes(hashes, DISTANCE):
        apart = fold[left] != fold[right]
        parts.append(np.column_stack([left[apart], right[apart]]))
    pairs = np.concatenate(parts)
    distance = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
    return pairs[np.argsort(distance, kind="stable")[:LOOKED_AT]]


def copies_section(found: list[Copies], results: Results) -> dict[str, Any]:
    """How many pairs there are, and the first of them."""
    name, identity = results.images["image"], results.images["identity"]
    fold = results.folds.set_index("image")["fold"]
    shown = [
        {
            "images": [
                {"row": row, "name": name.iloc[row], "identity": identity.iloc[row], "fold": int(fold[name.iloc[row]])}
                for row in one.rows
            ],
            "same": identity.iloc[one.rows[0]] == identity.iloc[one.rows[1]],
            "correlation": one.correlation,
        }
        for one in found[:SHOWN]
    ]
    return {"count": len(found), "pairs": shown}
