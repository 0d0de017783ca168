"""Learned match scores: features and support against loops, fitting, and no leak from a fold to its own scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_world import make_world, recipe, write_sources
from test_local import write_described

from whaleid.config import LearnedConfig, LocalConfig
from whaleid.ensemble.ablation import ablate
from whaleid.ensemble.ladder import combine, rank_locally
from whaleid.ensemble.protocol import read_protocol
from whaleid.ensemble.rankers.base import RankerContext
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.match_score import (
    FEATURES,
    FORMS,
    Matches,
    TrainingMatches,
    fit_match_scorer,
    match_score_candidates,
    matches_of,
    sum_by_identity,
    supported,
    training_matches_of,
)
from whaleid.local_matching.rootsift import LENGTH, UNIT
from whaleid.local_matching.votes import nearest_descriptors
from whaleid.utils.errors import WhaleidError

NAMES = ["local learned", "local supported", "local image", "local pairs", "local together"]
FEW = {"neighbours": 4, "num_iterations": 8, "min_data_in_leaf": 2}


def described_at_random(rng: np.random.Generator, counts: list[int]) -> tuple[Described, np.ndarray]:
    total = sum(counts)
    points = np.stack(
        [rng.uniform(0, 80, total), rng.uniform(0, 60, total), rng.uniform(2, 6, total), rng.uniform(0, 360, total)], 1
    ).astype(np.float32)
    vectors = rng.integers(0, 40, (total, LENGTH), dtype=np.uint8)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Described(vectors, offsets, points), np.full((len(counts), 2), (80.0, 60.0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_matches_equal_loops(seed, neighbours):
    rng = np.random.default_rng(seed)
    described, frames = described_at_random(rng, [4, 0, 3, 5, 0, 2])
    queries, gallery = np.array([0, 1, 3]), np.array([2, 4, 5])
    nearest = nearest_descriptors(described, queries, gallery, neighbours)
    found = matches_of(described, frames, queries, nearest)
    expected = []
    offsets, vectors, points = described.offsets, described.vectors.astype(float), described.points
    assert points is not None
    pool = [(row, place) for row in gallery for place in range(offsets[row], offsets[row + 1])]
    for q, query in enumerate(queries):
        for own in range(offsets[query], offsets[query + 1]):
            distance = [np.sqrt(((vectors[own] - vectors[place]) ** 2).sum()) / UNIT for _, place in pool]
            order = np.argsort(distance, kind="stable")[:neighbours]
            for rank, chosen in enumerate(order[:-1]):
                row, place = pool[chosen]
                ratio = np.log(points[place, 2] / points[own, 2])
                turn = (points[place, 3] - points[own, 3] + 180) % 360 - 180
                shift = points[place, :2] / frames[row] - points[own, :2] / frames[query]
                far = abs(ratio) > np.log(2) or abs(turn) > 60 or np.abs(shift).max() > 0.4
                if far and distance[chosen] > 0.85 * distance[order[-1]]:
                    continue
                values = {
                    "distance": distance[chosen],
                    "distance of the last": distance[order[-1]],
                    "share of the last": distance[chosen] / distance[order[-1]],
                    "share of the first": distance[chosen] / distance[order[0]],
                    "place": rank,
                    "size ratio": ratio,
                    "turn": turn,
                    "shift x": shift[0],
                    "shift y": shift[1],
                    "size": points[own, 2],
                    "x": points[own, 0] / frames[query, 0],
                    "y": points[own, 1] / frames[query, 1],
                    "direction": points[own, 3],
                    "strength": own - offsets[query],
                }
                expected.append((q, row, own, place, [values[name] for name in FEATURES]))
    assert [
        tuple(row) for row in zip(found.query, found.rows, found.keypoint, found.gallery_keypoint, strict=True)
    ] == [row[:4] for row in expected]
    if expected:
        assert np.allclose(found.values, [row[4] for row in expected], rtol=1e-4, atol=1e-4)


def drawn_matches(rng: np.random.Generator, count: int) -> Matches:
    draw = (rng.integers(0, size, count) for size in (2, 3, 6, 6))
    return Matches(*draw, np.zeros((count, len(FEATURES)), np.float32))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_support_equals_loops(seed):
    """Images 0 and 1 against 2 and 3, which are larger; some of their points are images 0's, turned and three times as
    large."""
    rng, config = np.random.default_rng(seed), LearnedConfig(neighbours=7)
    described, frames = described_at_random(rng, [6, 5, 6, 4])
    points = described.points
    assert points is not None
    points[:, 3] = rng.uniform(0, 60, len(points))
    points[11:15, :2] = points[:4, 1::-1] * [-3, 3] + [180, 0]
    points[11:15, 2:] = points[:4, 2:] * [3, 1] + [0, 90]
    frames[2:] = 240, 160
    queries, gallery = np.array([0, 1]), np.array([2, 3])
    matches = matches_of(described, frames, queries, nearest_descriptors(described, queries, gallery, 7))
    longest = frames.max(axis=1)

    def agree(i: int, j: int) -> bool:
        if (matches.query[i], matches.rows[i]) != (matches.query[j], matches.rows[j]):
            return False
        (a, b), (c, d) = ((points[matches.keypoint[k]], points[matches.gallery_keypoint[k]]) for k in (i, j))
        sizes, turns = np.log([b[2] / a[2], d[2] / c[2]]), np.array([b[3] - a[3], d[3] - c[3]])
        change = (turns[1] - turns[0] + 180) % 360 - 180
        if abs(sizes[1] - sizes[0]) > np.log(config.scale) or abs(change) > config.turn:
            return False
        query, row = queries[matches.query[i]], matches.rows[i]
        shifts = np.array([b[:2] - frames[row] * a[:2] / frames[query], d[:2] - frames[row] * c[:2] / frames[query]])
        if (np.abs(shifts[1] - shifts[0]) <= config.shift * frames[row]).all():
            return True
        factor, angle = np.exp(sizes.mean()), np.deg2rad(turns[0] + change / 2)
        turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ (c[:2] - a[:2])
        off = np.linalg.norm(d[:2] - b[:2] - factor * turned) / np.sqrt(factor * longest[query] * longest[row])
        return bool(off <= config.shift)

    def different(i: int, j: int) -> bool:
        keypoints = matches.keypoint, matches.gallery_keypoint
        return all(places[i] != places[j] for places in keypoints)

    every = range(len(matches.query))
    expected = [any(different(i, j) and agree(i, j) for j in every) for i in every]
    assert supported(matches, described, frames, config).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 40))
def test_sums_equal_loops(seed, count):
    rng = np.random.default_rng(seed)
    matches, codes = drawn_matches(rng, count), np.array([0, 2, 2])
    scores, agreed = rng.random(count), rng.random(count) < 0.5
    expected = {form: np.zeros((2, 4)) for form in FORMS}
    pictures = np.zeros((2, 3))
    for q, row, weight, agrees in zip(matches.query, matches.rows, scores, agreed, strict=True):
        expected["all"][q, codes[row]] += weight
        expected["supported"][q, codes[row]] += weight * agrees
        pictures[q, row] += weight * agrees
    for q, row in np.ndindex(pictures.shape):
        expected["image"][q, codes[row]] = max(expected["image"][q, codes[row]], pictures[q, row])
    found = sum_by_identity(matches, scores, agreed, codes, 2, 4)
    assert list(found) == list(FORMS)
    for form in FORMS:
        assert np.allclose(found[form], expected[form])


def test_the_score_is_the_likelihood_ratio_of_the_training_matches():
    """One feature that tells: matches of share below 0.5 are true 9 times in 10, the others once in 10."""
    rng = np.random.default_rng(0)
    values = np.zeros((4000, len(FEATURES)), np.float32)
    values[:, 2] = rng.random(4000)
    same = rng.random(4000) < np.where(values[:, 2] < 0.5, 0.9, 0.1)
    scorer = fit_match_scorer(
        [TrainingMatches(values[:1500], same[:1500]), TrainingMatches(values[1500:], same[1500:])],
        LearnedConfig(num_leaves=2),
    )
    assert scorer is not None
    strong, weak = values[values[:, 2] < 0.5], values[values[:, 2] >= 0.5]
    assert np.median(scorer.score(strong)) == pytest.approx(np.log(0.9 / 0.1), abs=0.4)  # prior odds are even
    assert (scorer.score(weak) == 0).mean() > 0.9
    again = fit_match_scorer([TrainingMatches(values, same)], LearnedConfig(num_leaves=2))
    assert again is not None and np.array_equal(again.score(values), scorer.score(values))


def test_without_true_matches_nothing_is_fitted_and_no_identity_scores():
    described, frames = described_at_random(np.random.default_rng(1), [5, 5, 5])
    codes = np.array([-1, 0, 1])
    queries = np.array([0])
    nearest = nearest_descriptors(described, queries, np.array([1, 2]), 4)
    config = LearnedConfig(**FEW)
    training = training_matches_of(described, frames, queries, np.array([-1]), codes, nearest, config)
    assert not training.same.any() and fit_match_scorer([training], config) is None
    lists = match_score_candidates(described, frames, queries, codes, 2, nearest, [None], config, 3)
    assert (lists[0]["all"][0] == -1).all() and np.isneginf(lists[0]["image"][1]).all()


def test_false_matches_are_drawn_and_true_ones_all_kept():
    rng = np.random.default_rng(2)
    described, frames = described_at_random(rng, [30] * 4)
    nearest = nearest_descriptors(described, np.array([0]), np.array([1, 2, 3]), 20)
    codes = np.array([-1, 0, 1, 2])
    every = matches_of(described, frames, np.array([0]), nearest)
    true = int((codes[every.rows] == 1).sum())
    training = training_matches_of(
        described, frames, np.array([0]), np.array([1]), codes, nearest, LearnedConfig(false_per_true=1)
    )
    assert 0 < true < len(every.rows) / 2 and training.same.sum() == true and len(training.same) == 2 * true


# ---------------------------------------------------------------------------------------------------- the ladder


def local_world(folder, identities=20):
    """A drawn competition whose descriptors tell its identities, and the folder of them."""
    world = make_world(identities=identities, seed=4, noise=1.5)
    truth = world.images["identity"].to_numpy(dtype=object).copy()
    truth[world.images["split"].to_numpy() == "test"] = world.solution
    write_described(folder, world.images, truth)
    total = len(np.load(folder / "descriptors.npy"))
    np.save(folder / "points.npy", np.tile(np.array([9, 9, 3, 0], np.float32), (total, 1)))
    return replace(world, images=world.images.assign(x0=0.0, y0=0.0, x1=90.0, y1=60.0))


def test_ladder_has_its_rungs(tmp_path):
    world = local_world(tmp_path / "local")
    sources = write_sources(world, tmp_path / "features", count=1)
    config = recipe(local_matching={"learned": FEW})
    result = combine(
        world.images, world.folds, sources, config, world.competition, tmp_path / "out", tmp_path / "local"
    )
    names = [rung.name for rung in result.rungs]
    assert names[-7:] == ["local matching", *NAMES, "blend"]
    assert result.rung("local learned").score.map > 0.5


def test_the_ablation_takes_its_parts_off(tmp_path):
    """A part off is the recipe without that part."""
    world = local_world(tmp_path / "local", identities=10)
    sources = write_sources(world, tmp_path / "features", count=1)
    tables = world.images, world.folds, sources
    plan = recipe(local_matching={"learned": FEW}, classifier=None)
    table = ablate(*tables, plan, world.competition, tmp_path / "local")
    rows = {row.name: row.score for row in table.rows}
    assert list(rows)[3:] == ["local matching", "learned match score", "pair score"]
    smaller = {
        "local matching": {"local_matching": None},
        "learned match score": {"local_matching": {}},
        "pair score": {"local_matching": {"learned": {**FEW, "pairs": None}}},
    }
    for name, changes in smaller.items():
        less, folder = (
            recipe(classifier=None, **changes),
            None if changes["local_matching"] is None else tmp_path / "local",
        )
        result = combine(*tables, less, world.competition, tmp_path / "out", folder)
        assert rows[name] == result.final.score


def test_what_teaches_a_fold_never_saw_it(tmp_path):
    """A fold's own labels move neither its own lists nor any list that is learnt from for it, but those of others."""
    world = local_world(tmp_path / "local")
    config = recipe(local_matching={"learned": FEW}).combine
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    names = world.images["identity"].to_numpy(dtype=object).copy()
    own = protocol.parts[1].rows
    names[own] = np.random.default_rng(0).permutation(names[own])
    images = world.images.assign(identity=names)
    folds = world.folds.assign(identity=world.folds["image"].map(images.set_index("image")["identity"]))
    relabelled = read_protocol(images, folds, world.competition, [0, 1, 2])
    # Only the truth of fold 1's queries changes: its images stay in the others' galleries under their old names.
    mixed = replace_parts(protocol, relabelled)
    before, after = (rankings(tmp_path / "local", world.images, one, config) for one in (protocol, mixed))
    moved: list[bool] = []
    for name in NAMES:
        one, two = before[name], after[name]
        assert all(same(x, y) for x, y in zip(one.lists.without(1), two.lists.without(1), strict=True))
        assert same(one.oof[1], two.oof[1])
        moved += [not same(x, y) for x, y in zip(one.lists.without(0), two.lists.without(0), strict=True)]
        assert one.lists.without(None) == one.oof
        assert same(one.lists.without(2)[2], one.oof[2])
    assert any(moved)  # fold 1 does teach what is used on fold 0


