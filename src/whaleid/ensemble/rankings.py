"""Every way of ranking the identities before any blending: one source, or all of them side by side.

A ranking is a list of candidates for every query of every fold, and for every test image under every fold's
model. Features of different folds' models live in different spaces, so everything here happens within a fold.

Where some source has a model that all labelled images taught, the test set is answered once more, by these models
(`Protocol.whole`). In the rankings of all sources together a source without one is then stood in for by its first
fold's model; a ranking that no such model has a part in answers by the mean of its folds (`ladder.rank_all`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import CombineConfig
from whaleid.ensemble.classifier import Classifier, top_classes, train_classifier
from whaleid.ensemble.concat import concatenate, fit_whitening, whiten
from whaleid.ensemble.embedding_features import EmbeddingFeatures, Sight, see_part
from whaleid.ensemble.graph_rankings import Both, Chosen, Setting, choose_settings, rerank_part
from whaleid.ensemble.protocol import FULL_DATA, FoldPart, Protocol
from whaleid.features.files import Features, SomeRows, open_embeddings, read_features
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.identities import nearest_identities
from whaleid.retrieval.rescore import load_pairs, rescored_identities
from whaleid.utils.errors import WhaleidError

CONCAT, CLASSIFIER = "concat kNN", "classifier"
_CELLS = 1 << 25  # logits held as float32 at a time: 128 MB

Ask = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(query rows, gallery rows, gallery codes) -> codes int64 (q, keep), scores float32 (q, keep)."""


@dataclass(frozen=True)
class Source:
    """Features of one network (one a fold). folds: fold -> folder with embeddings.npy, rows.csv, maybe
    logits.npy.

    optimistic: its epoch was chosen by the fold's own score (train.select: best); every rung that uses it
    says so.
    pairs: fold -> folder of the run that the features are of, where its head scores pairs (siamese); else empty.
    full: folder of the features of the model that all labelled images taught, where there is one; its run is
    pairs[FULL_DATA] where its head scores pairs.
    """

    name: str
    folds: dict[int, Path]
    optimistic: bool = False
    pairs: dict[int, Path] = field(default_factory=dict)
    full: Path | None = None

    def folder(self, fold: int) -> Path:
        """Features by the models of one part; of the whole by the first fold's model where there is no other."""
        if fold != FULL_DATA:
            return self.folds[fold]
        return self.folds[min(self.folds)] if self.full is None else self.full


@dataclass(frozen=True)
class Taught:
    """Lists of a ranking that out-of-fold truth had a part in. Each tuple holds one list a fold, in order.

    without: for each fold, the lists of all folds by what that fold had no part in. whole: by what all folds taught,
    though no fold its own list.
    """

    without: tuple[tuple[Candidates, ...], ...]
    whole: tuple[Candidates, ...]


@dataclass(frozen=True)
class Ranking:
    """Candidates of one way of ranking.

    kind: knn | logits | siamese | concat | rerank | classifier | local | blend | stack | after. oof: one a fold, in the
    protocol's order. test: the test images under each fold's model, in the same order, then under those that all
    labelled images taught, where there are such; empty where there are no test images.
    probability: scores are probabilities of a softmax over classes, not cosines.
    chosen: where a setting of the ranking was chosen by folds' scores (kind rerank). taught_lists: where folds' truth
    taught the ranking itself. `taught` says what they mean.
    sights: what the features themselves say (kind concat, where the stack asks for it).
    """

    name: str
    kind: str
    oof: tuple[Candidates, ...]
    test: tuple[Candidates, ...]
    probability: bool
    optimistic: bool = False
    chosen: Chosen | None = None
    taught_lists: Taught | None = None
    sights: EmbeddingFeatures | None = None

    def taught(self, place: int | None) -> tuple[Candidates, ...]:
        """Lists of all folds, out of fold, to learn from for fold `place` (None: for the test set).

        Where folds' truth chose a setting or taught the ranking, these are by what fold `place` had no part in; the
        other folds' own lists (`oof`) are by what it did have a part in.
        """
        lists = self.chosen or self.taught_lists
        if lists is None:
            return self.oof
        return lists.whole if place is None else lists.without[place]


