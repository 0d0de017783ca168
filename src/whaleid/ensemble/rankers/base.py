"""The interface of rankers, and what they rank with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from whaleid.config import CombineConfig
from whaleid.ensemble.concat import concatenate, fit_whitening, whiten
from whaleid.ensemble.cross_fitting import OofLists
from whaleid.ensemble.protocol import FoldPart, Protocol, QuerySet
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.features.files import open_embeddings
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.identities import PADDING
from whaleid.utils.files import load_array

if TYPE_CHECKING:
    from whaleid.ensemble.rankers.local import LocalInputs
    from whaleid.ensemble.stack_models import StackModels

Level = Literal["source", "joint", "local", "second"]

Lists = tuple[np.ndarray, np.ndarray]
"""Codes int64 (q, keep), -1 padded, and scores float32 (q, keep), descending, -inf padded."""


@dataclass(frozen=True)
class Without:
    """A row of the ablation: the recipe without a ranker, or without a part of it.

    Attributes
    ----------
    name : str
        What the row is called.
    config : CombineConfig
        The recipe's `combine` without it.
    kinds : tuple of str
        Kinds of ranking that are left out.
    redo : bool
        Whether the rankings of all sources together must be made again.
    """

    name: str
    config: CombineConfig
    kinds: tuple[str, ...] = ()
    redo: bool = False


class Ranker(ABC):
    """What gives candidates: the interface of every ranker.

    Attributes
    ----------
    kind : str
        Unique name, the `kind` of its rungs in ladder.json.
    level : {"source", "joint", "local", "second"}
        What it ranks with: one source (called once for each), all sources together, keypoints, or the rankings of the
        rankers before it. The level says when it is called, and which fields of the context are set.
    blend : {"member", "best"} or None
        Whether its rankings take part in the blend: all, the best `combine.logits` of them, or none.
    reads_gallery : bool
        Whether an identity's score depends on how many images the gallery has of it.
    """

    kind: str
    level: Level
    blend: Literal["member", "best"] | None = None
    reads_gallery: bool = True

    def is_on(self, config: CombineConfig) -> bool:
        """Whether the recipe asks for it."""
        return True

    @abstractmethod
    def rank(self, context: RankerContext) -> list[Ranking]:
        """Its rankings; empty where the sources do not have what it needs."""

    def ablations(self, config: CombineConfig) -> Iterator[Without]:
        """Its rows of the ablation; called where it is on."""
        return iter(())


class JointFeatures:
    """Features of all sources side by side, whitened on each fold's training part, one file a part.

    They stay on disk for as long as the rankers of all sources need them: 33,000 images of 2,048 dimensions are 270 MB
    for every fold.
    """

    def __init__(
        self, sources: list[Source], images: pd.DataFrame, protocol: Protocol, config: CombineConfig, seed: int
    ) -> None:
        full = any(source.full is not None for source in sources)
        self.parts: tuple[FoldPart, ...] = protocol.test_parts if full else protocol.parts
        self._sources, self._images, self._config, self._seed = sources, images, config, seed
        self._folder = TemporaryDirectory(prefix="whaleid-")
        self._paths: dict[int, Path] = {}

    def __getitem__(self, part: FoldPart) -> np.ndarray:
        """float32 (n, d), unit rows, of all images by the models of a part; memory-mapped."""
        if part.fold not in self._paths:
            path = Path(self._folder.name) / f"{len(self._paths)}.npy"
            np.save(path, self._whitened(part))
            self._paths[part.fold] = path
        return load_array(self._paths[part.fold])

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def _whitened(self, part: FoldPart) -> np.ndarray:
        config = self._config.concat
        weights = [config.weights.get(source.name, 1.0) for source in self._sources]
        tables = [open_embeddings(source.folder(part.fold), self._images) for source in self._sources]
        joined = concatenate(tables, weights)
        return whiten(joined, fit_whitening(joined, part.training, config, self._seed))


@dataclass(frozen=True)
class RankerContext:
    """What a ranker ranks with.

    Attributes
    ----------
    protocol : Protocol
    config : CombineConfig
    seed : int
    rankings : tuple of Ranking
        Those of the rankers before it.
    images : DataFrame
        images.parquet (not set for level "second").
    source : Source or None
        For level "source".
    joint : JointFeatures or None
        For level "joint".
    local : LocalInputs or None
        For level "local".
    descriptors : Path or None
        Folder of the keypoints' descriptors.
    weights_folder : Path or None
        Folder of the weights of networks that match keypoints; None: WEIGHTS_DIR.
    settings : dict of str to str, or None
        Re-ranking method to setting, where these were chosen before.
    stack_models : StackModels or None
        What ranks the test set where it was trained on another machine.
    report : callable
        Called with a short text where a long piece of work is done.
    """

    protocol: Protocol
    config: CombineConfig
    seed: int = 0
    rankings: tuple[Ranking, ...] = ()
    images: pd.DataFrame = field(default_factory=pd.DataFrame)
    source: Source | None = None
    joint: JointFeatures | None = None
    local: LocalInputs | None = None
    descriptors: Path | None = None
    weights_folder: Path | None = None
    settings: dict[str, str] | None = None
    stack_models: StackModels | None = None
    report: Callable[[str], None] = lambda note: None

    @property
    def keep(self) -> int:
        """Candidates kept for each query; one more where its identity may be taken out (`simulation.py`)."""
        return max(self.config.candidates, self.protocol.k) + (self.protocol.unknown is not None)

    @property
    def parts(self) -> tuple[FoldPart, ...]:
        """The parts that the source, or all sources together, have models of."""
        if self.joint is not None:
            return self.joint.parts
        full = self.source is not None and self.source.full is not None
        return self.protocol.test_parts if full else self.protocol.parts

    def added(self, rankings: list[Ranking]) -> RankerContext:
        """The context with further rankings."""
        return replace(self, rankings=(*self.rankings, *rankings))

    def of_kind(self, kind: str) -> list[Ranking]:
        """The rankings of one kind."""
        return [ranking for ranking in self.rankings if ranking.kind == kind]


def rank_parts(
    context: RankerContext, model: Callable[[FoldPart], Callable[[QuerySet], Lists]]
) -> tuple[OofLists, tuple[Candidates, ...]]:
    """Rank each fold's queries and the test images by the models of every part.

    Parameters
    ----------
    context : RankerContext
    model : callable (part) -> (callable (query_set) -> (codes, scores))
        Reads or trains what a part ranks with, and gives what ranks a query set with it.

    Returns
    -------
    lists : OofLists
    test : tuple of Candidates
        One a part; empty where there are no test images.
    """
    oof: list[Candidates] = []
    test: list[Candidates] = []
    for part in context.parts:
        rank = model(part)
        for query_set, lists in zip(context.protocol.queries(part), (oof, test), strict=True):
            if query_set is not None:
                found = rank_apart(context, query_set, rank)
                lists.append(Candidates(query_set.names, context.protocol.classes, *found))
    return OofLists.same(tuple(oof)), tuple(test)


def rank_apart(context: RankerContext, queries: QuerySet, rank: Callable[[QuerySet], Lists]) -> Lists:
    """Lists of the queries, each ranked with the part of the gallery that it may be compared with alone."""
    lists = no_lists(len(queries.rows), context.keep)
    for places, piece in context.protocol.pieces(queries):
        if len(piece.gallery):
            put_lists(lists, places, rank(piece))
    return lists


def no_lists(queries: int, keep: int) -> Lists:
    """Lists without a candidate."""
    return np.full((queries, keep), PADDING, np.int64), np.full((queries, keep), -np.inf, np.float32)


def put_lists(lists: Lists, places: np.ndarray, found: Lists) -> None:
    """Put lists, which may be narrower, in their places."""
    for table, values in zip(lists, found, strict=True):
        table[places, : values.shape[1]] = values
