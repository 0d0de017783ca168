"""A finished project as one file, and the three ways to build its submission again, as winners are asked for.

    project.json           names, commit, keys, digests of the CSVs
    MANIFEST.json          size and checksum of every file
    submission.csv         the submission that came of it
    work/...               images.parquet, folds.csv, metrics.json, candidates/, runs/: as in the work folder
    stamps/...             what says that these are up to date

From saved predictions (seconds to minutes), from saved weights (features and ensemble anew), by training all of it
anew. A rebuild has a work folder of its own, so that the project's is not touched.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import Field, ValidationError

from whaleid.config import Competition, Model
from whaleid.pipeline.carried import STAMPS, carried, with_images_key
from whaleid.pipeline.metrics import read_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.pseudo_labels import answered
from whaleid.pipeline.stages import job_list
from whaleid.pipeline.submission import ensemble_stage, submission_path, write_answer
from whaleid.pipeline.workspace import Workspace
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, require_space
from whaleid.utils.manifest import MANIFEST, Manifest, check_manifest, read_manifest, sha256
from whaleid.utils.unpack import CHUNK, unpack

Start = Literal["predictions", "weights", "train"]
PROJECT = "project.json"
SUBMISSION = "submission.csv"
WORK = "work"
STAMPED = "stamps"
KINDS = (".csv", ".json", ".jsonl", ".npy", ".parquet", ".safetensors", ".txt", ".yaml")
"""Files that an archive holds, by suffix: none of them can hold code, as a pickle can."""
LEFT = ("state", "tensorboard")
"""Folders of a run that no rebuild reads: what a killed one resumes from, the curves drawn while it trained."""
AGAIN = "get the archive again, or make it (make archive)"


class Record(Model):
    """project.json: what an archive was made of. key: of the answer, foreign features apart; tables: CSVs' checksums.

    images_key, labelled_key, masks_key: as the project found them, for on another machine the same files have other
    times.
    round: of pseudo-labels, the one that was used; an archive holds no other. sources: names of the features of other
    programs, which an archive does not hold.
    """

    competition: str
    recipe: str
    commit: str
    key: str
    images_key: str
    labelled_key: str
    masks_key: str
    round: int = Field(ge=0)
    tables: dict[str, str]
    sources: list[str]


@dataclass(frozen=True)
class Rebuilt:
    """path: the submission. same: whether it is the archive's, byte for byte. said: of the comparison, one line."""

    path: Path
    same: bool | None
    said: str


def archive_path(project: Project) -> Path:
    """Default place of a project's archive."""
    return project.workspace.root / "archive" / f"{project.recipe.name}.zip"


def rebuild_folder(project: Project, start: Start) -> Path:
    """Work folder of a rebuild, beside that of the project."""
    return project.workspace.root / "rebuilt" / f"{project.recipe.name}-{start}"


# ---------------------------------------------------------------------------------------------------- making it


def write_archive(project: Project, path: Path) -> Manifest:
    """Pack what a rebuild needs of a finished project into the file `path`; WhaleidError where it is not finished."""
    figures, project = read_figures(project), answered(project)
    workspace = project.workspace
    if project.competition.test is None:
        raise WhaleidError(f"competition {project.competition.name} has no test images: there is no submission to keep")
    key = project.ensemble_key()
    answer = submission_path(project, key)
    if figures is None or figures["key"] != key or not answer.is_file():
        raise WhaleidError(
            f"{workspace.root}: recipe {project.recipe.name} has no submission of its present settings; "
            "run make leaderboard first"
        )
    candidates = workspace.candidates(project.recipe.name)
    made = [workspace.images, workspace.folds, *sorted(path for path in candidates.iterdir() if path.is_file())]
    if workspace.round:
        made.append(workspace.pseudo_labels(project.recipe.name))
    outputs = [*(path.relative_to(workspace.root) for path in made), *carried(project).runs]
    files = {name: path for output in outputs for name, path in _files_of(workspace, output).items()}
    record = Record(
        competition=project.competition.name,
        recipe=project.recipe.name,
        commit=figures["commit"],
        key=_own_key(project),
        images_key=project.images_key,
        labelled_key=project.labelled_key,
        masks_key=project.masks_key,
        round=workspace.round,
        tables=table_digests(project.competition),
        sources=sorted(project.recipe.sources),
    )
    written = {PROJECT: record.model_dump(), f"{WORK}/{workspace.metrics.name}": {project.recipe.name: figures}}
    require_space(path.parent, sum(file.stat().st_size for file in files.values()), "the archive")
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        listed = {name: _add(archive, name, file) for name, file in {SUBMISSION: answer, **files}.items()}
        for name, content in written.items():
            listed[name] = _add(archive, name, (json.dumps(content, indent=2) + "\n").encode())
        manifest = Manifest("archive", dict(sorted(listed.items())))
        _add(archive, MANIFEST, manifest.text().encode())
    return manifest


