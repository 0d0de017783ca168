"""A siamese head's second look: the nearest gallery images of each query, ranked again by its pair similarity.

A cosine finds images in a large gallery at the price of one multiplication a dimension; the learnt similarity
(models/heads/siamese.py) costs some hundred times as much, and need only be asked about images that may win.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch

from whaleid.config import KnnConfig
from whaleid.models.heads.siamese import SiamesePairs
from whaleid.retrieval.identities import identity_candidates
from whaleid.retrieval.index import search
from whaleid.training.checkpoint import load_run
from whaleid.utils.errors import WhaleidError


def load_pairs(run: Path) -> SiamesePairs:
    """The head of a finished run with a siamese head, on the GPU if there is one; WhaleidError for another head."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_run(run, device)
    if not trained.experiment.head.scores_pairs:
        raise WhaleidError(f"{run}: its head scores no pairs; re-scoring needs a run with head.name: siamese")
    return cast(SiamesePairs, trained.head)


def rescored_identities(
    pairs: SiamesePairs,
    queries: np.ndarray,
    gallery: np.ndarray,
    gallery_codes: np.ndarray,
    images: int,
    keep: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Identities of the `images` gallery images with the largest cosine, by the best pair similarity of each.

    queries: float32 (q, d), gallery: float32 (g, d), unit rows; d is the head's, or twice that where a mirrored image
    is another identity: the two sides stand side by side then, and the similarity is the mean of both sides'.
    gallery_codes: int64 (g,), identity of each image, >= 0.
    Returns codes int64 (q, keep), -1 padded, and logits float32 (q, keep), descending, -inf padded. Equals stand by
    cosine. A list is as long as there are identities among those images: others get no score.
    Raises WhaleidError where the embeddings are of another length than the head's.
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
    return identity_candidates(logits, rows, gallery_codes, KnnConfig(score="max"), keep)


def _logits(pairs: SiamesePairs, queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean over the sides of each query's logit with its rows of the gallery, float32 (q, m)."""
    asked, known, chosen = (torch.from_numpy(table).to(pairs.weight.device) for table in (queries, gallery, rows))
    sides = zip(asked.split(pairs.dim, dim=1), known.split(pairs.dim, dim=1), strict=True)
    return torch.stack([pairs.score_pairs(one, other, chosen) for one, other in sides]).mean(dim=0).cpu().numpy()