def rank_source(
    source: Source, images: pd.DataFrame, protocol: Protocol, config: CombineConfig
) -> tuple[list[Ranking], int]:
    """kNN on the source's embeddings and, where it has them, its class probabilities and its siamese head's second
    look; and its dimensions.
    """
    keep = max(config.candidates, protocol.k)
    knn: list[Both] = []
    logits: list[Both] = []
    siamese: list[Both] = []
    dims = set()
    parts = protocol.parts if source.full is None else protocol.answering
    for part in parts:
        folder = source.folder(part.fold)
        features = read_features(folder, images)
        dims.add(features.embeddings.shape[1])
        knn.append(_rank_knn(features.embeddings, part, protocol, config, keep))
        if features.logits is not None:
            logits.append(_rank_logits(features, part, protocol, keep, folder))
        if source.pairs:
            siamese.append(_rank_pairs(source.pairs[part.fold], features.embeddings, part, protocol, config, keep))
    if len(dims) > 1 or len(logits) not in (0, len(parts)):
        raise WhaleidError(
            f"source '{source.name}': its folds differ: dimensions {sorted(dims)}, {len(logits)} of "
            f"{len(parts)} folds have logits.npy; all must come from one experiment"
        )
    rankings = [_ranking(source.name, "knn", knn, False, source.optimistic)]
    if logits:
        rankings.append(_ranking(f"{source.name} logits", "logits", logits, True, source.optimistic))
    if siamese:
        rankings.append(_ranking(f"{source.name} siamese", "siamese", siamese, False, source.optimistic))
    return rankings, dims.pop()


def rank_jointly(
    sources: list[Source],
    dims: list[int],
    images: pd.DataFrame,
    protocol: Protocol,
    config: CombineConfig,
    seed: int,
    decided: dict[str, str] | None = None,
) -> Iterator[Ranking | None]:
    """All sources side by side, whitened within each fold: kNN on that, re-ranked, and the classifier trained on it.

    decided: as in `choose_settings`. Yields None after each part (for a progress bar), then the rankings.
    """
    keep = max(config.candidates, protocol.k)
    knn: list[Both] = []
    classified: list[Both] = []
    reranked: list[list[Setting]] = []
    seen: list[tuple[Sight | None, Sight | None]] = []
    for part in joint_parts(sources, protocol):
        features = _whitened(sources, dims, images, part, config, seed)
        knn.append(_rank_knn(features, part, protocol, config, keep))
        if config.stack is not None:
            seen.append(see_part(features, part, protocol, config.knn))
        if config.rerank is not None:
            reranked.append(rerank_part(features, part, protocol, config.rerank, config.knn, keep))
        if config.classifier is not None:
            trained = train_classifier(features[part.gallery], part.gallery_codes, config.classifier, seed)
            classified.append(_classify(trained, features, part, protocol, keep))
        yield None
    optimistic = any(source.optimistic for source in sources)
    sights = EmbeddingFeatures(
        tuple(oof for oof, _ in seen if oof is not None), tuple(test for _, test in seen if test is not None)
    )
    yield replace(_ranking(CONCAT, "concat", knn, False, optimistic), sights=sights if seen else None)
    for chosen in choose_settings(protocol, knn, reranked, decided):
        yield Ranking(chosen.method, "rerank", chosen.oof, chosen.test, False, optimistic, chosen)
    if classified:
        yield _ranking(CLASSIFIER, "classifier", classified, True, optimistic)


def joint_parts(sources: list[Source], protocol: Protocol) -> tuple[FoldPart, ...]:
    """The parts that all sources are ranked together in: the whole where one of them has a model for it."""
    return protocol.answering if any(source.full is not None for source in sources) else protocol.parts


