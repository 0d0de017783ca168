"""The form of answer `clusters`: a cluster for each image, scored by the adjusted Rand index (AnimalCLEF 2026).

References
----------
Hubert & Arabie, "Comparing partitions", 1985.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.evaluation.agglomeration import NO_LABEL, Constraints, Linkage, Merges, agglomerate
from whaleid.evaluation.form_input import ImagePairs, PairTable
from whaleid.evaluation.form_score import DRAWS, FormScore, Metric, with_interval
from whaleid.evaluation.frames import DATASET, read_pair, require_one_label
from whaleid.evaluation.submission_file import cell_problems

NEEDS, TABLES = "pairs", ("among", "to_gallery")
STRATUM, UNIT = ("dataset",), ("row",)
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds that are tried."""
LINKAGES: tuple[Linkage, ...] = ("average", "single")


def adjusted_rand_index(truth: np.ndarray, cluster: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Adjusted Rand index of two partitions.

    Parameters
    ----------
    truth, cluster : arrays, shape (n,)
        Labels of any type.
    weights : float array, shape (n,), optional
        How often each image counts. An image makes no pair with its own copies: resampled images would else be pairs
        that every partition has right.

    Returns
    -------
    float
        1 for equal partitions, about 0 for independent ones; 1 where neither partition can be wrong.
    """
    codes = _codes(truth, cluster)
    return _index(codes, np.ones(len(truth)) if weights is None else weights)


def _codes(truth: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of the identity, of the cluster, and of both together, int (n,) each."""
    rows, columns = (np.unique(labels, return_inverse=True)[1].reshape(-1) for labels in (truth, cluster))
    cells = np.unique(rows * (columns.max() + 1) + columns, return_inverse=True)[1].reshape(-1)
    return rows, columns, cells


def _index(codes: tuple[np.ndarray, np.ndarray, np.ndarray], weights: np.ndarray) -> float:
    """The index from `_codes`."""
    rows, columns, both = (_pairs(each, weights) for each in codes)
    total = (weights.sum() ** 2 - (weights**2).sum()) / 2
    if both == rows == columns:
        return 1.0
    expected = rows * columns / total
    return float((both - expected) / ((rows + columns) / 2 - expected))


def _pairs(codes: np.ndarray, weights: np.ndarray) -> float:
    """Weighted number of pairs of different images that share a code."""
    return float(((np.bincount(codes, weights) ** 2) - np.bincount(codes, weights**2)).sum() / 2)


# ------------------------------------------------------------------------------------------------ answering


def fit(sets: Sequence[ImagePairs], identities: Sequence[np.ndarray], target: ImagePairs | None) -> dict[str, Any]:
    """Linkage, use of the labelled images and threshold with the largest adjusted mutual information, mean over sets.

    The adjusted Rand index is ruled by the largest identities and would merge too much. A set that is denser than the
    target is thinned to its density: where images are few, less likely pairs must be believed.

    Returns
    -------
    dict
        `linkage`; `anchors`, whether the labelled images are clustered with the others; `threshold`.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    if target is not None:
        thinned = [_thinned(one, names, target) for one, names in zip(sets, identities, strict=True)]
        sets, identities = [one for one, _ in thinned], [names for _, names in thinned]
    best, chosen = -np.inf, (LINKAGES[0], True, THRESHOLDS[0])
    for linkage, anchors in product(LINKAGES, (True, False)):
        merges = [merges_of(one, linkage, anchors) for one in sets]
        for threshold in THRESHOLDS:
            found = [one.clusters(threshold)[: len(names)] for one, names in zip(merges, identities, strict=True)]
            pairs = zip(identities, found, strict=True)
            value = float(np.mean([adjusted_mutual_info_score(names, clusters) for names, clusters in pairs]))
            if value > best:
                best, chosen = value, (linkage, anchors, threshold)
    return dict(zip(("linkage", "anchors", "threshold"), chosen, strict=True))


def merges_of(pairs: ImagePairs, linkage: Linkage, anchors: bool) -> Merges:
    """The merges of the images and, if `anchors`, of the labelled ones, whose identities are never merged."""
    count, among = len(pairs.images), pairs.among
    if not anchors:
        inside = [links[(links < count).all(axis=1)] for links in (pairs.must_link, pairs.cannot_link)]
        return agglomerate(among, Constraints(np.full(count, NO_LABEL), *inside), pairs.images, linkage)
    known = np.unique(pairs.gallery_identity, return_inverse=True)[1].reshape(-1)
    labels = np.concatenate([np.full(count, NO_LABEL), known])
    names = np.concatenate([pairs.images, pairs.gallery])
    return agglomerate(joined_pairs(pairs), Constraints(labels, pairs.must_link, pairs.cannot_link), names, linkage)


def joined_pairs(pairs: ImagePairs) -> PairTable:
    """All pairs in one table; the place of a labelled image is the number of images + its place in the gallery."""
    count, among, to_gallery = len(pairs.images), pairs.among, pairs.to_gallery
    return PairTable(
        np.concatenate([among.first, to_gallery.first]),
        np.concatenate([among.second, to_gallery.second + count]),
        np.concatenate([among.probability, to_gallery.probability]),
    )


def answer(pairs: ImagePairs, fitted: dict[str, Any], unknown: str | None) -> list[str]:
    """Cluster of each image: `cluster_<dataset>_<number>`, or `cluster_<number>` without data sets."""
    merges = merges_of(pairs, fitted["linkage"], fitted["anchors"])
    clusters = merges.clusters(fitted["threshold"])[: len(pairs.images)]
    numbers: dict[tuple[str, int], int] = {}
    cells = []
    for name, cluster in zip(pairs.datasets, clusters.tolist(), strict=True):
        number = numbers.setdefault((name, cluster), len(numbers))
        cells.append(f"cluster_{name}_{number}" if name else f"cluster_{number}")
    return cells


def unreadable(image: str, likely: list[str]) -> str:
    """The cluster of an image that could not be read: its own."""
    return f"cluster_{image}"


def outcomes(
    answers: Sequence[list[str]], sets: Sequence[ImagePairs], identities: Sequence[np.ndarray], unknown: str | None
) -> pd.DataFrame:
    """`row, truth, cluster, dataset` of each image: clusters and identities of two sets are never the same."""
    places = np.repeat(np.arange(len(sets)), [len(names) for names in identities])
    columns = (np.concatenate(column) for column in (identities, answers))
    truth, cluster = ([f"{place} {name}" for place, name in zip(places, column, strict=True)] for column in columns)
    row, datasets = (np.concatenate([getattr(one, name) for one in sets]) for name in ("images", "datasets"))
    return pd.DataFrame({"row": row, "truth": truth, "cluster": cluster, "dataset": datasets})


def metric(table: pd.DataFrame) -> Metric:
    """Mean over data sets of the adjusted Rand index."""
    rows = [np.flatnonzero(table["dataset"] == name) for name in sorted(set(table["dataset"]))]
    truth, cluster = table["truth"].to_numpy(), table["cluster"].to_numpy()
    codes = [_codes(truth[one], cluster[one]) for one in rows]
    pairs = list(zip(codes, rows, strict=True))
    return lambda counts: float(np.mean([_index(code, counts[one].astype(float)) for code, one in pairs]))


def evaluate(table: pd.DataFrame, seed: int = 0) -> FormScore:
    """As `score_submission`, of outcomes."""
    truth, cluster, datasets = (table[name].to_numpy() for name in ("truth", "cluster", "dataset"))
    return _score(truth, cluster, datasets, seed)


def _thinned(pairs: ImagePairs, identity: np.ndarray, target: ImagePairs) -> tuple[ImagePairs, np.ndarray]:
    """The set without as many images as make it as dense as the target, and the identities of those left.

    Density is the number of other images of an image's identity: what P(same) says of the target.
    """
    sizes = np.unique(identity, return_counts=True)[1]
    own = (sizes * (sizes - 1)).sum() / len(identity)
    expected = 2 * target.among.probability.sum() / len(target.images)
    kept = np.random.default_rng(0).random(len(identity)) * own < expected
    if kept.all() or kept.sum() < 2:
        return pairs, identity
    place = np.cumsum(kept) - 1
    among, gallery = pairs.among, pairs.to_gallery
    both, one = kept[among.first] & kept[among.second], kept[gallery.first]
    left = ImagePairs(
        pairs.images[kept],
        pairs.datasets[kept],
        pairs.gallery,
        pairs.gallery_identity,
        PairTable(place[among.first[both]], place[among.second[both]], among.probability[both]),
        PairTable(place[gallery.first[one]], gallery.second[one], gallery.probability[one]),
        must_link=place[pairs.must_link[kept[pairs.must_link].all(axis=1)]],
    )
    return left, identity[kept]


# -------------------------------------------------------------------------------------------- checking, scoring


def check_submission(path: Path, sample: Path, known: Collection[str] | None = None, k: int = 1) -> list[str]:
    """Everything that is wrong with a submission, one line each.

    Parameters
    ----------
    path : Path
        Submission: image and cluster.
    sample : Path
        Sample submission; header, images and their order must be its own.
    known, k
        Not used: clusters have any name.

    Raises
    ------
    WhaleidError
        If the sample cannot be read.
    """
    return cell_problems(path, sample, lambda cell: len(cell.split()) == 1, "is not one cluster")


def score_submission(submission: Path, solution: Path, seed: int = 0) -> FormScore:
    """Mean over data sets of the adjusted Rand index; the interval resamples images within each data set.

    Parameters
    ----------
    submission : Path
        Image and cluster. Where the solution has data sets, a cluster is named `cluster_<dataset>_...`.
    solution : Path
        Image and identity; optionally `dataset`.
    seed : int
        Of the interval's random draws.
    """
    answers, truths = read_pair(submission, solution)
    cluster, truth, datasets = require_one_label(answers), require_one_label(truths).to_numpy(), truths.datasets()
    if DATASET in truths.frame.columns:
        named = [cell.startswith(f"cluster_{name}_") for cell, name in zip(cluster, datasets, strict=True)]
        answers.require(np.array(named), cluster, "must start with cluster_<data set of the image>_")
    return _score(truth, cluster.to_numpy(), datasets, seed)


def _score(truth: np.ndarray, cluster: np.ndarray, datasets: np.ndarray, seed: int) -> FormScore:
    rng, values, draws = np.random.default_rng(seed), {}, []
    for name in sorted(set(datasets)):
        rows = datasets == name
        values[name] = adjusted_rand_index(truth[rows], cluster[rows])
        draws.append(_resampled(truth[rows], cluster[rows], rng))
    parts = {} if list(values) == [""] else values
    return with_interval("ARI", float(np.mean(list(values.values()))), np.mean(draws, axis=0), len(truth), parts)


def _resampled(truth: np.ndarray, cluster: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Index of resampled images, float (DRAWS,)."""
    codes, n = _codes(truth, cluster), len(truth)
    weights = (np.bincount(rng.integers(n, size=n), minlength=n).astype(float) for _ in range(DRAWS))
    return np.array([_index(codes, each) for each in weights])
