"""The kernel's folder to Kaggle: its data sets made or given a new version, waited for, and the kernel pushed.

    work/<competition>/kernel/<recipe>/              what `make kernel` made: a kernel-metadata.json somewhere below,
                                                     and a dataset-metadata.json in the folder of each data set
    work/<competition>/kernel/<recipe>.pushed.json   what of it is at Kaggle: by id the content's key, version, ready
    work/<competition>/kernel/<recipe>.output/       what the kernel left at Kaggle

A training kernel's folder is `<recipe>-<experiment>-fold<k>`, and so are the names beside it.
What has not changed since it was pushed is left alone, so a push that broke off is carried on with by doing it again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whaleid.kaggle.client import KaggleError, kaggle, waits
from whaleid.kaggle.credentials import require_credentials, secret_values
from whaleid.kaggle.metadata import LARGEST_DATA_SET
from whaleid.pipeline.project import Project
from whaleid.pipeline.submission import submission_problems
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, digest, write_json

UPLOAD_WITHIN = 6 * 3600.0
"""Seconds for the upload of one data set."""
READY_WITHIN = 1800.0
"""Seconds that Kaggle may take to make a version ready."""
LARGEST_SOURCE = 1_000_000
"""Bytes of a kernel's one source file."""
CHUNK = 1 << 22
_UNKNOWN = ("missing", "forbidden")  # of a data set that is not there Kaggle may say either


@dataclass(frozen=True)
class Part:
    """A data set or the kernel: what is sent in one piece."""

    id: str
    folder: Path
    key: str
    """Digest of its files' names and bytes."""
    files: int
    size: int

    def line(self) -> str:
        return f"{self.id}: {self.files:,} files, {self.size / 1e6:,.1f} MB, from {self.folder}"


