"""What every ranker takes and gives: sources of features, and rankings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from whaleid.ensemble.comparable import NOT_KNOWN
from whaleid.ensemble.cross_fitting import CrossFitted, OofLists, cross_fit
from whaleid.ensemble.embedding_features import EmbeddingFeatures
from whaleid.ensemble.lists import average
from whaleid.ensemble.protocol import FULL_DATA, Protocol
from whaleid.ensemble.unknown import fit_threshold
from whaleid.retrieval.candidates import Candidates


@dataclass(frozen=True)
class Source:
    """Features of one network, one model a fold.

    Attributes
    ----------
    name : str
    folds : dict of int to Path
        Fold to the folder with embeddings.npy, rows.csv and, maybe, logits.npy.
    pairs : dict of int to Path
        Fold to the run that the features are of, where its head scores pairs (siamese); else empty. The full-data
        model's run has the key `FULL_DATA`.
    full : Path or None
        Folder of the features of the model trained on all labelled images, where there is one.
    """

    name: str
    folds: dict[int, Path]
    pairs: dict[int, Path] = field(default_factory=dict)
    full: Path | None = None

    def folder(self, fold: int) -> Path:
        """Features by the models of one part; the full-data part falls back to the first fold's model."""
        if fold != FULL_DATA:
            return self.folds[fold]
        return self.folds[min(self.folds)] if self.full is None else self.full


@dataclass(frozen=True)
class LikeQueries:
    """The other queries that look most like each query: rows of images.parquet, int64 (q, m), -1 padded.

    Attributes
    ----------
    oof : tuple of int64 arrays
        Of each fold's queries.
    test : tuple of int64 arrays
        Of the test images, by each part's models; empty where there are none.
    """

    oof: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Ranking:
    """Candidates of one ranker for every fold's queries and for the test images.

    Attributes
    ----------
    name : str
        Name of its rung.
    kind : str
        `Ranker.kind` of the ranker that gave it.
    lists : OofLists
        Candidates out of fold.
    test : tuple of Candidates
        The test images under each fold's models, in the protocol's order, then under the full-data models where there
        are any; empty where there are no test images.
    probability : bool
        Whether scores are probabilities over all classes, not similarities.
    source : str or None
        Name of the source, where one network alone gives the ranking.
    thresholds : CrossFitted of float or None, or None
        Score of the unknown identity where the ranker fits it itself; None: `fit_thresholds` does.
    fitted : CrossFitted or None
        What was fitted on OOF lists, for the report: the names of the settings (re-ranking), the blends, the stacks.
    embedding_features : EmbeddingFeatures or None
        What the stack reads beside the lists (concatenation).
    alike : LikeQueries or None
        Which queries look like which, where pairs of queries are matched (concatenation).
    """

    name: str
    kind: str
    lists: OofLists
    test: tuple[Candidates, ...]
    probability: bool
    source: str | None = None
    thresholds: CrossFitted[float | None] | None = None
    fitted: CrossFitted[Any] | None = None
    embedding_features: EmbeddingFeatures | None = None
    alike: LikeQueries | None = None

    @property
    def oof(self) -> tuple[Candidates, ...]:
        """Candidates of each fold's queries, those that are scored."""
        return self.lists.own


def fit_thresholds(protocol: Protocol, ranking: Ranking) -> CrossFitted[float | None]:
    """Score of the unknown identity in a ranking, cross-fitted; None where there is no unknown label."""

    if ranking.thresholds is not None:
        return ranking.thresholds

    def fit(place: int | None, training: list[int]) -> float | None:
        return fit_threshold(ranking.lists.training(place, training), protocol.targets(training))

    return cross_fit(protocol, fit)


FEWEST = 20
"""Queries of a species from which it gets a threshold of its own; a species with fewer gets that of all."""


@dataclass(frozen=True)
class Limits:
    """Thresholds of a ranking.

    Attributes
    ----------
    overall : CrossFitted of float or None
        As from `fit_thresholds`.
    by_species : dict of str to CrossFitted of float or None
        Those of each species of the queries; empty where nothing divides them.
    """

    overall: CrossFitted[float | None]
    by_species: dict[str, CrossFitted[float | None]]

    def of(self, place: int | None, species: np.ndarray) -> np.ndarray | None:
        """Threshold of each query of these species, float32 (q,), as fitted for a fold, or for the test set (None)."""
        overall = _at(self.overall, place)
        if overall is None:
            return None
        own = {name: _at(fitted, place) for name, fitted in self.by_species.items()}
        return np.array([own.get(name, overall) for name in species], dtype=np.float32)


def fit_limits(protocol: Protocol, ranking: Ranking) -> Limits:
    """The thresholds of all queries, and those of each species, cross-fitted."""
    overall = fit_thresholds(protocol, ranking)
    species = [protocol.species(part.rows) for part in protocol.parts]
    names = sorted(set(np.concatenate(species).tolist()) - {NOT_KNOWN})
    if overall.full is None or not names:
        return Limits(overall, {})

    def fit(name: str, place: int | None, training: list[int]) -> float | None:
        rows = np.concatenate([species[other] for other in training]) == name
        if rows.sum() < FEWEST:
            return _at(overall, place)
        lists, targets = ranking.lists.training(place, training), protocol.targets(training)
        own = Candidates(lists.queries[rows], lists.classes, lists.codes[rows], lists.scores[rows])
        return fit_threshold(own, replace(targets, truth=targets.truth[rows], weights=targets.weights[rows]))

    return Limits(overall, {name: cross_fit(protocol, partial(fit, name)) for name in names})


def _at(fitted: CrossFitted[float | None], place: int | None) -> float | None:
    return fitted.full if place is None else fitted.by_fold[place]


def with_full_data(ranking: Ranking, protocol: Protocol, keep: int) -> Ranking:
    """The ranking with test candidates for every part that ranks the test set.

    Where a ranking has none of the full-data part, the mean of its folds takes that place, and the embedding features
    of the first fold's model.
    """
    if len(ranking.test) in (0, len(protocol.test_parts)):
        return ranking
    features = ranking.embedding_features
    if features is not None:
        features = replace(features, test=(*features.test, features.test[0]))
    return replace(ranking, test=(*ranking.test, average(ranking.test, keep)), embedding_features=features)