def _whitened(
    sources: list[Source],
    dims: list[int],
    images: pd.DataFrame,
    part: FoldPart,
    config: CombineConfig,
    seed: int,
) -> np.ndarray:
    """Concatenated features of all images by this fold's models, whitened on the fold's training part
    alone.
    """
    weights = [config.concat.weights.get(source.name, 1.0) for source in sources]
    joined = concatenate([open_embeddings(source.folder(part.fold), images) for source in sources], weights)
    assert joined.shape[1] == sum(dim for dim, weight in zip(dims, weights, strict=True) if weight > 0)
    return whiten(joined, fit_whitening(joined, part.training, config.concat, seed))


def _rank_knn(embeddings: np.ndarray, part: FoldPart, protocol: Protocol, config: CombineConfig, keep: int) -> Both:
    """Nearest gallery images by their embeddings."""

    def ranked(rows: np.ndarray, gallery: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return nearest_identities(embeddings[rows], embeddings[gallery], codes, config.knn, keep)

    return _both(part, protocol, ranked)


def _rank_pairs(
    run: Path, embeddings: np.ndarray, part: FoldPart, protocol: Protocol, config: CombineConfig, keep: int
) -> Both:
    """As `_rank_knn`, the nearest images ranked again by the siamese head of this fold's run."""
    pairs = load_pairs(run)

    def ranked(rows: np.ndarray, gallery: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rescored_identities(pairs, embeddings[rows], embeddings[gallery], codes, config.rescore, keep)

    return _both(part, protocol, ranked)


def _rank_logits(features: Features, part: FoldPart, protocol: Protocol, keep: int, folder: Path) -> Both:
    """Class probabilities of the network itself.

    Only identities of the gallery may be named: a foreign model may know more, and would answer queries out of fold
    whose identity counts as unknown here.
    """
    assert features.logits is not None and features.classes is not None
    logits, known = features.logits, _class_codes(np.asarray(features.classes), protocol, folder)

    def ranked(rows: np.ndarray, _: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return top_probabilities(logits, rows, np.where(np.isin(known, codes), known, -1), keep)

    return _both(part, protocol, ranked)


def _classify(trained: Classifier, features: np.ndarray, part: FoldPart, protocol: Protocol, keep: int) -> Both:
    """Class probabilities of the classifier that was trained on the part's features."""
    return _both(part, protocol, lambda rows, *_: top_classes(trained, features[rows], keep))


def _both(part: FoldPart, protocol: Protocol, ask: Ask) -> Both:
    """Out of fold against the other folds' images; the test set against every labelled image."""
    oof = test = None
    if len(part.rows):
        oof = _candidates(part.names, protocol, *ask(part.rows, part.gallery, part.gallery_codes))
    if len(protocol.test_rows):
        found = ask(protocol.test_rows, protocol.gallery, protocol.gallery_codes)
        test = _candidates(protocol.test_names, protocol, *found)
    return oof, test


def top_probabilities(
    logits: np.ndarray | SomeRows, rows: np.ndarray, codes: np.ndarray, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax over the classes with a code, and its `keep` largest; a chunk of queries at a time.

    logits: float (n, c). rows: int64 (q,), queries. codes: int64 (c,), identity of each column, -1 = leave
    out. Returns codes int64 (q, keep), -1 padded, and probabilities float32 (q, keep), descending, -inf
    padded.
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


def _candidates(names: np.ndarray, protocol: Protocol, codes: np.ndarray, scores: np.ndarray) -> Candidates:
    return Candidates(names, protocol.classes, codes, scores)


def _ranking(
    name: str,
    kind: str,
    lists: list[Both],
    probability: bool,
    optimistic: bool,
) -> Ranking:
    oof = tuple(oof for oof, _ in lists if oof is not None)
    test = tuple(test for _, test in lists if test is not None)
    return Ranking(name, kind, oof, test, probability, optimistic)
