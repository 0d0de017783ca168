"""The stack: its table against a loop, its honesty, and that it repeats itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ladder_world import UNKNOWN, World, make_world, recipe, with_lists, write_sources
from test_unknown import naive_map, random_lists

from whaleid.config import StackConfig
from whaleid.ensemble.calibrate import calibrated, fit_calibration
from whaleid.ensemble.cross_fitting import CrossFitted, OofLists
from whaleid.ensemble.ladder import combine, evaluate_ladder, rank_all
from whaleid.ensemble.lambdarank import train_models, training_table
from whaleid.ensemble.protocol import Protocol, UnknownShare, read_protocol
from whaleid.ensemble.rankers.base import RankerContext
from whaleid.ensemble.rankers.second_level import BlendRanker
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.ensemble.simulation import with_simulated_unknowns
from whaleid.ensemble.stack import importance, split_identities, stack_rankings
from whaleid.ensemble.stack_features import View, directions, feature_table, positions
from whaleid.ensemble.stack_models import read_stack_models, write_stack_models
from whaleid.ensemble.unknown import SHARES, best_threshold, map_at, rank_stats, share_curve
from whaleid.evaluation.metrics import expected_share_weights
from whaleid.utils.errors import WhaleidError

SMALL = {"num_iterations": 30, "seeds": 1, "min_data_in_leaf": 20, "first": 8, "candidates": 15}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(seed=1)


@pytest.fixture(scope="module")
def sources(world, tmp_path_factory) -> list[Source]:
    return write_sources(world, tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def asked(world, sources) -> tuple[Protocol, list[Ranking]]:
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    return protocol, rank_all(sources, world.images, protocol, recipe().combine, 0)


@pytest.fixture(scope="module")
def blend(asked) -> Ranking:
    """Of `asked`: most of a stack's seconds are its blend's, which no setting of the stack changes."""
    return blended(*asked)[0]


def stacked(protocol, rankings, blend, groups=None, models=None, **settings):
    config = stack_config(**settings).stack
    return stack_rankings(protocol, rankings, blend, config, 0, groups, models=models)


def stack_config(**settings):
    return recipe(stack={**SMALL, **settings}).combine


def blended(protocol, rankings, **settings):
    config = stack_config(**settings)
    (blend,) = BlendRanker().rank(RankerContext(protocol, config, rankings=tuple(rankings)))
    return blend, config.stack


# --------------------------------------------------------------------------------------------------- the table


def test_table_equals_a_loop():
    rng = np.random.default_rng(0)
    truth = rng.integers(-1, 12, 30)
    lists = [random_lists(rng) for _ in range(3)]
    views = [
        View(name, one, fit_calibration(one, truth, np.ones(30), False))
        for name, one in zip(("a", "b", "blend"), lists, strict=True)
    ]
    sizes = np.arange(12)
    config = StackConfig(first=4, candidates=6)
    table = feature_table(views, sizes, 5, config)
    assert len(set(table.names)) == len(table.names) == table.values.shape[1] == len(directions(table.names))
    assert np.isfinite(table.values).all() and (np.diff(table.query) >= 0).all() and table.queries == 30
    for query in range(30):
        total: dict[int, float] = {}
        for one in lists:
            for place, code in enumerate(one.codes[query, :4]):
                if code >= 0:
                    total[int(code)] = total.get(int(code), 0.0) + 1 / (place + 1)
        wanted = set(sorted(total, key=lambda code: (-round(total[code], 6), code))[:6])
        rows = np.flatnonzero(table.query == query)
        assert set(table.codes[rows]) == wanted
        for row in rows:
            code = table.codes[row]
            told = dict(zip(table.names, table.values[row].tolist(), strict=True))
            first = []
            for view in views:
                p, none = calibrated(view.lists, view.calibration)
                own = [int(c) for c in view.lists.codes[query] if c >= 0]
                at = own.index(code) if code in own else len(own) - 1
                place = own.index(code) + 1 if code in own else len(own) + 1
                probability = p[query, at]
                odds = np.log(max(probability, 1e-9)) - np.log(max(none[query], 1e-9))
                assert told[f"{view.name}: place"] == place
                assert told[f"{view.name}: odds"] == pytest.approx(odds, abs=1e-4)
                assert told[f"{view.name}: probability"] == pytest.approx(probability, abs=1e-6)
                first.append(place == 1)
            assert told["first in"] == pytest.approx(np.mean(first[:2]))
            assert told["images"] == pytest.approx(sizes[code] / sizes[1:].mean())
            assert table.start[row] == pytest.approx(told["blend: odds"], abs=1e-4)


def test_positions_equal_a_loop():
    rng = np.random.default_rng(1)
    codes = random_lists(rng).codes
    wanted = rng.integers(-1, 15, (30, 7))
    found = positions(codes, wanted)
    for row in range(30):
        own = codes[row].tolist()
        assert found[row].tolist() == [own.index(c) if c >= 0 and c in own else -1 for c in wanted[row].tolist()]


def test_nothing_tells_who_is_asked_about(asked):
    """Rename the identities: no value of the table changes but for the codes."""
    protocol, rankings = asked
    rng = np.random.default_rng(0)
    order = rng.permutation(len(protocol.classes))
    lists = rankings[0].oof[0]
    renamed = replace(lists, codes=np.where(lists.codes >= 0, order[lists.codes], -1))
    truth = protocol.parts[0].truth
    sizes = np.bincount(protocol.parts[0].gallery_codes, minlength=len(order))
    turned = np.empty_like(sizes)
    turned[order] = sizes
    fit = fit_calibration(lists, truth, np.ones(len(truth)), False)
    tables = [
        feature_table([View("a", one, fit)] * 2, size, 5, StackConfig())
        for one, size in ((lists, sizes), (renamed, turned))
    ]
    np.testing.assert_array_equal(tables[0].values, tables[1].values)


# ----------------------------------------------------------------------------------------------------- honesty


def test_a_folds_truth_does_not_reach_its_own_order(asked, blend):
    protocol, rankings = asked
    groups = split_identities(protocol, 3)
    part = protocol.parts[1]
    order = np.random.default_rng(0).permutation(len(part.truth))
    wrong = replace(part, truth=part.truth[order], sizes=part.sizes[order])
    permuted = replace(protocol, parts=(protocol.parts[0], wrong, protocol.parts[2]))
    before = stacked(protocol, rankings, blend, groups)
    after = stacked(permuted, rankings, blended(permuted, rankings)[0], groups)
    np.testing.assert_array_equal(before.oof[1].codes, after.oof[1].codes)
    np.testing.assert_array_equal(before.oof[1].scores, after.oof[1].scores)
    assert before.fitted.by_fold[1].models.limit == after.fitted.by_fold[1].models.limit
    assert not np.array_equal(before.oof[0].scores, after.oof[0].scores)


def test_a_model_is_not_trained_on_its_own_group(asked, blend, monkeypatch):
    protocol, rankings = asked
    groups = split_identities(protocol, 3)
    given = []

    def recorded(table, chosen, *rest):
        given.append((table.weights, chosen))
        return train_models(table, chosen, *rest)

    monkeypatch.setattr("whaleid.ensemble.stack.train_models", recorded)
    stacked(protocol, rankings, blend, groups)
    calls = iter(given)
    places = protocol.places
    assert len(given) == 3 * (len(places) + 1)
    for training in [*(protocol.training_folds(place) for place in places), places]:
        group = np.concatenate([groups[place] for place in training])
        for held in range(3):
            weights, chosen = next(calls)
            np.testing.assert_array_equal(chosen, group != held)
            np.testing.assert_array_equal(weights, protocol.weights(training))


def test_the_truth_of_queries_that_are_not_chosen_reaches_no_tree(asked):
    """Neither as labels nor through the rows and bins that all models share."""
    protocol, rankings = asked
    config = StackConfig.model_validate({**SMALL, "training_candidates": 4})
    table, truth = table_of(protocol, rankings, config)
    rng = np.random.default_rng(0)
    chosen = rng.random(len(truth)) < 0.6
    other = np.where(chosen, truth, rng.integers(-1, len(protocol.classes), len(truth)))
    prepared = [training_table(table, one, np.ones(len(truth)), config) for one in (truth, other)]

    def trees(prepared_table, mask):
        return [model.model_to_string() for model in train_models(prepared_table, mask, protocol.k, config, 0)]

    assert trees(prepared[0], chosen) == trees(prepared[1], chosen)
    assert trees(prepared[0], ~chosen) != trees(prepared[1], ~chosen)
    assert train_models(prepared[0], np.zeros(len(truth), dtype=bool), protocol.k, config, 0) == ()


def test_a_training_table_is_the_first_candidates(asked):
    protocol, rankings = asked
    config = StackConfig.model_validate({**SMALL, "training_candidates": 4})
    table, truth = table_of(protocol, rankings, config)
    prepared = training_table(table, truth, np.ones(len(truth)), config)
    label = prepared.data.construct().get_label()
    seen = 0
    for query, own in enumerate(truth):
        codes = table.codes[table.query == query]
        codes = codes[:4]
        wanted = [code == own for code in codes]
        assert label[seen : seen + len(codes)].tolist() == wanted and prepared.usable[query] == any(wanted)
        seen += len(codes)
    assert seen == len(prepared.query) == len(label)


def test_the_stack_of_a_fold_reads_lists_that_the_fold_had_no_part_in(asked):
    """A ranking whose setting was chosen by folds' scores: the stack for fold k reads `OofLists.without(k)` alone."""
    protocol, rankings = asked
    base = next(one for one in rankings if one.kind == "concat")
    mixed = next(one for one in rankings if one.kind == "classifier")
    lists = OofLists((base.oof,) * 3, mixed.oof)
    reranked = Ranking("rerank", "rerank", lists, base.test, False, fitted=CrossFitted(("a",) * 3, "b"))
    blend, config = blended(protocol, [*rankings, reranked])

    def ordered(lists: OofLists):
        return stack_rankings(protocol, [*rankings, replace(reranked, lists=lists)], blend, config, 0)

    def same(one, other):
        return [
            np.array_equal(a.scores, b.scores) and np.array_equal(a.codes, b.codes)
            for a, b in zip((*one.oof, *one.test), (*other.oof, *other.test), strict=True)
        ]

    before = ordered(lists)
    answers = tuple(replace(one, codes=np.roll(one.codes, 1, axis=0)) for one in base.oof)
    without = (base.oof, (answers[0], *base.oof[1:]), base.oof)  # what is fitted on for fold 1 of fold 0
    assert same(before, ordered(replace(lists, by_excluded_fold=without)))[:3] == [True, False, True]
    assert same(before, ordered(replace(lists, full=answers))) == [True] * 3 + [False] * len(before.test)


