"""Queries worth looking at: the surest right guesses, the surest wrong ones, known individuals called unknown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.ensemble.protocol import FoldPart, Protocol
from whaleid.features.files import read_features
from whaleid.report.material import Answers

COUNT = 8
Embeddings = dict[int, np.ndarray]
"""Row of images.parquet -> unit embedding float32 (d,)."""


@dataclass(frozen=True)
class Guess:
    """One guessed identity. row: of images.parquet, the picture to show for it; None for unknown."""

    identity: str
    score: float
    right: bool
    row: int | None = None


@dataclass(frozen=True)
class Example:
    """A query and its first guesses. row: of images.parquet. truth: the label that would have been right."""

    row: int
    fold: int
    truth: str
    guesses: tuple[Guess, ...]


def choose(answers: Answers, unknown: str | None, count: int = COUNT) -> dict[str, list[Example]]:
    """`right`, `wrong` and `missed` (known, called unknown) examples, at most `count` of each, the surest first.

    Sure of an identity: its score is high. Sure of unknown: the best score is far under the threshold.
    """
    first = answers.guesses[:, 0]
    called = first == unknown if unknown is not None else np.zeros(len(first), dtype=bool)
    named = (first != "") & ~called
    right = first == answers.truth
    answerable = answers.known if unknown is None else np.ones(len(first), dtype=bool)
    margin = np.nan_to_num(answers.scores[:, 0] - answers.best, nan=-np.inf)
    picked = {
        "right": _highest(named & right, answers.best, count),
        "wrong": _highest(named & ~right & answerable, answers.best, count),
        "missed": _highest(called & answers.known, margin, count),
    }
    return {kind: [_example(answers, int(query)) for query in queries] for kind, queries in picked.items()}


def with_pictures(
    examples: list[Example], protocol: Protocol, images: pd.DataFrame, folders: dict[int, Path]
) -> list[Example]:
    """The examples, in their order, with a gallery image for every guessed identity: the nearest to the query.

    folders: fold -> features by which an image is near; {} to take the identity's first image instead.
    """
    galleries = {part.fold: gallery_of(part, protocol.classes) for part in protocol.parts}
    near: dict[int, Embeddings] = {}
    for fold, folder in folders.items():
        asked = [example for example in examples if example.fold == fold]
        if asked:
            near[fold] = _read_embeddings(asked, galleries[fold], images, folder)
    return [_with_pictures(example, galleries[example.fold], near.get(example.fold)) for example in examples]


def shown_rows(examples: Iterable[Example]) -> set[int]:
    """Rows of images.parquet of every picture in the examples."""
    rows = set()
    for example in examples:
        rows.add(example.row)
        rows |= {guess.row for guess in example.guesses if guess.row is not None}
    return rows


def _highest(mask: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    queries = np.flatnonzero(mask & ~np.isnan(values))
    return queries[np.argsort(-values[queries], kind="stable")[:count]]


def _example(answers: Answers, query: int) -> Example:
    truth = str(answers.truth[query])
    said = zip(answers.guesses[query].tolist(), answers.scores[query].tolist(), strict=True)
    guesses = tuple(Guess(identity, score, identity == truth) for identity, score in said if identity)
    return Example(int(answers.rows[query]), int(answers.folds[query]), truth, guesses)


def gallery_of(part: FoldPart, classes: np.ndarray) -> dict[str, np.ndarray]:
    """Identity -> rows int64 of its gallery images."""
    order = np.argsort(part.gallery_codes, kind="stable")
    codes, starts = np.unique(part.gallery_codes[order], return_index=True)
    return dict(zip(classes[codes].tolist(), np.split(part.gallery[order], starts[1:]), strict=True))


def _read_embeddings(
    examples: list[Example], gallery: dict[str, np.ndarray], images: pd.DataFrame, folder: Path
) -> Embeddings:
    """Unit embeddings by row, of the queries of one fold and of every image of the identities guessed for them."""
    wanted = [np.array([example.row]) for example in examples]
    wanted += [gallery[guess.identity] for item in examples for guess in item.guesses if guess.identity in gallery]
    rows = np.unique(np.concatenate(wanted))
    return dict(zip(rows.tolist(), read_features(folder, images, rows, logits=False).embeddings, strict=True))


def _with_pictures(example: Example, gallery: dict[str, np.ndarray], near: Embeddings | None) -> Example:
    guesses = []
    for guess in example.guesses:
        rows = gallery.get(guess.identity, np.empty(0, int)).tolist()
        if rows and near is not None:
            query = near[example.row]
            rows.sort(key=lambda row: float(near[row] @ query), reverse=True)
        guesses.append(replace(guess, row=rows[0] if rows else None))
    return replace(example, guesses=tuple(guesses))
