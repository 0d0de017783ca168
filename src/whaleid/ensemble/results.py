"""What the ladder found: its rungs, the gain of each over the best single network, and the files it
leaves.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whaleid.ensemble.blend import Blend
from whaleid.ensemble.gains import Gain, paired_gain
from whaleid.ensemble.protocol import Protocol
from whaleid.ensemble.stack import Stacked
from whaleid.ensemble.stack_models import STACK_FOLDER, write_stack_models
from whaleid.ensemble.unknown import ShareMap
from whaleid.ensemble.worth import BlendWorth
from whaleid.evaluation.metrics import MapScore, reciprocal_rank_at_k
from whaleid.retrieval.candidates import Candidates, write_candidates
from whaleid.utils.files import write_json

SINGLE = ("knn", "logits", "siamese")
"""Kinds of ranking that one network gives by itself."""
AVERAGED = -1
"""Number of the fold in test.parquet: the scores are averaged over the folds."""


@dataclass(frozen=True)
class UnknownSummary:
    """The score of `unknown` in one rung, and how often it stands first.

    tuned: on all folds, for the scores of one fold's model. matched: the same for scores averaged over the
    folds. by_share: puts the expected share of the test images first (None where no share is expected).
    used: for the test set, matched or by_share.
    by_fold: fold -> tuned on the other folds. oof_first (weighted), test_first: share of queries whose first
    guess is unknown. oof_median, test_median: of the queries' best scores.
    """

    used: float
    tuned: float
    matched: float
    by_share: float | None
    by_fold: dict[int, float | None]
    oof_first: float
    test_first: float | None
    oof_median: float
    test_median: float | None


@dataclass(frozen=True)
class Rung:
    """One way of answering.

    score: out of fold, cross-fitted. rank: int32 (n,), rank of the truth for every query out of fold.
    optimistic: something was chosen by looking at the fold itself. gain: over the best single network (None for that
    one). below: over the rung before this one (joint rungs only). weight: in the final blend, None where it is no
    member; weights: fold -> in that fold's blend. setting: of a re-ranking method, chosen on all folds; settings:
    fold -> chosen on the others. oof: candidates with `unknown` placed, one a fold. test: the same for the test
    images, None where there are none.
    """

    name: str
    kind: str
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

    def test_guesses(self, k: int) -> np.ndarray:
        """Labels str (n_test, k), best first; "" where there are fewer candidates than k."""
        return np.empty((0, k), dtype=str) if self.test is None else labels(self.test, k)


@dataclass(frozen=True)
class LadderResult:
    """Rungs from the ground up; the last is the answer.

    best_single: name of the single network with the largest out-of-fold score: every gain is over this one.
    unanswerable: queries that weigh nothing (no unknown label, and no other image of their identity).
    test_images: str (n_test,), in the order of the guesses. stacked: what the learned order found, where there is one.
    shares: what the final rung would score if other shares of the queries were unknown.
    full: sources whose models of all labelled images answer the test set beside the folds'. worth: what each member is
    worth to the blend; None where it was not asked for.
    """

    rungs: tuple[Rung, ...]
    best_single: str
    queries: int
    unanswerable: int
    k: int
    test_images: np.ndarray
    stacked: Stacked | None = None
    shares: tuple[ShareMap, ...] = ()
    full: tuple[str, ...] = ()
    worth: BlendWorth | None = None

    @property
    def final(self) -> Rung:
        return self.rungs[-1]

    @property
    def test_guesses(self) -> np.ndarray:
        """Labels str (n_test, k) of the final rung, `unknown` among them; "" where there are fewer than k."""
        return self.final.test_guesses(self.k)

    def rung(self, name: str) -> Rung:
        return next(rung for rung in self.rungs if rung.name == name)

    def as_json(self) -> dict[str, Any]:
        """Every figure as plain types."""
        return {
            "k": self.k,
            "queries": self.queries,
            "unanswerable": self.unanswerable,
            "best_single": self.best_single,
            "final": self.final.name,
            "rungs": [_rung_json(rung) for rung in self.rungs],
            "stack": None if self.stacked is None else _stack_json(self.stacked),
            "shares": [asdict(point) for point in self.shares],
            "full": list(self.full),
            "worth": None if self.worth is None else self.worth.as_json(),
        }


def labels(candidates: Candidates, k: int) -> np.ndarray:
    """The first k candidates by name: str (n, k), "" where there is none."""
    codes = candidates.codes[:, :k]
    codes = np.pad(codes, ((0, 0), (0, k - codes.shape[1])), constant_values=-1)
    return np.append(candidates.classes.astype(str), "")[codes]


def compare(
    rungs: list[Rung],
    final: Blend,
    by_fold: dict[int, Blend],
    protocol: Protocol,
    seed: int,
    stacked: Stacked | None = None,
    shares: tuple[ShareMap, ...] = (),
) -> LadderResult:
    """The rungs with their gain over the best single network and over the rung below, and their weight in the blend."""
    weights = protocol.weights(list(range(len(protocol.parts))))
    best = max((rung for rung in rungs if rung.kind in SINGLE), key=lambda rung: rung.score.map)
    base = reciprocal_rank_at_k(best.rank, protocol.k)
    finished = []
    for rung in rungs:
        gain = None
        if rung is not best:
            gain = paired_gain(reciprocal_rank_at_k(rung.rank, protocol.k) - base, weights, seed)
        below = None
        if rung.kind not in SINGLE and finished:
            step = reciprocal_rank_at_k(rung.rank, protocol.k) - reciprocal_rank_at_k(finished[-1].rank, protocol.k)
            below = paired_gain(step, weights, seed)
        finished.append(replace(rung, gain=gain, below=below, **_weights(rung.name, final, by_fold)))
    return LadderResult(
        rungs=tuple(finished),
        best_single=best.name,
        queries=len(weights),
        unanswerable=int((weights == 0).sum()) if protocol.unknown is None else 0,
        k=protocol.k,
        test_images=protocol.test_names,
        stacked=stacked,
        shares=shares,
    )


def write_result(result: LadderResult, protocol: Protocol, out: Path) -> None:
    """`oof.parquet` and `test.parquet` (candidates of every rung, `unknown` placed), `stack/` and `ladder.json`.

    test.parquet is left out where there are no test images, stack/ where nothing is stacked; ladder.json comes last.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_candidates(out / "oof.parquet", _oof_blocks(result, protocol))
    (out / "test.parquet").unlink(missing_ok=True)
    if len(result.test_images):
        tests = ((rung.name, AVERAGED, rung.test) for rung in result.rungs if rung.test is not None)
        write_candidates(out / "test.parquet", tests)
    shutil.rmtree(out / STACK_FOLDER, ignore_errors=True)
    if result.stacked is not None:
        write_stack_models(result.stacked.orders, out / STACK_FOLDER)
    write_json(out / "ladder.json", result.as_json())


