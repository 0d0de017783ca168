"""`whaleid kernel-run`: run the kernel here as Kaggle would, and compare its submission with the local one.

Inputs are mounted read-only in either of Kaggle's layouts and the network is cut. The kernel is a fresh process that
sees neither the repository nor the packages that Kaggle's image lacks, so it runs with the bundle's code and wheels.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whaleid.config import Competition
from whaleid.kaggle.kernel.assets import link_file
from whaleid.kaggle.kernel.bundle import WHEELS
from whaleid.kaggle.kernel.inference import NOTES, SUBMISSION
from whaleid.kaggle.kernel.main import HOURS
from whaleid.kaggle.kernel.sandbox import Sandbox, file_states, make_sandbox, require_unchanged, set_writable
from whaleid.kaggle.kernel.wheels import LISTING
from whaleid.utils.errors import WhaleidError

Layout = Literal["new", "old"]
KEPT = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "TMPDIR")
"""Environment variables that a kernel inherits: no credentials, no PYTHONPATH."""
TOLERANCE = 0.01
"""Share of rows that may differ: other library versions, devices or thread counts round differently and break ties."""
_LIMIT = 13 * 3600.0  # seconds: Kaggle would have stopped it


@dataclass(frozen=True)
class RunOptions:
    """Options of a run.

    Attributes
    ----------
    layout : {'new', 'old'}
        Of /kaggle/input: since 2026, or before.
    hours : float, optional
        Overrides the kernel's time limit.
    namespaces : bool
        Use Linux namespaces if the machine has them.
    """

    layout: Layout = "new"
    hours: float | None = None
    namespaces: bool = True


@dataclass(frozen=True)
class KernelRun:
    """A finished run.

    Attributes
    ----------
    working : Path
        The kernel's output.
    log : Path
    seconds : float
    isolation : str
        How the network and the inputs were protected.
    """

    working: Path
    log: Path
    seconds: float
    isolation: str


def run_bundle(bundle: Path, competition: Competition, base: Path, options: RunOptions) -> KernelRun:
    """Run a bundle's kernel; its log is printed and kept.

    Parameters
    ----------
    bundle : Path
        Folder that `make_bundle` wrote.
    competition : Competition
    base : Path
        Folder of the run, emptied first.
    options : RunOptions

    Raises
    ------
    WhaleidError
        If the kernel fails (its own error line) or wrote to its inputs.
    """
    base = base.resolve()
    remove_run(base)
    readonly, working, scratch = base / "readonly", base / "working", base / "scratch"
    source = readonly / "source"
    shutil.copytree(bundle / "kernel", source)
    metadata = json.loads((source / "kernel-metadata.json").read_text())
    mount_inputs(bundle, competition, metadata, readonly / "input", options.layout)
    for folder in (working, scratch, base / "home"):
        folder.mkdir()
    hidden = {"whaleid", *portable_modules(bundle / "datasets" / WHEELS)}
    sandbox = make_sandbox(readonly, base / "site", scratch, hidden, options.namespaces)
    before = file_states(readonly)
    set_writable(readonly, False)
    script = source / f"{metadata['id'].split('/')[1]}.py"
    began = time.monotonic()
    try:
        status, last = _execute(sandbox, options, base, script)
    finally:
        set_writable(readonly, True)
    seconds = time.monotonic() - began
    require_unchanged(readonly, before)
    log = base / "kernel.log"
    if status:
        raise WhaleidError(f"{last} (the kernel ended with status {status}; log: {log})")
    return KernelRun(working, log, seconds, sandbox.description())


def remove_run(base: Path) -> None:
    """Remove the folder of an earlier run, write-protected or not."""
    if base.exists():
        set_writable(base, True)
        shutil.rmtree(base)


def portable_modules(wheels: Path) -> set[str]:
    """Modules of the bundle's wheels that this Python can install too, not only Kaggle's."""
    listing: dict[str, dict[str, str]] = json.loads((wheels / LISTING).read_text())
    names = {module: entry["wheel"] for module, entry in listing.items()}
    return {module for module, wheel in names.items() if wheel.endswith("-none-any.whl") or "-abi3-" in wheel}


def mount_inputs(bundle: Path, competition: Competition, metadata: dict, root: Path, layout: Layout) -> None:
    """A tree like /kaggle/input, of links. The competition's folder comes without its solution, as on Kaggle."""
    owner = metadata["id"].split("/")[0]
    root.mkdir(parents=True)
    for folder in sorted((bundle / "datasets").iterdir()):
        slug = json.loads((folder / "dataset-metadata.json").read_text())["id"].split("/")[1]
        place = root / "datasets" / owner / slug if layout == "new" else root / slug
        _link_tree(folder, place, {"dataset-metadata.json"})
    attached = metadata["competition_sources"]
    slug = attached[0] if attached else metadata["dataset_sources"][-1].split("/")[1]
    place = root / slug if layout == "old" else root / "competitions" / slug
    if layout == "new" and not attached:
        place = root / "datasets" / owner / slug
    _link_tree(competition.root, place, {competition.solution} if competition.solution else set())


