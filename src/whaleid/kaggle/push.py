"""A kernel to Kaggle: its data sets are created or get a new version, then the kernel is pushed.

    work/<competition>/kernel/<recipe>/              made by `whaleid kernel`
    work/<competition>/kernel/<recipe>.pushed.json   what is at Kaggle: id -> digest of the content, version, ready
    work/<competition>/kernel/<recipe>.output/       the kernel's output

A training kernel's names start with `<recipe>-<experiment>-fold<k>`. Unchanged parts are not sent again, so a push that
was interrupted is continued by the same command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whaleid.kaggle.client import KaggleError, kaggle, waits
from whaleid.kaggle.credentials import require_credentials
from whaleid.kaggle.metadata import PLACEHOLDER
from whaleid.pipeline.project import Project
from whaleid.pipeline.submission import submission_problems
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, digest, file_digest, write_json
from whaleid.utils.manifest import MANIFEST, read_manifest

UPLOAD_SECONDS = 6 * 3600.0
READY_SECONDS = 1800.0
"""For Kaggle to make a version ready."""
_UNKNOWN = ("missing", "forbidden")  # Kaggle answers either for a data set that does not exist


@dataclass(frozen=True)
class Part:
    """A data set, or the kernel.

    Attributes
    ----------
    id : str
        ``owner/slug``.
    folder : Path
    key : str
        Digest of its content.
    files, size : int
        Number and bytes of its files.
    """

    id: str
    folder: Path
    key: str
    files: int
    size: int

    def line(self) -> str:
        return f"{self.id}: {self.files:,} files, {self.size / 1e6:,.1f} MB, from {self.folder}"


@dataclass(frozen=True)
class Bundle:
    """A kernel and its data sets.

    Attributes
    ----------
    folder : Path
    kernel : Part
        Its key is of its own files and of its data sets.
    data_sets : tuple of Part
    metadata : dict
        The kernel's.
    """

    folder: Path
    kernel: Part
    data_sets: tuple[Part, ...]
    metadata: dict[str, Any]

    @property
    def record(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.pushed.json")


def read_bundle(folder: Path) -> Bundle:
    """Read the folder that `whaleid kernel` made.

    Raises
    ------
    WhaleidError
        If there is none, or it is damaged.
    """
    home = folder / "kernel"
    others = sorted(path.parent.parent.name for path in folder.parent.glob("*/kernel/kernel-metadata.json"))
    if not (home / "kernel-metadata.json").is_file():
        hint = f"; there are {', '.join(others[:3])} beside it (--experiment NAME --fold K)" if others else ""
        raise WhaleidError(f"{folder}: no kernel here: run whaleid kernel first{hint}")
    metadata = _read_metadata(home / "kernel-metadata.json")
    data_sets = tuple(_data_set(path.parent) for path in sorted(folder.glob("datasets/*/dataset-metadata.json")))
    files = sorted(path for path in home.iterdir() if path.is_file())
    key = digest([[path.name, file_digest(path)] for path in files], [part.key for part in data_sets])
    kernel = Part(metadata["id"], home, key, len(files), sum(path.stat().st_size for path in files))
    return Bundle(folder, kernel, data_sets, metadata)


def plan_lines(bundle: Bundle) -> list[str]:
    """What a push would send, without asking Kaggle."""
    pushed = _pushed(bundle)

    def note(part: Part) -> str:
        return "; unchanged since it was pushed" if pushed.get(part.id, {}).get("key") == part.key else ""

    shape = bundle.metadata.get("machine_shape") or ("a GPU" if bundle.metadata.get("enable_gpu") else "no GPU")
    lines = [f"data set {part.line()}{note(part)}" for part in bundle.data_sets]
    return [*lines, f"kernel {bundle.kernel.line()} on {shape}{note(bundle.kernel)}"]


def push(bundle: Bundle, note: str, again: bool = False) -> Iterator[str]:
    """Send what Kaggle does not have yet.

    Parameters
    ----------
    bundle : Bundle
    note : str
        Note of the new versions, e.g. a commit.
    again : bool
        Push the kernel even if it has not changed; it then runs again.

    Yields
    ------
    str
        A line for each step.

    Raises
    ------
    WhaleidError
        If the bundle belongs to another user, or Kaggle refuses a part.
    """
    user = require_credentials().user
    owner = bundle.kernel.id.split("/")[0]
    if owner == PLACEHOLDER or user not in (None, owner):
        raise WhaleidError(
            f"{bundle.folder}: its owner is {owner}, the credentials are of {user or 'an unknown user'}: run whaleid "
            f"kernel --owner {user or '<your Kaggle name>'} first"
        )
    for part in bundle.data_sets:
        yield from _push_data_set(bundle, part, note)
    if _pushed(bundle).get(bundle.kernel.id, {}).get("key") == bundle.kernel.key and not again:
        yield f"kernel {bundle.kernel.id}: unchanged since it was pushed; --again runs it again"
        return
    yield _push_kernel(bundle)


@dataclass(frozen=True)
class KernelStatus:
    """State of a kernel: ``complete``, ``running``, ``queued``, ``error``, ...; `failure` is Kaggle's message."""

    id: str
    state: str
    failure: str

    @property
    def failed(self) -> bool:
        return self.state in ("error", "cancel_requested", "cancel_acknowledged")

    def line(self) -> str:
        return f"kernel {self.id}: {self.state}" + (f" ({self.failure})" if self.failure else "")


