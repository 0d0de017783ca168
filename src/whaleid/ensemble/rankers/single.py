"""Rankers of one network: kNN on its embeddings, its class probabilities, and its siamese head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from whaleid.config import CombineConfig
from whaleid.ensemble.protocol import FoldPart, Protocol, QuerySet
from whaleid.ensemble.rankers.base import Lists, Ranker, RankerContext, Without, rank_parts
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.features.files import SomeRows, UnitTable, has_logits, open_embeddings, read_features, read_logits
from whaleid.retrieval.identities import nearest_identities
from whaleid.retrieval.mapped import LARGE, MappedGallery
from whaleid.retrieval.rescore import load_pairs, rescored_identities
from whaleid.utils.errors import WhaleidError

_CELLS = 1 << 25  # logits held as float32 at a time: 128 MB


class KnnRanker(Ranker):
    """Identities of the nearest gallery images."""

    kind, level = "knn", "source"

    def rank(self, context: RankerContext) -> list[Ranking]:
        source, dims = _source(context), set[int]()

        def model(part: FoldPart) -> Callable[[QuerySet], Lists]:
            embeddings = _open_embeddings(context, part)
            dims.add(embeddings.shape[1])
            return lambda query_set: rank_by_knn(context, embeddings, query_set)

        lists, test = rank_parts(context, model)
        if len(dims) > 1:
            raise WhaleidError(
                f"source '{source.name}': its folds differ: dimensions {sorted(dims)}; all must come from one "
                "experiment"
            )
        return [Ranking(source.name, self.kind, lists, test, False, source.name)]


class LogitsRanker(Ranker):
    """Class probabilities of the network itself, where it has logits.

    Only identities of the gallery are named: a foreign model may know more, and would name the true identity of
    queries that count as unknown out of fold.
    """

    kind, level, blend, reads_gallery = "logits", "source", "best", False

    def rank(self, context: RankerContext) -> list[Ranking]:
        source, protocol = _source(context), context.protocol
        found = [has_logits(source.folder(part.fold)) for part in context.parts]
        if not any(found):
            return []
        if not all(found):
            raise WhaleidError(
                f"source '{source.name}': its folds differ: {sum(found)} of {len(found)} have logits.npy; all must "
                "come from one experiment"
            )

        def model(part: FoldPart) -> Callable[[QuerySet], Lists]:
            folder = source.folder(part.fold)
            table = read_logits(folder, context.images)
            assert table is not None
            logits, classes = table
            codes = _class_codes(classes, protocol, folder)

            def rank(query_set: QuerySet) -> Lists:
                allowed = np.where(np.isin(codes, query_set.gallery_codes), codes, -1)
                return top_probabilities(logits, query_set.rows, allowed, context.keep)

            return rank

        lists, test = rank_parts(context, model)
        return [Ranking(f"{source.name} logits", self.kind, lists, test, True, source.name)]

    def ablations(self, config: CombineConfig) -> Iterator[Without]:
        if config.logits:
            yield Without("class probabilities", config.model_copy(update={"logits": 0}), (self.kind,))


class SiameseRanker(Ranker):
    """The nearest gallery images, scored again by the network's siamese head."""

    kind, level, blend = "siamese", "source", "member"

    def rank(self, context: RankerContext) -> list[Ranking]:
        source = _source(context)
        if not source.pairs:
            return []

        def model(part: FoldPart) -> Callable[[QuerySet], Lists]:
            embeddings, pairs = _embeddings(context, part), load_pairs(source.pairs[part.fold])

            def rank(query_set: QuerySet) -> Lists:
                queries, gallery, codes = _rows(embeddings, query_set)
                return rescored_identities(pairs, queries, gallery, codes, context.config.rescore, context.keep)

            return rank

        lists, test = rank_parts(context, model)
        return [Ranking(f"{source.name} siamese", self.kind, lists, test, False, source.name)]


