"""How much of a network's accuracy comes from the background: the context ratio.

A network that knows the places of a data set, and not its animals, fails on the next data set. It is asked twice about
the same queries: with the animal alone, and with the background alone; the rest is grey in query and gallery alike. The
animal's outline can be seen in both. A third question is whether it knows an animal in the mirror.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from whaleid.data.boxes import CORNERS
from whaleid.data.images import prepare
from whaleid.data.masks import Mask, prepare_mask, take_out
from whaleid.evaluation.metrics import score_ranks
from whaleid.utils.progress import progress_bar

if TYPE_CHECKING:
    from whaleid.features.extractor import Extractor

VIEW = "view"
"""Column of images.parquet (`train.extra` of the competition) that tells flanks apart: left, right."""
ALL = ""
"""Name of all queries in the table by view."""
OFFENDERS = 12
"""Queries that are listed as right with the background alone."""
WAYS = ("whole", "animal", "background", "one side", "mirrored")
"""Ways of looking: `one side` is the whole image without the mirrored copy that test-time augmentation adds, and
`mirrored` compares mirrored queries with the gallery of that."""
_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Context:
    """Top-1 accuracies of a run's features, by the nearest gallery image.

    Attributes
    ----------
    queries : int
    whole, animal, background : float
        With whole images, with the animal alone, with the background alone, in [0, 1].
    ratio : float or None
        background / animal: 0 where the network looks at the animal alone. None where `animal` is 0.
    low, high : float or None
        95 % interval of the ratio, by bootstrap over queries.
    table : dict
        View, ALL for all queries -> `queries` and, for each of WAYS, `accuracy`, `low`, `high`.
    offenders : list of dict
        Queries that are right with the background alone, at most OFFENDERS: names `image` and `match` (its nearest
        background), their `cosine`, and whether the `animal` alone is right too. First those where it is not.
    """

    queries: int
    whole: float
    animal: float
    background: float
    ratio: float | None
    low: float | None
    high: float | None
    table: dict[str, dict[str, Any]] = field(default_factory=dict)
    offenders: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_context(
    run: Path, images: pd.DataFrame, queries: np.ndarray, gallery: np.ndarray, root: Path, masks: list[Mask]
) -> Context:
    """The context ratio of a trained run.

    Parameters
    ----------
    run : Path
        Folder of the run.
    images : DataFrame
        images.parquet; `path` is relative to `root`.
    queries, gallery : int arrays
        Rows of labelled images; the run was trained without the queries, and the gallery has their identities.
    root : Path
    masks : list of Mask
        One for each row of `images`.
    """
    vectors = _embed(run, images, queries, gallery, root, masks)
    identity = images["identity"].to_numpy(dtype=object)
    own, others = identity[queries], identity[gallery]
    hits = {way: nearest_is_right(*vectors[way], own, others) for way in WAYS}
    return replace(
        context_of(hits["whole"], hits["animal"], hits["background"]),
        table=accuracy_table(hits, images[VIEW].to_numpy(dtype=object)[queries] if VIEW in images else None),
        offenders=_offenders(
            hits, *vectors["background"], *(images["image"].to_numpy()[of] for of in (queries, gallery))
        ),
    )


def accuracy_table(hits: dict[str, np.ndarray], views: np.ndarray | None) -> dict[str, dict[str, Any]]:
    """Accuracy of each way of looking with its 95 % interval, of all queries and of each view (`Context.table`).

    Parameters
    ----------
    hits : dict of str to bool array, shape (q,)
    views : object array, shape (q,), or None
        View of each query, None where it is not known.
    """
    count = len(hits["whole"])
    parts = {ALL: np.ones(count, bool)}
    if views is not None:
        parts |= {str(view): views == view for view in sorted({view for view in views if isinstance(view, str)})}
    return {view: {"queries": int(kept.sum()), **_accuracies(hits, kept)} for view, kept in parts.items()}


def _accuracies(hits: dict[str, np.ndarray], kept: np.ndarray) -> dict[str, dict[str, float]]:
    scores = {way: score_ranks(right[kept].astype(int), k=1) for way, right in hits.items()}
    return {way: {"accuracy": one.map, "low": one.low, "high": one.high} for way, one in scores.items()}


def _offenders(
    hits: dict[str, np.ndarray], own: np.ndarray, others: np.ndarray, names: np.ndarray, gallery: np.ndarray
) -> list[dict[str, Any]]:
    """Queries that are right with the background alone. own, others: their backgrounds' vectors, and the gallery's."""
    right = np.flatnonzero(hits["background"])
    cosines = own[right] @ others.T
    nearest = cosines.argmax(axis=1)
    found = [
        {
            "image": str(names[query]),
            "match": str(gallery[match]),
            "cosine": round(float(row[match]), 4),
            "animal": bool(hits["animal"][query]),
        }
        for query, match, row in zip(right, nearest, cosines, strict=True)
    ]
    return sorted(found, key=lambda one: (one["animal"], -one["cosine"]))[:OFFENDERS]


def context_of(whole: np.ndarray, animal: np.ndarray, background: np.ndarray, seed: int = 0) -> Context:
    """The context ratio of the hits, bool (q,), of each way of looking at the same queries."""
    drawn = np.random.default_rng(seed).integers(0, len(animal), (_BOOTSTRAPS, len(animal)))
    over, under = background[drawn].mean(axis=1), animal[drawn].mean(axis=1)
    ratio = low = high = None
    if animal.any():
        ratio = float(background.mean() / animal.mean())
        low, high = (float(value) for value in np.quantile(over[under > 0] / under[under > 0], [0.025, 0.975]))
    means = float(whole.mean()), float(animal.mean()), float(background.mean())
    return Context(len(animal), *means, ratio, low, high)


def nearest_is_right(
    queries: np.ndarray, gallery: np.ndarray, query_identity: np.ndarray, gallery_identity: np.ndarray
) -> np.ndarray:
    """Whether each query's nearest gallery image by cosine is of its identity, bool (q,). Rows are unit vectors."""
    return gallery_identity[(queries @ gallery.T).argmax(axis=1)] == query_identity