def kernel_status(id: str) -> KernelStatus:
    """State of a kernel's last version."""
    out = kaggle(["kernels", "status", id], f"status of kernel {id}", r'has status "')
    state = re.search(r'has status "(?:\w+\.)?(\w+)"', out)
    failure = re.search(r'Failure message: "(.*)"', out, re.DOTALL)
    return KernelStatus(id, state[1].lower() if state else "unknown", " ".join(failure[1].split()) if failure else "")


def fetch_output(project: Project, place: Path, run: tuple[str, int] | None = None) -> Iterator[str]:
    """Download a kernel's output into ``<its folder>.output/``, completely or not at all.

    Parameters
    ----------
    project : Project
    place : Path
        The kernel's folder.
    run : tuple of str and int, optional
        Experiment and fold that a training kernel trained.

    Yields
    ------
    str
        What was downloaded, and whether its submission is valid or how its run is used here.

    Raises
    ------
    WhaleidError
        If the kernel is not done, or its output lacks the submission or the run.
    """
    id = read_bundle(place).kernel.id
    status = kernel_status(id)
    yield status.line()
    if status.state in ("queued", "running"):
        raise WhaleidError(f"kernel {id} is not done yet ({status.state}); whaleid kaggle status shows its state")
    folder = place.with_name(f"{place.name}.output")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        kaggle(["kernels", "output", id, "-p", str(temporary)], f"output of kernel {id}", timeout=UPLOAD_SECONDS)
        count = sum(path.is_file() for path in temporary.rglob("*"))
        if not count:
            raise WhaleidError(f"kernel {id} left no files and no log; look at https://www.kaggle.com/code/{id}")
    yield f"{folder}: {count} files"
    yield _check_submission(project, folder) if run is None else _check_run(project, folder, *run)


def _check_submission(project: Project, folder: Path) -> str:
    submission = folder / "submission.csv"
    if not submission.is_file():
        raise WhaleidError(f"{submission}: not in the output; the log there says why")
    problems = submission_problems(submission, project.competition, project.workspace.root.parent)
    if problems:
        raise WhaleidError(problems[0])
    return f"{submission}: a valid submission"


def _check_run(project: Project, folder: Path, experiment: str, fold: int) -> str:
    root = project.workspace.root
    weights = folder / project.workspace.run(experiment, fold).relative_to(root) / "checkpoint.safetensors"
    if not weights.is_file():
        raise WhaleidError(f"{weights}: not in the output; the log in {folder} says why")
    return f"{experiment} fold {fold} is trained: copy runs/, features/ and .stamps/ of {folder} into {root} and go on"


# -------------------------------------------------------------------------------------------------- data sets


def _data_set(folder: Path) -> Part:
    manifest = read_manifest(folder, "run whaleid kernel again")
    id = _read_metadata(folder / "dataset-metadata.json")["id"]
    return Part(id, folder, file_digest(folder / MANIFEST), len(manifest.files), manifest.size)


