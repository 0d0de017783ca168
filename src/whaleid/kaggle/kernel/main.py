"""What a kernel does first: find its inputs, check them, install what the image lacks. Then the work itself.

Until the wheels are installed nothing but the standard library is imported.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from whaleid.kaggle.kernel.budget import Budget
from whaleid.kaggle.kernel.mounts import competition_folder, dataset_folder
from whaleid.kaggle.kernel.places import Places, say
from whaleid.kaggle.kernel.wheels import install_wheels
from whaleid.utils.errors import WhaleidError
from whaleid.utils.manifest import check_manifest

HOURS = "WHALEID_HOURS"
"""Environment variable that replaces the limit that the kernel was made with."""


def run_kernel(settings: dict[str, Any], input: Path, working: Path, scratch: Path) -> int:
    """Do what the kernel was made for; returns its exit status: 0, or 2 after one line that says what is wrong.

    settings: those of the script. input, working: `/kaggle/input`, `/kaggle/working`; scratch: a folder beside.
    """
    budget = Budget(3600 * float(os.environ.get(HOURS) or settings["hours"]), time.monotonic())
    try:
        places = prepare(settings, *(folder.expanduser().absolute() for folder in (input, working, scratch)))
        if settings["mode"] == "training":
            from whaleid.kaggle.kernel.training import run_training

            run_training(places, settings["experiment"], settings["fold"])
        else:
            from whaleid.kaggle.kernel.inference import run_inference

            run_inference(places, budget)
    except WhaleidError as error:
        return _ended(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        return _ended(f"{error.filename}: {error.strerror}; the kernel's disk is full, or not to be written to")
    say(f"done in {(time.monotonic() - budget.started) / 60:.1f} minutes")
    return 0


def prepare(settings: dict[str, Any], root: Path, working: Path, scratch: Path) -> Places:
    """Find and check the inputs, install the wheels."""
    say(f"whaleid kernel, mode {settings['mode']}, run type {os.environ.get('KAGGLE_KERNEL_RUN_TYPE', 'none')}")
    found = {role: dataset_folder(root, slug, role) for role, slug in settings["datasets"].items()}
    competition = competition_folder(root, settings["competition"], settings["listing"])
    for role, folder in found.items():
        manifest = check_manifest(folder)
        say(f"{role}: {folder}, {len(manifest.files):,} files, {manifest.size / 1e6:,.1f} MB, checksums right")
    say(f"competition: {competition}")
    packages = scratch / "packages"
    shutil.rmtree(packages, ignore_errors=True)
    installed = install_wheels(found["wheels"], packages)
    say(f"installed offline: {', '.join(installed) or 'nothing, all there'}")
    working.mkdir(parents=True, exist_ok=True)
    return Places(found["assets"], competition, working, scratch)


def _ended(line: str) -> int:
    sys.stdout.flush()
    print(f"error: {line}", file=sys.stderr, flush=True)
    return 2
