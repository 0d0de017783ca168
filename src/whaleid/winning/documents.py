"""`make winning-docs`: the pages that a competition's winners are asked for, beside the code and the archive.

README.md, entry_points.md, SETTINGS.json, directory_structure.txt, requirements.txt, model_summary.md.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from whaleid.answers import ablation_key, log_path, submission_path
from whaleid.config import Competition
from whaleid.errors import WhaleidError
from whaleid.figures import read_figures
from whaleid.project import Project
from whaleid.rounds import answered
from whaleid.scoring.log import read_log
from whaleid.settings import SETTINGS, Settings, repository_root
from whaleid.winning.archive import archive_path
from whaleid.winning.summary import NOT_MEASURED, Facts, summary_text, table, time_lines
from whaleid.workspace import atomic_path

FILES = {
    "README.md": "hardware, software, how to train and to predict, what is assumed",
    "entry_points.md": "the commands: prepare data, train, predict, rebuild",
    SETTINGS: "the folders, as they were",
    "directory_structure.txt": "the code's files, and what the work folder holds",
    "requirements.txt": "the packages, in the versions that are installed here",
    "model_summary.md": "the model and its figures",
}
INDENT = "    "
SKIPPED = ("__pycache__", "node_modules")
"""Folders that are never shown, where git cannot be asked what belongs to the code."""


@dataclass(frozen=True)
class Words:
    """What the user typed after `make TARGET`, but for folders: SETTINGS.json names these. pairs: of SET."""

    competition: str
    recipe: str
    pairs: tuple[str, ...]

    def make(self, target: str, competition: str = "") -> str:
        """The command line of a stage."""
        words = [f"make {target}", f"COMPETITION={_quoted(competition or self.competition)}"]
        words.append(f"RECIPE={_quoted(self.recipe)}")
        words += [f'SET="{" ".join(self.pairs)}"'] if self.pairs else []
        return " ".join(words)


def write_documents(project: Project, words: Words, folder: Path) -> list[Path]:
    """Write the pages to `folder`, which is replaced; WhaleidError where there are no results, or it is not ours."""
    facts = read_facts(project)
    _require_ours(folder)
    folders = replace(project.settings, work=project.workspace.root.parent)  # --work goes before SETTINGS.json
    texts = {
        "README.md": readme_text(project, folders, facts, words),
        "entry_points.md": entry_points_text(project.competition, words),
        SETTINGS: json.dumps(folders.as_json(), indent=2) + "\n",
        "directory_structure.txt": structure_text(project),
        "requirements.txt": requirements_text(repository_root() / "requirements.txt"),
        "model_summary.md": summary_text(facts),
    }
    with atomic_path(folder) as place:
        place.mkdir()
        for name, text in texts.items():
            (place / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def read_facts(project: Project) -> Facts:
    """What is known of a recipe's answer. Raises WhaleidError where it has not been combined, or not as it is now."""
    project = answered(project)
    figures, project = read_figures(project), answered(project)
    workspace = project.workspace
    if figures is None:
        raise WhaleidError(
            f"recipe {project.recipe.name} has no results for {project.competition.name} in {workspace.root}: "
            "run make leaderboard first"
        )
    if figures["key"] != project.ensemble_key():
        raise WhaleidError(
            f"{workspace.metrics}: made from other settings, data or version than there are now: "
            "run make leaderboard to bring it up to date"
        )
    ablation = workspace.ablation(project.recipe.name) / "ablation.json"
    current = workspace.is_current(ablation, ablation_key(project))
    name = submission_path(project, figures["key"]).name
    logged = [record for record in read_log(log_path(project)) if record.file == name]
    return Facts(
        figures,
        json.loads(ablation.read_text()) if current else None,
        pd.read_parquet(workspace.images) if workspace.images.is_file() else None,
        project.competition.unknown,
        logged[-1] if logged else None,
    )


# --------------------------------------------------------------------------------------------------------- pages


