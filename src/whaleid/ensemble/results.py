"""The ladder's results: each ranking scored out of fold, the gains between them, and the files that hold them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whaleid.ensemble.answers import FormAnswer
from whaleid.ensemble.blend import Blend
from whaleid.ensemble.burst_risk import BurstRisk
from whaleid.ensemble.cross_fitting import CrossFitted
from whaleid.ensemble.full_gallery import FullGallery, GallerySizes
from whaleid.ensemble.intervals import Gain
from whaleid.ensemble.protocol import Protocol, UnknownShare
from whaleid.ensemble.rankings import Ranking
from whaleid.ensemble.stack import Stack, importance
from whaleid.ensemble.stack_models import STACK_FOLDER, write_stack_models
from whaleid.ensemble.unknown import ShareMap
from whaleid.evaluation.metrics import MapScore, SliceScore
from whaleid.evaluation.submission_file import ANSWER, DOUBTS, OUTCOMES, write_answer_file
from whaleid.retrieval.candidates import Candidates, write_candidates
from whaleid.utils.files import atomic_path, write_json

AVERAGED = -1
"""Number of the fold in test.parquet: the scores are averaged over the folds."""


@dataclass(frozen=True)
class SpeciesThreshold:
    """Threshold of one species: for its test images, and for each fold."""

    used: float
    by_fold: dict[int, float | None]


@dataclass(frozen=True)
class UnknownSummary:
    """The score of the unknown identity in one rung, and how often it is the first guess.

    Attributes
    ----------
    used : float
        Threshold for the test set, whose scores are averaged over the folds.
    tuned : float
        Fitted on all folds, for the scores of one fold's model.
    by_fold : dict of int to float or None
        Fold to the threshold fitted on the other folds.
    oof_first : float
        Weighted share of the queries out of fold whose first guess is unknown.
    test_first : float or None
        The same of the test images.
    oof_median, test_median : float
        Median of the queries' best scores.
    species : dict of str to SpeciesThreshold
        Those of each species; empty where nothing divides the images.
    """

    used: float
    tuned: float
    by_fold: dict[int, float | None]
    oof_first: float
    test_first: float | None
    oof_median: float
    test_median: float | None
    species: dict[str, SpeciesThreshold] = field(default_factory=dict)


@dataclass(frozen=True)
class Rung:
    """One ranking and its score.

    Attributes
    ----------
    name, kind : str
        As of the ranking.
    source : str or None
        The source, where one network alone gives the ranking.
    score : MapScore
        Out of fold, cross-fitted.
    rank : int32 array, shape (n,)
        Rank of the truth for every query out of fold, 0 where it is not among the first k.
    optimistic : bool
        Whether something was chosen by looking at the fold itself.
    thresholds : UnknownSummary or None
        None where there is no unknown label.
    oof : tuple of Candidates
        One a fold, the unknown identity placed.
    test : Candidates or None
        The same of the test images.
    gain : Gain or None
        Over the best single network; None for that one.
    below : Gain or None
        Over the rung before this one; None for single networks.
    weight : float or None
        In the final blend; None where it is no member.
    weights : dict of int to float, or None
        Fold to the weight in that fold's blend.
    setting : str or None
        Of a re-ranking method, chosen on all folds.
    settings : dict of int to str, or None
        Fold to the setting chosen on the other folds.
    full_gallery : FullGallery or None
        Its score with every labelled image in the gallery, estimated; None where that is not known, or changes nothing.
    species : dict of str to SliceScore
        MAP@k of the queries of each species; empty where nothing divides the images.
    """

    name: str
    kind: str
    source: str | None
    score: MapScore
    rank: np.ndarray
    optimistic: bool
    thresholds: UnknownSummary | None
    oof: tuple[Candidates, ...]
    test: Candidates | None
    gain: Gain | None = None
    below: Gain | None = None
    weight: float | None = None
    weights: dict[int, float] | None = None
    setting: str | None = None
    settings: dict[int, str] | None = None
    full_gallery: FullGallery | None = None
    species: dict[str, SliceScore] = field(default_factory=dict)

    def test_guesses(self, k: int) -> np.ndarray:
        """Labels str (n_test, k), best first; "" where there are fewer candidates than k."""
        return np.empty((0, k), dtype=str) if self.test is None else labels(self.test, k)

    def as_json(self) -> dict[str, Any]:
        """Every figure as plain types."""
        return {
            "name": self.name,
            "kind": self.kind,
            "source": self.source,
            **self.score.as_json(),
            "gain": None if self.gain is None else asdict(self.gain),
            "below": None if self.below is None else asdict(self.below),
            "optimistic": self.optimistic,
            "weight": self.weight,
            "weights": self.weights,
            "dropped": self.weight == 0.0,
            "setting": self.setting,
            "settings": self.settings,
            "full_gallery": None if self.full_gallery is None else asdict(self.full_gallery),
            "unknown": None if self.thresholds is None else _without_empty(asdict(self.thresholds)),
            **_without_empty({"species": {name: asdict(one) for name, one in self.species.items()}}),
        }


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """The values without `species` where nothing divides the images."""
    return {name: value for name, value in values.items() if name != "species" or value}


@dataclass(frozen=True)
class MemberWorth:
    """What a member is worth to the blend.

    Attributes
    ----------
    name : str
    map : float
        MAP@k of the member alone.
    gain : Gain or None
        Of the blend over the same blend fitted without it; None where there is no other member.
    dropped : bool
        Whether it has weight 0 in the final blend.
    """

    name: str
    map: float
    gain: Gain | None
    dropped: bool


@dataclass(frozen=True)
class BlendWorth:
    """What the blend is worth over its best member, and each member to the blend.

    The best member is the one whose reported score is the largest, which is a little lucky: the gain over it is rather
    too small than too large.
    """

    map: float
    best: str
    gain: Gain
    members: tuple[MemberWorth, ...]


@dataclass(frozen=True)
class LadderResult:
    """All rungs; the last gives the submission.

    Attributes
    ----------
    rungs : tuple of Rung
    best_single : str
        Name of the single network's rung with the largest score out of fold: every gain is over this one.
    queries, unanswerable : int
        Queries out of fold, and those of weight 0 (no unknown label, and no other image of their identity).
    simulated : int
        Simulated unknown queries beside them (`simulation.py`).
    share : UnknownShare or None
        Expected share of unknown queries; None where there is no unknown label.
    k : int
        Number of guesses that count.
    test_images : str array, shape (n_test,)
        In the order of the guesses.
    stacks : CrossFitted of Stack, or None
        Where the recipe has a stack.
    shares : tuple of ShareMap
        What the final rung would score if other shares of the queries were unknown.
    full : tuple of str
        Sources whose full-data models rank the test set too.
    worth : BlendWorth or None
        None where it was not computed.
    final_ranking, blend_ranking : Ranking or None
        What the last rung and the blend's were made from.
    answer : FormAnswer or None
        The answer in the competition's form, where that is not made of the last rung's guesses.
    gallery : GallerySizes or None
        Images of a query's identity in the galleries, where scores with the full gallery were estimated.
    bursts : BurstRisk or None
        How far the score may flatter for bursts; None where there are none, or nobody looked.
    """

    rungs: tuple[Rung, ...]
    best_single: str
    queries: int
    unanswerable: int
    k: int
    test_images: np.ndarray
    simulated: int = 0
    share: UnknownShare | None = None
    stacks: CrossFitted[Stack] | None = None
    shares: tuple[ShareMap, ...] = ()
    full: tuple[str, ...] = ()
    worth: BlendWorth | None = None
    final_ranking: Ranking | None = None
    blend_ranking: Ranking | None = None
    answer: FormAnswer | None = None
    gallery: GallerySizes | None = None
    bursts: BurstRisk | None = None

    @property
    def final(self) -> Rung:
        return self.rungs[-1]

    @property
    def test_guesses(self) -> np.ndarray:
        """Labels str (n_test, k) of the final rung, unknown among them; "" where there are fewer than k."""
        return self.final.test_guesses(self.k)

    def rung(self, name: str) -> Rung:
        return next(rung for rung in self.rungs if rung.name == name)

    def as_json(self) -> dict[str, Any]:
        """Every figure as plain types."""
        return {
            "k": self.k,
            "queries": self.queries,
            "unanswerable": self.unanswerable,
            "simulated": self.simulated,
            "share": None if self.share is None else asdict(self.share) | {"weight": self.share.weight},
            "best_single": self.best_single,
            "final": self.final.name,
            "rungs": [rung.as_json() for rung in self.rungs],
            "stack": None if self.stacks is None else _stack_json(self.stacks),
            "shares": [asdict(point) for point in self.shares],
            "full": list(self.full),
            "worth": None if self.worth is None else asdict(self.worth),
            "answer": None if self.answer is None else self.answer.as_json(),
            "gallery": None if self.gallery is None else asdict(self.gallery),
            "bursts": None if self.bursts is None else asdict(self.bursts),
        }


def labels(candidates: Candidates, k: int) -> np.ndarray:
    """The first k candidates by name: str (n, k), "" where there is none."""
    codes = candidates.codes[:, :k]
    codes = np.pad(codes, ((0, 0), (0, k - codes.shape[1])), constant_values=-1)
    return np.append(candidates.classes.astype(str), "")[codes]


def blend_weights(
    name: str, blends: CrossFitted[Blend], protocol: Protocol
) -> tuple[float | None, dict[int, float] | None]:
    """Weight of a ranking in the final blend and in each fold's, of those blends in which it is a member."""

    def weight(blend: Blend) -> float | None:
        return dict(zip(blend.names, blend.weights, strict=True)).get(name)

    by_fold = {part.fold: weight(blend) for part, blend in zip(protocol.parts, blends.by_fold, strict=True)}
    return weight(blends.full), {fold: value for fold, value in by_fold.items() if value is not None} or None


