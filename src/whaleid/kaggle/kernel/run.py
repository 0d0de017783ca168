"""`make kernel-run`: the kernel executed here as Kaggle would, and its submission compared with the one made at home.

A tree like /kaggle/input in either layout, read-only; no network; a fresh process that sees neither the repository
nor the packages that Kaggle's image lacks, so that the bundle's wheels are what it runs with.
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
from whaleid.kaggle.kernel.bundle import ASSETS, WHEELS, link_file
from whaleid.kaggle.kernel.inference import NOTES, SUBMISSION
from whaleid.kaggle.kernel.sandbox import (
    Sandbox,
    close_folders,
    listing,
    make_sandbox,
    open_folders,
    require_untouched,
)
from whaleid.kaggle.kernel.wheels import LISTING
from whaleid.utils.errors import WhaleidError

Layout = Literal["new", "old"]
KEPT = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "TMPDIR")
"""Environment variables that a kernel's process gets from this one; no credentials, no PYTHONPATH."""
TOLERANCE = 0.01
"""Share of rows that may differ: another version, device or number of threads rounds otherwise, and ties fall so."""
_LIMIT = 13 * 3600.0  # seconds: Kaggle would have ended it


@dataclass(frozen=True)
class RunOptions:
    """layout: of /kaggle/input. hours: None: the kernel's own limit.

    namespaces: False blocks sockets although a network namespace could be had.
    """

    layout: Layout = "new"
    hours: float | None = None
    namespaces: bool = True


@dataclass(frozen=True)
class KernelRun:
    """working: its output. seconds: how long it took. words: how it was shut in."""

    working: Path
    log: Path
    seconds: float
    words: str


def run_bundle(bundle: Path, competition: Competition, base: Path, options: RunOptions) -> KernelRun:
    """Execute the bundle's kernel in `base` (made anew); its log is shown as it comes, and kept.

    Raises WhaleidError with the kernel's own line when it ends badly, and where it wrote to its inputs.
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
    hidden = {"whaleid"} | pure_modules(bundle / "datasets" / WHEELS)
    sandbox = make_sandbox(readonly, base / "site", scratch, hidden, options.namespaces)
    before = listing(readonly)
    close_folders(readonly)
    script = source / f"{metadata['id'].split('/')[1]}.py"
    began = time.monotonic()
    try:
        status, last = _execute(sandbox, options, base, script)
    finally:
        open_folders(readonly)
    seconds = time.monotonic() - began
    require_untouched(readonly, before)
    log = base / "kernel.log"
    if status:
        raise WhaleidError(f"{last} (the kernel ended with status {status}; log: {log})")
    return KernelRun(working, log, seconds, sandbox.words())


def remove_run(base: Path) -> None:
    """Remove what an earlier run left, closed folders too."""
    if base.exists():
        open_folders(base)
        shutil.rmtree(base)


def pure_modules(wheels: Path) -> set[str]:
    """Modules of the bundle's wheels that this interpreter, too, can install: compiled for none, or for any, Python."""
    return {module for module, entry in _wheels(wheels).items() if _serves_any(entry["wheel"])}


def _wheels(wheels: Path) -> dict[str, dict[str, str]]:
    return json.loads((wheels / LISTING).read_text())


def _serves_any(wheel: str) -> bool:
    return wheel.endswith("-none-any.whl") or "-abi3-" in wheel


def mount_inputs(bundle: Path, competition: Competition, metadata: dict, root: Path, layout: Layout) -> None:
    """A tree like /kaggle/input. The competition's folder comes without its solution, as on Kaggle."""
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
    """Run the script; returns its status and the last line that it said, the log in `kernel.log`."""
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
        environment["WHALEID_HOURS"] = str(options.hours)
    command = [*sandbox.prefix, sys.executable, str(script)]
    last = "the kernel said nothing"
    with (base / "kernel.log").open("w") as log:
        process = subprocess.Popen(
            command,
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
    """Two submissions. same: byte for byte. rows: of the second. differing: rows (by image) that are not equal."""

    same: bool
    rows: int
    differing: tuple[str, ...]

    def line(self) -> str:
        if self.same:
            return f"equal to the local submission, byte for byte ({self.rows:,} rows)"
        few = ", ".join(self.differing[:3])
        return f"{len(self.differing):,} of {self.rows:,} rows differ from the local submission: {few}"


def compare_submissions(one: Path, other: Path) -> Comparison:
    """Compare by bytes, then row by row."""
    first, second = _guesses(one), _guesses(other)
    same = one.read_bytes() == other.read_bytes()
    names = [*second, *(name for name in first if name not in second)]
    return Comparison(same, len(second), tuple(name for name in names if first.get(name) != second.get(name)))


def require_equal(run: KernelRun, compared: Comparison) -> None:
    """Raise WhaleidError where the kernel answers otherwise than the pipeline did, though nothing was left out."""
    notes = json.loads((run.working / NOTES).read_text())
    if notes["dropped"] or notes["without_views"]:
        return  # the time budget said so, and another answer is what it costs
    if len(compared.differing) > TOLERANCE * compared.rows:
        raise WhaleidError(
            f"{run.working / SUBMISSION}: {compared.line()}, more than {TOLERANCE:.0%}: make submission again if its "
            f"weights have changed since; else the kernel is not to be trusted (log: {run.log})"
        )


def _guesses(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise WhaleidError(f"{path}: cannot be read ({error.strerror}); run the kernel again") from error
    return {row[0]: row[1:] for row in rows[1:] if row}


def submission_of(run: KernelRun) -> Path:
    path = run.working / SUBMISSION
    if not path.is_file():
        raise WhaleidError(f"{path}: the kernel ended well, but wrote no submission (log: {run.log})")
    return path


def assets_folder(bundle: Path) -> Path:
    return bundle / "datasets" / ASSETS
