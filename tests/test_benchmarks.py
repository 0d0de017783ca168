"""Benchmarks are not run by the tests, but they must follow the package: every name that they import is there."""

from __future__ import annotations

import importlib
import sys
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from whaleid.config.settings import repository_root
from whaleid.ensemble.protocol import FoldPart

FOLDER = repository_root() / "benchmarks"
PAIRS = list(permutations("xyzu", 2))
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


RIGHT = {
    "one_or_unknown": {"x": "a", "y": "a", "z": "new_whale", "u": "new_whale"},
    "one_confident": {"x": "a 0.9", "y": "a 0.8", "z": "", "u": ""},
    "ranked_images": {"x": "k l", "y": "l k", "z": "m", "u": "m"},
    "pairs": {f"{one} {other}": str(int({one, other} in ({"x", "y"}, {"z", "u"}))) for one, other in PAIRS},
    "clusters": {"x": "0", "y": "0", "z": "1", "u": "1"},
}


@pytest.mark.parametrize("form", RIGHT)
def test_a_right_answer_in_each_form_scores_one(form: str, tmp_path: Path) -> None:
    """Test images x and y of the known identity a, z and u of one that training does not hold."""
    forms = importlib.import_module("trained_forms")
    labelled = pd.DataFrame({"image": ["k", "l", "m"], "identity": ["a", "a", "b"], "split": "train"})
    project = SimpleNamespace(competition=SimpleNamespace(unknown="new_whale"))
    protocol = SimpleNamespace(test_names=np.array(list("xyzu")), classes=np.array(["a", "b"]))
    trained = forms.Trained(project, labelled, protocol, pd.Series(list("aacc"), index=list("xyzu")))
    score = forms.score_of_test(trained, form, RIGHT[form], tmp_path)
    assert score.value == pytest.approx(1.0)


def test_the_code_that_scores_depend_on_is_found() -> None:
    for pattern in importlib.import_module("metric_runs").CODE:
        assert list(PACKAGE.glob(pattern)), pattern
