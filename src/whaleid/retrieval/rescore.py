"""Re-scoring by a siamese head: the nearest gallery images of each query, ranked again by their pair similarity.

A cosine costs one multiplication a dimension; the pair similarity (models/heads/siamese.py) costs some hundred times as
much, and is computed only for the nearest images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from whaleid.retrieval.identities import identity_candidates
from whaleid.retrieval.index import search
from whaleid.utils.errors import WhaleidError

if TYPE_CHECKING:
    from whaleid.models.heads.siamese import SiamesePairs


def load_pairs(run: Path) -> SiamesePairs:
    """The siamese head of a finished run, on the GPU if there is one. Raises WhaleidError for another head."""
    from whaleid.training.checkpoint import load_run  # imports timm, which an ensemble without such a head never needs

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_run(run, device)
    if not trained.experiment.head.scores_pairs:
        raise WhaleidError(f"{run}: its head scores no pairs; re-scoring needs a run with head.name: siamese")
    return cast("SiamesePairs", trained.head)


def rescored_identities(
    pairs: SiamesePairs,
    queries: np.ndarray,
    gallery: np.ndarray,
    gallery_codes: np.ndarray,
    images: int,
    keep: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Identities of the nearest gallery images by the best pair similarity of each.

    Parameters
    ----------
    pairs : SiamesePairs
    queries : float32 array, shape (q, d)
        Unit rows. d is the head's, or twice that where a mirrored image is another identity: then an embedding holds
        both sides, and the similarity is the mean over the sides.
    gallery : float32 array, shape (g, d)
        Unit rows.
    gallery_codes : int64 array, shape (g,)
        Identities, >= 0.
    images : int
        Gallery images with the largest cosine that are scored for each query.
    keep : int

    Returns
    -------
    int64 and float32 arrays, shape (q, keep)
        Codes, -1 padded, and logits, descending, -inf padded; ties by cosine. Only identities of the scored images are
        listed.

    Raises
    ------
    WhaleidError
        Where the embeddings' length is not the head's.
    """
    sides = gallery.shape[1] / pairs.dim
    if sides not in (1, 2):
        raise WhaleidError(
            f"embeddings of {gallery.shape[1]} dimensions, but the siamese head compares {pairs.dim}; features and "
            "run must be of one training: make the features again"
        )
    _, rows = search(queries, gallery, images)
    logits = _logits(pairs, queries, gallery, rows)
    order = np.argsort(-logits, axis=1, kind="stable")
    logits, rows = (np.take_along_axis(table, order, axis=1) for table in (logits, rows))
    return identity_candidates(logits, rows, gallery_codes, keep)


def _logits(pairs: SiamesePairs, queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean over the sides of each query's logit with its rows of the gallery, float32 (q, m)."""
    left, right, chosen = (torch.from_numpy(table).to(pairs.weight.device) for table in (queries, gallery, rows))
    sides = zip(left.split(pairs.dim, dim=1), right.split(pairs.dim, dim=1), strict=True)
    return torch.stack([pairs.score_pairs(one, other, chosen) for one, other in sides]).mean(dim=0).cpu().numpy()
