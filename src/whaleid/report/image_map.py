"""A map of the labelled images: their embeddings in two dimensions, where near neighbours stay near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from whaleid.features.files import read_features
from whaleid.report.inputs import Results, best_single_features

MOST = 4000
"""Images on a map, the fold's queries and evenly many of the others: t-SNE of more takes over half a minute."""
_COMPONENTS = 32  # principal components that t-SNE looks at: more cost time and change no neighbours that one can see
_PERPLEXITY = 30.0  # scikit-learn's default; a small set has fewer neighbours


@dataclass(frozen=True)
class ImageMap:
    """Labelled images as one fold's network places them.

    Attributes
    ----------
    source : str
        Name of the network.
    fold : int
        Its fold, whose images it was trained without.
    queries : int
        Number of that fold's images, which stand first.
    rows : int64 array, shape (n,)
        Rows of images.parquet.
    points : float array, shape (n, 2)
        In [0, 1].
    """

    source: str
    fold: int
    queries: int
    rows: np.ndarray
    points: np.ndarray


def image_map(results: Results) -> ImageMap | None:
    """The map of the first fold by the best single network; None where its features are not in the work folder."""
    source, folders = best_single_features(results)
    if not folders:
        return None
    part = results.protocol.parts[0]
    queries = part.rows[:MOST]
    others = min(MOST - len(queries), len(part.training))
    chosen = part.training[np.linspace(0, len(part.training) - 1, others).astype(int)]
    rows = np.concatenate([queries, chosen])
    embeddings = read_features(folders[part.fold], results.images, rows, logits=False).embeddings
    return ImageMap(source, part.fold, len(queries), rows, flatten(embeddings))


def map_data(placed: ImageMap, results: Results) -> dict[str, Any]:
    """Plain lists for the page's script: `queries`, `rows`, `points` (x, y of each), `identities` (names)."""
    identity = results.images["identity"].to_numpy(dtype=object)[placed.rows]
    return {
        "queries": placed.queries,
        "rows": placed.rows.tolist(),
        "points": placed.points.ravel().round(4).tolist(),
        "identities": identity.tolist(),
    }


def flatten(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings (n, d) in two dimensions by t-SNE, the same for the same embeddings: float (n, 2) in [0, 1]."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(embeddings)
    reduced = PCA(min(_COMPONENTS, *embeddings.shape), random_state=0).fit_transform(embeddings)
    perplexity = min(_PERPLEXITY, (count - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / np.maximum(high - low, 1e-9)
