"""Post-processing: every step against a loop, and the rungs honest, chosen on other folds, off where nothing helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_world import World, make_world, recipe, write_sources
from test_unknown import random_lists

from whaleid.config import AfterConfig, Recipe
from whaleid.ensemble.ablation import ablate, list_variants
from whaleid.ensemble.after import (
    CLAIMS,
    DUPLICATES,
    Asked,
    Facts,
    Scale,
    claim_penalties,
    copies_of,
    masses,
    moved,
    never_shown,
    read_facts,
    share_answers,
    steps,
)
from whaleid.ensemble.ladder import combine, evaluate_ladder, rank_all
from whaleid.ensemble.ladder_text import ladder_lines
from whaleid.ensemble.protocol import Protocol, read_protocol
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.ensemble.results import Gain, Rung, UnknownSummary
from whaleid.ensemble.stack import deal_groups
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError

SCALES = [Scale(True, True), Scale(False, True), Scale(False, False)]


def scored(rng: np.random.Generator, scale: Scale, queries: int = 12, classes: int = 9) -> Candidates:
    """Random lists whose scores are what the scale says."""
    lists = random_lists(rng, queries=queries, classes=classes, width=6)
    real = np.isfinite(lists.scores)
    odds = np.where(real, lists.scores, -np.inf).astype(np.float64)
    if scale.unknown and not scale.probability:
        return lists
    none = 1.0 if scale.unknown else 0.0
    p = np.exp(odds) / (np.exp(odds).sum(axis=1, keepdims=True) + none)
    scores = (p if scale.probability else np.log(np.where(real, p, 1.0))).astype(np.float32)
    return replace(lists, scores=np.where(real, scores, -np.inf).astype(np.float32))


def as_dicts(lists: Candidates) -> list[dict[int, float]]:
    return [
        {int(code): float(score) for code, score in zip(codes, scores, strict=True) if code >= 0}
        for codes, scores in zip(lists.codes, lists.scores, strict=True)
    ]


# -------------------------------------------------------------------------------------------------- each step


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_copies_share_the_mean_of_their_scores(seed):
    rng = np.random.default_rng(seed)
    lists = scored(rng, SCALES[seed % 3])
    copies = rng.integers(0, 8, len(lists)) * 3 + 5
    before, after = as_dicts(lists), as_dicts(share_answers(lists, copies))
    for query, photograph in enumerate(copies):
        own = [before[other] for other in np.flatnonzero(copies == photograph)]
        names = sorted(set().union(*own))
        mean = {name: np.mean([one.get(name, min(one.values())) for one in own]) for name in names}
        first = sorted(mean.values(), reverse=True)[:6]
        assert sorted(after[query].values(), reverse=True) == pytest.approx(first, abs=1e-5)
        assert all(score == pytest.approx(mean[name], abs=1e-5) for name, score in after[query].items())
        if len(own) == 1:
            assert after[query] == before[query]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_never_shown_equals_a_loop(seed):
    rng = np.random.default_rng(seed)
    lists = random_lists(rng, queries=10, classes=7, width=5)
    values, shown, codes = rng.integers(-1, 3, 10), rng.integers(-1, 3, 15), rng.integers(0, 7, 15)
    found = never_shown(lists, values, shown, codes)
    for query in range(10):
        for place, code in enumerate(lists.codes[query]):
            told = {int(value) for value, owner in zip(shown, codes, strict=True) if owner == code and value >= 0}
            wanted = code >= 0 and values[query] >= 0 and bool(told) and int(values[query]) not in told
            assert found[query, place] == wanted


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), weight=st.sampled_from([0.1, 0.5, 1.0]), rounds=st.integers(1, 3))
def test_claim_penalties_equal_a_loop(seed, weight, rounds):
    rng = np.random.default_rng(seed)
    scale = SCALES[seed % 3]
    lists = scored(rng, scale)
    share = rng.dirichlet(np.ones(9))
    factor = dict.fromkeys(range(9), 1.0)
    for _ in range(rounds):
        claims = dict.fromkeys(range(9), 0.0)
        for row in as_dicts(lists):
            mass = {code: score if scale.probability else np.exp(score) for code, score in row.items()}
            none = 1 - sum(mass.values()) if scale.probability else float(scale.unknown)
            total = sum(mass[code] * factor[code] for code in mass) + none
            for code, own in mass.items():
                claims[code] += own * factor[code] / total
        whole = sum(claims.values())
        factor = {code: ((claims[code] / factor[code] + 1) / (whole * share[code] + 1)) ** -weight for code in range(9)}
    found = np.exp(claim_penalties(lists, share, weight, rounds, scale))
    real = lists.codes >= 0
    wanted = np.array([factor[int(code)] for code in lists.codes[real]])
    np.testing.assert_allclose(found[real], wanted, rtol=1e-3)


def test_full_weight_and_many_rounds_bring_claims_to_what_is_expected():
    """600 queries of whom one identity claims nearly all: without pseudo-claims this is Sinkhorn's balance."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(600, 4)) + np.array([3.0, 0.0, 0.0, 0.0])
    order = np.argsort(-logits, axis=1)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = np.log(np.take_along_axis(p, order, axis=1)).astype(np.float32)
    lists = Candidates(np.arange(600).astype(str), np.array(list("abcd")), order, scores)
    share, scale = np.array([0.4, 0.3, 0.2, 0.1]), Scale(False, False)
    after = moved(lists, claim_penalties(lists, share, 1.0, 200, scale), scale)
    mass, none = masses(after, scale)
    claims = np.bincount(after.codes.ravel(), (mass / (mass.sum(axis=1) + none)[:, None]).ravel(), 4)
    np.testing.assert_allclose(claims, 600 * share, rtol=0.05)
    before = np.bincount(lists.codes[:, 0], minlength=4)
    assert before[0] > 500 and np.bincount(after.codes[:, 0], minlength=4)[0] < 320