def write_result(result: LadderResult, protocol: Protocol, out: Path) -> None:
    """Write `oof.parquet` and `test.parquet` (candidates of every rung), `answer.csv`, `outcomes.parquet` (what the
    answers' score out of fold was made of), `doubts.csv`, `stack/`, at last `ladder.json`.

    test.parquet is left out where there are no test images, stack/ where there is no stack, answer.csv and
    outcomes.parquet where the last rung's guesses are the answer, doubts.csv but for the form clusters.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_candidates(out / "oof.parquet", _oof_blocks(result, protocol))
    (out / "test.parquet").unlink(missing_ok=True)
    if len(result.test_images):
        tests = ((rung.name, AVERAGED, rung.test) for rung in result.rungs if rung.test is not None)
        write_candidates(out / "test.parquet", tests)
    for name in (ANSWER, OUTCOMES, DOUBTS):
        (out / name).unlink(missing_ok=True)
    if result.answer is not None:
        write_answer_file(out / ANSWER, result.answer.cells)
        with atomic_path(out / OUTCOMES) as temporary:
            result.answer.outcomes.to_parquet(temporary, index=False)
    if result.answer is not None and result.answer.doubts is not None:
        with atomic_path(out / DOUBTS) as temporary:
            result.answer.doubts.to_csv(temporary, index=False)
    shutil.rmtree(out / STACK_FOLDER, ignore_errors=True)
    if result.stacks is not None:
        write_stack_models(result.stacks.full.models, out / STACK_FOLDER)
    write_json(out / "ladder.json", result.as_json())


def _oof_blocks(result: LadderResult, protocol: Protocol) -> Iterator[tuple[str, int, Candidates]]:
    for rung in result.rungs:
        for part, lists in zip(protocol.parts, rung.oof, strict=True):
            yield rung.name, part.fold, lists


def _stack_json(stacks: CrossFitted[Stack]) -> dict[str, Any]:
    trees = [stack.models.trees for stack in (*stacks.by_fold, stacks.full)]
    return {"rounds": trees, "rows": stacks.full.rows, "importance": importance(stacks.full.models)}
