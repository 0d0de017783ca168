"""How far bursts flatter the score out of fold: queries that have a photograph of their encounter in the gallery.

Photographs of one encounter share light, place and pose (`data/bursts.py`). Where the test set has other encounters
than the labelled images, a query beside its own burst is too easy. Two figures say by how much: the score of the
queries without a neighbour in their gallery, and a simple ranking once more with every burst kept on one side. The
networks were trained on the other photographs of the burst all the same: only folds that keep bursts together tell the
whole of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from whaleid.ensemble.protocol import NONE, FoldPart, Protocol, query_weights
from whaleid.evaluation.metrics import reciprocal_rank_at_k

LEAST = 0.01
"""Share of the queries that must have a neighbour; fewer change no score that matters."""


@dataclass(frozen=True)
class Simple:
    """A simple ranking's score out of fold, and with every burst kept on one side."""

    name: str
    map: float
    together: float


@dataclass(frozen=True)
class BurstRisk:
    """The last rung's score by whether a query has a photograph of its encounter in the gallery.

    Attributes
    ----------
    queries : int
        Labelled queries with such a neighbour.
    near, others : float
        MAP@k of these, and of all others.
    flatter : float
        What the score of all queries is above that of the others; at least 0.
    simple : Simple or None
        None where no fold would have a known query left.
    """

    queries: int
    near: float
    others: float
    flatter: float
    simple: Simple | None = None


def near_queries(protocol: Protocol, bursts: np.ndarray) -> np.ndarray:
    """Which queries of all folds have a photograph of their burst in the gallery, bool (n,).

    Parameters
    ----------
    protocol : Protocol
        Its simulated unknown queries have none: their identity is taken out of the gallery.
    bursts : int array
        Burst of each row of images.parquet.
    """
    found = []
    for part in protocol.parts:
        near = np.isin(bursts[part.rows], bursts[part.gallery]) & (part.truth >= 0)
        found.append(near)
    return np.concatenate(found)


def burst_risk(protocol: Protocol, rank: np.ndarray, near: np.ndarray) -> BurstRisk | None:
    """The risk of a rung; None where hardly any query has a neighbour, or every scored one has.

    Parameters
    ----------
    protocol : Protocol
    rank : int array, shape (n,)
        Rank of the truth of every query, 0 where it was not guessed.
    near : bool array, shape (n,)
        From `near_queries`.
    """
    labelled = sum(len(part.rows) - part.simulated for part in protocol.parts)
    truth, weights = protocol.truth(protocol.places), protocol.weights(protocol.places)
    if near.sum() < max(1, LEAST * labelled) or not (weights[~near & (truth >= 0)] > 0).any():
        return None
    scores = reciprocal_rank_at_k(rank, protocol.k)
    share = None if protocol.share is None else protocol.share.weight
    of_others = np.average(scores[~near], weights=query_weights(truth[~near], protocol.unknown, share))
    of_all = np.average(scores, weights=weights)
    return BurstRisk(int(near.sum()), float(scores[near].mean()), float(of_others), max(0.0, float(of_all - of_others)))


def kept_together(protocol: Protocol, bursts: np.ndarray) -> Protocol | None:
    """The protocol with no burst of a fold's queries among its other images, and no test images.

    bursts: burst of each row of images.parquet. Returns None where some fold would have no known query.
    """
    parts = tuple(_without_bursts(part, bursts, len(protocol.classes)) for part in protocol.parts)
    if not all((part.truth >= 0).any() for part in parts):
        return None
    none = {"test_rows": protocol.test_rows[:0], "test_names": protocol.test_names[:0]}
    return replace(protocol, parts=parts, full_data=None, **none)


def _without_bursts(part: FoldPart, bursts: np.ndarray, classes: int) -> FoldPart:
    kept, labelled = (~np.isin(bursts[rows], bursts[part.rows]) for rows in (part.gallery, part.training))
    codes = part.gallery_codes[kept]
    sizes = np.bincount(codes, minlength=classes)
    of_truth = np.where(part.truth >= 0, sizes[part.truth], 0)
    return replace(
        part,
        training=part.training[labelled],
        gallery=part.gallery[kept],
        gallery_codes=codes,
        truth=np.where(of_truth > 0, part.truth, NONE),
        sizes=of_truth,
    )
