"""The drawn sample, drawn once for all tests that want the same: an image takes 0.05 s of a core."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

VARIABLE = "WHALEID_TESTS_DRAWN"
"""Environment variable: the folder of what is drawn, which all workers of pytest-xdist share."""


def draw_sample(root: Path, identities: int, train_images: int, test_images: int) -> None:
    """What `make_sample` writes to a folder that is not there yet, files of its own."""
    from whaleid.data.sample import make_sample  # conftest.py imports this file, and must import no library

    if VARIABLE not in os.environ:  # `make trust`
        make_sample(root, identities=identities, train_images=train_images, test_images=test_images, workers=1)
        return
    place = Path(os.environ[VARIABLE]) / f"{identities}-{train_images}-{test_images}"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = place / "done"
        if not done.exists():
            part = place / "part"
            shutil.rmtree(part, ignore_errors=True)  # another's that did not come to its end
            make_sample(part, identities=identities, train_images=train_images, test_images=test_images, workers=1)
            part.rename(done)
    shutil.copytree(done, root)
