"""Queries, galleries and truth of every fold and of the test set: the rules of honest validation as tables of rows.

All of `ensemble` takes its rows from here, so that no ranker can use a fold that it must not see. Out of fold, the
queries of fold k are compared with the labelled images of the other folds; an identity with no image left there **is**
the unknown identity (docs/design.md, *The rules of honest validation*, 3). For the test set every labelled image is in
the gallery, whichever fold trained the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.ensemble.comparable import Comparable, read_comparable
from whaleid.evaluation.metrics import expected_share_weights
from whaleid.utils.errors import WhaleidError

NONE = -1
"""Code of an identity that no candidate can name: unknown, or none at all."""

UNSURE = (0.0, 0.6)
"""Shares of unknown queries that a test set may have of which nothing is known."""

FULL_DATA = -1
"""Number of the part without a fold: that of the models trained on all labelled images."""


@dataclass(frozen=True)
class UnknownShare:
    """Expected share of unknown queries in the test set.

    Attributes
    ----------
    low, high : float
        Shares in [0, 1] between which it lies; equal where it is known.
    origin : str
        Where they come from, for people.
    """

    low: float
    high: float
    origin: str

    @property
    def weight(self) -> float:
        """The share to which out-of-fold queries are weighted: the middle."""
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class QuerySet:
    """Some queries and the gallery that they are compared with. Rows are those of images.parquet.

    Attributes
    ----------
    rows : int64 array, shape (q,)
        The queries.
    names : str array, shape (q,)
        Their image names.
    gallery : int64 array, shape (g,)
        Labelled images of known identity.
    gallery_codes : int64 array, shape (g,)
        Identity of each gallery image, as its place in `Protocol.classes`.
    labelled : int64 array
        The gallery, and images that are known to be of none of its identities.
    """

    rows: np.ndarray
    names: np.ndarray
    gallery: np.ndarray
    gallery_codes: np.ndarray
    labelled: np.ndarray


@dataclass(frozen=True)
class FoldPart:
    """One fold: its queries, and the images of the other folds. Rows are those of images.parquet.

    Attributes
    ----------
    fold : int
        Number of the fold; `FULL_DATA` for the models trained on all labelled images, which have no queries.
    rows : int64 array, shape (q,)
        Labelled images of the fold: its queries.
    names : str array, shape (q,)
        Their image names.
    training : int64 array, shape (t,)
        Labelled images of the other folds. Whitening is fitted on these alone.
    gallery : int64 array, shape (g,)
        Those of them whose identity is known.
    gallery_codes : int64 array, shape (g,)
        Their identities.
    truth : int64 array, shape (q,)
        True identity of each query, -1 where it is unknown or has no image in the gallery.
    sizes : int64 array, shape (q,)
        Gallery images of the true identity; 0 where `truth` is -1.
    image_place : int64 array, shape (q,), or None
        Place of each query's image among the fold's labelled images, where simulated unknown queries stand after them
        (`simulation.py`); None where there are none.
    left_out : int64 array or None
        Gallery images that its queries are not compared with (`full_gallery.py`); models were trained on them all the
        same. None: none.
    """

    fold: int
    rows: np.ndarray
    names: np.ndarray
    training: np.ndarray
    gallery: np.ndarray
    gallery_codes: np.ndarray
    truth: np.ndarray
    sizes: np.ndarray
    image_place: np.ndarray | None = None
    left_out: np.ndarray | None = None

    @property
    def simulated(self) -> int:
        """Number of simulated unknown queries."""
        return 0 if self.image_place is None else len(self.rows) - len(np.unique(self.image_place))


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
    shares : (float, float) or None
        Shares of unknown queries between which a threshold shall lose least; None: that of the weights alone.
    """

    truth: np.ndarray
    weights: np.ndarray
    k: int
    unknown: bool
    shares: tuple[float, float] | None = None


