"""Odd and bad input to the second level as a whole, the stack on top: a stated rule, or one clear line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ladder_world import UNKNOWN, World, make_world, recipe, with_lists, write_folder, write_sources

from whaleid.ensemble.ladder import combine, evaluate_ladder, rank_all
from whaleid.ensemble.protocol import Protocol, read_protocol
from whaleid.ensemble.rankers.base import RankerContext
from whaleid.ensemble.rankers.second_level import BlendRanker
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.ensemble.stack import stack_rankings
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError

STACK = {"num_iterations": 10, "seeds": 1, "min_data_in_leaf": 20, "first": 8, "candidates": 15}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(seed=1)


@pytest.fixture(scope="module")
def asked(world, tmp_path_factory) -> tuple[Protocol, list[Ranking]]:
    sources = write_sources(world, tmp_path_factory.mktemp("features"), count=2)
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    return protocol, rank_all(sources, world.images, protocol, recipe(stack=STACK).combine, 0)


def test_an_identity_that_no_list_names_teaches_nothing_and_scores_nothing(asked):
    """Not even where its images are asked about: nothing can guess what no source has seen."""
    protocol, rankings = asked
    gone = int(np.bincount(protocol.gallery_codes).argmax())

    def without(lists: Candidates) -> Candidates:
        kept = lists.codes != gone
        order = np.argsort(~kept, axis=1, kind="stable")
        codes = np.take_along_axis(np.where(kept, lists.codes, -1), order, axis=1)
        scores = np.take_along_axis(np.where(kept, lists.scores, -np.inf).astype(np.float32), order, axis=1)
        return replace(lists, codes=codes, scores=scores)

    fewer = [with_lists(one, oof=map(without, one.oof), test=tuple(map(without, one.test))) for one in rankings]
    result = evaluate_ladder(protocol, fewer, recipe(stack=STACK).combine)
    truth = protocol.truth([0, 1, 2])
    assert (truth == gone).sum() > 5 and not result.final.rank[truth == gone].any()
    assert result.final.rank[truth != gone].any() and protocol.classes[gone] not in result.test_guesses


@pytest.mark.parametrize("unknown", [True, False])
def test_more_guesses_than_identities(tmp_path: Path, unknown):
    """Every identity and `unknown` once, and nothing more: the places left over stay empty."""
    world = make_world(identities=6, seed=2, unknown=unknown)
    world = replace(world, competition=world.competition.model_copy(update={"k": 12}))
    sources = write_sources(world, tmp_path, count=2)
    config = recipe(stack=STACK)
    result = combine(world.images, world.folds, sources, config, world.competition, tmp_path / "out")
    known = set(world.folds["identity"]) - {UNKNOWN}
    wanted = known | {UNKNOWN} if unknown else known
    assert result.test_guesses.shape == (len(world.solution), 12)
    for row in result.test_guesses.tolist():
        assert set(row[: len(wanted)]) == wanted and set(row[len(wanted) :]) == {""}


def test_nothing_but_unknown_and_nothing_to_learn(asked):
    """Lists that never hold the truth: no tree is grown, and the stack is the blend."""
    protocol, rankings = asked
    parts = tuple(replace(part, truth=np.where(part.truth >= 0, 39, -1)) for part in protocol.parts)
    empty = [with_lists(one, oof=map(_never_39, one.oof), fitted=None) for one in rankings]
    closed = replace(protocol, parts=parts, unknown=None)
    result = evaluate_ladder(closed, empty, recipe(stack=STACK).combine)
    assert set(result.as_json()["stack"]["rounds"]) == {0} and result.final.score.map == 0


def _never_39(lists: Candidates) -> Candidates:
    scores = np.where(lists.codes == 39, -np.inf, lists.scores).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")
    codes = np.where(np.isfinite(scores), lists.codes, -1)
    return replace(
        lists, codes=np.take_along_axis(codes, order, axis=1), scores=np.take_along_axis(scores, order, axis=1)
    )


def test_rankings_of_different_queries_are_named(asked):
    protocol, rankings = asked
    config = recipe(stack=STACK).combine
    (blend,) = BlendRanker().rank(RankerContext(protocol, config, rankings=tuple(rankings)))
    lists = rankings[1].oof[2]
    short = Candidates(lists.queries[:-1], lists.classes, lists.codes[:-1], lists.scores[:-1])
    other = replace(lists, queries=lists.queries[::-1])
    assert config.stack is not None
    for wrong in (short, other):
        given = [rankings[0], with_lists(rankings[1], oof=(*rankings[1].oof[:2], wrong)), *rankings[2:]]
        with pytest.raises(WhaleidError, match=f"ranking '{rankings[1].name}': fold 2") as caught:
            stack_rankings(protocol, given, blend, config.stack)
        assert "\n" not in str(caught.value)
    fewer = [rankings[0], replace(rankings[1], test=rankings[1].test[:1]), *rankings[2:]]
    with pytest.raises(WhaleidError, match="1 lists of the test images, 3 are needed"):
        stack_rankings(protocol, fewer, blend, config.stack)
    with pytest.raises(WhaleidError, match="no rankings"):
        stack_rankings(protocol, [], blend, config.stack)


def test_a_nan_row_a_zero_vector_and_other_rows_are_named_whatever_stands_on_top(world, tmp_path):
    sources = write_sources(world, tmp_path, count=1, logits=False)
    table = np.load(sources[0].folds[2] / "embeddings.npy")
    nan, zero = table.copy(), table.copy()
    nan[11, 2], zero[12] = np.nan, 0.0
    for rows, said in ((nan, "00011.jpg"), (zero, "'00012.jpg' is all zeros"), (table[:-1], "1 of .* are missing")):
        write_folder(tmp_path / "broken", world.images["image"][: len(rows)], rows)
        broken = Source("net0", {**sources[0].folds, 2: tmp_path / "broken"})
        with pytest.raises(WhaleidError, match=said) as caught:
            combine(world.images, world.folds, [broken], recipe(stack=STACK), world.competition, tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
