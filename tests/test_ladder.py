"""The ladder as a whole: honest, repeatable, and right about its own figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ladder_world import UNKNOWN, World, make_world, recipe, write_folder, write_sources

from whaleid.ensemble.intervals import paired_gain
from whaleid.ensemble.ladder import combine, common_folds, evaluate_ladder, rank_all
from whaleid.ensemble.protocol import NONE, read_protocol
from whaleid.ensemble.rankers.single import top_probabilities
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.ensemble.results import LadderResult
from whaleid.ensemble.simulation import TAKEN_OUT
from whaleid.retrieval.candidates import read_candidates
from whaleid.utils.errors import WhaleidError


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(seed=1)


@pytest.fixture(scope="module")
def sources(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    return write_sources(world, tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def result(world: World, sources: list[Source], out: Path) -> LadderResult:
    return combine(world.images, world.folds, sources, recipe(), world.competition, out)


def solution_map(result: LadderResult, world: World, name: str) -> float:
    total = 0.0
    for guesses, true in zip(result.rung(name).test_guesses(result.k), world.solution, strict=True):
        total += 1 / (list(guesses).index(true) + 1) if true in guesses else 0.0
    return total / len(world.solution)


# ---------------------------------------------------------------------------------------------- what it finds


def test_rungs_and_their_order(result):
    singles = [f"net{n}{kind}" for n in range(3) for kind in ("", " logits")]
    assert [rung.name for rung in result.rungs] == [*singles, "concat kNN", "classifier", "blend"]
    assert result.final.name == "blend"
    assert result.rung(result.best_single).gain is None
    assert all(rung.gain is not None for rung in result.rungs if rung.name != result.best_single)
    members = [rung for rung in result.rungs if rung.weight is not None]
    assert sum(rung.weight for rung in members) == pytest.approx(1)
    assert {rung.kind for rung in members} <= {"logits", "concat", "classifier"}


def test_together_they_know_more(result, world):
    best = result.rung(result.best_single).score.map
    for name in ("concat kNN", "classifier", "blend"):
        rung = result.rung(name)
        assert rung.score.map > best + 0.05 and rung.gain.low > 0
        assert rung.gain.gain == pytest.approx(rung.score.map - best)
        assert solution_map(result, world, name) > solution_map(result, world, result.best_single) + 0.02
    assert solution_map(result, world, "blend") == pytest.approx(result.final.score.map, abs=0.06)


def test_figures_equal_a_loop_over_the_file(result, world, out):
    """Each rung's score, from the candidates on disk and the tables alone."""
    table = pd.read_parquet(out / "oof.parquet")
    folds = world.folds.set_index("image")
    truth, unknown = {}, {}
    for image, row in folds.iterrows():
        others = folds[(folds.fold != row.fold) & (folds.identity == row.identity)]
        unknown[image] = row.identity == UNKNOWN or others.empty
        truth[image] = UNKNOWN if unknown[image] else row.identity
        if not unknown[image]:
            unknown[image + TAKEN_OUT], truth[image + TAKEN_OUT] = True, UNKNOWN
    share = world.competition.unknown_share
    count = sum(unknown.values())
    of_known = (1 - share) / (len(unknown) - count)
    weight = {image: share / count if new else of_known for image, new in unknown.items()}
    first = table[table["rank"] <= result.k]
    right = first["identity"].astype(str) == first["query"].astype(str).map(truth)
    first = first[right].assign(value=lambda rows: rows["query"].astype(str).map(weight) / rows["rank"])
    scores = first.groupby("source", observed=True)["value"].sum()
    for rung in result.rungs:
        assert rung.score.map == pytest.approx(scores[rung.name], abs=1e-6)
        assert rung.score.queries == len(unknown) == len(folds) + result.simulated


def test_singletons_are_unknown(world):
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    sizes = world.folds["identity"].value_counts()
    checked = 0
    for part in protocol.parts:
        identity = world.images["identity"].to_numpy()[part.rows]
        for name, true, size in zip(identity, part.truth, part.sizes, strict=True):
            if name == UNKNOWN or sizes[name] == 1:
                assert true == NONE and size == 0
                checked += name != UNKNOWN
            elif true != NONE:
                assert protocol.classes[true] == name and 0 < size < sizes[name]
    assert checked >= 8