def table_of(protocol, rankings, config):
    """Features of the first fold's queries through two rankings, and their truth."""
    truth = protocol.parts[0].truth
    views = [
        View(one.name, one.oof[0], fit_calibration(one.oof[0], truth, np.ones(len(truth)), False))
        for one in rankings[:2]
    ]
    sizes = np.bincount(protocol.parts[0].gallery_codes, minlength=len(protocol.classes))
    return feature_table(views, sizes, protocol.k, config), truth


def test_groups_part_no_identity(asked):
    protocol, _ = asked
    groups = split_identities(protocol, 3)
    seen: dict[int, set[int]] = {}
    for part, group in zip(protocol.parts, groups, strict=True):
        for code, own in zip(part.truth, group, strict=True):
            seen.setdefault(int(code), set()).add(int(own))
    assert seen.pop(-1) == {0, 1, 2} and all(len(own) == 1 for own in seen.values())
    assert {group for own in seen.values() for group in own} == {0, 1, 2}


def test_random_labels_score_at_chance(asked):
    """Truth that has nothing to do with the images: neither blend nor stack finds more than luck and the share give."""
    protocol, rankings = asked
    rng = np.random.default_rng(3)
    parts = tuple(
        replace(part, truth=rng.permutation(np.where(part.truth >= 0, rng.permutation(part.truth), -1)))
        for part in protocol.parts
    )
    random = replace(protocol, parts=parts, share=UnknownShare(0.2, 0.2, "given"))
    result = evaluate_ladder(random, rankings, recipe(stack=SMALL).combine)
    identities = len(np.unique(protocol.parts[0].gallery_codes))
    chance = 0.2 + 0.8 * sum(1 / rank for rank in range(1, 5)) / identities + 0.8 * 0.06
    for rung in result.rungs[-2:]:
        assert rung.score.map < chance + 0.06, (rung.name, rung.score.map, chance)