def _link_tree(source: Path, target: Path, left_out: set[str]) -> None:
    for folder, _, names in os.walk(source):
        place = target / Path(folder).relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = Path(folder) / name
            if path.relative_to(source).as_posix() not in left_out:
                link_file(path.resolve(), place / name)


def _execute(sandbox: Sandbox, options: RunOptions, base: Path, script: Path) -> tuple[int, str]:
    """Run the script; returns its exit status and its last line."""
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {
        "HOME": str(base / "home"),
        "PYTHONPATH": str(sandbox.site),
        "PYTHONUNBUFFERED": "1",
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "KAGGLE_INPUT": str(base / "readonly" / "input"),
        "KAGGLE_WORKING": str(base / "working"),
        "KAGGLE_SCRATCH": str(base / "scratch"),
    }
    if options.hours is not None:
        environment[HOURS] = str(options.hours)
    last = "the kernel printed nothing"
    with (base / "kernel.log").open("w") as log:
        process = subprocess.Popen(
            [*sandbox.prefix, sys.executable, str(script)],
            cwd=base / "working",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log.write(line)
                print(f"  {line}", end="", flush=True)
                last = line.strip().removeprefix("error: ") or last
            return process.wait(timeout=_LIMIT), last
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


# --------------------------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Comparison:
    """Two submissions compared.

    Attributes
    ----------
    same : bool
        Equal byte for byte.
    rows : int
        Rows of the second.
    differing : tuple of str
        Images whose rows differ.
    """

    same: bool
    rows: int
    differing: tuple[str, ...]

    def line(self) -> str:
        if self.same:
            return f"equal to the local submission, byte for byte ({self.rows:,} rows)"
        few = ", ".join(self.differing[:3])
        return f"{len(self.differing):,} of {self.rows:,} rows differ from the local submission: {few}"


def compare_submissions(one: Path, other: Path) -> Comparison:
    """Compare two submission files byte by byte and row by row."""
    first, second = _rows(one), _rows(other)
    images = [*second, *(name for name in first if name not in second)]
    differing = tuple(name for name in images if first.get(name) != second.get(name))
    return Comparison(one.read_bytes() == other.read_bytes(), len(second), differing)


def require_equal(run: KernelRun, compared: Comparison) -> None:
    """Raise WhaleidError if the kernel's submission differs although its time limit made it leave nothing out."""
    notes = json.loads((run.working / NOTES).read_text())
    if notes["dropped"] or notes["without_views"]:
        return
    if len(compared.differing) > TOLERANCE * compared.rows:
        raise WhaleidError(
            f"{run.working / SUBMISSION}: {compared.line()}, more than {TOLERANCE:.0%}: if the weights have changed "
            f"since, run whaleid submission and whaleid kernel again; else do not trust the kernel (log: {run.log})"
        )


def submission_of(run: KernelRun) -> Path:
    """The submission that a run wrote; raises WhaleidError if there is none."""
    path = run.working / SUBMISSION
    if not path.is_file():
        raise WhaleidError(f"{path}: the kernel ended without an error, but wrote no submission (log: {run.log})")
    return path


def _rows(path: Path) -> dict[str, list[str]]:
    """Image -> the rest of its row."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise WhaleidError(f"{path}: cannot be read ({error.strerror}); run the kernel again") from error
    return {row[0]: row[1:] for row in rows[1:] if row}