def _push_data_set(bundle: Bundle, part: Part, note: str) -> Iterator[str]:
    """Send a data set unless it is there, and wait until kernels can use it."""
    known, there = _pushed(bundle).get(part.id, {}), _version(part.id)
    if known.get("key") == part.key and there is not None:
        if known.get("ready"):
            yield f"data set {part.id}: unchanged since it was pushed"
            return
        version = int(known["version"])  # it was sent, but the wait was interrupted
    else:
        version = (there or 0) + 1
        yield f"data set {part.id}: sending version {version}, {part.size / 1e6:,.1f} MB"
        _send(part, there is None, note)
        _remember(bundle, part, version, False)
    yield from _wait_until_ready(part.id, version)
    _remember(bundle, part, version, True)


def _send(part: Part, new: bool, note: str) -> None:
    # without -r zip, sub-folders are left out; Kaggle unpacks the zips
    words = ["datasets", "create" if new else "version", "-p", str(part.folder), "-r", "zip"]
    created = r"[Dd]ataset( version)? is being created"
    out = kaggle(words + ([] if new else ["-m", note]), f"data set {part.id}", created, timeout=UPLOAD_SECONDS)
    lost = re.findall(r"Upload unsuccessful: (.+)", out)
    if lost:
        raise WhaleidError(
            f"data set {part.id}: {lost[0].strip()} did not arrive at Kaggle; run whaleid kaggle push again"
        )


def _wait_until_ready(id: str, version: int) -> Iterator[str]:
    """Wait for a version; until it is listed, Kaggle's `ready` refers to the one before."""
    shown = ""
    for _ in waits(READY_SECONDS):
        try:
            status, listed = _status(id)
        except KaggleError as error:
            if error.kind not in _UNKNOWN:
                raise
            status, listed = "not listed yet", 0
        if status == "ready" and listed >= version:
            yield f"data set {id}: ready"
            return
        if status in ("failed", "deleted"):
            raise WhaleidError(f"data set {id}: Kaggle could not make it ready ({status}); see its page, push again")
        if status != shown:
            yield f"data set {id}: {status.replace('_', ' ')}"
            shown = status
    raise WhaleidError(
        f"data set {id}: not ready after {READY_SECONDS / 60:.0f} minutes; run whaleid kaggle push again"
    )


def _version(id: str) -> int | None:
    """Number of a data set's newest version; None if there is no such data set of ours."""
    try:
        return _status(id)[1]
    except KaggleError as error:
        if error.kind in _UNKNOWN:
            return None
        raise


def _status(id: str) -> tuple[str, int]:
    out = kaggle(["datasets", "status", id, "--format", "json"], f"status of data set {id}", r"\{")
    try:
        answer = json.loads(out[out.index("{") :])
        return str(answer["status"]), int(answer["current_version_number"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise WhaleidError(f"status of data set {id}: unexpected answer of Kaggle: {' '.join(out.split())}") from error


# ----------------------------------------------------------------------------------------------- the kernel


def _push_kernel(bundle: Bundle) -> str:
    id = bundle.kernel.id
    out = kaggle(["kernels", "push", "-p", str(bundle.kernel.folder)], f"kernel {id}", r"successfully pushed")
    refused = re.search(r"not valid (.+?) sources .*?: (\[.*\])", out)
    if refused:
        raise WhaleidError(
            f"kernel {id}: pushed, but without its {refused[1]} sources {refused[2]}, which Kaggle does not accept; "
            "accept the competition's rules or check the names, and push again"
        )
    found = re.search(r"version (\d+)", out)
    _remember(bundle, bundle.kernel, int(found[1]) if found else 0, True)
    return f"kernel {id}: version {found[1] if found else '?'} pushed, https://www.kaggle.com/code/{id}"


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        return {**content, "id": str(content["id"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WhaleidError(f"{path}: not readable as JSON with an id ({error}); run whaleid kernel again") from error


def _pushed(bundle: Bundle) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(bundle.record.read_text())
    except (FileNotFoundError, ValueError):
        return {}  # everything is pushed again
    return content if isinstance(content, dict) else {}


def _remember(bundle: Bundle, part: Part, version: int, ready: bool) -> None:
    write_json(bundle.record, {**_pushed(bundle), part.id: {"key": part.key, "version": version, "ready": ready}})