@dataclass(frozen=True)
class Bundle:
    """A kernel and the data sets that lie with it."""

    folder: Path
    kernel: Part
    data_sets: tuple[Part, ...]
    metadata: dict[str, Any]
    """The kernel's."""

    @property
    def kernel_key(self) -> str:
        """Key of what would run: the kernel's own files and those of its data sets."""
        return digest(self.kernel.key, [part.key for part in self.data_sets])

    @property
    def record(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.pushed.json")


def read_bundle(folder: Path) -> Bundle:
    """The folder that `make kernel` made, checked for what Kaggle would refuse or, worse, misunderstand."""
    kernels = sorted(folder.rglob("kernel-metadata.json"))
    others = sorted(path.parent.parent.name for path in folder.parent.glob("*/kernel/kernel-metadata.json"))
    if not kernels and others:
        raise WhaleidError(
            f"{folder}: no kernel here, but there are {', '.join(others[:3])} beside it: run make kernel first, or "
            "name the run that one of them trains (ARGS='--experiment NAME --fold K')"
        )
    if len(kernels) != 1:
        raise WhaleidError(
            f"{folder}: {len(kernels)} kernel-metadata.json found, one is expected; run make kernel first"
        )
    metadata = _metadata(kernels[0])
    _check_kernel(kernels[0], metadata)
    homes = sorted(folder.rglob("dataset-metadata.json"))
    data_sets = tuple(_part(path.parent, _check_data_set(path)) for path in homes)
    lost = sorted({part.id for part in data_sets} - set(metadata.get("dataset_sources", [])))
    if lost:
        raise WhaleidError(
            f"{kernels[0]}: dataset_sources lacks {lost[0]}, which lies in {folder}; run make kernel again"
        )
    return Bundle(folder, _part(kernels[0].parent, metadata["id"]), data_sets, metadata)


def plan_lines(bundle: Bundle) -> list[str]:
    """What a push would send, without asking Kaggle."""
    pushed = _pushed(bundle)
    lines = [
        f"data set {part.line()}" + ("; unchanged since it was pushed" if _key(pushed, part.id) == part.key else "")
        for part in bundle.data_sets
    ]
    shape = bundle.metadata.get("machine_shape") or ("a GPU" if bundle.metadata.get("enable_gpu") else "no GPU")
    unchanged = "; unchanged since it was pushed" if _key(pushed, bundle.kernel.id) == bundle.kernel_key else ""
    lines.append(f"kernel {bundle.kernel.line()} on {shape}{unchanged}")
    return lines


def push(bundle: Bundle, note: str, again: bool = False) -> Iterator[str]:
    """Send what Kaggle does not have yet; yields what was done, a line each.

    note: of the version (a commit). again: push the kernel even where it has not changed: it then runs anew.
    """
    user = require_credentials().user
    if bundle.kernel.id.startswith("OWNER/"):
        raise WhaleidError(
            f"{bundle.folder}: made for nobody: run make kernel OWNER={user or 'your-Kaggle-name'} first"
        )
    for part in (*bundle.data_sets, bundle.kernel):
        owner = part.id.split("/")[0]
        if user is not None and owner != user:
            raise WhaleidError(
                f"{part.folder}: {part.id} is of {owner}, the credentials are of {user}; run make kernel again"
            )
    for part in bundle.data_sets:
        yield from _bring(bundle, part, note)
    if _key(_pushed(bundle), bundle.kernel.id) == bundle.kernel_key and not again:
        yield f"kernel {bundle.kernel.id}: as it was pushed; --again runs it anew"
        return
    version, line = _push_kernel(bundle)
    _remember(bundle, bundle.kernel.id, bundle.kernel_key, version, True)
    yield line


@dataclass(frozen=True)
class KernelStatus:
    """What Kaggle says of a kernel. state: complete, running, queued, error, ..."""

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
    """Files that a kernel left, into `<its folder>.output/` beside its folder; all of them or none.

    place: the kernel's folder. run: experiment and fold that it trains, None for one that answers the test set.
    Yields lines: what came, and whether its submission.csv would be accepted, or how its run is used here.
    """
    id = read_bundle(place).kernel.id
    status = kernel_status(id)
    yield status.line()
    if status.state in ("queued", "running"):
        raise WhaleidError(f"kernel {id} is not done yet ({status.state}); make kernel-status tells how far it is")
    folder = place.with_name(f"{place.name}.output")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        kaggle(["kernels", "output", id, "-p", str(temporary)], f"output of kernel {id}", within=UPLOAD_WITHIN)
        count = sum(path.is_file() for path in temporary.rglob("*"))
        if not count:
            raise WhaleidError(f"kernel {id} left no files and no log; look at https://www.kaggle.com/code/{id}")
    yield f"{folder}: {count} files"
    if run is not None:
        yield _trained(project, folder, *run)
        return
    submission = folder / "submission.csv"
    if not submission.is_file():
        raise WhaleidError(f"{folder}: no submission.csv among them; the log there says why")
    problems = submission_problems(submission, project.competition, project.workspace.root.parent)
    if problems:
        raise WhaleidError(problems[0])
    yield f"{submission}: a valid submission"


def _trained(project: Project, folder: Path, experiment: str, fold: int) -> str:
    """What to do with the run that a training kernel left."""
    root = project.workspace.root
    weights = folder / project.workspace.run(experiment, fold).relative_to(root) / "checkpoint.safetensors"
    if not weights.is_file():
        raise WhaleidError(f"{weights}: not among them; the log in {folder} says why")
    return f"{experiment} fold {fold} is trained: copy runs/, features/ and .stamps/ of {folder} into {root} and go on"


# -------------------------------------------------------------------------------------------------- data sets


def _bring(bundle: Bundle, part: Part, note: str) -> Iterator[str]:
    """Have a data set at Kaggle as it is here, ready for a kernel."""
    known = _pushed(bundle).get(part.id, {})
    now = _version(part.id)
    if known.get("key") == part.key and now is not None:
        if known.get("ready"):
            yield f"data set {part.id}: as it was pushed"
            return
        version = int(known["version"])  # it was sent before, and the waiting broke off
    else:
        version = (now or 0) + 1
        yield f"data set {part.id}: sending version {version}, {part.size / 1e6:,.1f} MB"
        _send(part, now is None, note)
        _remember(bundle, part.id, part.key, version, False)
    yield from _wait_until_ready(part.id, version)
    _remember(bundle, part.id, part.key, version, True)


def _send(part: Part, new: bool, note: str) -> None:
    """Make a data set, or its next version."""
    # sub-folders are left out unless they travel as zips, which Kaggle unpacks
    words = ["datasets", "create" if new else "version", "-p", str(part.folder), "-r", "zip"]
    done = r"[Dd]ataset( version)? is being created"
    out = kaggle(words + ([] if new else ["-m", note]), f"data set {part.id}", done, within=UPLOAD_WITHIN)
    lost = re.findall(r"Upload unsuccessful: (.+)", out)
    if lost:
        raise WhaleidError(
            f"data set {part.id}: {lost[0].strip()} did not arrive at Kaggle; run make kernel-push again"
        )


def _wait_until_ready(id: str, wanted: int) -> Iterator[str]:
    """Wait for a version; until it is there, `ready` is said of the one before."""
    said = ""
    for _ in waits(READY_WITHIN):
        try:
            status, version = _status(id)
        except KaggleError as error:
            if error.kind not in _UNKNOWN:
                raise
            status, version = "not listed yet", 0
        if status == "ready" and version >= wanted:
            yield f"data set {id}: ready"
            return
        if status in ("failed", "deleted"):
            raise WhaleidError(
                f"data set {id}: Kaggle could not make it ready ({status}); look at its page, then push again"
            )
        if status != said:
            yield f"data set {id}: {status.replace('_', ' ')}"
            said = status
    raise WhaleidError(f"data set {id}: not ready after {READY_WITHIN / 60:.0f} minutes; run make kernel-push again")


def _version(id: str) -> int | None:
    """Number of a data set's newest version, None where Kaggle has no such data set of ours."""
    try:
        return _status(id)[1]
    except KaggleError as error:
        if error.kind in _UNKNOWN:
            return None
        raise


def _status(id: str) -> tuple[str, int]:
    out = kaggle(["datasets", "status", id, "--format", "json"], f"status of data set {id}", r"\{")
    try:
        said = json.loads(out[out.index("{") :])
        return str(said["status"]), int(said["current_version_number"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise WhaleidError(
            f"status of data set {id}: Kaggle's answer is not understood: {' '.join(out.split())}"
        ) from error


# ----------------------------------------------------------------------------------------------- the kernel


def _push_kernel(bundle: Bundle) -> tuple[int, str]:
    """Push the kernel; returns its version and the line for the user."""
    id = bundle.kernel.id
    out = kaggle(["kernels", "push", "-p", str(bundle.kernel.folder)], f"kernel {id}", r"successfully pushed")
    refused = re.search(r"not valid (.+?) sources .*?: (\[.*\])", out)
    if refused:
        raise WhaleidError(
            f"kernel {id}: pushed, but without its {refused[1]} sources {refused[2]}, which Kaggle does not accept; "
            "mend dataset_sources (or accept the competition's rules) and push again"
        )
    found = re.search(r"version (\d+)", out)
    version = int(found[1]) if found else 0
    return version, f"kernel {id}: version {version or '?'} pushed, https://www.kaggle.com/code/{id}"


# ------------------------------------------------------------------------------------------------- the folder


def _check_kernel(path: Path, metadata: dict[str, Any]) -> None:
    _check_id(path, metadata, shortest=5)
    title = str(metadata.get("title", ""))
    if _slug(title) != metadata["id"].split("/")[1]:
        raise WhaleidError(
            f"{path}: title {title!r} becomes the slug {_slug(title)!r}, not that of id {metadata['id']!r}"
        )
    if not isinstance(metadata.get("enable_internet"), bool):
        raise WhaleidError(f"{path}: enable_internet is missing; the client would switch it on: write false")
    source = path.parent / str(metadata.get("code_file", ""))
    if not source.is_file():
        raise WhaleidError(f"{path}: code_file {str(metadata.get('code_file', ''))!r} is not beside it")
    if source.stat().st_size > LARGEST_SOURCE:
        raise WhaleidError(
            f"{source}: {source.stat().st_size / 1e6:.1f} MB, Kaggle takes 1 MB; put data into a data set"
        )


def _check_data_set(path: Path) -> str:
    """The data set's id."""
    metadata = _metadata(path)
    _check_id(path, metadata, shortest=6)
    if not 6 <= len(str(metadata.get("title", ""))) <= 50:
        raise WhaleidError(f"{path}: title must have 6 to 50 characters")
    if len(metadata.get("licenses", [])) != 1:
        raise WhaleidError(f'{path}: licenses must hold exactly one, e.g. [{{"name": "CC0-1.0"}}]')
    return metadata["id"]


def _check_id(path: Path, metadata: dict[str, Any], shortest: int) -> None:
    id = str(metadata.get("id", ""))
    match = re.fullmatch(r"([A-Za-z0-9_-]+)/([a-z0-9-]+)", id)
    if match is None or not shortest <= len(match[2]) <= 50:
        raise WhaleidError(
            f"{path}: id {id!r} is not owner/slug, the slug of {shortest} to 50 small letters, digits, '-'"
        )


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _metadata(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WhaleidError(f"{path}: not readable as JSON ({error}); run make kernel again") from error
    if not isinstance(content, dict):
        raise WhaleidError(f"{path}: a JSON object is expected; run make kernel again")
    return content


def _part(folder: Path, id: str) -> Part:
    """The folder's files; refused where one holds a credential, or all are more than Kaggle takes."""
    secrets = [value.encode() for value in secret_values()]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    if size > LARGEST_DATA_SET:
        raise WhaleidError(
            f"{folder}: {size / 1e9:,.1f} GB, and a data set of Kaggle holds at most {LARGEST_DATA_SET / 1e9:,.0f} GB"
        )
    keys = [[path.relative_to(folder).as_posix(), _file_key(path, secrets)] for path in files]
    return Part(id, folder, digest(keys), len(files), size)


def _file_key(path: Path, secrets: Sequence[bytes]) -> str:
    """Digest of a file; raises WhaleidError where one of the secrets is in it."""
    longest = max((len(value) for value in secrets), default=1)
    key = hashlib.sha256()
    tail = b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            key.update(chunk)
            seen = tail + chunk
            if any(value in seen for value in secrets):
                raise WhaleidError(f"{path}: holds your Kaggle key; it is not sent: remove it, and make a new key")
            tail = seen[-longest:]  # a secret may lie across two chunks
    return key.hexdigest()[:20]


def _pushed(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """What was pushed, by id: key of the content, version, whether it is ready."""
    try:
        content = json.loads(bundle.record.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}  # it is then pushed anew
    return content if isinstance(content, dict) else {}


def _key(pushed: dict[str, dict[str, Any]], id: str) -> str | None:
    return pushed.get(id, {}).get("key")


def _remember(bundle: Bundle, id: str, key: str, version: int, ready: bool) -> None:
    write_json(bundle.record, {**_pushed(bundle), id: {"key": key, "version": version, "ready": ready}})