def test_files(result, world, out):
    text = (out / "ladder.json").read_text()
    ladder = json.loads(text)
    assert ladder["final"] == "blend" and "NaN" not in text and "Infinity" not in text
    assert [rung["name"] for rung in ladder["rungs"]] == [rung.name for rung in result.rungs]
    classes = np.array([*sorted(set(world.folds["identity"]) - {UNKNOWN}), UNKNOWN])
    blocks = read_candidates(out / "test.parquet", classes)
    assert [(name, fold) for name, fold, _ in blocks] == [(rung.name, -1) for rung in result.rungs]
    guesses = classes[blocks[-1][2].codes[:, :5]]
    np.testing.assert_array_equal(guesses, result.test_guesses)
    np.testing.assert_array_equal(blocks[-1][2].queries, result.test_images)
    assert all(len(set(row)) == 5 for row in guesses)


def test_the_same_twice(result, world, sources, tmp_path):
    again = combine(world.images, world.folds, sources, recipe(), world.competition, tmp_path)
    assert again.as_json() == result.as_json()
    np.testing.assert_array_equal(again.test_guesses, result.test_guesses)


# ---------------------------------------------------------------------------------------------------- honesty


def test_a_folds_truth_does_not_reach_its_own_answers(world, sources):
    """Permute what fold 1's queries truly are: what is used on fold 1 stays, bit for bit; what it teaches
    changes.
    """
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    rankings = rank_all(sources, world.images, protocol, recipe().combine, 0)
    part = protocol.parts[1]
    order = np.random.default_rng(0).permutation(len(part.truth))
    wrong = replace(part, truth=part.truth[order], sizes=part.sizes[order])
    permuted = replace(protocol, parts=(protocol.parts[0], wrong, protocol.parts[2]))
    before, after = (evaluate_ladder(one, rankings, recipe().combine) for one in (protocol, permuted))
    for one, other in zip(before.rungs, after.rungs, strict=True):
        np.testing.assert_array_equal(one.oof[1].codes, other.oof[1].codes)
        np.testing.assert_array_equal(one.oof[1].scores, other.oof[1].scores)
        assert one.thresholds.by_fold[1] == other.thresholds.by_fold[1]
        assert (one.weights or {}).get(1) == (other.weights or {}).get(1)
    assert before.final.thresholds.tuned != after.final.thresholds.tuned
    assert before.final.thresholds.by_fold[0] != after.final.thresholds.by_fold[0]


def test_a_folds_labels_do_not_reach_its_own_rankings(world, sources):
    """As above with the labels in the tables themselves: galleries, whitening and classifier of fold 1
    stay.
    """
    images, folds = world.images.copy(), world.folds.copy()
    rows = np.flatnonzero(folds["fold"] == 1)
    labels = folds["identity"].to_numpy(dtype=object)
    labels[rows] = labels[np.random.default_rng(0).permutation(rows)]
    folds["identity"] = labels
    images["identity"] = images["image"].map(folds.set_index("image")["identity"])
    before, after = _rankings(world, sources), _rankings(replace(world, images=images, folds=folds), sources)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.oof[1].codes, other.oof[1].codes)
        np.testing.assert_array_equal(one.oof[1].scores, other.oof[1].scores)
    assert any(not np.array_equal(a.oof[0].codes, b.oof[0].codes) for a, b in zip(before, after, strict=True))


def test_a_queries_features_do_not_reach_other_queries(world, sources, tmp_path):
    """Change the features of one query of fold 1 in fold 1's files: no other query's candidates change."""
    query = world.folds.loc[world.folds["fold"] == 1, "image"].iloc[0]
    row = int(np.flatnonzero(world.images["image"] == query)[0])
    changed = []
    for source in sources:
        table = np.load(source.folds[1] / "embeddings.npy")
        table[row] = table[row][::-1]
        write_folder(tmp_path / source.name, world.images["image"], table)
        changed.append(Source(source.name, {**source.folds, 1: tmp_path / source.name}))
    for place, _ in enumerate(sources):  # logits stay as they were
        for name in ("logits.npy", "classes.txt"):
            (changed[place].folds[1] / name).write_bytes((sources[place].folds[1] / name).read_bytes())
    before, after = _rankings(world, sources), _rankings(world, changed)
    for one, other in zip(before, after, strict=True):
        others = one.oof[1].queries != query
        np.testing.assert_array_equal(one.oof[1].codes[others], other.oof[1].codes[others])
        if one.kind != "logits":
            assert not np.array_equal(one.oof[1].scores[~others], other.oof[1].scores[~others])


