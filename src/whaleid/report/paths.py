"""The report's paths: how a query is tied to its identity through images that look like one another."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from whaleid.config.retrieval import DiffusionConfig
from whaleid.ensemble.protocol import FoldPart
from whaleid.features.files import read_features
from whaleid.report import pictures
from whaleid.report.markup import Markup, join, picture, tag
from whaleid.report.material import StackInputs, features_of_single
from whaleid.retrieval.diffusion import strongest_path
from whaleid.retrieval.graph import Graph, find_neighbours, neighbour_graph

COUNT = 4
"""Paths that are drawn."""
_TRIED = 200  # queries whose path is looked for: each costs a walk over the whole graph
_BLOCK = 512  # queries compared with the gallery at a time: 68 MB for 33,000 images


@dataclass(frozen=True)
class Trail:
    """The strongest path from a query to an image of its identity.

    rows: of images.parquet, the query first. similarity: cosine of each two that follow one another, one fewer.
    direct: largest cosine of the query with an image of its identity. nearest: identity of the gallery image with the
    largest cosine of all, which is another one.
    """

    rows: tuple[int, ...]
    similarity: tuple[float, ...]
    direct: float
    nearest: str

    @property
    def strength(self) -> float:
        """Product of the similarities, at most 1."""
        return float(np.prod(self.similarity))


def paths_section(material: StackInputs, folder: Path) -> Markup:
    """The section's body: a strip of thumbnails for each path; they are drawn into `folder`."""
    source, folders = features_of_single(material)
    if not folders:
        return tag("p", f"The features of {source} are not in the work folder, so there are no paths to show.")
    part, rerank = material.protocol.parts[0], material.project.recipe.combine.rerank
    config = (None if rerank is None else rerank.diffusion) or DiffusionConfig()
    nodes = np.sort(np.concatenate([part.training, part.rows]))
    embeddings = read_features(folders[part.fold], material.images, nodes, logits=False).embeddings
    nearest = find_neighbours(embeddings, config.neighbours[0], material.project.recipe.combine.knn.index)
    graph = neighbour_graph(nearest, config.gamma[0], config.mutual[0])
    trails = find_trails(embeddings, nodes, graph, part, material.protocol.classes)[:COUNT]
    rows = {row for trail in trails for row in trail.rows}
    pictures.write_views(material.images, rows, material.project.competition.root, folder)
    said = (
        f"Queries of fold {part.fold} whose nearest gallery image, by the embeddings of {source}, is of another "
        "identity, but which are tied to their own one through images between: the path with the largest product of "
        f"similarities in the graph in which every labelled image knows its {config.neighbours[0]} nearest. Diffusion "
        "follows such paths. Shown are the strongest that are stronger than the direct similarity. Green: an image of "
        "the query's identity; red: of another one. 'Query too': an image of the same fold, whose features re-ranking "
        "sees, and whose label it does not."
    )
    shown = [_strip(trail, material, part) for trail in trails] or [tag("p", "There is none.")]
    return join([tag("p", said), *shown])


def find_trails(
    embeddings: np.ndarray, nodes: np.ndarray, graph: Graph, part: FoldPart, classes: np.ndarray
) -> list[Trail]:
    """Paths of one fold's queries to their identities that bring these nearer than they are directly, strongest first.

    embeddings: float32 (n, d), unit rows; nodes: int64 (n,), ascending, their rows in images.parquet; graph: (n, n).
    Only queries whose nearest gallery image is of another identity than theirs, and of these `_TRIED` evenly spread
    ones. classes: str (c,), names of the codes of `part`.
    """
    gallery = np.searchsorted(nodes, part.gallery)
    misled = _misled(embeddings, nodes, part)
    trails = []
    for query in misled[np.unique(np.linspace(0, len(misled) - 1, min(_TRIED, len(misled))).astype(int))]:
        node = int(np.searchsorted(nodes, part.rows[query]))
        own = gallery[part.gallery_codes == part.truth[query]]
        path = strongest_path(graph, node, own)
        if len(path) < 3:
            continue
        similarity = [float(embeddings[one] @ embeddings[other]) for one, other in pairwise(path)]
        cosines = embeddings[gallery] @ embeddings[node]
        nearest = str(classes[part.gallery_codes[np.argmax(cosines)]])
        direct = float((embeddings[own] @ embeddings[node]).max())
        trail = Trail(tuple(nodes[path].tolist()), tuple(similarity), direct, nearest)
        if trail.strength > direct:
            trails.append(trail)
    return sorted(trails, key=lambda trail: -trail.strength)


def _misled(embeddings: np.ndarray, nodes: np.ndarray, part: FoldPart) -> np.ndarray:
    """Places in `part.rows` of known queries whose nearest gallery image is of another identity, int64."""
    gallery = embeddings[np.searchsorted(nodes, part.gallery)]
    known = np.flatnonzero(part.truth >= 0)
    found = [np.empty(0, np.int64)]
    for start in range(0, len(known), _BLOCK):
        block = known[start : start + _BLOCK]
        cosines = embeddings[np.searchsorted(nodes, part.rows[block])] @ gallery.T
        found.append(block[part.gallery_codes[cosines.argmax(axis=1)] != part.truth[block]])
    return np.concatenate(found)


def _strip(trail: Trail, material: StackInputs, part: FoldPart) -> Markup:
    """One path: thumbnails with the similarity of each two between them."""
    identity = material.images["identity"].to_numpy()
    truth, queries = identity[trail.rows[0]], set(part.rows.tolist())
    parts: list[Markup] = []
    for place, row in enumerate(trail.rows):
        name = material.images["image"].iloc[row]
        what = "query" if place == 0 else "query too" if row in queries else "gallery"
        caption = tag("figcaption", f"{what} {name}", Markup("<br>"), tag("b", identity[row]))
        kind = {} if place == 0 else {"class_": "right" if identity[row] == truth else "wrong"}
        parts.append(tag("figure", picture(pictures.view_name(row), f"{what} {name}"), caption, **kind))
        if place < len(trail.similarity):
            parts.append(tag("span", f"{trail.similarity[place]:.2f} →", class_="step"))
    said = (
        f"Along the path {' x '.join(f'{value:.2f}' for value in trail.similarity)} = {trail.strength:.2f}; directly, "
        f"the nearest image of {truth} has {trail.direct:.2f}, and the nearest of all is of {trail.nearest}."
    )
    return join([tag("div", *parts, class_="sheet path"), tag("p", said, class_="quiet")])