def test_the_stack_orders_identities_and_the_blend_says_how_sure(asked):
    """So that it places unknown no worse: the n-th best candidate of each query has the blend's n-th best score."""
    protocol, rankings = with_simulated_unknowns(*asked)
    blend, config = blended(protocol, rankings)
    stack = stack_rankings(protocol, rankings, blend, config)
    for lists, of_blend in zip((*stack.oof, *stack.test), (*blend.oof, *blend.test), strict=True):
        width = lists.codes.shape[1]
        listed = lists.codes >= 0
        np.testing.assert_array_equal(lists.scores[listed], of_blend.scores[:, :width][listed])
        assert listed[:, :5].all()


# ----------------------------------------------------------------------------------------- the rung and repeats


def test_the_stack_is_the_last_rung(world, sources, tmp_path):
    config = recipe(stack=SMALL)
    result = combine(world.images, world.folds, sources[:2], config, world.competition, tmp_path / "out")
    assert [rung.name for rung in result.rungs[-2:]] == ["blend", "stack"] and result.final.kind == "stack"
    written = result.as_json()
    assert sum(written["stack"]["importance"].values()) == pytest.approx(1, abs=1e-6)
    assert len(written["stack"]["rounds"]) == 4 and [p["share"] for p in written["shares"]] == list(SHARES)
    step = result.final.score.map - result.rung("blend").score.map
    assert result.final.below.gain == pytest.approx(step) and step > -0.03
    first = result.test_guesses[:, 0] == UNKNOWN
    assert first.mean() == pytest.approx(result.final.thresholds.test_first)
    found = [
        1 / (list(row).index(true) + 1) if true in row else 0
        for row, true in zip(result.test_guesses, world.solution, strict=True)
    ]
    assert np.mean(found) == pytest.approx(result.final.score.map, abs=0.08)  # 162 test images: two standard errors


