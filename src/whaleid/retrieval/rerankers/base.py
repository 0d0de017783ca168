"""What all re-rankers share: the graph of gallery, unlabelled images and queries, and the lists that they return."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from whaleid.config import KnnConfig
from whaleid.retrieval.graph import Neighbours, find_neighbours
from whaleid.retrieval.identities import best_columns, identity_candidates, nearest_identities

Lists = tuple[np.ndarray, np.ndarray]
"""codes int64 (q, keep), -1 padded, and scores float32 (q, keep), descending, -inf padded."""
Settings = Iterator[tuple[str, Lists]]
"""The name of every setting of a grid, with its candidates."""


@dataclass(frozen=True)
class QueryGraph:
    """One set of queries and its gallery, as the nodes of a graph.

    Attributes
    ----------
    nodes : float32 array, shape (n, d)
        Unit rows: the gallery, labelled images of identities that it does not hold, the queries.
    codes : int64 array, shape (g,)
        Identities of the gallery.
    count : int
        Number of queries.
    knn : KnnConfig
    keep : int
        Width of the lists.
    widest : int
        Most neighbours of a node that any re-ranker of this graph asks for.
    """

    nodes: np.ndarray
    codes: np.ndarray
    count: int
    knn: KnnConfig
    keep: int
    widest: int = 0

    @property
    def gallery(self) -> np.ndarray:
        return self.nodes[: len(self.codes)]

    @property
    def query_rows(self) -> np.ndarray:
        return np.arange(len(self.nodes) - self.count, len(self.nodes))

    @cached_property
    def queries(self) -> np.ndarray:
        return self.nodes[self.query_rows]

    @cached_property
    def nearest(self) -> Neighbours:
        """The `widest` nearest other nodes of every node."""
        return find_neighbours(self.nodes, self.widest, self.knn.index)

    @cached_property
    def plain(self) -> Lists:
        """Candidates without re-ranking."""
        return nearest_identities(self.queries, self.gallery, self.codes, self.knn, self.keep)


@dataclass(frozen=True)
class Reranker:
    """A re-ranking method: an entry of `rerankers.RERANKERS`.

    Attributes
    ----------
    name : str
        In the ladder.
    rerank : callable
        (graph, grid of settings) -> candidates of every setting. The grid is the field of `RerankConfig` of the same
        key.
    neighbours : callable
        Grid -> most neighbours in the graph of all nodes; 0 where it needs no graph.
    """

    name: str
    rerank: Callable[[QueryGraph, Any], Settings]
    neighbours: Callable[[Any], int] = lambda _grid: 0


def query_graph(
    embeddings: np.ndarray,
    gallery: np.ndarray,
    codes: np.ndarray,
    labelled: np.ndarray,
    queries: np.ndarray,
    knn: KnnConfig,
    keep: int,
    widest: int = 0,
) -> QueryGraph:
    """The graph of some rows of the embeddings.

    Parameters
    ----------
    embeddings : float32 array, shape (n, d)
        Unit rows, of all images.
    gallery, codes : int64 arrays, shape (g,)
        Rows and identities of the gallery.
    labelled : int64 array
        Rows of the gallery and of images known to be of none of its identities.
    queries : int64 array, shape (q,)
    knn, keep, widest
        As in `QueryGraph`.
    """
    strangers = np.setdiff1d(labelled, gallery)
    nodes = np.ascontiguousarray(embeddings[np.concatenate([gallery, strangers, queries])], dtype=np.float32)
    return QueryGraph(nodes, codes, len(queries), knn, keep, widest)


def image_scores_to_identities(scores: np.ndarray, graph: QueryGraph) -> Lists:
    """Candidates of a block of queries by the scores of all gallery images, float32 (b, g).

    The best `knn.neighbours` images are grouped by identity, then twice as many for queries short of identities.
    """
    knn, keep, codes = graph.knn, graph.keep, graph.codes
    out = np.full((len(scores), keep), -1, np.int64), np.full((len(scores), keep), -np.inf, np.float32)
    short = np.arange(len(scores))
    neighbours, reachable = max(knn.neighbours, keep), min(keep, len(np.unique(codes)))
    while len(short):
        best, rows = best_columns(scores[short], neighbours)
        out[0][short], out[1][short] = identity_candidates(best, rows, codes, keep)
        short = short[(out[0][short] >= 0).sum(axis=1) < reachable]
        neighbours *= 2
    return out


def join_queries(parts: list[Lists]) -> Lists:
    """Lists of blocks of queries, one below the other."""
    return np.concatenate([codes for codes, _ in parts]), np.concatenate([scores for _, scores in parts])


def fill_from_plain(lists: Lists, plain: Lists) -> Lists:
    """Lists filled up with the identities of the plain lists, in their order.

    Identities with scores at or below 0 are replaced. What is filled in has score 0: the graph does not support it, and
    a guess costs nothing.
    """
    keep = lists[0].shape[1]
    reached = np.where(lists[1] > 0, lists[0], -1)
    listed = (plain[0][:, :, None] == reached[:, None, :]).any(axis=2) & (plain[0] >= 0)
    codes = np.concatenate([reached, np.where(listed, -1, plain[0])], axis=1)
    scores = np.concatenate([np.where(reached >= 0, lists[1], -np.inf), np.where(listed, -np.inf, 0.0)], axis=1)
    scores[codes < 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
    return np.take_along_axis(codes, order, axis=1), np.take_along_axis(scores, order, axis=1).astype(np.float32)
