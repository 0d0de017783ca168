"""The drawn sample, drawn once for all tests of one process that want the same: an image takes 0.05 s of a core."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from whaleid.data.sample import make_sample

_FOLDER = TemporaryDirectory(prefix="whaleid-drawn-")


def draw_sample(root: Path, identities: int, train_images: int, test_images: int) -> None:
    """What `make_sample` writes to a folder that is not there yet, files of its own."""
    shutil.copytree(_drawn(identities, train_images, test_images), root)


@cache
def _drawn(identities: int, train_images: int, test_images: int) -> Path:
    folder = Path(_FOLDER.name) / f"{identities}-{train_images}-{test_images}"
    make_sample(folder, identities=identities, train_images=train_images, test_images=test_images, workers=1)
    return folder
