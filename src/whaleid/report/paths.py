"""Paths through the neighbour graph: how diffusion reaches an identity that the nearest neighbour misses."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from whaleid.config.retrieval import DiffusionConfig
from whaleid.ensemble.protocol import FoldPart
from whaleid.features.files import read_features
from whaleid.report.inputs import Results, best_single_features
from whaleid.retrieval.graph import Graph, find_neighbours, neighbour_graph
from whaleid.retrieval.rerankers.diffusion import strongest_path

COUNT = 4
"""Paths that are shown."""
_TRIED = 200  # queries whose path is searched: each search walks over the whole graph
_BLOCK = 512  # queries compared with the gallery at a time: 68 MB for 33,000 images


@dataclass(frozen=True)
class GraphPath:
    """The strongest path from a query to an image of its identity.

    Attributes
    ----------
    rows : tuple of int
        Rows of images.parquet, the query first.
    similarity : tuple of float
        Cosine of each two consecutive images, one fewer than rows.
    direct : float
        Largest cosine of the query with an image of its identity.
    nearest : str
        Identity of the gallery image with the largest cosine, which is not the query's identity.
    """

    rows: tuple[int, ...]
    similarity: tuple[float, ...]
    direct: float
    nearest: str

    @property
    def strength(self) -> float:
        """Product of the similarities, at most 1."""
        return float(np.prod(self.similarity))


@dataclass(frozen=True)
class FoldPaths:
    """Paths of one fold's queries. source: whose embeddings. neighbours: of each image in the graph."""

    source: str
    part: FoldPart
    neighbours: int
    paths: tuple[GraphPath, ...]


def fold_paths(results: Results) -> FoldPaths | None:
    """The strongest paths of the first fold, by the best single network; None where its features are missing."""
    source, folders = best_single_features(results)
    if not folders:
        return None
    part, combine = results.protocol.parts[0], results.project.recipe.combine
    config = (None if combine.rerank is None else combine.rerank.diffusion) or DiffusionConfig()
    nodes = np.sort(np.concatenate([part.training, part.rows]))
    embeddings = read_features(folders[part.fold], results.images, nodes, logits=False).embeddings
    nearest = find_neighbours(embeddings, config.neighbours[0], combine.knn.index)
    graph = neighbour_graph(nearest, config.gamma[0], config.mutual[0])
    paths = find_paths(embeddings, nodes, graph, part, results.protocol.classes)[:COUNT]
    return FoldPaths(source, part, config.neighbours[0], tuple(paths))


def find_paths(
    embeddings: np.ndarray, nodes: np.ndarray, graph: Graph, part: FoldPart, classes: np.ndarray
) -> list[GraphPath]:
    """Paths to the query's identity that are stronger than the direct similarity, the strongest first.

    Only queries whose nearest gallery image is of another identity, and of these at most `_TRIED`, evenly spread.

    Parameters
    ----------
    embeddings : float32 array, shape (n, d)
        Unit rows.
    nodes : int64 array, shape (n,)
        Their rows in images.parquet, ascending.
    graph : sparse array, shape (n, n)
    part : FoldPart
    classes : str array, shape (c,)
        Names of the codes of `part`.
    """
    gallery = np.searchsorted(nodes, part.gallery)
    misled = _misled_queries(embeddings, nodes, part)
    paths = []
    for query in misled[np.unique(np.linspace(0, len(misled) - 1, min(_TRIED, len(misled))).astype(int))]:
        node = int(np.searchsorted(nodes, part.rows[query]))
        same = gallery[part.gallery_codes == part.truth[query]]
        path = strongest_path(graph, node, same)
        if len(path) < 3:
            continue
        similarity = [float(embeddings[one] @ embeddings[other]) for one, other in pairwise(path)]
        cosines = embeddings[gallery] @ embeddings[node]
        nearest = str(classes[part.gallery_codes[np.argmax(cosines)]])
        direct = float((embeddings[same] @ embeddings[node]).max())
        found = GraphPath(tuple(nodes[path].tolist()), tuple(similarity), direct, nearest)
        if found.strength > direct:
            paths.append(found)
    return sorted(paths, key=lambda path: -path.strength)


def _misled_queries(embeddings: np.ndarray, nodes: np.ndarray, part: FoldPart) -> np.ndarray:
    """Positions in `part.rows` of known queries whose nearest gallery image is of another identity, int64."""
    gallery = embeddings[np.searchsorted(nodes, part.gallery)]
    known = np.flatnonzero(part.truth >= 0)
    found = [np.empty(0, np.int64)]
    for start in range(0, len(known), _BLOCK):
        block = known[start : start + _BLOCK]
        cosines = embeddings[np.searchsorted(nodes, part.rows[block])] @ gallery.T
        found.append(block[part.gallery_codes[cosines.argmax(axis=1)] != part.truth[block]])
    return np.concatenate(found)
