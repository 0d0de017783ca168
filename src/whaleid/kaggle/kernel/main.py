"""What a kernel does: find and check its inputs, install what Kaggle's image lacks, then infer or train.

Until the wheels are installed, only the standard library is imported.
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
from whaleid.kaggle.kernel.inputs import KernelFolders, competition_folder, dataset_folder, log
from whaleid.kaggle.kernel.wheels import install_wheels
from whaleid.utils.errors import WhaleidError
from whaleid.utils.manifest import check_manifest

HOURS = "WHALEID_HOURS"
"""Environment variable that overrides the time limit in the kernel's settings."""


def run_kernel(settings: dict[str, Any], input: Path, working: Path, scratch: Path) -> int:
    """Run a kernel of either mode.

    Parameters
    ----------
    settings : dict
        As `bundle.kernel_settings` makes them.
    input, working : Path
        ``/kaggle/input`` and ``/kaggle/working``.
    scratch : Path
        Folder for everything that is not output.

    Returns
    -------
    int
        Exit status: 0, or 2 after one line on standard error that says what is wrong.
    """
    budget = Budget(3600 * float(os.environ.get(HOURS) or settings["hours"]), time.monotonic())
    try:
        folders = prepare(settings, *(folder.expanduser().absolute() for folder in (input, working, scratch)))
        if settings["mode"] == "training":
            from whaleid.kaggle.kernel.training import run_training

            run_training(folders, settings["experiment"], settings["fold"])
        else:
            from whaleid.kaggle.kernel.inference import run_inference

            run_inference(folders, budget)
    except WhaleidError as error:
        return _failed(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        return _failed(f"{error.filename}: {error.strerror}; the kernel's disk is full or read-only there")
    log(f"done in {(time.monotonic() - budget.started) / 60:.1f} minutes")
    return 0


def prepare(settings: dict[str, Any], root: Path, working: Path, scratch: Path) -> KernelFolders:
    """Find and check the inputs below `root`, and install the wheels."""
    log(f"whaleid kernel, mode {settings['mode']}, run type {os.environ.get('KAGGLE_KERNEL_RUN_TYPE', 'none')}")
    found = {name: dataset_folder(root, slug, name) for name, slug in settings["datasets"].items()}
    competition = competition_folder(root, settings["competition"], settings["listing"])
    for name, folder in found.items():
        manifest = check_manifest(folder)
        log(f"{name}: {folder}, {len(manifest.files):,} files, {manifest.size / 1e6:,.1f} MB, checksums match")
    log(f"competition: {competition}")
    packages = scratch / "packages"
    shutil.rmtree(packages, ignore_errors=True)
    installed = install_wheels(found["wheels"], packages)
    log(f"installed offline: {', '.join(installed) or 'nothing, all packages are there'}")
    working.mkdir(parents=True, exist_ok=True)
    return KernelFolders(found["assets"], competition, working, scratch)


def _failed(line: str) -> int:
    sys.stdout.flush()
    print(f"error: {line}", file=sys.stderr, flush=True)
    return 2
