"""Kinds of keypoints: bytes keep distances, one interface for all, registries, and names of folders."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_local import texture, turned, write_images
from test_masks import disc, project_at
from test_masks import make_project as make_masked

from whaleid.config import LocalConfig
from whaleid.local_matching.compressed import CompressedIndex
from whaleid.local_matching.detectors import SIGNED, detector_of, signed_bytes, signed_floats
from whaleid.local_matching.kaze import kaze
from whaleid.local_matching.keypoints import Described, describe_images, described_together, local_name, read_described
from whaleid.local_matching.registry import (
    DETECTORS,
    MATCHERS,
    DetectorEntry,
    matcher_entry,
    require_parts,
    weights_key,
)
from whaleid.local_matching.rootsift import root_sift
from whaleid.local_matching.votes import build_index, local_candidates
from whaleid.pipeline.keys import keypoints_key
from whaleid.pipeline.project import Project
from whaleid.utils.errors import WhaleidError

HAS_KAZE = hasattr(cv2, "KAZE_create") or hasattr(getattr(cv2, "xfeatures2d", None), "KAZE_create")
KAZE = LocalConfig(features="kaze", size=128, keypoints=60, neighbours=5, power=0.5)


def unit_vectors(n: int, length: int, spread: float, seed: int) -> np.ndarray:
    """Around one direction, as descriptors are: spread says how far."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=length) + spread * rng.normal(size=(n, length))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([64, 128]), st.floats(0.3, 5), st.integers(0, 10_000))
def test_distances_of_bytes_are_those_of_floats(length, spread, seed):
    """A step of 1 / 128 adds length / 6 / 128 ** 2 to a squared distance in the mean, and moves it a little."""
    vectors = unit_vectors(40, length, spread, seed)
    stored = signed_bytes(vectors)
    assert stored.dtype == np.uint8 and np.abs(stored.astype(int) - 128 - SIGNED * vectors).max() <= 0.5 + 1e-6
    exact = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    found = np.linalg.norm(stored[:, None].astype(float) - stored, axis=2) / SIGNED
    apart = exact > 0.3
    assert np.abs(found - exact)[apart].max() < 0.02 and np.abs(found - exact)[apart].mean() < 0.005
    assert (np.diag(found) == 0).all()
    back = signed_floats(stored)
    assert back.dtype == np.float32 and np.linalg.norm(back, axis=1) == pytest.approx(1, abs=1e-5)
    assert (back * vectors).sum(axis=1).min() > 0.998


def test_numbers_at_the_ends_of_a_byte():
    assert signed_bytes(np.array([[1.0, -1.0, 0.0, 0.992]])).tolist() == [[255, 0, 128, 255]]
    assert np.isfinite(signed_floats(np.full((1, 4), 128, np.uint8))).all()


def test_units_are_powers_of_two():
    """Votes divide by their square, which then rounds nothing."""
    assert all(np.log2(kind.unit) % 1 == 0 for kind in DETECTORS.values()) and DETECTORS["rootsift"].unit == 512