def test_a_foreign_model_may_not_name_what_the_gallery_lacks(world, tmp_path):
    """Logits over all identities: those without gallery image are no candidates out of fold, but are for the
    test.
    """
    classes = sorted(set(world.folds["identity"]) - {UNKNOWN})
    rng = np.random.default_rng(0)
    count = len(world.images)
    for fold in range(3):
        write_folder(
            tmp_path / f"fold{fold}",
            world.images["image"],
            rng.normal(size=(count, 4)),
            rng.normal(size=(count, len(classes))),
            classes,
        )
    source = Source("foreign", {fold: tmp_path / f"fold{fold}" for fold in range(3)})
    logits = next(ranking for ranking in _rankings(world, [source]) if ranking.kind == "logits")
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    for part, lists in zip(protocol.parts, logits.oof, strict=True):
        assert set(np.unique(lists.codes)) - {-1} == set(part.gallery_codes)
    assert set(np.unique(logits.test[0].codes)) - {-1} == set(range(len(classes)))


def _rankings(world: World, sources: list[Source]) -> list[Ranking]:
    protocol = read_protocol(world.images, world.folds, world.competition, common_folds(sources))
    return rank_all(sources, world.images, protocol, recipe().combine, 0)


# --------------------------------------------------------------------------------------------- other settings


def test_closed_set(tmp_path):
    world = make_world(seed=3, unknown=False)
    sources = write_sources(world, tmp_path / "features")
    result = combine(world.images, world.folds, sources, recipe(), world.competition, tmp_path / "out")
    assert all(rung.thresholds is None for rung in result.rungs)
    assert UNKNOWN not in result.test_guesses
    assert result.unanswerable >= 8 and result.final.score.queries == result.queries - result.unanswerable
    assert "unknown" not in result.final.score.slices
    assert result.final.score.map > result.rung(result.best_single).score.map


def test_averaging_does_not_change_how_often_unknown_comes_first(result):
    """Averaged best scores are lower than single models': the tuned threshold would make far more unknown."""
    for rung in result.rungs:
        assert (rung.test_guesses(5)[:, 0] == UNKNOWN).mean() == pytest.approx(rung.thresholds.test_first)
    knn = result.rung("net0")
    assert knn.thresholds.used < knn.thresholds.tuned
    assert knn.thresholds.test_median < knn.thresholds.oof_median + 0.1


def test_one_fold_alone_is_optimistic(world, sources, tmp_path):
    single = [Source(source.name, {1: source.folds[1]}) for source in sources]
    result = combine(world.images, world.folds, single, recipe(), world.competition, tmp_path)
    assert all(rung.optimistic for rung in result.rungs)
    assert result.queries == (world.folds["fold"] == 1).sum()
    assert len(result.test_guesses) == len(world.solution)


def test_one_source_without_logits_classifier_or_test(world, tmp_path):
    sources = write_sources(world, tmp_path / "features", count=1, logits=False)
    images = world.images[world.images["split"] == "train"].reset_index(drop=True)
    keep = (world.images["split"] == "train").to_numpy()
    for path in sources[0].folds.values():
        write_folder(path, images["image"], np.load(path / "embeddings.npy")[keep])
    result = combine(images, world.folds, sources, recipe(classifier=None), world.competition, tmp_path / "out")
    assert [rung.name for rung in result.rungs] == ["net0", "concat kNN", "blend"]
    assert result.test_guesses.shape == (0, 5) and not (tmp_path / "out" / "test.parquet").exists()
    assert result.rung("concat kNN").weight == 1.0
    np.testing.assert_array_equal(result.final.oof[0].codes[:, 0] >= 0, True)


def test_sources_weigh_as_told(world, sources, tmp_path):
    """With all weight on one source, unwhitened, the concatenation is that source."""
    config = recipe(concat={"whiten": None, "weights": {"net0": 0, "net2": 0}}, classifier=None)
    result = combine(world.images, world.folds, sources, config, world.competition, tmp_path)
    assert result.rung("concat kNN").score.map == pytest.approx(result.rung("net1").score.map, abs=1e-9)


