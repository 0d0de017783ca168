"""`whaleid doctor`: is everything here that a recipe and a competition need? One line each, with what to do."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whaleid.config import Competition
from whaleid.config.settings import repository_root
from whaleid.data.competition import inspect_rows, read_rows
from whaleid.kaggle.client import KaggleError, competition_page, kaggle
from whaleid.kaggle.credentials import WHERE_TO_GET, Credentials, broken_files, find_credentials
from whaleid.kaggle.download import has_tables
from whaleid.pipeline.plan import DEFAULT_ASPECT, TOO_LONG, Census, Needs, census_of, recipe_needs
from whaleid.pipeline.project import Project
from whaleid.utils.device import device_kind
from whaleid.utils.errors import WhaleidError
from whaleid.utils.machine import free_memory

OLDEST_PYTHON = (3, 11)
NAMED = 3
"""Packages that a line names."""
COUNTS = {
    "sample": Census(619, 381, 150, 400, DEFAULT_ASPECT, estimated=True),
    "humpback-whale-identification": Census(15_697, 9_664, 5_004, 7_960, DEFAULT_ASPECT, estimated=True),
    "happy-whale-and-dolphin": Census(51_033, 0, 15_587, 27_956, DEFAULT_ASPECT, estimated=True),
}
"""Known counts (from the competitions' pages), for data that is not here yet."""
_GB = 1e9

State = Literal["ok", "note", "missing", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One line. What is `missing` stops the recipe, a `note` does not."""

    state: State
    name: str
    message: str

    def line(self) -> str:
        return f"{self.state:<8} {self.name:<12} {self.message}"


def verdict(what: str, findings: list[Finding]) -> str:
    """The last line: whether a recipe can be run here, and what to type next. what: `recipe ... on ...`."""
    missing = [finding.name for finding in findings if finding.state == "missing"]
    if missing:
        todo = "do what their lines say, then run whaleid doctor again"
        return f"{what}: not ready, {len(missing)} missing ({', '.join(missing)}): {todo}"
    notes = sum(finding.state == "note" for finding in findings)
    minor = f" (notes: {notes}, none of which stops it)" if notes else ""
    return f"{what}: ready{minor}; next: whaleid leaderboard with the same --competition and --recipe"


def examine(competition: Competition, work: Path, project: Project | None) -> Iterator[Finding]:
    """All findings; Kaggle is asked last. project: None where its recipe is chosen by data that is not here yet."""
    yield python_version(sys.version_info[:3])
    yield packages(repository_root() / "requirements.txt")
    device = _device()
    needs = None if project is None else recipe_requirements(project, device)
    yield graphics_card(device, needs)
    yield disk(work, needs)
    yield memory(needs)
    yield data(competition)
    credentials = find_credentials()
    yield credentials_found(competition, credentials)
    yield rules(competition, credentials)


# ------------------------------------------------------------------------------------------------ the machine


def python_version(version: tuple[int, ...]) -> Finding:
    text = ".".join(str(part) for part in version)
    if version < OLDEST_PYTHON:
        return Finding("missing", "Python", f"{text}; 3.11 or newer is needed: make setup PYTHON=python3.12")
    return Finding("ok", "Python", text)


def packages(requirements: Path) -> Finding:
    """Installed packages against a requirements file; another version than listed is a note."""
    from packaging.requirements import InvalidRequirement, Requirement

    if not requirements.is_file():
        return Finding("skipped", "packages", f"{requirements} is not here to compare with")
    absent, other, count = [], [], 0
    for number, line in enumerate(requirements.read_text().splitlines(), start=1):
        entry = line.split("#")[0].strip()
        if not entry:
            continue
        try:
            wanted = Requirement(entry)
        except InvalidRequirement as error:
            raise WhaleidError(f"{requirements}: line {number}: not a requirement: {entry!r}") from error
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        count += 1
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(wanted.name)
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            other.append(f"{wanted.name} {found} instead of {wanted.specifier}")
    if absent:
        return Finding("missing", "packages", f"{_first(absent)} not installed: make setup")
    if other:
        return Finding("note", "packages", f"{_first(other)}: make setup installs the tested versions")
    return Finding("ok", "packages", f"all {count} of {requirements.name}, in their versions")


def graphics_card(device: str, needs: Needs | None) -> Finding:
    """A GPU is missing if the recipe would take months without."""
    if device == "cuda":
        import torch

        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        hours = "" if needs is None else f"; the recipe takes about {needs.hours:,.0f} h on one of 30 TFLOP/s"
        return Finding("ok", "GPU", ", ".join(names) + hours)
    if needs is None:
        return Finding("note", "GPU", "none found")
    if needs.hours > TOO_LONG:
        text = f"none, and the recipe would take about {needs.hours:,.0f} h on this CPU: use a GPU, or --recipe auto"
        return Finding("missing", "GPU", text)
    return Finding("ok", "GPU", f"none; the recipe takes about {needs.hours:,.1f} h on two cores")


def disk(folder: Path, needs: Needs | None) -> Finding:
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    text = f"{free / _GB:,.1f} GB free at {place}"
    if needs is None:
        return Finding("note", "disk", f"{text}; what the recipe needs is known once the data is here")
    text += f", the recipe needs about {needs.disk / _GB:,.1f} GB"
    if free < needs.disk:
        return Finding("missing", "disk", f"{text}: free some space, or use another disk with --work")
    return Finding("ok", "disk", text)


def memory(needs: Needs | None) -> Finding:
    import psutil

    have, free = psutil.virtual_memory(), free_memory()
    text = f"{have.total / _GB:,.1f} GB, {free / _GB:,.1f} GB of it free"
    if needs is None:
        return Finding("note", "memory", text)
    text += f"; the recipe needs at least {needs.memory / _GB:,.1f} GB"
    if have.total < needs.memory:
        return Finding("missing", "memory", f"{text}: use a larger machine, or a smaller recipe")
    if free < needs.memory:
        return Finding("note", "memory", f"{text}: end other programs")
    return Finding("ok", "memory", text)


# --------------------------------------------------------------------------------------------------- the data


def data(competition: Competition) -> Finding:
    """Whether every image that the CSVs list is there."""
    if not has_tables(competition):
        if competition.name == "sample":
            return Finding("ok", "data", "the sample is drawn when it is first needed (whaleid data sample)")
        todo = f"whaleid data download -c {competition.name}" if competition.kaggle else "put its CSVs and images there"
        return Finding("missing", "data", f"not in {competition.root}: {todo}")
    try:
        rows, problems = inspect_rows(competition)
    except WhaleidError as error:
        return Finding("missing", "data", str(error))
    absent = [problem for problem in problems if problem.kind in ("missing", "outside")]
    if absent:
        return Finding("missing", "data", absent[0].message)
    train = rows[rows["split"] == "train"]
    identities = train["identity"][train["identity"] != competition.unknown].nunique()
    test = len(rows) - len(train)
    counts = f"{len(train):,} train images, {identities:,} identities, {test:,} test images"
    if problems:
        return Finding("note", "data", f"{counts}; {problems[0].message}")
    known = COUNTS.get(competition.kaggle or "")
    if known and (len(train), test) != (known.labelled + known.unknown, known.test):
        also = f"Kaggle's own counts are {known.labelled + known.unknown:,} and {known.test:,}"
        return Finding("note", "data", f"{counts}, all there; {also}")
    return Finding("ok", "data", f"{counts}, all there")


def recipe_requirements(project: Project, device: str) -> Needs | None:
    """What the recipe needs, by the data's counts or known ones; None without either."""
    census = _census(project.competition)
    return None if census is None else recipe_needs(project, census, device)


def _census(competition: Competition) -> Census | None:
    """Counts of the CSVs' rows, without opening an image."""
    if not has_tables(competition):
        return COUNTS.get("sample" if competition.name == "sample" else competition.kaggle or "")
    try:
        rows = read_rows(competition)
    except WhaleidError:  # shown in the line of the data
        return None
    return census_of(rows, competition.unknown, DEFAULT_ASPECT)


# ------------------------------------------------------------------------------------------------------ Kaggle


def credentials_found(competition: Competition, credentials: Credentials | None) -> Finding:
    """The form of the credentials, never their value."""
    if credentials is None:
        state: State = "missing" if competition.kaggle and not has_tables(competition) else "note"
        return Finding(state, "credentials", f"none{broken_files()}; to download, push or submit: {WHERE_TO_GET}")
    text = credentials.form + (f", user {credentials.user}" if credentials.user else "")
    if credentials.warning:
        return Finding("note", "credentials", f"{text}; {credentials.warning}")
    return Finding("ok", "credentials", text)


def rules(competition: Competition, credentials: Credentials | None) -> Finding:
    """Whether Kaggle gives this user the competition's files, tried with one CSV."""
    slug = competition.kaggle
    if slug is None:
        return Finding("skipped", "rules", f"{competition.name} is not a competition of Kaggle")
    if credentials is None:
        return Finding("skipped", "rules", f"no credentials to ask with; accept them at {competition_page(slug)}")
    name = (competition.test or competition.train).csv
    with tempfile.TemporaryDirectory() as folder:
        words = ["competitions", "download", slug, "-f", name, "-p", folder, "-q"]
        try:
            kaggle(words, f"download of {name}", competition=slug)
        except KaggleError as error:
            return Finding("note" if has_tables(competition) else "missing", "rules", str(error))
    return Finding("ok", "rules", f"accepted: Kaggle gives the files of {slug}")


def _device() -> str:
    try:
        return device_kind()
    except ImportError:  # shown in the line of the packages
        return "cpu"


def _first(items: list[str]) -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more