def test_votes_do_not_depend_on_the_unit_or_on_a_shift():
    """The same numbers as KAZE's, moved and of another unit: the very same candidates. Lists and exact search alike."""
    rng = np.random.default_rng(0)
    counts = [12] * 20
    vectors = rng.integers(60, 140, (8, 64))[rng.integers(0, 8, 240)] + rng.integers(0, 12, (240, 64))
    offsets = np.cumsum([0, *counts])
    lists = []
    for shift, unit in ((0, 512.0), (90, SIGNED)):
        described = Described((vectors + shift).astype(np.uint8), offsets, None, unit)
        lists.append(local_candidates(described, np.arange(5), np.arange(5, 20), np.arange(15) // 3, KAZE, 4))
        assert build_index(described, np.arange(5, 20)).d == 64
    assert np.array_equal(lists[0][0], lists[1][0]) and np.allclose(lists[0][1], lists[1][1])


def test_compressed_search_takes_the_length_of_the_kind(monkeypatch):
    monkeypatch.setattr("whaleid.local_matching.votes.EXACT", 10)
    rng = np.random.default_rng(0)
    described = Described(rng.integers(0, 256, (300, 64), dtype=np.uint8), np.arange(0, 301, 30), None, SIGNED)
    index = build_index(described, np.arange(10))
    assert isinstance(index, CompressedIndex) and index.index.d == 64 and index.index.ntotal == 300
    assert (index.search(described.take(np.array([3]))[0], 1)[0] == 0).all()


# -------------------------------------------------------------------------------------------------------- names


def test_names_of_rootsift_stay_and_others_say_their_kind():
    assert local_name(LocalConfig(size=256, keypoints=500)) == "256-500"
    assert local_name(LocalConfig(size=256, keypoints=500, features="aliked")) == "aliked-256-500"
    assert local_name(KAZE) == "kaze-128-60"


def test_keypoints_depend_on_what_describes_them_alone(tmp_path: Path):
    """RootSIFT needs no weights, and how keypoints are matched has no part in their key."""
    make_masked(tmp_path, masks=None)
    project = project_at(tmp_path, masks=None)

    def changed(**local) -> Project:
        return project.with_combine(local_matching=LocalConfig.model_validate(local))

    assert project.local_weights == []
    assert keypoints_key(changed(), "n") == keypoints_key(changed(verify={}, neighbours=7), "n")


def test_rootsift_needs_no_weights(tmp_path: Path):
    make_masked(tmp_path, masks=None)
    assert project_at(tmp_path, masks=None).local_weights == []
    assert weights_key(LocalConfig.model_validate({"verify": {}}), tmp_path) == ""


def test_lightglue_goes_with_the_keypoints_that_it_has_weights_for():
    def entry(features: str, **verify: str):
        return matcher_entry(LocalConfig.model_validate({"features": features, "verify": verify}))

    for features in ("rootsift", "kaze", "xfeat"):
        with pytest.raises(WhaleidError, match="set features: aliked or disk, or matcher: mutual"):
            entry(features, matcher="lightglue")
    assert all(entry(one, matcher="lightglue") is MATCHERS["lightglue"] for one in ("aliked", "disk"))
    assert entry("aliked") is MATCHERS["mutual"] and matcher_entry(LocalConfig()) is None


def test_an_unknown_detector_or_matcher_is_one_line_with_the_known_ones(tmp_path: Path):
    with pytest.raises(WhaleidError, match=r"local_matching\.features: 'orb' is not known; known: aliked, disk, kaze"):
        require_parts(LocalConfig(features="orb"), tmp_path)
    with pytest.raises(WhaleidError, match=r"verify\.matcher: 'x' is not known; known: lightglue, mutual"):
        require_parts(LocalConfig.model_validate({"verify": {"matcher": "x"}}), tmp_path)


def test_a_detector_is_one_file_and_one_line(tmp_path: Path, monkeypatch):
    """A toy: one keypoint, whose descriptor is the image's mean."""

    def toy(image: np.ndarray, most: int, _white: np.ndarray | None):
        return np.full((1, 4), image.mean(), np.uint8)[:most], np.array([[1, 2, 3, 4]], np.float32)[:most]

    monkeypatch.setitem(sys.modules, "toy", SimpleNamespace(make_detector=lambda _weights: toy))
    monkeypatch.setitem(DETECTORS, "toy", DetectorEntry("toy", length=4, unit=16.0))
    images = write_images(tmp_path, [np.full((40, 40), shade, np.uint8) for shade in (9, 90, 10)])
    config = LocalConfig(features="toy", neighbours=2)
    describe_images(images, tmp_path, tmp_path / local_name(config), config, 1)
    described = read_described(tmp_path / "toy-256-1000", images, "toy")
    assert described.vectors.tolist() == [[9] * 4, [90] * 4, [10] * 4] and described.unit == 16
    codes, _ = local_candidates(described, np.array([0]), np.array([1, 2]), np.array([0, 1]), config, 1)
    assert codes.tolist() == [[1]]


def test_a_folder_of_another_kind_is_refused(tmp_path: Path):
    images = write_images(tmp_path, [texture(0)])
    describe_images(images, tmp_path, tmp_path / "out", LocalConfig(size=128, keypoints=20), 1)
    assert read_described(tmp_path / "out", images).unit == 512
    with pytest.raises(WhaleidError, match="not the descriptors of these images"):
        read_described(tmp_path / "out", images, "kaze")
    assert described_together([], "kaze").vectors.shape == (0, 64)


def test_rootsift_by_the_common_interface():
    picture = np.stack([texture(1), texture(2), texture(3)], axis=2)
    found = detector_of(LocalConfig(), Path("/nowhere"))(picture, 30, disc(128, 128))
    expected = root_sift(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 30, disc(128, 128))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


# --------------------------------------------------------------------------------------------------------- KAZE


@pytest.mark.skipif(HAS_KAZE, reason="this OpenCV has KAZE")
def test_without_kaze_one_line_says_which_wheel(tmp_path: Path):
    images = write_images(tmp_path, [texture(0)])
    with pytest.raises(WhaleidError, match="opencv-contrib-python-headless of the same version") as caught:
        describe_images(images, tmp_path, tmp_path / "out", KAZE, 1)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    with pytest.raises(WhaleidError, match="has no KAZE"):
        require_parts(KAZE, tmp_path)


@pytest.fixture
def some_kaze(monkeypatch):
    """OpenCV's own KAZE, else one made of SIFT: 64 of its numbers with signs, of length 1."""
    if HAS_KAZE:
        return

    def create(threshold: float) -> SimpleNamespace:
        def both(grey: np.ndarray, white: np.ndarray | None):
            found, vectors = cv2.SIFT.create(contrastThreshold=threshold).detectAndCompute(grey, white)
            if vectors is None:
                return found, None
            vectors = vectors[:, :64] - vectors[:, 64:]
            return found, vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)

        return SimpleNamespace(detectAndCompute=both)

    monkeypatch.setattr(cv2, "KAZE_create", create, raising=False)


@pytest.mark.usefixtures("some_kaze")
def test_kaze_finds_a_turned_copy(tmp_path: Path):
    originals = [texture(seed) for seed in range(8)]
    copies = [turned(one, 8 * n - 28, n) for n, one in enumerate(originals)]
    images = write_images(tmp_path, [*originals, *copies, np.full((40, 40), 9, np.uint8)])
    describe_images(images, tmp_path, tmp_path / "out", KAZE, 2)
    described = read_described(tmp_path / "out", images, "kaze")
    assert described.vectors.shape[1] == 64 and described.unit == SIGNED
    assert described.counts(np.arange(17)).max() <= 60 and described.counts(np.array([16]))[0] == 0
    codes, _ = local_candidates(described, np.arange(8, 16), np.arange(8), np.arange(8), KAZE, 3)
    assert (codes[:, 0] == np.arange(8)).sum() >= 6  # by chance: 1
    assert described.points is not None and described.points[:, 2].min() > 0


@pytest.mark.usefixtures("some_kaze")
def test_kaze_keeps_the_strongest_inside_the_mask():
    white = disc(128, 128)
    every, places = kaze(texture(4), 10_000, white)
    few, few_places = kaze(texture(4), 7, white)
    assert np.array_equal(few, every[:7]) and np.array_equal(few_places, places[:7]) and len(every) > 7
    column, row = np.rint(places[:, :2]).astype(int).T
    assert white[row, column].mean() > 250