def _embed(
    run: Path, images: pd.DataFrame, queries: np.ndarray, gallery: np.ndarray, root: Path, masks: list[Mask]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Unit embeddings (q, d) of the queries and (g, d) of the gallery, for each of WAYS."""
    from whaleid.features.extractor import load_extractor

    extractor = load_extractor(run, images["identity"].dropna().astype(str).unique())
    one_sided = extractor.without_mirror()
    margin, size = extractor.run.experiment.image.box_margin, extractor.size
    boxes, paths = images[CORNERS].to_numpy(dtype=float), images["path"].to_numpy()
    rows = np.concatenate([queries, gallery])
    found: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    with progress_bar("context", len(rows), images=True) as bar:
        for start in range(0, len(rows), extractor.batch):
            part = rows[start : start + extractor.batch].tolist()
            whole = np.stack([prepare(root / paths[row], boxes[row], margin, size) for row in part])
            white = np.stack([prepare_mask(masks[row], boxes[row], margin, size) for row in part]) > 0
            mirrored = np.ascontiguousarray(whole[: max(0, len(queries) - start), :, ::-1])
            for way, (network, shown) in {
                "whole": (extractor, whole),
                "animal": (extractor, take_out(whole, ~white)),
                "background": (extractor, take_out(whole, white)),
                "one side": (one_sided, whole),
                "mirrored": (one_sided, mirrored),
            }.items():
                if len(shown):
                    found[way].append(_vectors(network, shown))
            bar.advance(len(part))
    joined = {way: np.concatenate(vectors) for way, vectors in found.items()}
    split = {way: (vectors[: len(queries)], vectors[len(queries) :]) for way, vectors in joined.items()}
    return split | {"mirrored": (joined["mirrored"], split["one side"][1])}


def _vectors(extractor: Extractor, shown: np.ndarray) -> np.ndarray:
    """Unit embeddings (b, d); zeros where an embedding has no direction."""
    return np.nan_to_num(extractor.embed(shown)[0])
