"""A finished project as one zip file, and its submission made again from it: by saved predictions, by saved weights, or
by training everything again.

    project.json           names, commit, keys
    MANIFEST.json          size and checksum of every file
    submission.csv         the submission
    work/...               images.parquet, folds.csv, metrics.json, candidates/, runs/: as in the work folder
    stamps/...             marks them as up to date

A rebuild has a work folder of its own and leaves the project's as it is.
"""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import Field, ValidationError

from whaleid.config import Model
from whaleid.pipeline.executors.local import LocalExecutor
from whaleid.pipeline.keys import candidates_key
from whaleid.pipeline.metrics import read_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.rounds import in_used_round
from whaleid.pipeline.run_stages import full_tasks, train_tasks
from whaleid.pipeline.runner import run
from whaleid.pipeline.submission import submission_path, write_answer
from whaleid.pipeline.transfer import PROJECT, STAMPS, ensemble_inputs
from whaleid.pipeline.workspace import Workspace
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, require_space
from whaleid.utils.manifest import MANIFEST, Manifest, check_manifest, read_manifest, sha256
from whaleid.utils.unpack import unpack

Start = Literal["predictions", "weights", "train"]
SUBMISSION = "submission.csv"
WORK, STAMPED = "work", "stamps"
SUFFIXES = (".csv", ".json", ".jsonl", ".npy", ".parquet", ".safetensors", ".txt", ".yaml")
"""Suffixes of an archive's files: none of these formats can hold code, as a pickle can."""
LEFT_OUT = ("state", "tensorboard")
"""Folders of a run that no rebuild reads."""
AGAIN = "download the archive again, or make it (whaleid archive)"


class Record(Model):
    """Content of project.json.

    Attributes
    ----------
    competition, recipe, commit : str
    images_key, key : str
        Digests of the data, and of data and settings together; without features by other programs.
    round : int
        Of pseudo-labels, the one that is used.
    sources : list of str
        Names of the features by other programs, which an archive does not hold.
    """

    competition: str
    recipe: str
    commit: str
    images_key: str
    key: str
    round: int = Field(ge=0)
    sources: list[str]


@dataclass(frozen=True)
class Rebuilt:
    """A submission that was made again.

    Attributes
    ----------
    path : Path
    same : bool or None
        Whether it equals the archive's byte for byte; None without an archive.
    comparison : str
        One line.
    """

    path: Path
    same: bool | None
    comparison: str


def archive_path(project: Project) -> Path:
    """Default place of a project's archive."""
    return project.workspace.root / "archive" / f"{project.recipe.name}.zip"


def rebuild_folder(project: Project, start: Start) -> Path:
    """Work folder of a rebuild."""
    return project.workspace.root / "rebuilt" / f"{project.recipe.name}-{start}"


# ---------------------------------------------------------------------------------------------------- making it


def write_archive(project: Project, path: Path) -> Manifest:
    """Pack what a rebuild needs of a finished project into a zip file. Equal projects give equal files.

    Raises
    ------
    WhaleidError
        If the project has no submission of its present settings.
    """
    figures, project = read_figures(project), in_used_round(project)
    if project.competition.test is None:
        raise WhaleidError(f"competition {project.competition.name} has no test images, so there is no submission")
    key = candidates_key(project)
    submission = submission_path(project, key)
    if figures is None or figures["key"] != key or not submission.is_file():
        raise WhaleidError(
            f"{project.workspace.root}: recipe {project.recipe.name} has no submission of its present settings; "
            "run whaleid leaderboard first"
        )
    record = Record(
        competition=project.competition.name,
        recipe=project.recipe.name,
        commit=figures["commit"],
        images_key=project.keys.images,
        key=_key_without_sources(project),
        round=project.workspace.round,
        sources=sorted(project.recipe.sources),
    )
    files = {SUBMISSION: submission, **_files_to_pack(project)}
    texts: dict[str, Any] = {
        PROJECT: record.model_dump(),
        f"{WORK}/{project.workspace.metrics.name}": {project.recipe.name: figures},
    }
    require_space(path.parent, sum(file.stat().st_size for file in files.values()), "the archive")
    with TemporaryDirectory() as folder, atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for number, (name, content) in enumerate(texts.items()):
            files[name] = Path(folder, str(number))
            files[name].write_text(json.dumps(content, indent=2) + "\n")
        manifest = Manifest(
            "archive", {name: (files[name].stat().st_size, sha256(files[name])) for name in sorted(files)}
        )
        for name, file in files.items():
            _add(archive, name, file)
        archive.writestr(_entry(MANIFEST), manifest.text())
    return manifest