@pytest.mark.parametrize("scale", SCALES)
def test_moved_adds_to_the_log_odds(scale):
    rng = np.random.default_rng(3)
    lists = scored(rng, scale)
    change = rng.normal(size=lists.codes.shape)
    after = moved(lists, change, scale)
    for row, new, codes, own in zip(as_dicts(lists), as_dicts(after), lists.codes, change, strict=True):
        shift = {int(code): value for code, value in zip(codes, own, strict=True)}
        none, new_none = 1 - sum(row.values()), 1 - sum(new.values())
        for code in row:
            if scale.probability:
                odds, new_odds = np.log(row[code] / none), np.log(new[code] / new_none)
                assert new_odds == pytest.approx(odds + shift[code], abs=1e-3)
            else:
                assert new[code] == pytest.approx(row[code] + shift[code], abs=1e-5)
    same = moved(lists, np.zeros(lists.codes.shape), scale)
    np.testing.assert_array_equal(same.codes, lists.codes)
    np.testing.assert_allclose(same.scores, lists.scores, rtol=1e-6)


def test_copies_are_near_hashes_within_a_group():
    groups = pd.Series(["a", "a", "b", "a", "c", "c"])
    chained = [0, 0b111111, 0, 0b111111_111111, 0, 2**64 - 1]  # 0 and 3 differ in 12 bits; 1 is near to both
    hashes = pd.Series([f"{value:016x}" for value in chained])
    assert copies_of(groups, hashes).tolist() == [0, 0, 1, 0, 2, 3]  # 4 and 5: an encounter, two photographs
    assert copies_of(groups[:1], hashes[:1]).tolist() == [0]


# -------------------------------------------------------------------------------------------------- the rungs


def with_facts(world: World, **columns: np.ndarray) -> World:
    """The world with what a table of images has beside names and labels; every image is a photograph of its own."""
    hashes = np.random.default_rng(5).integers(0, 2**63, len(world.images), dtype=np.uint64)
    facts = {"group": world.images["image"], "phash": [f"{value:016x}" for value in hashes], **columns}
    return replace(world, images=world.images.assign(**facts))


@pytest.fixture(scope="module")
def world() -> World:
    return with_facts(make_world(seed=4, identities=30))


