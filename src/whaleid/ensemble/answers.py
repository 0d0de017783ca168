"""The answer in a form that is made from ranked identities: scored out of fold, and given for the test images.

The identities are those of the ladder's last ranker, the probabilities those of the blend: the n-th best identity has
the n-th largest. What a form fits (a threshold) for fold k is fitted on the other folds' queries, by the blend's lists
that fold k has no part in; the best identity counts there, so that the blend's stands for a stack's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.ensemble.cross_fitting import cross_fit
from whaleid.ensemble.lists import average
from whaleid.ensemble.protocol import Protocol
from whaleid.ensemble.rankings import Ranking
from whaleid.evaluation.form_input import RankedIdentities, Truth
from whaleid.evaluation.form_score import FormScore
from whaleid.evaluation.forms import Form
from whaleid.retrieval.candidates import Candidates


@dataclass(frozen=True)
class FormAnswer:
    """The answer in a form.

    Attributes
    ----------
    score : FormScore
        Out of fold.
    outcomes : DataFrame
        What it was made of (`Form.outcomes`).
    optimistic : bool
        Whether something was fitted on the queries that are scored: one fold alone.
    fitted : Any
        What the form fitted on all folds, for the test set; plain values.
    cells : dict of str to str
        Test image -> its answer.
    doubts : DataFrame or None
        `image, other, probability, worth`: pairs whose decision is worth most, the most first; of the form clusters.
    """

    score: FormScore
    outcomes: pd.DataFrame
    optimistic: bool
    fitted: Any
    cells: dict[str, str]
    doubts: pd.DataFrame | None = None

    def as_json(self) -> dict[str, Any]:
        """Every figure as plain types."""
        return self.score.as_json() | {"optimistic": self.optimistic, "fitted": self.fitted}


def answer_by_identities(
    form: Form,
    protocol: Protocol,
    final: Ranking,
    blend: Ranking,
    images: pd.DataFrame,
    competition: Competition,
    seed: int = 0,
) -> FormAnswer:
    """The answer in a form that needs ranked identities.

    Parameters
    ----------
    form : Form
    protocol : Protocol
        With simulated unknown queries, where there is an unknown label.
    final, blend : Ranking
        The ladder's last ranker, and the blend.
    images : DataFrame
        images.parquet.
    competition : Competition
    seed : int
        Of the interval.
    """
    datasets = datasets_of(images, competition)
    truths = truths_of(protocol, images)

    def training_input(place: int | None, training: list[int]) -> tuple[RankedIdentities, Truth]:
        rows = np.concatenate([protocol.parts[other].rows for other in training])
        lists = blend.lists.training(place, training)
        return _ranked(lists, lists, datasets[rows]), _joined([truths[other] for other in training])

    fitted = cross_fit(protocol, lambda place, training: form.fit(*training_input(place, training)))
    own = [
        _ranked(lists, like, datasets[part.rows])
        for lists, like, part in zip(final.oof, blend.oof, protocol.parts, strict=True)
    ]
    answers = [form.answer(*given, competition.unknown) for given in zip(own, fitted.by_fold, strict=True)]
    joined = [answer for part in answers for answer in part]
    outcomes = form.outcomes(joined, _stacked(own), _joined(truths), competition.unknown)
    cells: dict[str, str] = {}
    if final.test:
        test = _test_identities(final, blend, datasets[protocol.test_rows])
        cells = dict(zip(test.images.tolist(), form.answer(test, fitted.full, competition.unknown), strict=True))
    return FormAnswer(form.evaluate(outcomes, seed), outcomes, not protocol.crossfitted, fitted.full, cells)


def datasets_of(images: pd.DataFrame, competition: Competition) -> np.ndarray:
    """Data set or species of every image, str (n,); '' where the competition names no column."""
    column = competition.species_column
    if column is None:
        return np.full(len(images), "", dtype=object)
    return images[column].fillna("").to_numpy(dtype=object)


def truths_of(protocol: Protocol, images: pd.DataFrame) -> list[Truth]:
    """True identities of each fold's queries; an image of the unknown label is an individual of its own."""
    named, alone = (images[column].to_numpy(dtype=object) for column in ("identity", "image"))
    identity = np.where(named == protocol.unknown, alone, named).astype(str)
    ends = np.cumsum([len(part.rows) for part in protocol.parts])[:-1]
    weights = np.split(protocol.weights(protocol.places), ends)
    pairs = zip(protocol.parts, weights, strict=True)
    return [Truth(identity[part.rows], part.truth >= 0, weight) for part, weight in pairs]


# ------------------------------------------------------------------------------------------------------- tables


def _ranked(lists: Candidates, blend: Candidates, datasets: np.ndarray) -> RankedIdentities:
    """The identities of `lists` with the blend's probabilities, place by place."""
    width = min(lists.codes.shape[1], blend.codes.shape[1])
    codes, scores = lists.codes[:, :width], blend.scores[:, :width]
    listed = (codes >= 0) & np.isfinite(scores)
    names = np.append(lists.classes.astype(str), "")
    identities = names[np.where(listed, codes, len(lists.classes))]
    return RankedIdentities(lists.queries, identities, np.where(listed, scores, 0.0).astype(np.float64), datasets)


def _test_identities(final: Ranking, blend: Ranking, datasets: np.ndarray) -> RankedIdentities:
    """The test images' identities by the averaged lists, their best probabilities on the scale of one model's.

    The best of averaged scores is lower than the average of best scores, and thresholds are fitted on one model's. So
    the images keep their order by averaged scores, and have the best probabilities of the models' own lists; in each
    data set, since each has its threshold.
    """
    keep = final.test[0].codes.shape[1]
    ranked = _ranked(average(final.test, keep), average(blend.test, keep), datasets)
    single = np.stack([lists.scores[:, 0] for lists in blend.test])
    probabilities = ranked.probabilities.copy()
    for name in set(datasets):
        rows = datasets == name
        probabilities[rows, 0] = on_scale_of(ranked.confidence[rows], single[:, rows])
    return RankedIdentities(ranked.images, ranked.identities, probabilities, datasets)


def on_scale_of(values: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Values in their order, distributed like those of the single models.

    Parameters
    ----------
    values : float array, shape (n,)
    single : float array, shape (models, n)

    Returns
    -------
    float64 array, shape (n,)
        The i-th smallest is the mean of the models' i-th smallest; equal values stay equal.
    """
    levels, code, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean = np.sort(np.where(np.isfinite(single), single, 0.0), axis=1).mean(axis=0)
    return (np.bincount(np.repeat(np.arange(len(levels)), counts), mean) / counts)[code]


def _stacked(parts: list[RankedIdentities]) -> RankedIdentities:
    names = ("images", "identities", "probabilities", "datasets")
    return RankedIdentities(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _joined(truths: list[Truth]) -> Truth:
    return Truth(*(np.concatenate([getattr(one, name) for one in truths]) for name in ("identity", "known", "weights")))
