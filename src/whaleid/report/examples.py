"""Queries worth looking at: confident right and wrong guesses, and known individuals that were called unknown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.ensemble.protocol import FoldPart, Protocol
from whaleid.features.files import read_features
from whaleid.report.inputs import TopGuesses

COUNT = 8


@dataclass(frozen=True)
class Guess:
    """One guessed identity. row: row in images.parquet of the image that stands for it; None for unknown."""

    identity: str
    score: float
    right: bool
    row: int | None = None


@dataclass(frozen=True)
class Example:
    """A query and its first guesses. row: its row in images.parquet. truth: the label that would have been right."""

    row: int
    fold: int
    truth: str
    guesses: tuple[Guess, ...]

    @property
    def rows(self) -> set[int]:
        """Rows in images.parquet of the query and of its guesses' images."""
        return {self.row} | {guess.row for guess in self.guesses if guess.row is not None}


def choose_examples(top: TopGuesses, unknown: str | None, count: int = COUNT) -> dict[str, list[Example]]:
    """Choose at most `count` queries of each kind, the most confident first.

    Returns
    -------
    dict
        `right`, `wrong`: an identity was guessed with a high score; `missed`: a known individual was called unknown,
        and its best score is far below the threshold.
    """
    first = top.guesses[:, 0]
    called_unknown = first == unknown if unknown is not None else np.zeros(len(first), dtype=bool)
    named = (first != "") & ~called_unknown
    right = first == top.truth
    answerable = top.known if unknown is None else np.ones(len(first), dtype=bool)
    margin = np.nan_to_num(top.scores[:, 0] - top.best, nan=-np.inf)
    chosen = {
        "right": _highest(named & right, top.best, count),
        "wrong": _highest(named & ~right & answerable, top.best, count),
        "missed": _highest(called_unknown & top.known, margin, count),
    }
    return {kind: [example_of(top, int(query)) for query in queries] for kind, queries in chosen.items()}


def add_gallery_images(
    examples: list[Example], protocol: Protocol, images: pd.DataFrame, folders: dict[int, Path]
) -> list[Example]:
    """Give each guessed identity its gallery image that is nearest to the query.

    folders: fold -> folder of the features to compare with; {} takes the identity's first image instead.
    """
    galleries = {part.fold: gallery_rows(part, protocol.classes) for part in protocol.parts}
    embeddings: dict[int, dict[int, np.ndarray]] = {}
    for fold, folder in folders.items():
        queries = [example for example in examples if example.fold == fold]
        if queries:
            embeddings[fold] = _read_embeddings(queries, galleries[fold], images, folder)
    return [_with_images(example, galleries[example.fold], embeddings.get(example.fold)) for example in examples]


def gallery_rows(part: FoldPart, classes: np.ndarray) -> dict[str, np.ndarray]:
    """Identity -> rows int64 of its gallery images."""
    order = np.argsort(part.gallery_codes, kind="stable")
    codes, starts = np.unique(part.gallery_codes[order], return_index=True)
    return dict(zip(classes[codes].tolist(), np.split(part.gallery[order], starts[1:]), strict=True))


def _highest(mask: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    queries = np.flatnonzero(mask & ~np.isnan(values))
    return queries[np.argsort(-values[queries], kind="stable")[:count]]


def example_of(top: TopGuesses, query: int) -> Example:
    truth = str(top.truth[query])
    listed = zip(top.guesses[query].tolist(), top.scores[query].tolist(), strict=True)
    guesses = tuple(Guess(identity, score, identity == truth) for identity, score in listed if identity)
    return Example(int(top.rows[query]), int(top.folds[query]), truth, guesses)


def _read_embeddings(
    examples: list[Example], gallery: dict[str, np.ndarray], images: pd.DataFrame, folder: Path
) -> dict[int, np.ndarray]:
    """Unit embeddings by row, of one fold's queries and of every image of the identities guessed for them."""
    wanted = [np.array([example.row]) for example in examples]
    wanted += [gallery[guess.identity] for item in examples for guess in item.guesses if guess.identity in gallery]
    rows = np.unique(np.concatenate(wanted))
    return dict(zip(rows.tolist(), read_features(folder, images, rows, logits=False).embeddings, strict=True))


def _with_images(example: Example, gallery: dict[str, np.ndarray], embeddings: dict[int, np.ndarray] | None) -> Example:
    guesses = []
    for guess in example.guesses:
        rows = gallery.get(guess.identity, np.empty(0, int)).tolist()
        if rows and embeddings is not None:
            query = embeddings[example.row]
            rows.sort(key=lambda row: float(embeddings[row] @ query), reverse=True)
        guesses.append(replace(guess, row=rows[0] if rows else None))
    return replace(example, guesses=tuple(guesses))
