"""`select: best`: score of the fold's own queries during training; choosing by it is optimistic."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from whaleid.data.cache import ImageCache
from whaleid.evaluation.metrics import reciprocal_rank_at_k
from whaleid.models.embedder import Embedder

_QUERIES = 256  # rows of the similarity matrix at a time


def fold_queries(images: pd.DataFrame, folds: pd.DataFrame, fold: int, unknown: str | None) -> tuple[np.ndarray, ...]:
    """Rows of images.parquet and codes of the fold's gallery and of those queries that it can answer.

    Returns (gallery_rows (g,), gallery_codes (g,), query_rows (q,), query_codes (q,)), int64.
    """
    rows = pd.Series(np.arange(len(images)), index=images["image"].to_numpy())
    identities = folds["identity"].to_numpy(dtype=object)
    row = rows.loc[folds["image"].to_numpy()].to_numpy()
    in_fold = folds["fold"].to_numpy() == fold
    gallery = ~in_fold & (identities != unknown)
    known, codes = np.unique(identities[gallery].astype(str), return_inverse=True)
    place = np.searchsorted(known, identities.astype(str)).clip(max=max(0, len(known) - 1))
    answered = in_fold & (known[place] == identities.astype(str)) if len(known) else np.zeros_like(in_fold)
    return row[gallery], codes.astype(np.int64), row[answered], place[answered].astype(np.int64)


@torch.no_grad()
def embed_rows(embedder: Embedder, cache: ImageCache, rows: np.ndarray, batch: int) -> Tensor:
    """Unit embeddings float32 (n, d) of cached images, on the embedder's device; its mode is put back."""
    device = next(embedder.parameters()).device
    mode = embedder.training
    embedder.eval()
    parts = [
        embedder.embed(torch.from_numpy(cache.read_many(rows[start : start + batch])).to(device)).float()
        for start in range(0, len(rows), batch)
    ]
    embedder.train(mode)
    return torch.cat(parts)


def identity_map(queries: Tensor, truth: Tensor, gallery: Tensor, codes: Tensor, k: int = 5) -> float:
    """MAP@k of cosine nearest neighbours, an identity as near as its nearest image.

    queries: float32 (q, d) and gallery: float32 (g, d), unit rows; truth: int64 (q,) and codes: int64 (g,),
    every code of 0..max(codes) in the gallery. Ties count against the truth.
    """
    identities = int(codes.max()) + 1
    ranks = []
    for start in range(0, len(queries), _QUERIES):
        similarity = queries[start : start + _QUERIES] @ gallery.T
        scores = torch.full((len(similarity), identities), -torch.inf, device=similarity.device)
        scores.scatter_reduce_(1, codes.expand(len(similarity), -1), similarity, "amax")
        own = scores.gather(1, truth[start : start + _QUERIES, None])
        ranks.append((scores >= own).sum(1))
    return float(reciprocal_rank_at_k(torch.cat(ranks).cpu().numpy(), k).mean())