def _files_to_pack(project: Project) -> dict[str, Path]:
    """Name in the archive -> file: tables, candidates and runs with their stamps."""
    workspace = project.workspace
    candidates = workspace.candidates(project.recipe.name)
    made = [workspace.images, workspace.folds, *sorted(path for path in candidates.iterdir() if path.is_file())]
    if workspace.round:
        made.append(workspace.pseudo_labels(project.recipe.name))
    outputs = [*made, *(workspace.root / run for run in ensemble_inputs(project).runs)]
    return {name: path for output in outputs for name, path in _files_of(workspace, output).items()}


def _files_of(workspace: Workspace, output: Path) -> dict[str, Path]:
    """Name in the archive -> file, of an output and its stamp."""
    if not output.exists():
        raise WhaleidError(f"{output}: not found, but the archive needs it; run whaleid leaderboard")
    paths = [output] if output.is_file() else sorted(path for path in output.rglob("*") if path.is_file())
    files = {}
    for path in paths:
        name = path.relative_to(workspace.root)
        unfinished = any(part.startswith(".") for part in name.parts)  # left by a command that was killed
        if name.suffix in SUFFIXES and not unfinished and not set(LEFT_OUT) & set(name.parts):
            files[f"{WORK}/{name.as_posix()}"] = path
    stamp = f"{output.relative_to(workspace.root).as_posix()}.json"
    if (workspace.root / STAMPS / stamp).is_file():
        files[f"{STAMPED}/{stamp}"] = workspace.root / STAMPS / stamp
    return files


def _key_without_sources(project: Project) -> str:
    """The ensemble's key without features by other programs, which are known by their files' times."""
    own = project.recipe.model_copy(update={"sources": {}})
    return candidates_key(replace(project, recipe=own, data_keys=project.keys))


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry without a time."""
    info = zipfile.ZipInfo(name)
    dense = name.endswith((".safetensors", ".parquet", ".npy"))
    info.compress_type = zipfile.ZIP_STORED if dense else zipfile.ZIP_DEFLATED
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    with path.open("rb") as source, archive.open(_entry(name), "w", force_zip64=True) as target:
        shutil.copyfileobj(source, target)


# ------------------------------------------------------------------------------------------------- building again


def rebuild(project: Project, start: Start, archive: Path, out: Path, at_once: int, options: list[str]) -> Rebuilt:
    """Make the submission again in the work folder `out`, as ``<out>/submission.csv``.

    Parameters
    ----------
    project : Project
    start : {'predictions', 'weights', 'train'}
        What is taken from the archive; nothing for 'train', which continues where an earlier rebuild was stopped.
    archive : Path
        Compared with the result, if it exists.
    out : Path
        Emptied first, unless `start` is 'train'.
    at_once : int
        Processes that train.
    options : list of str
        Command line options of these processes, which name `out` as the work folder.

    Raises
    ------
    WhaleidError
        If the archive is damaged, or made of other data or settings.
    """
    if start == "train":
        again = replace(project, workspace=Workspace(out / project.competition.name))
        run(again, "ladder", LocalExecutor(at_once, options))
    else:
        shutil.rmtree(out, ignore_errors=True)
        again = _unpack_project(project, archive, start, out)
        if start == "weights":
            run(again, "ladder")
    path = out / SUBMISSION
    write_answer(again, path)
    if not archive.is_file():
        return Rebuilt(path, None, f"no archive to compare it with ({archive})")
    with TemporaryDirectory(dir=out) as place:
        _unpack_checked(archive, Path(place), lambda name: name == SUBMISSION)
        return _compare(Path(place, SUBMISSION), path)


def _compare(before: Path, after: Path) -> Rebuilt:
    from whaleid.evaluation.topk import read_guesses

    if before.read_bytes() == after.read_bytes():
        return Rebuilt(after, True, "equal to the archive's, byte for byte")
    old, new = (dict(zip(read.images, read.as_lists(), strict=True)) for read in map(read_guesses, (before, after)))
    differing = [image for image in {**old, **new} if old.get(image) != new.get(image)]
    first = sum(old.get(image, [])[:1] != new.get(image, [])[:1] for image in differing)
    line = f"{len(differing):,} of {len(new):,} rows differ from the archive's, {first:,} in their first guess"
    return Rebuilt(after, False, line)


def _unpack_project(project: Project, archive: Path, start: Start, out: Path) -> Project:
    """The project with the archive's files in a work folder below `out`."""
    outputs = ["images.parquet", "folds.csv", f"pseudo/{project.recipe.name}"]
    outputs += ["runs"] if start == "weights" else [f"candidates/{project.recipe.name}", "metrics.json"]

    def wanted(name: str) -> bool:
        top, _, path = name.partition("/")
        return top in (WORK, STAMPED) and any(
            path in (output, f"{output}.json") or path.startswith(f"{output}/") for output in outputs
        )

    out.mkdir(parents=True)
    with TemporaryDirectory(dir=out) as place:
        record = _unpack_checked(archive, Path(place), wanted)
        workspace = Workspace(out / project.competition.name, record.round)
        _require_same(project, record, archive, replace(workspace, root=Path(place, WORK)))
        Path(place, WORK).rename(workspace.root)
        Path(place, STAMPED).rename(workspace.root / STAMPS)
    project = _alone(project, workspace)
    stale = [task.item for task in (*train_tasks(project), *full_tasks(project)) if not task.current]
    if start == "weights" and stale:
        raise WhaleidError(f"{archive}: has no weights of {stale[0]} with its present settings; {_advice(record)}")
    return project