def replace_parts(protocol, relabelled):
    parts = list(protocol.parts)
    parts[1] = replace(parts[1], truth=relabelled.parts[1].truth)
    return replace(protocol, parts=tuple(parts))


def rankings(folder, images, protocol, config):
    context = RankerContext(protocol, config, images=images, descriptors=folder)
    return {one.name: one for one in rank_locally(context)}


def same(one, two) -> bool:
    return np.array_equal(one.codes, two.codes) and np.array_equal(one.scores, two.scores)


def test_two_folds_are_too_few(tmp_path):
    world = local_world(tmp_path / "local", identities=12)
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1])
    with pytest.raises(WhaleidError, match="2 folds with features; it needs 3"):
        rankings(tmp_path / "local", world.images, protocol, recipe(local_matching={"learned": FEW}).combine)


def test_settings_are_checked():
    assert LocalConfig().learned is None and LocalConfig.model_validate({"learned": {}}).learned == LearnedConfig()
    with pytest.raises(ValueError, match="neighbours"):
        LearnedConfig(neighbours=1)


def test_no_matches_have_no_scores():
    empty = fit_match_scorer(
        [TrainingMatches(np.zeros((10, len(FEATURES)), np.float32), np.arange(10) < 5)],
        LearnedConfig(min_data_in_leaf=1),
    )
    assert empty is not None and empty.score(np.empty((0, len(FEATURES)), np.float32)).shape == (0,)
