"""Augmentation: reproducible by seed alone, off at strength 0, and warps that go where they say."""

import hashlib
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.config import AugmentConfig
from whaleid.config.files import load_experiment
from whaleid.data.augmentation import Augmentation, transforms, warp_matrix

OFF = dict.fromkeys(AugmentConfig.model_fields, 0.0)
DEFAULT = load_experiment("default").augment
SIZE = (64, 32)


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)


def strength(**settings_: float) -> AugmentConfig:
    return AugmentConfig(**{**OFF, **settings_})


@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=6, unique=True))
@settings(deadline=None, max_examples=15)
def test_result_depends_on_image_and_seed_alone(seeds):
    used, fresh = Augmentation(DEFAULT, SIZE), Augmentation(DEFAULT, SIZE)
    forward = {seed: used(image(seed % 5), seed) for seed in seeds}
    for seed in reversed(seeds):
        assert np.array_equal(fresh(image(seed % 5), seed), forward[seed])
    assert len({result.tobytes() for result in forward.values()}) == len(seeds)


def test_result_is_the_same_in_another_process():
    code = (
        "import numpy as np, hashlib; from whaleid.config.files import load_experiment\n"
        "from whaleid.data.augmentation import Augmentation\n"
        "image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)\n"
        "augment = Augmentation(load_experiment('default').augment, (64, 32))\n"
        "print(hashlib.sha256(b''.join(augment(image, seed).tobytes() for seed in range(20))).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    augment = Augmentation(DEFAULT, SIZE)
    here = hashlib.sha256(b"".join(augment(image(), seed).tobytes() for seed in range(20))).hexdigest()
    assert there.strip() == here


@pytest.mark.parametrize("name", AugmentConfig.model_fields)
def test_each_strength_alone_does_something_and_keeps_the_form(name):
    augment = Augmentation(strength(**{name: 0.3}), SIZE)
    results = [augment(image(), seed) for seed in range(30)]
    assert all(result.shape == image().shape and result.dtype == np.uint8 for result in results)
    assert any(not np.array_equal(result, image()) for result in results)
    assert len(transforms(strength(**{name: 0.3}), SIZE)) == 1


def test_no_strength_is_no_change():
    assert transforms(AugmentConfig(**OFF), SIZE) == []
    assert np.array_equal(Augmentation(AugmentConfig(**OFF), SIZE)(image(), 3), image())


def test_the_input_is_left_as_it_was():
    original = image()
    kept = original.copy()
    augment = Augmentation(DEFAULT, SIZE)
    for seed in range(30):
        augment(original, seed)
    assert np.array_equal(original, kept)


def test_probabilities_are_kept_and_independent_of_each_other():
    augment = Augmentation(strength(flip=0.3, gray=0.5), SIZE)
    results = [augment(image(), seed) for seed in range(600)]
    gray = np.array([(result[:, :, 0] == result[:, :, 1]).all() for result in results])
    flipped = np.array(
        [
            np.abs(result.mean(2) - image()[:, ::-1].mean(2)).mean() < np.abs(result.mean(2) - image().mean(2)).mean()
            for result in results
        ]
    )
    assert abs(flipped.mean() - 0.3) < 0.07 and abs(gray.mean() - 0.5) < 0.07
    assert abs((flipped & gray).mean() - flipped.mean() * gray.mean()) < 0.05


def test_warp_leaves_no_black_edge():
    white = np.full((32, 64, 3), 255, np.uint8)
    augment = Augmentation(strength(rotate=30, scale=0.5, shift=0.3, shear=20, perspective=0.2), SIZE)
    assert all((augment(white, seed) == 255).all() for seed in range(40))


def test_warp_is_what_it_says():
    draw = random.Random(0)
    for _ in range(50):
        only_turn = warp_matrix(strength(rotate=40), 64, 32, draw)
        assert np.allclose(only_turn[:2, :2] @ only_turn[:2, :2].T, np.eye(2))
        assert np.arccos(np.clip(only_turn[0, 0], -1, 1)) <= np.radians(40) + 1e-9
        assert np.allclose(only_turn @ [31.5, 15.5, 1], [31.5, 15.5, 1])  # about the centre
        shift = warp_matrix(strength(shift=0.25), 64, 32, draw)
        assert np.allclose(shift[:2, :2], np.eye(2)) and (np.abs(shift[:2, 2]) <= [16, 8]).all()
        scale = warp_matrix(strength(scale=0.2), 64, 32, draw)
        assert (np.abs(np.diag(scale)[:2] - 1) <= 0.2).all() and scale[0, 1] == scale[1, 0] == 0
        corners = np.array([[0, 64, 64, 0], [0, 0, 32, 32], [1, 1, 1, 1.0]])
        moved = warp_matrix(strength(perspective=0.1), 64, 32, draw) @ corners
        assert (np.abs(moved[:2] / moved[2] - corners[:2]) <= [[6.4 + 1e-3], [3.2 + 1e-3]]).all()


def test_it_travels_to_other_processes():
    augment = Augmentation(DEFAULT, SIZE)
    copy = pickle.loads(pickle.dumps(augment))
    assert np.array_equal(copy(image(), 5), augment(image(), 5))
