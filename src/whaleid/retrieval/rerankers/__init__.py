"""Re-ranking methods: one file with the method, and one line here.

The key is the field of `RerankConfig` that holds the method's grid of settings; None leaves the method out.
"""

from __future__ import annotations

from collections.abc import Iterator

from whaleid.config import RerankConfig
from whaleid.retrieval.rerankers.base import Lists, QueryGraph, Reranker, query_graph
from whaleid.retrieval.rerankers.diffusion import DIFFUSION
from whaleid.retrieval.rerankers.expansion import AUGMENTATION, EXPANSION
from whaleid.retrieval.rerankers.label_diffusion import LABEL_DIFFUSION
from whaleid.retrieval.rerankers.reciprocal import RECIPROCAL

__all__ = ["RERANKERS", "Lists", "QueryGraph", "Reranker", "every_setting", "query_graph", "widest_graph"]

RERANKERS: dict[str, Reranker] = {
    "expansion": EXPANSION,
    "augmentation": AUGMENTATION,
    "reciprocal": RECIPROCAL,
    "diffusion": DIFFUSION,
    "labels": LABEL_DIFFUSION,
}


def widest_graph(config: RerankConfig) -> int:
    """Neighbours of each node that the recipe's re-rankers need at most; 0 where none needs a graph."""
    wide = [RERANKERS[key].neighbours(getattr(config, key)) for key in _used(config)]
    return max(wide, default=0)


def every_setting(graph: QueryGraph, config: RerankConfig) -> Iterator[tuple[tuple[str, str], Lists]]:
    """Candidates by every setting of every method of the recipe.

    Yields
    ------
    (str, str)
        Names of the method and of the setting.
    int64 and float32 arrays, shape (q, keep)
        Codes, -1 padded, and scores, descending, -inf padded.
    """
    for key in _used(config):
        method = RERANKERS[key]
        for setting, lists in method.rerank(graph, getattr(config, key)):
            yield (method.name, setting), lists


def _used(config: RerankConfig) -> list[str]:
    return [key for key in RERANKERS if getattr(config, key, None) is not None]
