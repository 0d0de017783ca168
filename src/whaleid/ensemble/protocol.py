"""Who is asked, against whom, and what the truth is: the rules of honest validation as tables of rows.

Everything later in this room takes its rows from here, so that no later file can quietly look at a fold it
must not see. Out of fold, the queries of fold k stand against the labelled images of the other folds; an
identity with no image left there **is** the unknown identity (design: *The rules of honest validation*, 3).
For the test set every labelled image is in the gallery, whichever fold trained the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.evaluation.metrics import expected_share_weights
from whaleid.utils.errors import WhaleidError

NONE = -1
"""Code of an identity that no candidate can name: unknown, or none at all."""

FULL_DATA = -1
"""Number of the part that holds no fold out: that of the models which all labelled images taught."""


@dataclass(frozen=True)
class FoldPart:
    """One fold's questions, out of fold. Rows are those of images.parquet.

    rows: int64 (q,), the labelled images of the fold. names: str (q,).
    training: int64 (t,), every labelled image of the other folds: whitening is fitted on these alone.
    gallery: int64 (g,), those of them whose identity is known. gallery_codes: int64 (g,).
    truth: int64 (q,), -1 where the identity is unknown or has no image in the gallery.
    sizes: int64 (q,), gallery images of the true identity; 0 where truth is -1.
    """

    fold: int
    rows: np.ndarray
    names: np.ndarray
    training: np.ndarray
    gallery: np.ndarray
    gallery_codes: np.ndarray
    truth: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class Targets:
    """What is fitted to, or scored by: the truth of some queries.

    Attributes
    ----------
    truth : int64 array, shape (n,)
        Code of the true identity, -1 = unknown.
    weights : float64 array, shape (n,)
        Weight of each query in the score, >= 0.
    k : int
        Number of guesses that count.
    unknown : bool
        Whether the unknown identity may be guessed.
    """

    truth: np.ndarray
    weights: np.ndarray
    k: int
    unknown: bool


@dataclass(frozen=True)
class Protocol:
    """The whole set of questions: the folds that have features, and the test set.

    classes: str (c,), known identities, sorted; codes are places in it.
    test_rows: int64 (n,), test_names: str (n,). gallery, gallery_codes: every labelled image of known
    identity. unknown: label of the unknown identity; None: every query's identity is in the training data.
    share: expected share of unknown queries, None: as it is. k: guesses that count.
    whole: the part of the models that all labelled images taught, where there are such. It has no queries out of
    fold (`rows` is empty): it answers the test set alone, so that nothing can be learnt from it or scored by it.
    """

    classes: np.ndarray
    parts: tuple[FoldPart, ...]
    test_rows: np.ndarray
    test_names: np.ndarray
    gallery: np.ndarray
    gallery_codes: np.ndarray
    unknown: str | None
    share: float | None
    k: int
    whole: FoldPart | None = None

    @property
    def answering(self) -> tuple[FoldPart, ...]:
        """The parts whose models answer the test set: every fold and, where there is one, the whole."""
        return self.parts if self.whole is None else (*self.parts, self.whole)

    def others(self, place: int) -> list[int]:
        """Places of the folds that may teach what is used on fold `place`: all the others.

        With one fold alone there is no other: it teaches itself, and what comes of it is optimistic.
        """
        return [other for other in range(len(self.parts)) if other != place] or [place]

    @property
    def crossfitted(self) -> bool:
        """Whether there are other folds to learn weights and thresholds from."""
        return len(self.parts) > 1

    def truth(self, places: list[int]) -> np.ndarray:
        """True codes int64 of the queries of these folds, in order; -1 = unknown."""
        return np.concatenate([self.parts[place].truth for place in places])

    def weights(self, places: list[int]) -> np.ndarray:
        """Weights float64 of the queries of these folds, from their own truth alone (`query_weights`)."""
        return query_weights(self.truth(places), self.unknown, self.share)

    def targets(self, places: list[int]) -> Targets:
        """Targets of the queries of these folds, in order."""
        return Targets(self.truth(places), self.weights(places), self.k, self.unknown is not None)


def query_weights(truth: np.ndarray, unknown: str | None, share: float | None) -> np.ndarray:
    """Weight of each query in the score.

    truth: int (n,), -1 = unknown. With an unknown label, unknown queries are brought to the expected share;
    without one nothing can answer them, and they weigh 0.
    Returns float64 (n,). Raises WhaleidError where no query weighs anything.
    """
    weights = (truth >= 0).astype(np.float64) if unknown is None else expected_share_weights(truth < 0, share)
    if not weights.any():
        raise WhaleidError(
            f"none of the {len(truth)} queries has an image of its identity in another fold, and the "
            "competition has no unknown label: nothing can be scored; check the labels, or take fewer folds"
        )
    return weights


def read_protocol(
    images: pd.DataFrame, folds: pd.DataFrame, competition: Competition, numbers: list[int], whole: bool = False
) -> Protocol:
    """The questions of the folds `numbers` and of the test set.

    images, folds: the tables images.parquet and folds.csv. whole: models that all labelled images taught answer, too.
    Raises WhaleidError where the two tables disagree, or a fold of `numbers` has no image.
    """
    fold_of, identity = _labelled(images, folds)
    rows = np.flatnonzero(fold_of >= 0)
    known = identity[rows] != competition.unknown
    classes = np.unique(identity[rows][known].astype(str))
    if not len(classes):
        raise WhaleidError("folds.csv: no image has a known identity; at least one is needed to guess from")
    codes = np.full(len(images), NONE, dtype=np.int64)
    codes[rows[known]] = np.searchsorted(classes, identity[rows][known].astype(str))
    names = images["image"].to_numpy().astype(str)
    gallery = np.flatnonzero(codes >= 0)
    test = np.flatnonzero(images["split"].to_numpy() == "test")
    return Protocol(
        classes=classes,
        parts=tuple(_part(number, fold_of, codes, names, len(classes)) for number in sorted(numbers)),
        test_rows=test,
        test_names=names[test],
        gallery=gallery,
        gallery_codes=codes[gallery],
        unknown=competition.unknown,
        share=competition.unknown_share,
        k=competition.k,
        whole=whole_part(rows, gallery, codes[gallery]) if whole and len(test) else None,
    )


def _labelled(images: pd.DataFrame, folds: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Fold int64 (n,) of each row of images (-1: none, a test image) and identity object (n,)."""
    for table, name, columns in (
        (images, "images.parquet", ("image", "split", "identity")),
        (folds, "folds.csv", ("image", "identity", "fold")),
    ):
        missing = [column for column in columns if column not in table.columns]
        if missing:
            raise WhaleidError(f"{name}: column '{missing[0]}' is missing; make it again")
    place = pd.Index(images["image"]).get_indexer(pd.Index(folds["image"]))
    if (place < 0).any() or len(np.unique(place)) < len(place):
        bad = folds["image"].to_numpy()[(place < 0) | pd.Series(place).duplicated().to_numpy()][0]
        raise WhaleidError(f"folds.csv: image '{bad}' is listed twice, or not in images.parquet; make the folds again")
    identity = images["identity"].to_numpy(dtype=object)
    fold_of = np.full(len(images), NONE, dtype=np.int64)
    fold_of[place] = folds["fold"].to_numpy(dtype=np.int64)
    wrong = np.flatnonzero((fold_of >= 0) != (images["split"].to_numpy() == "train"))
    if len(wrong):
        raise WhaleidError(
            f"folds.csv: image '{images['image'].iloc[wrong[0]]}' is "
            f"{'a test image' if fold_of[wrong[0]] >= 0 else 'missing'}; {len(wrong)} such images: "
            "make the folds again"
        )
    differ = np.flatnonzero(identity[place].astype(str) != folds["identity"].to_numpy().astype(str))
    if len(differ):
        raise WhaleidError(
            f"folds.csv: image '{folds['image'].iloc[differ[0]]}' has another identity than in "
            f"images.parquet; {len(differ)} such images: make the folds again"
        )
    return fold_of, identity