def test_models_come_back_as_they_were(asked, blend, tmp_path):
    protocol, rankings = asked
    first = stacked(protocol, rankings, blend)
    models = first.fitted.full.models
    write_stack_models(models, tmp_path / "stack")
    read = read_stack_models(tmp_path / "stack")
    assert replace(read, models=()) == replace(models, models=())
    assert [len(seeds) for seeds in read.models] == [1, 1, 1] and read.trees > 0
    again = stacked(protocol, rankings, blend, models=read)
    for one, other in zip(first.test, again.test, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)


def test_last_digits_change_nothing_with_given_models(asked, blend):
    """Scores as another machine's arithmetic gives them: trees trained on them rank otherwise, given ones do not."""
    protocol, rankings = asked
    first = stacked(protocol, rankings, blend)
    rng = np.random.default_rng(0)

    def noisy(lists):
        return replace(lists, scores=(lists.scores * (1 + 1e-7 * rng.integers(-1, 2, lists.scores.shape))).astype("f4"))

    moved = [with_lists(one, oof=map(noisy, one.oof), test=tuple(map(noisy, one.test))) for one in rankings]
    models = first.fitted.full.models
    moved_blend = blended(protocol, moved)[0]
    given = stacked(protocol, moved, moved_blend, models=models)
    trained = stacked(protocol, moved, moved_blend)
    assert trained.fitted.full.models.models[0][0].model_to_string() != models.models[0][0].model_to_string()
    for one, other in zip(first.test, given.test, strict=True):
        assert (one.codes[:, :5] != other.codes[:, :5]).any(axis=1).mean() < 0.01