@dataclass(frozen=True)
class Protocol:
    """The folds that have features, and the test set.

    Attributes
    ----------
    classes : str array, shape (c,)
        Known identities, sorted; a code is a place in it.
    parts : tuple of FoldPart
        One a fold. "Place" means the position in this tuple.
    test_rows, test_names : arrays, shape (n,)
        The test images, int64 rows of images.parquet and str names.
    gallery, gallery_codes : int64 arrays
        Every labelled image of known identity, and its identity.
    unknown : str or None
        Label of the unknown identity; None: the identity of every query is in the training data.
    share : UnknownShare or None
        Expected share of unknown queries; None where there is no unknown label.
    k : int
        Number of guesses that count.
    full_data : FoldPart or None
        The part of the models trained on all labelled images, where there are any. It has no queries out of fold: it
        ranks the test set only, nothing is fitted on it or scored by it.
    comparable : Comparable or None
        What divides the images by species and view; None where nothing does.
    """

    classes: np.ndarray
    parts: tuple[FoldPart, ...]
    test_rows: np.ndarray
    test_names: np.ndarray
    gallery: np.ndarray
    gallery_codes: np.ndarray
    unknown: str | None
    share: UnknownShare | None
    k: int
    full_data: FoldPart | None = None
    comparable: Comparable | None = None

    @property
    def places(self) -> list[int]:
        """Places of all folds."""
        return list(range(len(self.parts)))

    @property
    def test_parts(self) -> tuple[FoldPart, ...]:
        """The parts whose models rank the test set: every fold and, where there is one, the full-data part."""
        return self.parts if self.full_data is None else (*self.parts, self.full_data)

    def training_folds(self, place: int) -> list[int]:
        """Places of the folds that may be fitted on for the fold at `place`: all others.

        With one fold alone there is no other: it is fitted on itself, and its score is marked optimistic.
        """
        return [other for other in self.places if other != place] or [place]

    @property
    def crossfitted(self) -> bool:
        """Whether there are other folds to fit weights and thresholds on."""
        return len(self.parts) > 1

    def queries(self, part: FoldPart) -> tuple[QuerySet | None, QuerySet | None]:
        """The fold's queries (None for the full-data part), and the test images (None where there are none)."""
        oof = test = None
        if len(part.rows):
            left_out = np.empty(0, np.int64) if part.left_out is None else part.left_out
            kept = ~np.isin(part.gallery, left_out)
            labelled = np.setdiff1d(part.training, left_out)
            oof = QuerySet(part.rows, part.names, part.gallery[kept], part.gallery_codes[kept], labelled)
        if len(self.test_rows):
            labelled = np.union1d(part.training, part.rows)
            test = QuerySet(self.test_rows, self.test_names, self.gallery, self.gallery_codes, labelled)
        return oof, test

    def pieces(self, queries: QuerySet) -> Iterator[tuple[np.ndarray, QuerySet]]:
        """Places of the queries that are compared with one part of the gallery, and they alone with that part.

        A part may be empty.
        """
        if self.comparable is None:
            yield np.arange(len(queries.rows)), queries
        else:
            yield from self.comparable.pieces(queries)

    def species(self, rows: np.ndarray) -> np.ndarray:
        """Species of these images, str (n,); '' where it is not known, or nothing divides them."""
        return np.full(len(rows), "", dtype=object) if self.comparable is None else self.comparable.species[rows]

    def truth(self, places: list[int]) -> np.ndarray:
        """True codes int64 of the queries of these folds, in order; -1 = unknown."""
        return np.concatenate([self.parts[place].truth for place in places])

    def weights(self, places: list[int]) -> np.ndarray:
        """Weights float64 of the queries of these folds, from their own truth alone (`query_weights`)."""
        return query_weights(self.truth(places), self.unknown, None if self.share is None else self.share.weight)

    def targets(self, places: list[int]) -> Targets:
        """Targets of the queries of these folds, in order."""
        shares = None if self.share is None else (self.share.low, self.share.high)
        return Targets(self.truth(places), self.weights(places), self.k, self.unknown is not None, shares)


def query_weights(truth: np.ndarray, unknown: str | None, share: float | None) -> np.ndarray:
    """Weight of each query in the score.

    With an unknown label, unknown queries are weighted to the expected share; without one they can never be right,
    and weigh 0.

    Parameters
    ----------
    truth : int array, shape (n,)
        True identities, -1 = unknown.
    unknown : str or None
        Label of the unknown identity.
    share : float or None
        Expected share of unknown queries.

    Returns
    -------
    float64 array, shape (n,)

    Raises
    ------
    WhaleidError
        Where every weight is 0.
    """
    weights = (truth >= 0).astype(np.float64) if unknown is None else expected_share_weights(truth < 0, share)
    if not weights.any():
        raise WhaleidError(
            f"none of the {len(truth)} queries has an image of its identity in another fold, and the "
            "competition has no unknown label: nothing can be scored; check the labels, or take fewer folds"
        )
    return weights


def read_protocol(
    images: pd.DataFrame, folds: pd.DataFrame, competition: Competition, numbers: list[int], full_data: bool = False
) -> Protocol:
    """The protocol of the folds `numbers` and of the test set.

    Parameters
    ----------
    images, folds : DataFrame
        images.parquet and folds.csv.
    competition : Competition
    numbers : list of int
        Folds that have features.
    full_data : bool
        Whether models trained on all labelled images rank the test set too.

    Raises
    ------
    WhaleidError
        Where the two tables disagree, or a fold of `numbers` has no image.
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
        share=expected_share(competition, float(1 - known.mean())),
        k=competition.k,
        full_data=full_data_part(rows, gallery, codes[gallery]) if full_data and len(test) else None,
        comparable=read_comparable(images, competition),
    )


def expected_share(competition: Competition, labelled: float) -> UnknownShare | None:
    """What is known of the test set's share of unknown queries before its images are looked at.

    Labelled images without a row of the unknown label tell nothing: organisers often drop such rows. Where there are
    some, the test set holds some too: at least half as large a share is taken as certain.

    Parameters
    ----------
    competition : Competition
    labelled : float
        Share of the labelled images whose identity is unknown.

    Returns
    -------
    UnknownShare or None
        None where there is no unknown label.
    """
    if competition.unknown is None:
        return None
    if competition.unknown_share is not None:
        given = competition.unknown_share
        return UnknownShare(given, given, "given by the competition")
    low, high = UNSURE
    if not labelled:
        return UnknownShare(low, high, "not known: no labelled image is unknown, which tells nothing of the test set")
    low = min(labelled / 2, high / 2)
    return UnknownShare(low, high, f"not known: {labelled:.1%} of the labelled images are unknown")


def full_data_part(labelled: np.ndarray, gallery: np.ndarray, gallery_codes: np.ndarray) -> FoldPart:
    """The part whose models are trained on all labelled images: it has no queries out of fold."""
    empty = np.empty(0, dtype=np.int64)
    return FoldPart(FULL_DATA, empty, np.empty(0, dtype=str), labelled, gallery, gallery_codes, empty, empty)


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
