"""Rankers of all sources together: kNN on their whitened concatenation, and a classifier trained on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from whaleid.config import CombineConfig
from whaleid.ensemble.classifier import top_classes, train_classifier
from whaleid.ensemble.embedding_features import EmbeddingFeatures, EmbeddingTable, embedding_table
from whaleid.ensemble.protocol import FoldPart, QuerySet
from whaleid.ensemble.rankers.base import JointFeatures, Lists, Ranker, RankerContext, Without, rank_parts
from whaleid.ensemble.rankers.single import rank_by_knn
from whaleid.ensemble.rankings import LikeQueries, Ranking
from whaleid.local_matching.query_pairs import MOST
from whaleid.retrieval.identities import PADDING
from whaleid.retrieval.index import nearest


class ConcatRanker(Ranker):
    """kNN on the whitened concatenation. Where the recipe has a stack, its embedding features are computed too."""

    kind, level, blend = "concat", "joint", "member"

    def rank(self, context: RankerContext) -> list[Ranking]:
        joint = joint_features(context)

        def model(part: FoldPart) -> Callable[[QuerySet], Lists]:
            context.report(f"concatenation: {part.fold}")
            return lambda query_set: rank_by_knn(context, joint[part], query_set)

        lists, test = rank_parts(context, model)
        features = None if context.config.stack is None else _embedding_features(context, joint)
        alike = None if context.config.pairs is None else _like_queries(context, joint)
        return [Ranking("concat kNN", self.kind, lists, test, False, embedding_features=features, alike=alike)]

    def ablations(self, config: CombineConfig) -> Iterator[Without]:
        if config.concat.whiten is not None:
            plain = config.concat.model_copy(update={"whiten": None})
            yield Without("whitening", config.model_copy(update={"concat": plain}), redo=True)


class ClassifierRanker(Ranker):
    """Class probabilities of a classifier that is trained on the concatenation of each part's gallery."""

    kind, level, blend, reads_gallery = "classifier", "joint", "member", False

    def is_on(self, config: CombineConfig) -> bool:
        return config.classifier is not None

    def rank(self, context: RankerContext) -> list[Ranking]:
        joint, config = joint_features(context), context.config.classifier
        assert config is not None

        def model(part: FoldPart) -> Callable[[QuerySet], Lists]:
            context.report(f"classifier: {part.fold}")
            embeddings = joint[part]
            trained = train_classifier(embeddings[part.gallery], part.gallery_codes, config, context.seed)
            return lambda query_set: top_classes(
                trained, embeddings[query_set.rows], context.keep, query_set.gallery_codes
            )

        lists, test = rank_parts(context, model)
        return [Ranking("classifier", self.kind, lists, test, True)]

    def ablations(self, config: CombineConfig) -> Iterator[Without]:
        yield Without("classifier on the features", config.model_copy(update={"classifier": None}), (self.kind,))


def joint_features(context: RankerContext) -> JointFeatures:
    """The concatenation of the sources' features."""
    assert context.joint is not None
    return context.joint


def _embedding_features(context: RankerContext, joint: JointFeatures) -> EmbeddingFeatures:
    oof: list[EmbeddingTable] = []
    test: list[EmbeddingTable] = []
    for part in context.parts:
        embeddings: np.ndarray = joint[part]
        given = len(context.protocol.classes), context.config.knn
        own, all_labelled = context.protocol.queries(part)
        if own is not None:
            truth = None if context.protocol.unknown is None else part.truth
            oof.append(embedding_table(embeddings, own, *given, truth))
        if all_labelled is not None:
            test.append(embedding_table(embeddings, all_labelled, *given))
    return EmbeddingFeatures(tuple(oof), tuple(test))


def _like_queries(context: RankerContext, joint: JointFeatures) -> LikeQueries:
    """The other queries most like each query, by all features."""
    oof: list[np.ndarray] = []
    test: list[np.ndarray] = []
    for part in context.parts:
        embeddings: np.ndarray = joint[part]
        for query_set, found in zip(context.protocol.queries(part), (oof, test), strict=True):
            if query_set is not None:
                groups = [places for places, _ in context.protocol.pieces(query_set)]
                found.append(nearest_queries(embeddings[query_set.rows], query_set.rows, groups, MOST))
    return LikeQueries(tuple(oof), tuple(test))


def nearest_queries(embeddings: np.ndarray, rows: np.ndarray, groups: list[np.ndarray], most: int) -> np.ndarray:
    """The other queries with the nearest embeddings.

    Parameters
    ----------
    embeddings : float32 array, shape (q, d)
        Unit rows.
    rows : int64 array, shape (q,)
        Rows of images.parquet.
    groups : list of int64 arrays
        Places of queries that may be compared with one another.
    most : int

    Returns
    -------
    int64 array, shape (q, most)
        Rows of images.parquet, nearest first, -1 padded.
    """
    found = np.full((len(rows), most), PADDING)
    for places in groups:
        own = embeddings[places]
        _, near = nearest(own, own, min(most + 1, len(places)))
        others = near != np.arange(len(places))[:, None]
        order = np.argsort(~others, axis=1, kind="stable")[:, :most]  # the query itself goes to the end
        near, others = np.take_along_axis(near, order, axis=1), np.take_along_axis(others, order, axis=1)
        found[places, : near.shape[1]] = np.where(others, rows[places][near], PADDING)
    return found
