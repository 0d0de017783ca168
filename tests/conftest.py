"""What all tests share.

SETTINGS.json is none, so that folders which a checkout names are never written to. Files are not synced to the disk,
which no test can tell but those that ask for `synced`: a sync waits some 10 ms, and a test may write a hundred files.
"""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drawn
import pytest

from whaleid.config.settings import VARIABLE
from whaleid.utils import files

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: processes of tests must add in one order
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait must not spin: the other worker needs the core


_SYNC = files._sync


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage looks through torch's million objects again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end it goes as ever: triton lists hundreds of lines of what it takes for leaks otherwise."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Files of this process are written without waiting for the disk; commands that it starts sync as ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_sync", lambda path: None)
        yield


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are synced, as they are outside of tests."""
    monkeypatch.setattr(files, "_sync", _SYNC)


@pytest.fixture(scope="session", autouse=True)
def without_worth() -> Iterator[Callable[..., Any]]:
    """Ladders do not say what each member is worth to the blend, for which it is fitted again without each of them.

    That takes half of a ladder's time, and is what the tests that ask for `worth` are about.
    """
    from whaleid.ensemble import ladder  # after OMP_NUM_THREADS is set

    plain = ladder.blend_worth
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "blend_worth", lambda *_: None)
        yield plain


@pytest.fixture(scope="module")
def worth(without_worth: Callable[..., Any]) -> Iterator[None]:
    """Ladders say it, as they do outside of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whaleid.ensemble.ladder.blend_worth", without_worth)
        yield


@pytest.fixture(scope="session", autouse=True)
def default_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty settings file in the place of the repository's, for this process and those that it starts.

    And the folder of drawn samples.
    """
    path = tmp_path_factory.mktemp("settings") / "SETTINGS.json"
    path.write_text("{}\n")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(path))
        patch.setenv(drawn.VARIABLE, str(shared / "drawn"))
        yield path