def whole_part(labelled: np.ndarray, gallery: np.ndarray, gallery_codes: np.ndarray) -> FoldPart:
    """Every labelled image to train on and to compare with, and none to ask about."""
    nobody = np.empty(0, dtype=np.int64)
    return FoldPart(FULL_DATA, nobody, np.empty(0, dtype=str), labelled, gallery, gallery_codes, nobody, nobody)


def _part(number: int, fold_of: np.ndarray, codes: np.ndarray, names: np.ndarray, classes: int) -> FoldPart:
    rows = np.flatnonzero(fold_of == number)
    training = np.flatnonzero((fold_of >= 0) & (fold_of != number))
    gallery = training[codes[training] >= 0]
    if not len(rows) or not len(gallery):
        raise WhaleidError(
            f"folds.csv: fold {number} has {len(rows)} images, and the other folds {len(gallery)} of known "
            "identity; both are needed: make the folds again, or take fewer"
        )
    sizes = np.bincount(codes[gallery], minlength=classes)
    of_truth = np.where(codes[rows] >= 0, sizes[codes[rows]], 0)
    return FoldPart(
        fold=number,
        rows=rows,
        names=names[rows],
        training=training,
        gallery=gallery,
        gallery_codes=codes[gallery],
        truth=np.where(of_truth > 0, codes[rows], NONE),
        sizes=of_truth,
    )
