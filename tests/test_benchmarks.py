"""Benchmarks are not run by the tests, but they must follow the package: every name that they import is there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from whaleid.config.settings import repository_root
from whaleid.ensemble.protocol import FoldPart

FOLDER = repository_root() / "benchmarks"
PACKAGE = repository_root() / "src" / "whaleid"


@pytest.fixture(autouse=True)
def in_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a script of the folder is run."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_it_imports(path: Path) -> None:
    importlib.import_module(path.stem)
    assert Path(sys.modules[path.stem].__file__ or "").parent == FOLDER


def test_explained_pairs_are_the_nearest_true_ones_and_differences_are_paired() -> None:
    bench = importlib.import_module("bench_explain")
    embeddings = np.eye(6)[[0, 1, 0, 1, 2, 0]] + 0.1 * np.eye(6)[[5, 5, 4, 4, 3, 3]]
    rows, gallery = np.array([0, 1]), np.array([2, 3, 4, 5])
    part = FoldPart(
        0, rows, rows.astype(str), gallery, gallery, np.array([7, 8, 7, 7]), np.array([7, -1]), np.array([3, 0])
    )
    assert bench.nearest_pairs(embeddings, part, 5).tolist() == [[0, 2]]  # row 1 has no identity in the gallery
    scores = {"map": np.array([0.1, 0.4]), bench.CONTROL: np.array([0.3, 0.8])}
    (gain,) = bench.over_control(scores).values()
    assert gain.gain == pytest.approx(-0.3) and -0.41 < gain.low < gain.high < -0.19


def test_the_code_that_scores_depend_on_is_found() -> None:
    for pattern in importlib.import_module("metric_runs").CODE:
        assert list(PACKAGE.glob(pattern)), pattern
