"""Cross-fitting: what is applied to a fold is fitted on the other folds; what is applied to the test set, on all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from whaleid.ensemble.lists import concatenate_lists
from whaleid.ensemble.protocol import Protocol
from whaleid.retrieval.candidates import Candidates

Fitted = TypeVar("Fitted")


@dataclass(frozen=True)
class CrossFitted(Generic[Fitted]):
    """A threshold, weights or a model, fitted once for each fold and once for the test set.

    Attributes
    ----------
    by_fold : tuple
        One a fold, in the protocol's order, fitted on the other folds.
    full : object
        Fitted on all folds, for the test set.
    """

    by_fold: tuple[Fitted, ...]
    full: Fitted


def cross_fit(protocol: Protocol, fit: Callable[[int | None, list[int]], Fitted]) -> CrossFitted[Fitted]:
    """Fit something for each fold on the other folds' queries, and for the test set on all.

    Parameters
    ----------
    protocol : Protocol
    fit : callable (place, training) -> fitted
        `place` is the fold that it will be applied to (None: the test set), `training` the places of the folds whose
        queries it may use. It must read the OOF lists of `OofLists.without(place)`.
    """
    by_fold = tuple(fit(place, protocol.training_folds(place)) for place in protocol.places)
    return CrossFitted(by_fold, fit(None, protocol.places))


@dataclass(frozen=True)
class OofLists:
    """Out-of-fold candidates of a ranker, in the versions that may be used for each fold and for the test set.

    Where nothing about a ranker was fitted on OOF truth, all versions are the same lists. Where something was (weights
    of a blend, a setting of re-ranking, learned match scores), what is fitted *for* fold k must not read lists that
    the truth of fold k has a part in: it reads the version without fold k.

    Attributes
    ----------
    by_excluded_fold : tuple of tuple of Candidates
        [k][j] are the candidates of fold j's queries by what was fitted without fold k (and without fold j where the
        ranker is a model of the queries). [k][k] are fold k's own candidates, those that are scored.
    full : tuple of Candidates
        The candidates of all folds to fit on for the test set.
    """

    by_excluded_fold: tuple[tuple[Candidates, ...], ...]
    full: tuple[Candidates, ...]

    @classmethod
    def same(cls, lists: tuple[Candidates, ...]) -> OofLists:
        """Of a ranker that was fitted on no OOF truth. lists: one a fold."""
        return cls((lists,) * len(lists), lists)

    @property
    def own(self) -> tuple[Candidates, ...]:
        """The candidates of each fold that are scored."""
        return tuple(lists[place] for place, lists in enumerate(self.by_excluded_fold))

    def without(self, place: int | None) -> tuple[Candidates, ...]:
        """The lists of all folds to be used for the fold at `place`; None: for the test set."""
        return self.full if place is None else self.by_excluded_fold[place]

    def training(self, place: int | None, training: list[int]) -> Candidates:
        """The lists of the folds `training`, one below the other, to fit on for the fold at `place`."""
        lists = self.without(place)
        return concatenate_lists([lists[other] for other in training])
