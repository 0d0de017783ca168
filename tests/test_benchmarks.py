"""Benchmarks are not run by the tests, but they must follow the package: every name that they import is there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from whaleid.config.settings import repository_root

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


def test_the_code_that_scores_depend_on_is_found() -> None:
    for pattern in importlib.import_module("metric_runs").CODE:
        assert list(PACKAGE.glob(pattern)), pattern