def _alone(project: Project, workspace: Workspace) -> Project:
    """The project in the workspace's round of pseudo-labels, without any other round."""
    recipe = project.recipe.model_copy(update={"pseudo": None})
    return replace(project, recipe=recipe, workspace=workspace, data_keys=project.keys)


def _require_same(project: Project, record: Record, archive: Path, workspace: Workspace) -> None:
    """Raise WhaleidError if the archive, whose files are in `workspace`, was made of other data or settings."""
    if (record.competition, record.recipe) != (project.competition.name, project.recipe.name):
        raise WhaleidError(
            f"{archive}: made with recipe {record.recipe} on competition {record.competition}; give these two"
        )
    if record.images_key != project.keys.images:
        raise WhaleidError(
            f"{project.competition.root}: not the images and CSVs that {archive} was made with; rebuild with those, "
            "or run whaleid leaderboard for these"
        )
    project = _alone(project, workspace)
    if _key_without_sources(project) != record.key or sorted(project.recipe.sources) != record.sources:
        raise WhaleidError(
            f"{archive}: made with other settings than recipe {record.recipe} has now; {_advice(record)}"
        )


def _advice(record: Record) -> str:
    return f"rebuild with commit {record.commit or '(unknown)'} and the same SET"


def _unpack_checked(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> Record:
    """Unpack the wanted files of an archive into an empty folder and check them; returns project.json."""
    if not archive.is_file():
        raise WhaleidError(f"{archive}: archive not found; whaleid archive writes one from a finished project")
    try:
        unpack(archive, folder, depth=0, names={MANIFEST})
        manifest = read_manifest(folder, AGAIN)
        names = {name for name in manifest.files if name == PROJECT or wanted(name)}
        for name in sorted(names):
            _check_name(name)
        if manifest.name != "archive" or PROJECT not in names:
            raise WhaleidError(f"not an archive that whaleid archive wrote; {AGAIN}")
        unpack(archive, folder, depth=0, names=names)
        check_manifest(folder, AGAIN, names)
        return Record.model_validate_json((folder / PROJECT).read_bytes())
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise WhaleidError(f"{archive}: {PROJECT}: {place}: {error.errors()[0]['msg']}; {AGAIN}") from error
    except WhaleidError as error:  # names the archive instead of the temporary folder
        line = str(error).replace(f"{folder}/", "")
        raise WhaleidError(line if line.startswith(str(archive)) else f"{archive}: {line}") from error


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise WhaleidError(f"{MANIFEST} lists '{name}', which is outside of the archive; do not use it")
    if path.suffix not in SUFFIXES:
        raise WhaleidError(f"{name}: archives hold no files of this kind; do not use it")