def rank_by_knn(context: RankerContext, embeddings: np.ndarray | UnitTable, query_set: QuerySet) -> Lists:
    """Identities of the nearest gallery images. embeddings: unit rows (n, d) of all images, in memory or in a file."""
    if isinstance(embeddings, UnitTable):
        queries, codes = embeddings.rows(query_set.rows), query_set.gallery_codes
        gallery = MappedGallery(embeddings, query_set.gallery)
    else:
        queries, gallery, codes = _rows(embeddings, query_set)
    report = Console(stderr=True, highlight=False).print
    return nearest_identities(queries, gallery, codes, context.config.knn, context.keep, report=report)


def top_probabilities(
    logits: np.ndarray | SomeRows, rows: np.ndarray, codes: np.ndarray, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax over the classes with a code, and its `keep` largest; a chunk of queries at a time.

    Parameters
    ----------
    logits : float array, shape (n, c)
    rows : int64 array, shape (q,)
        The queries.
    codes : int64 array, shape (c,)
        Identity of each column, -1 = leave it out.
    keep : int
        Width of the result.

    Returns
    -------
    codes : int64 array, shape (q, keep)
        -1 padded.
    probabilities : float32 array, shape (q, keep)
        Descending, -inf padded.
    """
    columns = np.flatnonzero(codes >= 0)
    most = min(keep, len(columns))
    out = np.full((len(rows), keep), -1, dtype=np.int64)
    scores = np.full((len(rows), keep), -np.inf, dtype=np.float32)
    chunk = max(1, _CELLS // max(1, logits.shape[1]))
    for start in range(0, len(rows) if most else 0, chunk):
        block = np.asarray(logits[rows[start : start + chunk]], dtype=np.float32)[:, columns]
        block -= block.max(axis=1, keepdims=True)
        total = np.exp(block).sum(axis=1, keepdims=True)
        best = np.sort(np.argpartition(-block, most - 1, axis=1)[:, :most], axis=1)
        value = np.take_along_axis(block, best, axis=1)
        order = np.argsort(-value, axis=1, kind="stable")
        best, value = np.take_along_axis(best, order, axis=1), np.take_along_axis(value, order, axis=1)
        out[start : start + chunk, :most] = codes[columns[best]]
        scores[start : start + chunk, :most] = np.exp(value) / total
    return out, scores


def _source(context: RankerContext) -> Source:
    assert context.source is not None
    return context.source


def _open_embeddings(context: RankerContext, part: FoldPart) -> np.ndarray | UnitTable:
    """Embeddings in memory; large ones stay in their file."""
    folder = _source(context).folder(part.fold)
    path = folder / "embeddings.npy"
    large = path.is_file() and path.stat().st_size > LARGE
    return open_embeddings(folder, context.images) if large else _embeddings(context, part)


def _embeddings(context: RankerContext, part: FoldPart) -> np.ndarray:
    folder = _source(context).folder(part.fold)
    return read_features(folder, context.images, logits=False).embeddings


def _rows(embeddings: np.ndarray, query_set: QuerySet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return embeddings[query_set.rows], embeddings[query_set.gallery], query_set.gallery_codes


def _class_codes(names: np.ndarray, protocol: Protocol, folder: Path) -> np.ndarray:
    """Code of each column of logits.npy; the unknown label has none."""
    names = names.astype(str)
    place = np.minimum(np.searchsorted(protocol.classes, names), len(protocol.classes) - 1)
    codes = np.where(protocol.classes[place] == names, place, -1)
    foreign = np.flatnonzero((codes < 0) & (names != (protocol.unknown or "")))
    if len(foreign):
        raise WhaleidError(
            f"{folder / 'classes.txt'}: line {foreign[0] + 1}: '{names[foreign[0]]}' is no identity of the "
            f"training data; {len(foreign)} such lines: remove logits.npy, or name the classes as "
            "the competition does"
        )
    return codes.astype(np.int64)
