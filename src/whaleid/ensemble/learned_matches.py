"""Rankings by what matches are worth (`retrieval/evidence.py`), each fold's taught by the other folds alone.

Fold f's queries are weighed by a model that all other folds taught. What is learnt *for* fold f (weights of the blend,
thresholds, the stack) must not know f either: it reads lists of fold g by a model that neither f nor g taught. With n
folds that is n models, n (n - 1) / 2 more for the pairs, and one of all folds for the test images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from whaleid.config import LearnedConfig
from whaleid.ensemble.protocol import NONE, Protocol
from whaleid.ensemble.rankings import Ranking, Taught
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.evidence import FORMS, Evidence, Lesson, evidence_candidates, learn, lesson_of
from whaleid.retrieval.keypoints import Described
from whaleid.retrieval.local import Nearest

FEWEST_FOLDS = 3
"""With two, nobody is left to teach what both had no part in."""
LEARNED = {"all": "local learned", "supported": "local supported", "image": "local image"}
"""Form of the evidence -> name of the ranking."""

_Lists = dict[str, Candidates]
_Without = frozenset[int]  # places of the folds that did not teach a model


@dataclass(frozen=True)
class Asked:
    """Queries against a gallery: a fold's, or the test images'. Rows are those of images.parquet.

    rows: int64 (q,). names: str (q,). gallery, gallery_codes: int64 (g,). truth: int64 (q,), -1 = unknown.
    nearest: neighbours of the queries' descriptors among the gallery's.
    """

    rows: np.ndarray
    names: np.ndarray
    gallery: np.ndarray
    gallery_codes: np.ndarray
    truth: np.ndarray
    nearest: Nearest


def learned_rankings(
    described: Described,
    frames: np.ndarray,
    folds: list[Asked],
    test: Asked | None,
    protocol: Protocol,
    config: LearnedConfig,
    keep: int,
) -> Iterator[Ranking | None]:
    """The rankings by evidence, one for every form of it.

    frames: float (n, 2), width and height of every picture as described. folds: in the protocol's order, at least
    `FEWEST_FOLDS`. Yields None after each fold and after the test set, then the rankings.
    """
    models = _models(described, frames, folds, protocol, config)

    def ranked(asked: Asked, without: list[_Without]) -> dict[_Without, _Lists]:
        found = evidence_candidates(
            described,
            frames,
            asked.rows,
            _codes(described, asked),
            len(protocol.classes),
            asked.nearest,
            [models[one] for one in without],
            config,
            keep,
            os.cpu_count() or 1,
        )
        lists = [{form: Candidates(asked.names, protocol.classes, *one[form]) for form in FORMS} for one in found]
        return dict(zip(without, lists, strict=True))

    places = range(len(folds))
    oof: list[dict[_Without, _Lists]] = []
    for place in places:
        oof.append(ranked(folds[place], [frozenset({place, other}) for other in places]))
        yield None
    answer = None if test is None else ranked(test, [frozenset()])[frozenset()]
    yield None
    for form in FORMS:
        own = tuple(oof[place][frozenset({place})][form] for place in places)
        without = tuple(tuple(oof[other][frozenset({place, other})][form] for other in places) for place in places)
        tests = () if answer is None else (answer[form],) * len(protocol.answering)
        yield Ranking(LEARNED[form], "local", own, tests, False, taught_lists=Taught(without, own))


def _models(
    described: Described, frames: np.ndarray, folds: list[Asked], protocol: Protocol, config: LearnedConfig
) -> dict[_Without, Evidence | None]:
    """The models by the folds that had no part in them: none, each one, each pair."""
    places = range(len(folds))
    wanted = {frozenset()} | {frozenset({one, other}) for one in places for other in places}

    def lesson(asked: Asked) -> Lesson:
        codes = _codes(described, asked)
        return lesson_of(described, frames, asked.rows, asked.truth, codes, asked.nearest, config)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        lessons = list(pool.map(lesson, folds))
        order = sorted(wanted, key=sorted)
        taught = pool.map(
            lambda without: learn([lessons[place] for place in places if place not in without], config), order
        )
        return dict(zip(order, taught, strict=True))


def _codes(described: Described, asked: Asked) -> np.ndarray:
    """Identity of every image, -1 where it is not in the gallery, int64 (n,)."""
    codes = np.full(len(described.offsets) - 1, NONE, dtype=np.int64)
    codes[asked.gallery] = asked.gallery_codes
    return codes
