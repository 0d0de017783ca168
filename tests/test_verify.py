"""Pairs of images matched keypoint by keypoint: matches, geometry, the new order, honesty, and the picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_world import make_world, recipe, write_sources
from test_local import texture, turned, write_described, write_images

from whaleid.config import LocalConfig, VerifyConfig
from whaleid.ensemble.ladder import combine, rank_locally
from whaleid.ensemble.protocol import read_protocol
from whaleid.ensemble.rankers.base import RankerContext
from whaleid.local_matching.geometric_verification import (
    affine_inliers,
    agreeing,
    matched_keypoints,
    verified_candidates,
)
from whaleid.local_matching.keypoints import Described, describe_images, read_described
from whaleid.local_matching.mutual import mutual_matches
from whaleid.local_matching.rootsift import LENGTH
from whaleid.local_matching.votes import local_candidates
from whaleid.report.matches import draw_matches
from whaleid.utils.errors import WhaleidError

WIDE = VerifyConfig(scale=10, turn=180, shift=9)
"""Agrees with everything."""


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=5),
    st.integers(0, 10_000),
    st.sampled_from([0.7, 0.8, 1.0]),
    st.booleans(),
)
def test_mutual_matches_equal_loops(counts, seed, ratio, by_bytes):
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 6, (count, LENGTH)) for count in counts]
    for other in images[1:]:
        for place in range(min(counts[0], len(other), 4)):  # some true matches
            other[len(other) - 1 - place] = images[0][place] + rng.integers(0, 2, LENGTH)
    expected = []
    for image, gallery in enumerate(images[1:]):
        for i in range(counts[0] if len(gallery) > 1 else 0):
            row = [int(((images[0][i] - one) ** 2).sum()) for one in gallery]
            j = row.index(min(row))
            column = [int(((one - gallery[j]) ** 2).sum()) for one in images[0]]
            second = min(row[:j] + row[j + 1 :])
            if column.index(min(column)) == i and row[j] < ratio**2 * second:
                expected.append((image, i, j, row[j], second))
    described = Described(np.concatenate(images).astype(np.uint8), np.cumsum([0, *counts]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whaleid.local_matching.mutual._bytes_are_faster", lambda: by_bytes)
        found = mutual_matches(described, 0, np.arange(1, len(counts)), ratio)
    columns = found.image, found.own, found.other, found.first, found.second
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


def test_agreement_of_size_direction_and_place():
    config = VerifyConfig(scale=1.5, turn=30, shift=0.1)
    one = np.array([[50, 50, 4, 350]] * 7, np.float32)
    other = np.array(
        [
            [50, 50, 4, 350],
            [55, 55, 5.9, 15],  # 25 degrees over the zero
            [50, 50, 6.1, 350],
            [50, 50, 2.6, 350],
            [50, 50, 4, 25],
            [58, 57, 4, 350],
            [50, 50, 2.7, 325],
        ],
        np.float32,
    )
    assert agreeing(one, other, 100, config).tolist() == [True, True, False, False, False, False, True]
    assert agreeing(one, other, 100, WIDE).all()


def test_planted_map_is_found_among_outliers():
    rng = np.random.default_rng(0)
    query = rng.uniform(0, 200, (60, 2)).astype(np.float32)
    gallery = query @ np.array([[0.9, 0.2], [-0.15, 1.1]], np.float32).T + np.array([12, -7], np.float32)
    gallery += rng.normal(0, 0.4, gallery.shape).astype(np.float32)
    planted = np.arange(60) < 35
    gallery[~planted] = rng.uniform(0, 200, (25, 2))
    found = affine_inliers(query, gallery, 4.0)
    assert found[planted].mean() > 0.95 and found[~planted].mean() < 0.15
    cv2.setRNGSeed(7)
    assert np.array_equal(found, affine_inliers(query, gallery, 4.0))


def test_wrong_geometry_is_rejected():
    rng = np.random.default_rng(1)
    query, gallery = rng.uniform(0, 200, (2, 40, 2)).astype(np.float32)
    assert affine_inliers(query, gallery, 3.0).sum() < 12
    assert not affine_inliers(query[:3], query[:3], 3.0).any() and not affine_inliers(query[:0], query[:0], 3.0).any()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve textures and another photograph of each, described."""
    folder = tmp_path_factory.mktemp("pictures")
    originals = [texture(seed) for seed in range(12)]
    table = write_images(folder, [*originals, *(turned(one, 4, n) for n, one in enumerate(originals))])
    config = LocalConfig(size=128, keypoints=60, verify=VerifyConfig())
    describe_images(table, folder, folder / "out", config, 1)
    return read_described(folder / "out", table), config


