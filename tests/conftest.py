"""What all tests share: SETTINGS.json is none, so that folders which a checkout names are never written to."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from whaleid.config.settings import VARIABLE

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: processes of tests must add in one order


@pytest.fixture(scope="session", autouse=True)
def default_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty settings file in the place of the repository's, for this process and those that it starts."""
    path = tmp_path_factory.mktemp("settings") / "SETTINGS.json"
    path.write_text("{}\n")
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(path)
    yield path
    if before is None:
        del os.environ[VARIABLE]
    else:
        os.environ[VARIABLE] = before