def table_digests(competition: Competition) -> dict[str, str]:
    """Checksum of each CSV: it says on another machine, where files have other times, that the data are the same."""
    tables = {"train": competition.train, "test": competition.test}
    paths = {name: competition.root / table.csv for name, table in tables.items() if table is not None}
    for path in paths.values():
        if not path.is_file():
            raise WhaleidError(f"{path}: file not found; put the competition's data there")
    return {name: sha256(path) for name, path in paths.items()}


def _files_of(workspace: Workspace, output: Path) -> dict[str, Path]:
    """Name in the archive -> file, of an output (relative to the work folder) and its stamp."""
    place = workspace.root / output
    if not place.exists():
        raise WhaleidError(f"{place}: not found, and the archive needs it; make leaderboard makes it")
    paths = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    names = {path: path.relative_to(workspace.root) for path in paths}
    kept = {path: name for path, name in names.items() if name.suffix in KINDS and not set(LEFT) & set(name.parts)}
    files = {f"{WORK}/{name.as_posix()}": path for path, name in kept.items() if not _hidden(name)}
    stamp = workspace.root / STAMPS / f"{output.as_posix()}.json"
    return {**files, f"{STAMPED}/{output.as_posix()}.json": stamp} if stamp.is_file() else files


def _hidden(name: Path) -> bool:
    """Whether a file is, or lies in, what a killed command left unfinished."""
    return any(part.startswith(".") for part in name.parts)


def _own_key(project: Project) -> str:
    """The answer's key without the foreign features, which are known by their files' times."""
    alone = replace(project, recipe=project.recipe.model_copy(update={"sources": {}}))
    return with_images_key(alone, project.images_key, project.labelled_key, project.masks_key).ensemble_key()


def _add(archive: zipfile.ZipFile, name: str, content: Path | bytes) -> tuple[int, str]:
    """Write one file; returns its bytes and checksum. The entry has no time: equal projects give equal archives."""
    info = zipfile.ZipInfo(name)
    dense = name.endswith((".safetensors", ".parquet", ".npy"))
    info.compress_type = zipfile.ZIP_STORED if dense else zipfile.ZIP_DEFLATED
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    size, digest = 0, hashlib.sha256()
    source = BytesIO(content) if isinstance(content, bytes) else content.open("rb")
    with source, archive.open(info, "w", force_zip64=True) as target:
        while chunk := source.read(CHUNK):
            target.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


# ------------------------------------------------------------------------------------------------- building again


def rebuild(project: Project, start: Start, archive: Path, out: Path, at_once: int, options: list[str]) -> Rebuilt:
    """Build the submission again, in the work folder `out`, as `<out>/submission.csv`.

    archive: where it starts from, else only what it is compared with, if it is there. at_once, options: of the
    processes that train (`options` name `out` as the work folder). A training that was ended carries on; otherwise
    `out` is emptied first.
    """
    if start == "train":
        again = replace(project, workspace=Workspace(out / project.competition.name))
    else:
        shutil.rmtree(out, ignore_errors=True)
        again = _carried(project, archive, start, out)
    if start == "train":
        ensemble_stage(again, at_once, options)
    elif start == "weights":
        ensemble_stage(again, 1, [])  # in this process: another would find keys of its own, and train
    path = out / SUBMISSION
    write_answer(again, path)
    if not archive.is_file():
        return Rebuilt(path, None, f"no archive to compare it with ({archive})")
    with TemporaryDirectory(dir=out) as place:
        _open(archive, Path(place), lambda name: name == SUBMISSION)
        return _compared(Path(place, SUBMISSION), path)