def readme_text(project: Project, folders: Settings, facts: Facts, words: Words) -> str:
    """README.md: what winners are asked for, with the machines and the times as they were measured.

    folders: as the pages name them.
    """
    named = folders.as_json()
    commit = facts.figures["commit"] or "not known"
    sections = {
        "Hardware and times, as measured": time_lines(facts.times),
        "Software": [
            f"Python {platform.python_version()} on {platform.system()} {platform.release()}, where this was written.",
            "`make setup` installs what the repository's requirements.txt names; requirements.txt here has the",
            f"versions that are installed. The answer was made at commit {commit}.",
        ],
        "Data": _data_lines(project.competition, named),
        "Train and predict": [
            *_code(words.make("train"), words.make("submission")),
            "",
            "The first reads labelled images alone. How to answer a new test set is in entry_points.md.",
        ],
        "The submission again": [*_ways(words), "", _archive_line(archive_path(project))],
        "Side effects": [
            f"What is made on the way goes to WORK_DIR (`{named['WORK_DIR']}`), answers and their log to",
            f"SUBMISSION_DIR (`{named['SUBMISSION_DIR']}`), backbones to start from to WEIGHTS_DIR",
            f"(`{named['WEIGHTS_DIR']}`). Data are only read. `make setup` and backbones that are missing use the",
            "network. A stage whose inputs have not changed is skipped; one that was ended carries on.",
        ],
        "Assumptions": _assumptions(project.competition),
    }
    files = table(["file", "what it is"], [(f"`{name}`", said) for name, said in FILES.items()])
    parts = [[f"# {project.competition.name}: recipe {project.recipe.name}"], files]
    parts += [[f"## {title}", "", *lines] for title, lines in sections.items()]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _data_lines(competition: Competition, named: dict[str, str]) -> list[str]:
    lines = [f"CSVs and pictures lie in the competition's folder below RAW_DATA_DIR (`{named['RAW_DATA_DIR']}`)."]
    if competition.kaggle is not None:
        lines.append(f"`make data` brings those of Kaggle's `{competition.kaggle}`.")
    return [*lines, "Folders are named in SETTINGS.json alone."]


def _archive_line(archive: Path) -> str:
    size = f"{archive.stat().st_size / 1e6:,.1f} MB" if archive.is_file() else f"{NOT_MEASURED}: make archive writes it"
    return f"Size of the archive: {size}. `make rebuild` says whether the submission is the archive's, byte for byte."


def _assumptions(competition: Competition) -> list[str]:
    """What the model takes for granted of images, identities and scores."""
    lines = [f"One image shows one individual; an image has {competition.k} different guesses, best first."]
    if competition.unknown is None:
        lines.append("Every image that is asked about shows an individual that the labelled images hold.")
    else:
        share = competition.unknown_share
        told = "as often as out of fold" if share is None else f"expected for {share:g} of the test images"
        lines.append(f"An individual without a labelled image is answered with `{competition.unknown}`, {told}.")
    lines.append("Near-duplicates share a fold, and what scores a fold never saw it.")
    if competition.solution is not None:
        lines.append("The solution is read to print a score; nothing is chosen by it.")
    return lines


def entry_points_text(competition: Competition, words: Words) -> str:
    """entry_points.md: what stands for prepare_data, train and predict, and what each reads and writes."""
    download = " It downloads from Kaggle what is not here." if competition.kaggle else ""
    entries = {
        "prepare data": [
            *_code(words.make("data"), words.make("folds")),
            f"Reads CSVs and pictures in RAW_DATA_DIR, writes images.parquet and folds.csv in WORK_DIR.{download}",
        ],
        "train": [
            *_code(words.make("train")),
            "Reads these and the backbones in WEIGHTS_DIR, writes runs/ in WORK_DIR: checkpoint.safetensors of every",
            "network and fold, its settings, its log. JOBS= runs at once; a run that was ended carries on.",
        ],
        "predict": [
            *_code(words.make("submission")),
            "Reads runs/, writes features/ and candidates/ in WORK_DIR and the answer in SUBMISSION_DIR.",
        ],
        "predict for a new test set": [
            *_code(words.make("submission", competition="new.yaml")),
            f"new.yaml is the competition's YAML with its name, `{competition.name}`, kept: `test` names the new CSV",
            "and folder, and there is no `solution`. Nothing is trained again.",
        ],
        "everything at once": [*_code(words.make("leaderboard")), "All of the above, and the scores."],
        "build the submission again": _ways(words),
    }
    parts = [["# Entry points", "", "In the repository's folder, after `make setup`:"]]
    parts += [[f"## {title}", "", *lines] for title, lines in entries.items()]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _code(*commands: str) -> list[str]:
    return ["```", *commands, "```"]