def test_matches_of_a_turned_copy_lie_where_it_was_turned(pictures):
    described, config = pictures
    one, other, used = matched_keypoints(described, 3, 15, config)
    turn = cv2.getRotationMatrix2D((64, 64), 4, 1.1)
    cut = one @ turn[:, :2].T + turn[:, 2] - [5, 10]  # the copy was cut there, to 113 pixels
    expected = cut * 128 / 113
    assert used.sum() >= 5 and np.median(np.linalg.norm(other - expected, axis=1)[used]) < 2
    assert used.sum() > matched_keypoints(described, 3, 16, config)[2].sum() + 3
    with_map = config.model_copy(update={"verify": VerifyConfig(magsac=3.0)})
    inlier = matched_keypoints(described, 3, 15, with_map)[2]
    assert inlier.sum() >= 4 and not (inlier & ~used).any()


def test_verified_order_equals_loops_whatever_the_workers(pictures):
    described, config = pictures
    queries, gallery = np.arange(12, 24), np.arange(12)
    codes = np.arange(12) // 2
    voted = local_candidates(described, queries, gallery, codes, config, 6)
    config = config.model_copy(update={"verify": VerifyConfig(images=5)})
    found = verified_candidates(described, queries, gallery, codes, voted, config, 1)
    for place, query in enumerate(queries):
        left, scores = 5, {}
        for code, score in zip(voted[0][place], voted[1][place], strict=True):
            own = gallery[codes == code][:left] if code >= 0 else []
            left -= len(own)
            most = max((matched_keypoints(described, int(query), row, config)[2].sum() for row in own), default=0)
            scores[int(code)] = score + np.log1p(most)
        assert [scores[int(code)] for code in found[0][place]] == pytest.approx(found[1][place].tolist(), abs=1e-5)
        assert (np.diff(found[1][place][found[0][place] >= 0]) <= 0).all()
    again = verified_candidates(described, queries, gallery, codes, voted, config, 3)
    assert np.array_equal(found[0], again[0]) and np.array_equal(found[1], again[1])
    assert (found[0][:, 0] == codes).mean() > 0.9


def test_a_query_is_never_matched_with_itself(pictures):
    described, config = pictures
    voted = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32)
    with pytest.raises(WhaleidError, match="its own gallery"):
        verified_candidates(described, np.array([1]), np.arange(3), np.arange(3), voted, config)


def test_descriptors_without_points_are_refused():
    described = Described(np.zeros((2, LENGTH), np.uint8), np.array([0, 1, 2]))
    with pytest.raises(WhaleidError, match=r"no points\.npy"):
        matched_keypoints(described, 0, 1, LocalConfig())


def test_ladder_has_a_rung_for_it_and_own_fold_never_matters(tmp_path):
    world = make_world(identities=20, seed=4, noise=1.5)
    sources = write_sources(world, tmp_path / "features", count=1)
    truth = world.images["identity"].to_numpy(dtype=object).copy()
    truth[world.images["split"].to_numpy() == "test"] = world.solution
    folder = tmp_path / "local"
    write_described(folder, world.images, truth)
    total = len(np.load(folder / "descriptors.npy"))
    np.save(folder / "points.npy", np.tile(np.array([9, 9, 3, 0], np.float32), (total, 1)))
    config = recipe(classifier=None, local_matching={"verify": {"images": 10}})
    result = combine(world.images, world.folds, sources, config, world.competition, tmp_path / "out", folder)
    assert [rung.name for rung in result.rungs][-3:] == ["local matching", "local verified", "blend"]
    assert result.rung("local verified").score.map >= result.rung("local matching").score.map - 0.02

    names = world.images["identity"].to_numpy(dtype=object).copy()
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    own = protocol.parts[1].rows
    names[own] = np.random.default_rng(0).permutation(names[own])
    images = world.images.assign(identity=names)
    folds = world.folds.assign(identity=world.folds["image"].map(images.set_index("image")["identity"]))
    relabelled = read_protocol(images, folds, world.competition, [0, 1, 2])
    contexts = [RankerContext(one, config.combine, images=images, descriptors=folder) for one in (protocol, relabelled)]
    before, after = (rank_locally(context)[-1] for context in contexts)
    assert before.name == "local verified" and before.test[0] is before.test[2]
    assert np.array_equal(before.oof[1].codes, after.oof[1].codes)
    assert np.array_equal(before.oof[1].scores, after.oof[1].scores)
    assert not np.array_equal(before.oof[0].codes, after.oof[0].codes)


def test_picture_of_matches():
    query, gallery = np.full((40, 50, 3), 10, np.uint8), np.full((60, 30, 3), 20, np.uint8)
    points = np.array([[5.0, 5.0], [10.0, 30.0]])
    drawn = draw_matches(query, gallery, points, points, np.array([True, False]))
    assert drawn.shape == (60, 86, 3) and (query == 10).all() and (gallery == 20).all()
    for x in (5, 61):
        assert drawn[5, x].tolist() == [60, 200, 60] and drawn[30, x + 5].tolist() == [170, 170, 170]
    assert (drawn[45:, :56] == 0).all()
    with pytest.raises(WhaleidError, match="one of each"):
        draw_matches(query, gallery, points, points, np.array([True]))