def _compared(before: Path, after: Path) -> Rebuilt:
    from whaleid.evaluation.submissions import read_guesses

    if before.read_bytes() == after.read_bytes():
        return Rebuilt(after, True, "equal to the archive's, byte for byte")
    old, new = (dict(zip(read.images, read.as_lists(), strict=True)) for read in map(read_guesses, (before, after)))
    differing = [image for image in {**old, **new} if old.get(image) != new.get(image)]
    first = sum(old.get(image, [])[:1] != new.get(image, [])[:1] for image in differing)
    said = f"{len(differing):,} of {len(new):,} rows differ from the archive's, {first:,} in their first guess"
    return Rebuilt(after, False, said)


def _carried(project: Project, archive: Path, start: Start, out: Path) -> Project:
    """The project with the archive's keys and files in its work folder; refused where data or settings differ."""
    rooms = ["images.parquet", "folds.csv", f"pseudo/{project.recipe.name}"]
    rooms += ["runs"] if start == "weights" else [f"candidates/{project.recipe.name}", "metrics.json"]

    def wanted(name: str) -> bool:
        top, _, inner = name.partition("/")
        return top in (WORK, STAMPED) and any(
            inner in (room, f"{room}.json") or inner.startswith(f"{room}/") for room in rooms
        )

    out.mkdir(parents=True)
    with TemporaryDirectory(dir=out) as place:
        record = _open(archive, Path(place), wanted)
        workspace = Workspace(out / project.competition.name, record.round)
        checked = _same_project(project, record, archive, replace(workspace, root=Path(place, WORK)))
        Path(place, WORK).rename(workspace.root)
        Path(place, STAMPED).rename(workspace.root / STAMPS)
    project = checked.with_settings(checked.recipe, workspace)
    stale = [job.title for job in job_list(project, "train") if not job.current]
    if start == "weights" and stale:
        raise WhaleidError(f"{archive}: has no weights of {stale[0]} with its present settings; {_at(record)}")
    return project


def _same_project(project: Project, record: Record, archive: Path, workspace: Workspace) -> Project:
    """The project with the keys that the archive was made with, in the round of pseudo-labels that it is of.

    workspace: where its files are. WhaleidError where it is not the project of the archive.
    """
    if (record.competition, record.recipe) != (project.competition.name, project.recipe.name):
        raise WhaleidError(f"{archive}: of recipe {record.recipe} on competition {record.competition}; name these two")
    for name, found in table_digests(project.competition).items():
        if record.tables.get(name) != found:
            table = getattr(project.competition, name)
            raise WhaleidError(
                f"{project.competition.root / table.csv}: not the {name} CSV that {archive} was made with; "
                "rebuild with that one, or make leaderboard for this one"
            )
    project = project.with_settings(project.recipe.model_copy(update={"pseudo": None}), workspace)
    project = with_images_key(project, record.images_key, record.labelled_key, record.masks_key)
    if _own_key(project) != record.key or sorted(project.recipe.sources) != record.sources:
        raise WhaleidError(f"{archive}: made with other settings than recipe {record.recipe} has now; {_at(record)}")
    return project


def _at(record: Record) -> str:
    return f"rebuild with commit {record.commit or 'of its time'} and the same SET"


def _open(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> Record:
    """Unpack the wanted files of an archive into an empty folder, each as its manifest says; its project.json."""
    if not archive.is_file():
        raise WhaleidError(f"{archive}: archive not found; make archive writes one from a finished project")
    try:
        return _open_checked(archive, folder, wanted)
    except WhaleidError as error:  # told of the archive, not of the folder that is about to go
        told = str(error).replace(f"{folder}/", "")
        raise WhaleidError(told if told.startswith(str(archive)) else f"{archive}: {told}") from error


def _open_checked(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> Record:
    unpack(archive, folder, depth=0, only=lambda name: name == MANIFEST)
    manifest = read_manifest(folder, AGAIN)
    needed = [name for name in manifest.files if name == PROJECT or wanted(name)]
    for name in needed:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise WhaleidError(f"{MANIFEST} names '{name}', which is outside of the archive; do not use it")
        if path.suffix not in KINDS:
            raise WhaleidError(f"{name} is of a kind that no archive of ours holds; do not use it")
    if manifest.name != "archive" or PROJECT not in needed:
        raise WhaleidError(f"not an archive that make archive wrote; {AGAIN}")
    unpack(archive, folder, depth=0, only=set(needed).__contains__)
    check_manifest(folder, AGAIN, set(needed).__contains__)
    try:
        return Record.model_validate_json((folder / PROJECT).read_bytes())
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise WhaleidError(f"{PROJECT}: {place}: {error.errors()[0]['msg']}; {AGAIN}") from error