def _oof_blocks(result: LadderResult, protocol: Protocol) -> Iterator[tuple[str, int, Candidates]]:
    for rung in result.rungs:
        for part, lists in zip(protocol.parts, rung.oof, strict=True):
            yield rung.name, part.fold, lists


def _weights(name: str, final: Blend, by_fold: dict[int, Blend]) -> dict[str, Any]:
    """Weight in the final blend and in each fold's, of those blends that considered it."""

    def of(blend: Blend) -> float | None:
        return dict(zip(blend.names, blend.weights, strict=True)).get(name)

    weights = {fold: weight for fold, blend in by_fold.items() if (weight := of(blend)) is not None}
    return {"weight": of(final), "weights": weights or None}


def _rung_json(rung: Rung) -> dict[str, Any]:
    return {
        "name": rung.name,
        "kind": rung.kind,
        **rung.score.as_json(),
        "gain": None if rung.gain is None else asdict(rung.gain),
        "below": None if rung.below is None else asdict(rung.below),
        "optimistic": rung.optimistic,
        "weight": rung.weight,
        "weights": rung.weights,
        "dropped": rung.weight == 0.0,
        "setting": rung.setting,
        "settings": rung.settings,
        "unknown": None if rung.thresholds is None else asdict(rung.thresholds),
    }


def note_lines(ladder: dict[str, Any]) -> list[str]:
    """Settings of re-ranking and trees of the stack: for the test set and, where they differ, for each fold."""
    parts = []
    for rung in ladder["rungs"]:
        if rung.get("setting") is not None:
            parts.append(f"{rung['name']} {_with_folds(rung['setting'], rung['settings'])}")
    if ladder.get("stack") is not None:
        *folds, final = ladder["stack"]["rounds"]
        parts.append(f"trees {_with_folds(final, dict(enumerate(folds)))}")
    return [f"chosen out of fold: {'; '.join(parts)}"] if parts else []


def _with_folds(final: object, folds: dict[Any, Any]) -> str:
    return str(final) + ("" if set(folds.values()) <= {final} else f" (by fold: {', '.join(map(str, folds.values()))})")


def _stack_json(stacked: Stacked) -> dict[str, Any]:
    return {"rounds": list(stacked.rounds), "rows": stacked.rows, "importance": stacked.importance}