def _ways(words: Words) -> list[str]:
    """The three ways to build the submission again, from the quickest to the slowest."""
    rows = [
        ("very fast", words.make("rebuild FROM=predictions"), "the archive's saved rankings"),
        ("ordinary", words.make("rebuild FROM=weights"), "the archive's weights: features and ensemble anew"),
        ("full", words.make("rebuild FROM=train"), "the data alone: all is trained anew"),
    ]
    return table(["way", "command", "from"], [(way, f"`{command}`", start) for way, command, start in rows])


def structure_text(project: Project) -> str:
    """directory_structure.txt: the code's files, then the work folder's folders with their files counted."""
    root = repository_root()
    lines = ["whaleid/", *tree_lines(code_files(root, project)), "", f"{project.workspace.root.name}/ (in WORK_DIR)"]
    return "\n".join([*lines, *_room_lines(project.workspace.root)]) + "\n"


def code_files(root: Path, project: Project) -> list[str]:
    """Files that belong to the code, by git; without git what lies there, but for hidden files and the settings'."""
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return sorted(name for name in listed.stdout.split("\0") if name)
    settings = project.settings
    folders = [settings.raw, settings.work, settings.weights, settings.submissions]
    return sorted(_walk(root, {folder.resolve() for folder in folders}))


def _walk(root: Path, left_out: set[Path]) -> Iterator[str]:
    for folder, inner, names in os.walk(root):
        inner[:] = [
            name
            for name in inner
            if not name.startswith(".") and name not in SKIPPED and Path(folder, name).resolve() not in left_out
        ]
        place = Path(folder).relative_to(root)
        yield from ((place / name).as_posix() for name in names if not name.startswith("."))


def tree_lines(names: Iterable[str]) -> list[str]:
    """Paths as an indented tree, folders before they are entered."""
    lines: list[str] = []
    above: tuple[str, ...] = ()
    for name in names:
        *folders, file = PurePosixPath(name).parts
        shared = next((at for at, (one, two) in enumerate(zip(above, folders, strict=False)) if one != two), None)
        start = min(len(above), len(folders)) if shared is None else shared
        lines += [f"{INDENT * (at + 1)}{folders[at]}/" for at in range(start, len(folders))]
        lines.append(f"{INDENT * (len(folders) + 1)}{file}")
        above = tuple(folders)
    return lines


def _room_lines(root: Path, depth: int = 3) -> list[str]:
    """Files at the top, and folders to a depth with the files below them."""
    lines = []
    for path in sorted(root.iterdir(), key=lambda item: (item.is_dir(), item.name)) if root.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.is_file():
            lines.append(f"{INDENT}{path.name}")
            continue
        files = [item for item in path.rglob("*") if item.is_file()]
        size = sum(item.stat().st_size for item in files) / 1e6
        lines.append(f"{INDENT}{path.name}/ ({len(files):,} files, {size:,.1f} MB)")
        folders = any(item.is_dir() for item in path.iterdir())
        if depth > 1 and folders:
            lines += [f"{INDENT}{line}" for line in _room_lines(path, depth - 1)]
    return lines


def requirements_text(path: Path) -> str:
    """The packages that requirements.txt names, in the versions that are installed; a note where these differ."""
    from packaging.requirements import InvalidRequirement, Requirement

    if not path.is_file():
        raise WhaleidError(f"{path}: not found; winning-docs lists the versions of the packages that it names")
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        entry = text.split("#")[0].strip()
        if not entry:
            continue
        try:
            wanted = Requirement(entry)
        except InvalidRequirement as error:
            raise WhaleidError(f"{path}: line {number} is no requirement: {entry!r}") from error
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"# {entry}  (not installed where this was written)")
            continue
        other = "" if wanted.specifier.contains(found, prereleases=True) else f"  # the repository's has {entry}"
        lines.append(f"{wanted.name}=={found}{other}")
    return "\n".join(lines) + "\n"


def _require_ours(folder: Path) -> None:
    """Raises WhaleidError where the folder holds anything that is not a page of ours: it would be replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise WhaleidError(f"{folder}: is not a folder; give --to another name")
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in FILES) if folder.is_dir() else []
    if foreign:
        raise WhaleidError(f"{folder}: holds {foreign[0]}, which winning-docs did not write; give --to another folder")


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word