def test_models_of_other_rankings_or_broken_files_are_one_line(asked, blend, tmp_path):
    protocol, rankings = asked
    models = stacked(protocol, rankings, blend).fitted.full.models
    with pytest.raises(WhaleidError, match="trained with other rankings than these: "):
        stacked(protocol, rankings[:-1], blend, models=models)
    with pytest.raises(WhaleidError, match="no readable models of a stack"):
        read_stack_models(tmp_path / "nothing")
    write_stack_models(models, tmp_path / "stack")
    (tmp_path / "stack" / "group1-seed0.txt").write_text("tree\n")
    with pytest.raises(WhaleidError, match="no readable models of a stack"):
        read_stack_models(tmp_path / "stack")


def test_closed_set(tmp_path):
    closed = make_world(seed=3, unknown=False)
    sources = write_sources(closed, tmp_path / "g", count=2)
    result = combine(closed.images, closed.folds, sources, recipe(stack=SMALL), closed.competition, tmp_path / "b")
    assert result.final.name == "stack" and result.final.thresholds is None and not result.shares
    assert result.final.score.map > result.rung("blend").score.map - 0.03


def test_the_same_with_any_number_of_threads(asked, blend):
    protocol, rankings = asked
    one, two = (stacked(protocol, rankings, blend, num_threads=threads, num_iterations=4) for threads in (1, 2))
    for first, second in zip(one.oof + one.test, two.oof + two.test, strict=True):
        np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)  # sums of float32 in another order
    models = [[stack.models for stack in (*each.fitted.by_fold, each.fitted.full)] for each in (one, two)]
    assert [own.trees for own in models[0]] == [own.trees for own in models[1]]
    assert importance(models[0][-1]) == pytest.approx(importance(models[1][-1]), abs=1e-5)


# --------------------------------------------------------------------------------------------- shares of unknown


def test_map_at_and_share_curve_equal_a_loop():
    rng = np.random.default_rng(0)
    lists = [random_lists(rng) for _ in range(2)]
    truths = [rng.integers(-1, 12, 30) for _ in lists]
    for one in truths:
        one[:6] = -1
    given = rank_stats(lists[0], truths[0], np.ones(30), 5)
    assert map_at(given, 0.3, 5) == pytest.approx(naive_map(lists[0], truths[0], np.ones(30), 0.3, 5))
    points = share_curve([(lists[0], truths[0], 0.2), (lists[1], truths[1], -0.1)], [[1], [0]], 5)
    for point in points:
        total = {"kept": 0.0, "best": 0.0}
        weights = expected_share_weights(np.concatenate(truths) < 0, point.share)
        for place, kept in ((0, 0.2), (1, -0.1)):
            other = 1 - place
            fitted_on = expected_share_weights(truths[other] < 0, point.share)
            best = best_threshold(rank_stats(lists[other], truths[other], fitted_on, 5), 5)[0]
            own = weights[30 * place : 30 * place + 30]
            for name, limit in (("kept", kept), ("best", best)):
                total[name] += naive_map(lists[place], truths[place], own, limit, 5) * own.sum() / weights.sum()
        assert (point.kept, point.best) == (pytest.approx(total["kept"]), pytest.approx(total["best"]))
