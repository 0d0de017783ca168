"""Length of a run, its learning rate, its seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whaleid.config.files import load_experiment
from whaleid.training.ema import Ema
from whaleid.training.schedule import Schedule, epochs_of, learning_rate_factor, make_schedule
from whaleid.training.seeds import mix, run_seed, seed_everything

shares = st.floats(0.0, 1.0)


def test_warm_up_is_a_line_and_then_half_a_cosine():
    schedule = Schedule(epochs=4, steps=20, warmup=0.2, final=0.1)
    factors = [schedule.factor(step) for step in range(schedule.steps)]
    expected = [0.25, 0.5, 0.75, 1.0] + [0.1 + 0.9 * (math.cos(math.pi * done / 16) + 1) / 2 for done in range(16)]
    assert factors == pytest.approx(expected, abs=1e-12)
    assert schedule.factor(schedule.steps) == pytest.approx(0.1)


@given(st.integers(1, 500), shares, shares, st.integers(0, 600))
def test_factor_is_a_share_and_falls_after_the_warm_up(steps: int, warmup: float, final: float, step: int):
    factor = learning_rate_factor(step, steps, warmup, final)
    assert 0.0 <= factor <= 1.0 + 1e-12
    if step >= round(warmup * steps):
        assert final - 1e-12 <= factor
        assert learning_rate_factor(step + 1, steps, warmup, final) <= factor + 1e-12


@pytest.mark.parametrize("seen, epochs", [(1, 1), (100, 1), (149, 1), (151, 2), (1000, 10)])
def test_images_seen_are_rounded_to_whole_epochs(seen: int, epochs: int):
    config = load_experiment("default", {"train.epochs": None, "train.images_seen": seen}).train
    assert epochs_of(config, 100) == epochs


def test_steps_count_groups_of_batches():
    config = load_experiment("default", {"train.accumulate": 2}).train
    assert make_schedule(config, [5, 5, 4]).steps == 8


def test_ema_decay_starts_low_and_ends_at_the_decay():
    average = Ema(torch.nn.Linear(1, 1), 0.9)
    assert [average.get_decay(step) for step in (0, 8, 79, 80, 1000)] == pytest.approx([0.1, 0.5, 80 / 89, 0.9, 0.9])


def test_seeds_depend_on_every_part():
    seeds = {run_seed(0, None), run_seed(0, 0), run_seed(0, 1), run_seed(1, 0), run_seed(-1, 0)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert mix(1, 23) != mix(12, 3)
    assert mix(7, 0) == mix(7, 0)


def test_seed_everything_sets_torch_and_numpy():
    drawn = []
    for _ in range(2):
        seed_everything(5)
        drawn.append((torch.rand(3).tolist(), np.random.rand(3).tolist()))
    assert drawn[0] == drawn[1]
