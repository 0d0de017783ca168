"""Pairs of queries: which are looked at, what their scores say, and what queries answer together, against loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_world import World, recipe, write_sources
from scipy.special import expit
from test_match_score import FEW, described_at_random, local_world
from test_pair_score import drawn_pairs

from whaleid.config import LearnedConfig
from whaleid.ensemble.ladder import rank_all
from whaleid.ensemble.protocol import Protocol, read_protocol
from whaleid.ensemble.rankers import pair_scores
from whaleid.ensemble.rankers.joint import nearest_queries
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.local_matching import query_pairs
from whaleid.local_matching.pair_score import identity_scores, score_candidates
from whaleid.local_matching.query_pairs import (
    MOST,
    Likeness,
    answering_together,
    fit_likeness,
    likely_queries,
    nearest_others,
    same_animal,
)

QUERIES = np.array([4, 1, 3])
"""Rows of three queries, not in order."""


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_nearest_others_equal_loops(seed: int, neighbours: int) -> None:
    described, _ = described_at_random(np.random.default_rng(seed), [3, 4, 0, 5, 2])
    queries, vectors = np.array([3, 0, 1]), described.vectors.astype(float)
    found = nearest_others(described, queries, neighbours)
    own = described.places(queries)
    assert found.places.shape == found.distance.shape == (12, min(neighbours, 12))
    for row, place in enumerate(own.tolist()):
        image = described.image_of(np.array([place]))[0]
        others = [int(one) for one in own if described.image_of(np.array([one]))[0] != image]
        distance = {one: float(((vectors[place] - vectors[one]) ** 2).sum()) for one in others}
        listed = [int(one) for one in found.places[row] if one >= 0]
        # an image's own descriptors take a few of the places that were searched
        assert len(set(listed)) == len(listed) and set(listed) <= set(others)
        assert [float(one) for one in found.distance[row][: len(listed)]] == [distance[one] for one in listed]
        assert (np.diff(found.distance[row]) >= 0).all()
        nearer = [one for one in others if listed and distance[one] < distance[listed[-1]]]
        assert set(nearer) <= set(listed)
        assert (found.places[row][len(listed) :] == -1).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_likely_queries_are_others_of_the_same_group(seed: int) -> None:
    described, frames = described_at_random(np.random.default_rng(seed), [5, 4, 0, 6, 3, 4, 5])
    queries = np.array([6, 2, 0, 4, 3])
    groups = [np.array([0, 2]), np.array([1, 3, 4])]
    found = likely_queries(described, frames, queries, groups, LearnedConfig(neighbours=6))
    assert found.shape == (5, MOST) and (found[1] == -1).all(), "without keypoints nothing looks alike"
    for group in groups:
        for place in group:
            listed = [row for row in found[place].tolist() if row >= 0]
            assert set(listed) <= set(queries[group].tolist()) - {int(queries[place]), 2}
            assert len(set(listed)) == len(listed)


def test_a_query_alone_has_no_others() -> None:
    described, frames = described_at_random(np.random.default_rng(0), [5, 4])
    for queries in (np.array([1]), np.array([], int)):
        found = likely_queries(described, frames, queries, [np.arange(len(queries))], LearnedConfig())
        assert found.shape == (len(queries), MOST) and (found == -1).all()


def test_what_is_known_of_two_queries() -> None:
    matches = drawn_pairs(np.array([0, 0, 1, 2]), np.array([1, 3, 3, 4]))
    known, same = same_animal(matches, QUERIES, np.array([7, 7, 2]))
    assert known.tolist() == [0, 1, 2, 3] and same.tolist() == [True, False, False, False]
    known, same = same_animal(matches, QUERIES, np.array([-1, -1, 2]))
    assert known.tolist() == [1, 2, 3] and not same.any()


def test_likeness_is_the_share_of_pairs_that_show_one_animal() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=20_000) * 2
    tables = [(part, rng.random(len(part)) < expit(1.5 * part - 3)) for part in np.split(score, 2)]
    fitted = fit_likeness(tables)
    assert fitted is not None
    assert fitted.slope == pytest.approx(1.5, abs=0.1) and fitted.level == pytest.approx(-3, abs=0.15)
    assert fitted.of(np.array([2.0])) == pytest.approx(expit(2 * fitted.slope + fitted.level))


@pytest.mark.parametrize(
    "tables",
    [
        [(np.zeros(0), np.zeros(0, bool))],
        [(np.array([1.0, 2.0]), np.array([False, False]))],
        [(np.array([1.0, 2.0]), np.array([True, True]))],
        [(np.array([1.0, 2.0]), np.array([False, True])), (np.array([0.0, -3.0]), np.array([True, True]))],
    ],
    ids=["none", "no animal twice", "one animal", "the likelier, the less alike"],
)
def test_scores_that_say_nothing_leave_queries_alone(tables: list[tuple[np.ndarray, np.ndarray]]) -> None:
    assert fit_likeness(tables) is None
    alone = identity_scores(drawn_pairs(np.array([0]), np.array([0])), np.ones(1), np.arange(3), (3, 3), 0.3)
    pairs = drawn_pairs(np.array([1]), np.array([4]))
    assert answering_together(alone, pairs, np.ones(1), QUERIES, None) is alone


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 12), st.integers(0, 6))
def test_queries_answer_together_as_in_loops(seed: int, images: int, others: int) -> None:
    rng = np.random.default_rng(seed)
    cells = np.sort(rng.permutation(12)[:images])
    matches, score = drawn_pairs(cells // 4, cells % 4), rng.normal(size=images)
    alone = identity_scores(matches, score, np.arange(4), (3, 4), 0.3)
    pairs = [(one, two) for one in range(3) for two in range(3) if one != two]
    chosen = [pairs[place] for place in np.sort(rng.permutation(6)[:others])]
    of_queries = drawn_pairs(
        np.array([one for one, _ in chosen], int), QUERIES[np.array([two for _, two in chosen], int)]
    )
    ratio, likeness = rng.normal(size=others) * 2, Likeness(1.2, -1.0)
    found = answering_together(alone, of_queries, ratio, QUERIES, likeness)
    own = {
        (int(q), int(i)): float(v)
        for q, i, v in zip(alone.tocoo().row, alone.tocoo().col, alone.tocoo().data, strict=True)
    }
    probability = dict(zip(chosen, expit(1.2 * ratio - 1.0).tolist(), strict=True))
    together = dict(own)
    for (q, other), p in probability.items():
        p = max(p, probability.get((other, q), 0.0))
        if p < 0.05:
            continue
        for one, two in {(q, other), (other, q)}:
            if (one, two) == (other, q) and (other, q) in probability:
                continue  # it has its own turn
            for (query, identity), value in own.items():
                if query == two and value > 0:
                    together[one, identity] = together.get((one, identity), 0.0) + p * value
    lists, values = score_candidates(found, 4)
    for q in range(3):
        expected = {identity: value for (query, identity), value in together.items() if query == q}
        listed = [code for code in lists[q].tolist() if code >= 0]
        assert sorted(listed) == sorted(expected)
        assert np.allclose(values[q][: len(listed)], [expected[code] for code in listed], atol=1e-5)


def test_networks_name_every_second_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_pairs, "MOST", 3)
    described, frames = described_at_random(np.random.default_rng(1), [5, 4, 6, 3])
    queries, named = np.arange(4), np.array([[3, 2], [3, -1], [1, 0], [0, 1]])
    everyone = [np.arange(4)]
    alone = likely_queries(described, frames, queries, everyone, LearnedConfig(neighbours=6))
    found = likely_queries(described, frames, queries, everyone, LearnedConfig(neighbours=6), named)
    for own, network, row in zip(alone.tolist(), named.tolist(), found.tolist(), strict=True):
        in_turn = [one for pair in zip([*own, -1], [*network, -1, -1], strict=True) for one in pair if one >= 0]
        expected = list(dict.fromkeys(in_turn))[:3]
        assert row == [*expected, *[-1] * (3 - len(expected))]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_nearest_queries_equal_loops(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(6, 4)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings[5] = embeddings[0]  # a copy is another query
    rows, groups = np.array([9, 2, 7, 4, 1, 8]), [np.array([0, 1, 5]), np.array([2, 4]), np.array([3])]
    found = nearest_queries(embeddings, rows, groups, most)
    for group in groups:
        for place in group.tolist():
            others = [one for one in group.tolist() if one != place]
            order = sorted(others, key=lambda one: -float(embeddings[place] @ embeddings[one]))
            expected = rows[order][:most].tolist()
            assert found[place].tolist() == [*expected, *[-1] * (most - len(expected))]


# ------------------------------------------------------------------------------------------------- in the ladder


def ranked(folder: Path, world: World, sources: list[Source]) -> tuple[Protocol, dict[str, Ranking]]:
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    config = recipe(local_matching={"learned": FEW}, classifier=None).combine
    return protocol, {one.name: one for one in rank_all(sources, world.images, protocol, config, 0, folder)}


def test_networks_name_other_queries_in_the_ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, named = local_world(tmp_path / "local"), []
    sources = write_sources(world, tmp_path / "features", count=1)

    def spy(*given: Any) -> np.ndarray:
        named.append((given[2], given[5]))
        return likely_queries(*given)

    monkeypatch.setattr(pair_scores, "likely_queries", spy)
    protocol, _ = ranked(tmp_path / "local", world, sources)
    identity = world.images["identity"].to_numpy(dtype=object).copy()
    identity[protocol.test_rows] = world.solution
    assert [rows.tolist() for rows, _ in named] == [
        *(part.rows.tolist() for part in protocol.parts),
        protocol.test_rows.tolist(),
    ]
    for rows, others in named:
        assert others.shape[0] == len(rows) and set(others.ravel().tolist()) <= {-1, *rows.tolist()}
        assert not (others == rows[:, None]).any()
        siblings = [(identity[rows] == identity[row]).sum() > 1 for row in rows]
        hit = identity[others[siblings, 0]] == identity[rows[siblings]]
        assert hit.mean() > 5 / len(rows), "networks that tell identities name queries of the same one"


def test_queries_answer_together_in_the_ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they differ from each alone, out of fold and on the test set; where nothing is fitted they do not."""
    world = local_world(tmp_path / "local")
    sources = write_sources(world, tmp_path / "features", count=1)
    for fitted in (True, False):
        if not fitted:
            monkeypatch.setattr(pair_scores, "fit_likeness", lambda _: None)
        _, rankings = ranked(tmp_path / "local", world, sources)
        alone, together = rankings["local pairs"], rankings["local together"]
        for one, two in zip((*alone.oof, alone.test[0]), (*together.oof, together.test[0]), strict=True):
            assert np.array_equal(one.scores, two.scores) is not fitted
            assert fitted or np.array_equal(one.codes, two.codes)
            if fitted:  # what others say is only added
                best = np.isfinite(one.scores[:, 0])
                assert (two.scores[best, 0] >= one.scores[best, 0] - 1e-6).all()
