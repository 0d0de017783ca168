"""Rankers of local matching: votes of keypoints, and geometric verification of the best candidates by votes.

No network is trained, so that a fold differs from the test set by its gallery alone: the test images are ranked once,
and every part has that same ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np

from whaleid.config import CombineConfig, LocalConfig
from whaleid.ensemble.cross_fitting import OofLists
from whaleid.ensemble.lists import average
from whaleid.ensemble.protocol import NONE, Protocol, QuerySet
from whaleid.ensemble.rankers.base import Lists, Ranker, RankerContext, Without
from whaleid.ensemble.rankings import Ranking
from whaleid.local_matching.geometric_verification import verified_candidates
from whaleid.local_matching.keypoints import Described, read_described
from whaleid.local_matching.matchers import Matcher, matcher_of
from whaleid.local_matching.pair_candidates import in_turn
from whaleid.local_matching.votes import Nearest, local_candidates, nearest_apart
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError

LOCAL, VERIFIED = "local matching", "local verified"
KINDS = ("votes", "verification", "match_score", "pair_score")
"""Kinds of all rankers of local matching."""


@dataclass(frozen=True)
class LocalQueries:
    """A query set with the neighbours of its keypoints.

    Attributes
    ----------
    queries : QuerySet
    truth : int64 array, shape (q,)
        True identity of each query, -1 = unknown; -1 for every test image.
    codes : int64 array, shape (n,)
        Identity of every image of images.parquet, -1 where it is not in the gallery.
    nearest : Nearest
        Neighbours of the queries' descriptors among the gallery's.
    """

    queries: QuerySet
    truth: np.ndarray
    codes: np.ndarray
    nearest: Nearest


@dataclass(frozen=True)
class LocalInputs:
    """What the rankers of local matching rank with.

    Attributes
    ----------
    described : Described
        Keypoints and descriptors of all images.
    folds : tuple of LocalQueries
        Queries of each fold, in the protocol's order.
    test : LocalQueries or None
        None where there are no test images.
    matcher : Matcher or None
        What matches two images, where the recipe asks for geometric verification.
    """

    described: Described
    folds: tuple[LocalQueries, ...]
    test: LocalQueries | None
    matcher: Matcher | None

    @property
    def all(self) -> tuple[LocalQueries, ...]:
        """The folds' queries and, where there are any, the test images."""
        return self.folds if self.test is None else (*self.folds, self.test)


def read_local(context: RankerContext) -> LocalInputs:
    """Read the descriptors and search the neighbours of every query's keypoints.

    Raises
    ------
    WhaleidError
        Where no labelled image has a keypoint.
    """
    config, protocol = _config(context), context.protocol
    assert context.descriptors is not None
    described = read_described(context.descriptors, context.images, config.features)
    if not described.counts(protocol.gallery).any():
        raise WhaleidError(
            f"{context.descriptors}: no labelled image has a keypoint; leave combine.local_matching out of the recipe"
        )
    matcher = None if config.verify is None else matcher_of(described, context.images, config, context.weights_folder)
    folds = []
    for part in protocol.parts:
        context.report(f"keypoints: {part.fold}")
        oof, _ = protocol.queries(part)
        assert oof is not None
        folds.append(_local_queries(protocol, described, oof, part.truth, config))
    test = None
    if len(protocol.test_rows):
        context.report("keypoints: test")
        _, query_set = protocol.queries(protocol.test_parts[0])
        assert query_set is not None
        test = _local_queries(protocol, described, query_set, np.full(len(query_set.rows), NONE), config)
    return LocalInputs(described, tuple(folds), test, matcher)


class VotesRanker(Ranker):
    """Identities by the votes of the queries' keypoints."""

    kind, level, blend = "votes", "local", "member"

    def is_on(self, config: CombineConfig) -> bool:
        return config.local_matching is not None

    def rank(self, context: RankerContext) -> list[Ranking]:
        local, config = local_inputs(context), _config(context)

        def rank(given: LocalQueries, place: int) -> Lists:
            queries = given.queries
            against = queries.rows, queries.gallery, queries.gallery_codes
            return local_candidates(local.described, *against, config, context.keep, given.nearest)

        return [_ranking(context, LOCAL, self.kind, rank)]

    def ablations(self, config: CombineConfig) -> Iterator[Without]:
        yield Without("local matching", config.model_copy(update={"local_matching": None}), KINDS)