def test_top_probabilities_in_chunks_equal_softmax(monkeypatch):
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=5, size=(40, 9)).astype(np.float16)
    codes = np.array([4, -1, 0, 7, 2, 1, -1, 9, 3])
    rows = rng.permutation(40)[:25]
    monkeypatch.setattr("whaleid.ensemble.rankers.single._CELLS", 9 * 4)
    found, scores = top_probabilities(logits, rows, codes, 8)
    chosen = logits[rows].astype(np.float64)[:, codes >= 0]
    p = np.exp(chosen) / np.exp(chosen).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores[:, :7], -np.sort(-p, axis=1), atol=1e-5)
    assert (found[:, 0] == codes[codes >= 0][p.argmax(axis=1)]).all()
    assert (found[:, 7] == -1).all() and np.isneginf(scores[:, 7]).all()


def test_paired_gain():
    difference = np.random.default_rng(0).choice([-1.0, 0.0, 0.5, 1.0], 500)
    weights = np.random.default_rng(1).choice([0.0, 0.5, 2.0], 500)
    gain = paired_gain(difference, weights, seed=0)
    assert gain.gain == pytest.approx(np.average(difference, weights=weights))
    rng = np.random.default_rng(2)
    means = []
    for _ in range(2000):
        rows = rng.integers(0, 500, 500)
        means.append(np.average(difference[rows], weights=weights[rows]))
    low, high = np.quantile(means, (0.025, 0.975))
    assert (gain.low, gain.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))


# -------------------------------------------------------------------------------------------------- bad input


def complaint(world, sources, tmp_path, images=None, folds=None, **settings) -> str:
    with pytest.raises(WhaleidError) as caught:
        combine(
            world.images if images is None else images,
            world.folds if folds is None else folds,
            sources,
            recipe(**settings),
            world.competition,
            tmp_path / "out",
        )
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    return str(caught.value)


def test_missing_fold(world, sources, tmp_path):
    fewer = [*sources[:2], Source("net2", {0: sources[2].folds[0], 1: sources[2].folds[1]})]
    assert "source 'net2': no features of fold 2" in complaint(world, fewer, tmp_path)
    gone = [*sources[:2], Source("net2", {**sources[2].folds, 1: tmp_path / "nowhere"})]
    assert "nowhere: no such folder" in complaint(world, gone, tmp_path)


def test_other_rows_and_nan_rows(world, sources, tmp_path):
    table = np.load(sources[0].folds[0] / "embeddings.npy")
    write_folder(tmp_path / "short", world.images["image"][:-1], table[:-1])
    short = [Source("net0", {**sources[0].folds, 0: tmp_path / "short"})]
    assert world.images["image"].iloc[-1] in complaint(world, short, tmp_path)
    table[7, 0] = np.nan
    write_folder(tmp_path / "nan", world.images["image"], table)
    assert "00007.jpg" in complaint(world, [Source("net0", {0: tmp_path / "nan"})], tmp_path)


def test_folds_of_different_networks(world, sources, tmp_path):
    mixed = [Source("net0", {0: sources[0].folds[0], 1: tmp_path / "other"})]
    write_folder(tmp_path / "other", world.images["image"], np.eye(len(world.images))[:, :5] + 1)
    assert "its folds differ" in complaint(world, mixed, tmp_path)


def test_foreign_classes(world, sources, tmp_path):
    path = tmp_path / "f"
    count = len(world.images)
    write_folder(path, world.images["image"], np.ones((count, 3)), np.zeros((count, 2)), ["w_0001", "Moby"])
    line = complaint(world, [Source("net0", {0: path})], tmp_path)
    assert "line 2: 'Moby'" in line


def test_names_of_sources(world, sources, tmp_path):
    assert "one name" in complaint(world, [sources[0], sources[0]], tmp_path)
    assert "'nett0' is no source" in complaint(world, sources, tmp_path, concat={"weights": {"nett0": 2.0}})
    assert "no sources" in complaint(world, [], tmp_path)


def test_tables_that_disagree(world, sources, tmp_path):
    assert "is missing; 1 such" in complaint(world, sources, tmp_path, folds=world.folds[1:])
    other = world.folds.assign(identity=np.roll(world.folds["identity"], 1))
    assert "another identity" in complaint(world, sources, tmp_path, folds=other)
    twice = pd.concat([world.folds, world.folds[:1]])
    assert "listed twice" in complaint(world, sources, tmp_path, folds=twice)
    without = world.folds.drop(columns="fold")
    assert "column 'fold' is missing" in complaint(world, sources, tmp_path, folds=without)
