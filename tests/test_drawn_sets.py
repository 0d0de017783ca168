"""The drawn sets of other appearance: valid competitions, every byte fixed by the seed, not solved by raw pixels."""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from whaleid.config.files import load_competition
from whaleid.config.settings import repository_root
from whaleid.data.check import check_data

SHARE = 0.03
NAMES = ("coats", "marks", "faces")


@pytest.fixture(scope="module")
def drawn_sets() -> ModuleType:
    sys.path.insert(0, str(repository_root() / "benchmarks"))
    return importlib.import_module("drawn_sets")


@pytest.fixture(scope="module")
def roots(drawn_sets: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("drawn")
    for name in NAMES:
        drawn_sets.make_set(name, place / name, seed=1, share=SHARE)
    return {name: place / name for name in NAMES}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_competition_that_the_pipeline_takes(roots: dict[str, Path], name: str) -> None:
    files = sorted(roots[name].glob("*.yaml"))
    assert [path.name for path in files] == ["competition.yaml"] + ["dated.yaml"] * (name == "faces")
    for path in files:
        report = check_data(load_competition(str(path)), workers=1)
        assert report.ok, report.lines()
        assert report.counts["test"] == len(pd.read_csv(roots[name] / "solution.csv"))
        assert report.counts["contradictory_copies"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_fixes_every_byte(drawn_sets: ModuleType, roots: dict[str, Path], tmp_path: Path, name: str) -> None:
    drawn_sets.make_set(name, tmp_path / name, seed=1, share=SHARE)
    assert contents(tmp_path / name) == contents(roots[name])


@pytest.mark.parametrize("name", NAMES)
def test_new_individuals_and_long_tail_of_the_full_plan(drawn_sets: ModuleType, name: str) -> None:
    shots = drawn_sets.SETS[name].plan(0, 1.0)
    assert 500 <= len(shots) <= 2000
    train, test = ([shot for shot in shots if shot.train is which] for which in (True, False))
    known = {shot.label for shot in train} - {drawn_sets.NEW}
    assert 60 <= len(known) <= 200
    assert {shot.label for shot in test} - {drawn_sets.NEW} <= known
    new = [np.mean([shot.label == drawn_sets.NEW for shot in part]) for part in (train, test)]
    expected = {"coats": (0, 0, 0), "marks": (0.1, 0.25, 0.25), "faces": (0, 0.25, 0.3)}[name]
    assert new[0] == pytest.approx(expected[0], abs=0.001)
    assert expected[1] - 0.001 <= new[1] <= expected[2] + 0.001
    sizes = pd.Series([shot.label for shot in train if shot.label in known]).value_counts()
    assert sizes.iloc[0] >= 4 * sizes.median()


def test_an_individual_has_one_label_and_a_day_one_side(drawn_sets: ModuleType) -> None:
    labels, sides = defaultdict(set), defaultdict(set)
    for shot in drawn_sets.SETS["faces"].plan(0, 1.0):
        labels[shot.individual].add(shot.label)
        sides[shot.day].add(shot.train)
    assert all(len(some) == 1 for some in (*labels.values(), *sides.values()))


def test_photographs_differ_and_individuals_too(drawn_sets: ModuleType) -> None:
    chosen = drawn_sets.SETS["marks"]
    one, other = (chosen.individual(np.random.default_rng(seed)) for seed in (0, 1))
    pictures = [
        chosen.photograph(animal, {"photograph": np.random.default_rng(seed)})
        for animal, seed in ((one, 5), (one, 5), (one, 6), (other, 5))
    ]
    assert np.array_equal(pictures[0], pictures[1])
    assert pictures[0].shape != pictures[2].shape
    assert pictures[0].shape == pictures[3].shape and not np.array_equal(pictures[0], pictures[3])


def test_a_folder_that_is_there_is_left_alone(drawn_sets: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(Exception, match="is there already"):
        drawn_sets.make_set("coats", tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}