class VerificationRanker(Ranker):
    """Votes, and the matches of the best candidates' images that agree in place, size and direction."""

    kind, level, blend = "verification", "local", "member"

    def is_on(self, config: CombineConfig) -> bool:
        return config.local_matching is not None and config.local_matching.verify is not None

    def rank(self, context: RankerContext) -> list[Ranking]:
        local, config = local_inputs(context), _config(context)
        (votes,) = context.of_kind("votes")
        voted = [*votes.oof, *votes.test[:1]]

        def rank(given: LocalQueries, place: int) -> Lists:
            queries, lists = given.queries, (voted[place].codes, voted[place].scores)
            against = queries.rows, queries.gallery, queries.gallery_codes
            return verified_candidates(local.described, *against, lists, config, matcher=local.matcher)

        return [_ranking(context, VERIFIED, self.kind, rank)]

    def ablations(self, config: CombineConfig) -> Iterator[Without]:
        assert config.local_matching is not None
        votes = config.local_matching.model_copy(update={"verify": None})
        yield Without("geometric verification", config.model_copy(update={"local_matching": votes}), (self.kind,))


def local_inputs(context: RankerContext) -> LocalInputs:
    """What the rankers of local matching rank with."""
    assert context.local is not None
    return context.local


def test_lists(protocol: Protocol, lists: Candidates | None) -> tuple[Candidates, ...]:
    """The one ranking of the test images, for every part."""
    return () if lists is None else (lists,) * len(protocol.test_parts)


def network_candidates(context: RankerContext) -> list[np.ndarray | None]:
    """Identities by the concatenation of all networks, best first, for each of `LocalInputs.all`; None without one.

    int64 (q, m), codes, -1 padded.
    """
    found, all_queries = context.of_kind("concat"), local_inputs(context).all
    if not found:
        return [None] * len(all_queries)
    test = [average(found[0].test, context.keep)] if found[0].test else []
    return [lists.codes for lists in (*found[0].oof, *test)]


def network_queries(context: RankerContext) -> list[np.ndarray | None]:
    """Other queries by the features of all networks, as `network_candidates`: rows of images.parquet, -1 padded."""
    found, all_queries = context.of_kind("concat"), local_inputs(context).all
    if not found or found[0].alike is None:
        return [None] * len(all_queries)
    alike = found[0].alike
    return [*alike.oof, *([reduce(in_turn, alike.test)] if alike.test else [])]


def _config(context: RankerContext) -> LocalConfig:
    assert context.config.local_matching is not None
    return context.config.local_matching


def _local_queries(
    protocol: Protocol, described: Described, queries: QuerySet, truth: np.ndarray, config: LocalConfig
) -> LocalQueries:
    """With as many neighbours as the recipe needs."""
    neighbours = max(config.neighbours, 0 if config.learned is None else config.learned.neighbours)
    codes = np.full(len(described.offsets) - 1, NONE, dtype=np.int64)
    codes[queries.gallery] = queries.gallery_codes
    pieces = [(places, piece.gallery) for places, piece in protocol.pieces(queries)]
    return LocalQueries(queries, truth, codes, nearest_apart(described, queries.rows, pieces, neighbours))


def _ranking(context: RankerContext, name: str, kind: str, rank: Callable[[LocalQueries, int], Lists]) -> Ranking:
    protocol, local, found = context.protocol, local_inputs(context), []
    for place, given in enumerate(local.all):
        context.report(f"{name}: {place + 1} of {len(local.all)}")
        found.append(Candidates(given.queries.names, protocol.classes, *rank(given, place)))
    test = found.pop() if local.test is not None else None
    return Ranking(name, kind, OofLists.same(tuple(found)), test_lists(protocol, test), False)
