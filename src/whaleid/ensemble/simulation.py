"""Simulated unknown queries: every labelled query is scored once more with its true identity taken out of the gallery.

Labelled images show few unknown individuals, or none, where the organisers dropped their rows; what is fitted on them
alone (thresholds, calibrations, blend, stack) has never seen an unknown query. Out of fold, each query whose identity
is in the gallery therefore stands for an unknown one too: the same image, and a gallery without its identity. There
are as many simulated unknown queries as known ones; real unknown queries stay among them.

The identity is taken out of the candidate lists, not of the features: what is left of a list of similarities is what a
ranking without the identity would give. Probabilities are divided by what is left of their sum. A network or classifier
that was trained on other images of the identity is a little too sure that the image shows nobody else.

Competitions without an unknown label have no simulated queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from whaleid.ensemble.cross_fitting import OofLists
from whaleid.ensemble.embedding_features import EmbeddingFeatures, EmbeddingTable
from whaleid.ensemble.protocol import NONE, FoldPart, Protocol
from whaleid.ensemble.rankings import Ranking
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.identities import PADDING

TAKEN_OUT = " (identity taken out)"
"""Ending of the name of a simulated unknown query."""
_LEAST = 1e-9  # what a sum of probabilities is kept above


def with_simulated_unknowns(protocol: Protocol, rankings: list[Ranking]) -> tuple[Protocol, list[Ranking]]:
    """The protocol with a simulated unknown query for every known one, and the rankings with their lists.

    Parameters
    ----------
    protocol : Protocol
    rankings : list of Ranking
        As from `rank_all`, of the protocol's queries.

    Returns
    -------
    protocol : Protocol
    rankings : list of Ranking
        Every list is one candidate shorter, real, simulated and test queries' alike: length must not tell them apart.
        Both are returned as they are where the competition has no unknown label.
    """
    if protocol.unknown is None:
        return protocol, rankings
    return simulated_protocol(protocol), [_ranking_with_simulated(ranking, protocol) for ranking in rankings]


def simulated_protocol(protocol: Protocol) -> Protocol:
    """The protocol with a simulated unknown query for every known one, after each fold's own queries.

    Unchanged without unknown label.
    """
    if protocol.unknown is None:
        return protocol
    return replace(protocol, parts=tuple(_part_with_simulated(part) for part in protocol.parts))


def with_simulated_lists(lists: Sequence[Candidates], protocol: Protocol, probability: bool) -> list[Candidates]:
    """Lists of each fold's queries followed by those of the simulated ones; unchanged without unknown label.

    Parameters
    ----------
    lists : sequence of Candidates
        One a fold, of the queries of `protocol`, which has no simulated queries.
    protocol : Protocol
    probability : bool
        As in `take_out`.
    """
    if protocol.unknown is None:
        return list(lists)
    return [_joined(one, part, probability) for one, part in zip(lists, protocol.parts, strict=True)]


def is_simulated(queries: pd.Series) -> pd.Series:
    """Which names are those of simulated unknown queries, bool (n,)."""
    return queries.astype(str).str.endswith(TAKEN_OUT)


def take_out(lists: Candidates, identities: np.ndarray, probability: bool) -> Candidates:
    """The lists as if each query's identity were not in the gallery, under the simulated queries' names.

    Parameters
    ----------
    lists : Candidates
    identities : int64 array, shape (n,)
        Code of the identity to take out of each list, >= 0; it need not be listed.
    probability : bool
        Whether scores are probabilities over all classes: they are divided by 1 less that of the identity.

    Returns
    -------
    Candidates
        One candidate narrower.
    """
    out = lists.codes == identities[:, None]
    kept = _width(lists)
    order = np.argsort(out, axis=1, kind="stable")[:, :kept]
    codes = np.take_along_axis(np.where(out, PADDING, lists.codes), order, axis=1)
    scores = np.take_along_axis(np.where(out, -np.inf, lists.scores).astype(np.float32), order, axis=1)
    if probability:
        own = np.where(out, lists.scores, 0.0).sum(axis=1, dtype=np.float64)
        listed = np.where(np.isfinite(scores), scores, 0.0).sum(axis=1, dtype=np.float64)
        rest = np.maximum(np.maximum(1.0 - own, listed), _LEAST)  # 1 - own is coarse in float32 where own is near 1
        scores = (scores / rest[:, None]).astype(np.float32)
    names = np.array([f"{name}{TAKEN_OUT}" for name in lists.queries])
    return Candidates(names, lists.classes, codes, scores)


# ---------------------------------------------------------------------------------------------------- the parts


def _part_with_simulated(part: FoldPart) -> FoldPart:
    known = np.flatnonzero(part.truth >= 0)
    return replace(
        part,
        rows=np.concatenate([part.rows, part.rows[known]]),
        names=np.concatenate([part.names, [f"{name}{TAKEN_OUT}" for name in part.names[known]]]),
        truth=np.concatenate([part.truth, np.full(len(known), NONE)]),
        sizes=np.concatenate([part.sizes, np.zeros(len(known), dtype=np.int64)]),
        image_place=np.concatenate([np.arange(len(part.rows)), known]),
    )


def _ranking_with_simulated(ranking: Ranking, protocol: Protocol) -> Ranking:
    done: dict[tuple[int, ...], tuple[Candidates, ...]] = {}

    def joined(lists: tuple[Candidates, ...]) -> tuple[Candidates, ...]:
        """Versions of a ranker that was fitted on no truth are the same lists: they are joined once."""
        key = tuple(map(id, lists))
        if key not in done:
            done[key] = tuple(with_simulated_lists(lists, protocol, ranking.probability))
        return done[key]

    features = ranking.embedding_features
    if features is not None:
        pairs = zip(features.oof, protocol.parts, strict=True)
        features = EmbeddingFeatures(tuple(_table_with_simulated(table, part) for table, part in pairs), features.test)
    return replace(
        ranking,
        lists=OofLists(tuple(map(joined, ranking.lists.by_excluded_fold)), joined(ranking.lists.full)),
        test=tuple(map(_shorter, ranking.test)),
        embedding_features=features,
    )


def _joined(lists: Candidates, part: FoldPart, probability: bool) -> Candidates:
    known = np.flatnonzero(part.truth >= 0)
    real = _shorter(lists)
    of_known = Candidates(lists.queries[known], lists.classes, lists.codes[known], lists.scores[known])
    simulated = take_out(of_known, part.truth[known], probability)
    return Candidates(
        np.concatenate([real.queries, simulated.queries]),
        lists.classes,
        np.concatenate([real.codes, simulated.codes]),
        np.concatenate([real.scores, simulated.scores]),
    )


def _shorter(lists: Candidates) -> Candidates:
    kept = _width(lists)
    return Candidates(lists.queries, lists.classes, lists.codes[:, :kept], lists.scores[:, :kept])


def _width(lists: Candidates) -> int:
    """Candidates that are left where one may be taken out; a list of one keeps its place, which may be empty."""
    return max(lists.codes.shape[1] - 1, 1)


def _table_with_simulated(table: EmbeddingTable, part: FoldPart) -> EmbeddingTable:
    known = np.flatnonzero(part.truth >= 0)
    return replace(
        table,
        queries=np.concatenate([table.queries, table.queries[known]]),
        nearest=np.concatenate([table.nearest, table.nearest_other[known]]),
        density=np.concatenate([table.density, table.density_other[known]]),
    )