@pytest.fixture(scope="module")
def sources(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    return write_sources(world, tmp_path_factory.mktemp("features"), count=2, logits=False)


def settings_of(**more):
    return recipe(**{"classifier": None, "logits": 0, "after": {"errors": 0.0}, **more}).combine


@pytest.fixture(scope="module")
def protocol(world: World) -> Protocol:
    return read_protocol(world.images, world.folds, world.competition, [0, 1, 2])


@pytest.fixture(scope="module")
def rankings(world: World, sources: list[Source], protocol: Protocol) -> list[Ranking]:
    return rank_all(sources, world.images, protocol, settings_of(), 0)


def thresholds(rung: Rung) -> UnknownSummary:
    assert rung.thresholds is not None
    return rung.thresholds


def below(rung: Rung) -> Gain:
    assert rung.below is not None
    return rung.below


STACK = {"num_trees": 20, "num_leaves": 5, "min_data_in_leaf": 10, "seeds": 1}


@pytest.mark.parametrize("top", [{}, {"stack": STACK}])
def test_a_folds_truth_does_not_reach_its_own_answers(world, sources, protocol, monkeypatch, top):
    """Permute what fold 1's queries truly are: what fold 1 is answered stays, bit for bit, settings included."""
    expansion = {"expansion": {"neighbours": [1, 3], "alpha": [3.0]}}
    others = dict.fromkeys(("augmentation", "reciprocal", "diffusion", "labels"))
    config = settings_of(rerank={**expansion, **others}, **top)
    groups = deal_groups(protocol, 3)  # they are dealt by the truth: the same ones for both
    monkeypatch.setattr("whaleid.ensemble.stack.deal_groups", lambda *_: groups)
    part = protocol.parts[1]
    order = np.random.default_rng(0).permutation(len(part.truth))
    wrong = replace(part, truth=part.truth[order], sizes=part.sizes[order])
    permuted = replace(protocol, parts=(protocol.parts[0], wrong, protocol.parts[2]))
    before, after = (
        evaluate_ladder(one, rank_all(sources, world.images, one, config, 0), config, 0, world.images)
        for one in (protocol, permuted)
    )
    names = [rung.name for rung in before.rungs]
    assert names[-2:] == [DUPLICATES, CLAIMS] and (names[-3] == "stack") == bool(top)
    for one, other in zip(before.rungs, after.rungs, strict=True):
        np.testing.assert_array_equal(one.oof[1].codes, other.oof[1].codes)
        np.testing.assert_array_equal(one.oof[1].scores, other.oof[1].scores)
        assert thresholds(one).by_fold[1] == thresholds(other).by_fold[1]
    for one, other in zip(before.rungs[-2:], after.rungs[-2:], strict=True):
        assert (one.settings or {})[1] == (other.settings or {})[1]
    assert thresholds(before.final).tuned != thresholds(after.final).tuned


def test_off_is_the_rung_below(world, protocol, rankings):
    """Nobody has copies, and no gain is large enough: the last rungs are the blend, unknown and test set too."""
    result = evaluate_ladder(protocol, rankings, settings_of(after={"errors": 1e9}), 0, world.images)
    blend = result.rung("blend")
    for name in (DUPLICATES, CLAIMS):
        rung = result.rung(name)
        assert rung.setting == "off" and rung.settings == dict.fromkeys(range(3), "off")
        assert below(rung).gain == 0.0 and rung.score == blend.score and rung.thresholds == blend.thresholds
        np.testing.assert_array_equal(rung.test_guesses(5), blend.test_guesses(5))
    lines = ladder_lines({"ladder": result.as_json()})
    assert any(line.startswith("claims: +0.00000") and line.endswith("setting: off") for line in lines)


def test_where_a_place_tells_who_it_is(world, sources, protocol, rankings):
    """Identities keep to one of five places, which the images table knows: the rung gains, and so does the test set."""
    rng = np.random.default_rng(7)
    identity = world.images["identity"].to_numpy(dtype=object).copy()
    identity[protocol.test_rows] = world.solution
    home = {name: f"place {rng.integers(5)}" for name in np.unique(identity.astype(str))}
    lonely = {name: f"place {rng.integers(5)}" for name in world.images["image"]}
    place: list[str | None] = [
        lonely[image] if name == world.competition.unknown else home[name]
        for image, name in zip(world.images["image"], identity, strict=True)
    ]
    place[3] = None
    images = world.images.assign(place=place)
    result = evaluate_ladder(protocol, rankings, settings_of(after={"same": ["place"], "claims": None}), 0, images)
    assert [rung.name for rung in result.rungs[-3:]] == ["blend", "same place", DUPLICATES]
    rung = result.rung("same place")
    assert below(rung).low > 0.0 and rung.setting != "off"

    def top(guesses: np.ndarray) -> float:
        return float((guesses[:, 0] == world.solution).mean())

    assert top(rung.test_guesses(5)) > top(result.rung("blend").test_guesses(5)) + 0.02


def test_the_order_of_the_queries_does_not_matter(world, protocol):
    """Every setting of every step: the same queries in another order get the same answers."""
    part = protocol.parts[0]
    config = AfterConfig(same=["side"])
    images = world.images.assign(side=[row % 2 for row in range(len(world.images))], group="one", phash="0" * 16)
    images.loc[::3, "phash"] = "f" * 16
    facts = read_facts(images, config)
    lists = scored(np.random.default_rng(1), SCALES[0], len(part.rows), len(protocol.classes))
    lists = replace(lists, queries=part.names, classes=protocol.classes)
    order = np.random.default_rng(2).permutation(len(lists))
    turned = Candidates(lists.queries[order], lists.classes, lists.codes[order], lists.scores[order])
    half = np.arange(len(lists)) % 2
    names = []
    for name, found in steps(config, facts, SCALES[0]):
        for setting, change in found.items():
            one = change(lists, Asked(part.rows, part.gallery, part.gallery_codes, half))
            other = change(turned, Asked(part.rows[order], part.gallery, part.gallery_codes, half[order]))
            np.testing.assert_allclose(one.scores[order], other.scores, rtol=1e-5)
            assert not np.array_equal(one.scores, lists.scores)
            names.append(f"{name}: {setting}")
    assert len(names) == len(set(names)) == 3 + 1 + 4 * 2 * 2


def test_each_half_is_a_test_set_of_its_own(world, protocol):
    part = protocol.parts[0]
    lists = scored(np.random.default_rng(1), SCALES[0], len(part.rows), len(protocol.classes))
    lists = replace(lists, queries=part.names, classes=protocol.classes)
    half = np.random.default_rng(2).integers(0, 2, len(lists))
    facts = read_facts(world.images, AfterConfig())
    for setting in dict(steps(AfterConfig(), facts, SCALES[0]))[CLAIMS].values():
        both = setting(lists, Asked(part.rows, part.gallery, part.gallery_codes, half))
        for which in (0, 1):
            rows = np.flatnonzero(half == which)
            own = Candidates(lists.queries[rows], lists.classes, lists.codes[rows], lists.scores[rows])
            alone = setting(own, Asked(part.rows[rows], part.gallery, part.gallery_codes, np.zeros(len(rows))))
            np.testing.assert_array_equal(both.scores[rows], alone.scores)


def test_halves_of_a_fold_promise_no_more_than_a_random_test_set_keeps():
    """Some identities are claimed by too many. A whole fold, dealt evenly, promises more of balance than is true; its
    halves, of fewer queries, a little less.
    """
    queries, classes = 120, 60
    codes = np.arange(queries) % classes
    config = AfterConfig.model_validate({"claims": {"weights": [1.0], "rounds": [10], "expected": ["even"]}})
    found = dict(steps(config, Facts(np.arange(queries), {}), Scale(True, False)))[CLAIMS]
    rng = np.random.default_rng(0)

    def gain(truth: np.ndarray, favour: np.ndarray, part: np.ndarray) -> float:
        logits = 1.5 * (rng.normal(size=(queries, classes)) + favour + 3.0 * (np.arange(classes) == truth[:, None]))
        order = np.argsort(-logits, axis=1)
        p = np.exp(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
        scores = np.take_along_axis(p, order, axis=1).astype(np.float32)
        lists = Candidates(np.arange(queries).astype(str), np.arange(classes).astype(str), order, scores)
        balanced = found["1, even, 10 rounds"](lists, Asked(codes, codes, codes, part))
        return float((balanced.codes[:, 0] == truth).mean() - (lists.codes[:, 0] == truth).mean())

    gains = []
    for _ in range(60):
        favour, deal = rng.normal(size=classes), rng.permutation(queries) % 2
        drawn = rng.integers(0, classes, queries)
        questions = ((codes, 0 * deal), (codes, deal), (drawn, 0 * deal))
        gains.append([gain(truth, favour, part) for truth, part in questions])
    whole, halved, true = np.mean(gains, axis=0)
    assert true > 0.15 and whole > true + 0.015 and true - 0.06 < halved < true + 0.005


# -------------------------------------------------------------------------------------------------- bad input


def complaint(images: pd.DataFrame, **after) -> str:
    with pytest.raises(WhaleidError) as caught:
        read_facts(images, AfterConfig.model_validate(after))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_columns(world, protocol, rankings):
    assert "no column 'species' for this; it has: " in complaint(world.images, same=["species"])
    assert "no column 'identity' for this" in complaint(world.images, same=["identity"])
    trained = world.images["split"] == "train"
    half = world.images.assign(species=pd.Series("orca", world.images.index).where(trained))
    assert "'species' is empty for every test image; name its column in test.extra" in complaint(half, same=["species"])
    assert "column 'phash' is missing" in complaint(world.images.drop(columns="phash"))
    with pytest.raises(ValueError, match="listed twice: width"):
        AfterConfig(same=["width", "width"])
    with pytest.raises(WhaleidError, match="needs the table of images"):
        evaluate_ladder(protocol, rankings, settings_of())


# ------------------------------------------------------------------------------------------------ the ablation


def test_ablation_takes_what_matches_taught_off():
    """All of it, which leaves the votes; and the pictures matched pair by pair alone."""
    variants = {one.name: one for one in list_variants(recipe(local_matching={"learned": {}}).combine, ["net0"])}
    learned, pairs = variants["matches weighed as learnt"], variants["pairs weighed as learnt"]
    assert learned.config.local_matching is not None and learned.config.local_matching.learned is None
    assert set(learned.gone) == {"local learned", "local supported", "local image", "local pairs"}
    assert pairs.config.local_matching is not None and pairs.config.local_matching.learned is not None
    assert pairs.config.local_matching.learned.pairs is None and pairs.gone == ("local pairs",)
    assert list_names(recipe(local_matching={"learned": {"pairs": None}})) >= {
        "matches weighed as learnt",
        "local matching",
    }
    assert "pairs weighed as learnt" not in list_names(recipe(local_matching={"learned": {"pairs": None}}))
    assert "matches weighed as learnt" not in list_names(recipe(local_matching={}))


def list_names(plan: Recipe) -> set[str]:
    return {one.name for one in list_variants(plan.combine, ["net0"])}


def test_ablation_takes_every_part_off(world, sources, tmp_path: Path):
    """The weight of a network that is left out goes with it; a part off is the recipe without that part."""
    plan = recipe(
        concat={"whiten": 16, "weights": {"net1": 0.5}},
        classifier={"epochs": 2, "seeds": 1},
        rerank={"augmentation": None, "reciprocal": None, "diffusion": None, "labels": None},
        stack=STACK,
        after={},
    )
    names = [variant.name for variant in list_variants(plan.combine, ["net0", "net1"])]
    assert names == [
        *["whitening", "classifier on the features", "class probabilities", "re-ranking", "learned order"],
        "learned order: embeddings",
        *["post-processing", "post-processing: duplicates", "post-processing: claims"],
        *["network net0", "network net1"],
    ]
    table = ablate(world.images, world.folds, sources, plan, world.competition)
    assert [row.name for row in table.rows] == ["nothing", *names]
    rows = {row.name: row for row in table.rows}
    bare = recipe(**{**plan.combine.model_dump(mode="json"), "after": None})
    result = combine(world.images, world.folds, sources, bare, world.competition, tmp_path)
    assert rows["post-processing"].score == result.final.score
    change = rows["post-processing"].change
    assert change is not None
    assert change.gain == pytest.approx(result.final.score.map - table.rows[0].score.map)
    alone = recipe(**{**plan.combine.model_dump(mode="json"), "concat": {"whiten": 16}})
    result = combine(world.images, world.folds, sources[:1], alone, world.competition, tmp_path / "alone")
    assert rows["network net1"].score == result.final.score
