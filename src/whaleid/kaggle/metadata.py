"""kernel-metadata.json and dataset-metadata.json, with the platform's rules on names checked before it refuses them."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from whaleid.utils.errors import WhaleidError

PLACEHOLDER = "OWNER"
"""Stands for the user's name where none is known; a push needs a real one."""
LONGEST = 50
SHORTEST = {"kernel": 5, "data set": 6}
LICENSE = "other"
"""Weights and features follow the competition's rules, the code its own LICENSE: none of the platform's names fits."""
LARGEST_DATA_SET = 200e9
"""Bytes that a data set may have, and all private ones of a user together: as the platform says it, not tried."""
T4 = "NvidiaTeslaT4"
"""Two T4: what `GPU T4 x2` is called."""


def slugify(title: str) -> str:
    """The platform's slug of a title: lower case, runs of anything but letters and digits made one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def slug_of(*words: str) -> str:
    """Slug of some words, whose title would be the slug itself; cut to the longest allowed, told apart by a digest."""
    whole = slugify(" ".join(words))
    if len(whole) <= LONGEST:
        return whole
    mark = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{whole[: LONGEST - 9].rstrip('-')}-{mark}"


def title_of(slug: str) -> str:
    """A title that becomes `slug` again."""
    return slug.replace("-", " ").capitalize()


def kernel_metadata(
    owner: str,
    slug: str,
    code_file: str,
    datasets: list[str],
    competitions: list[str],
    gpu: bool,
) -> dict[str, Any]:
    """Content of kernel-metadata.json. datasets: slugs, of the same owner. competitions: slugs."""
    check_name("kernel", owner, slug, title_of(slug))
    metadata: dict[str, Any] = {
        "id": f"{owner}/{slug}",
        "title": title_of(slug),
        "code_file": code_file,
        "language": "python",
        "kernel_type": "notebook" if code_file.endswith(".ipynb") else "script",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_tpu": False,
        "enable_internet": False,
        "dataset_sources": [f"{owner}/{name}" for name in datasets],
        "competition_sources": competitions,
        "kernel_sources": [],
        "model_sources": [],
    }
    return {**metadata, "machine_shape": T4} if gpu else metadata


def dataset_metadata(owner: str, slug: str) -> dict[str, Any]:
    """Content of dataset-metadata.json."""
    check_name("data set", owner, slug, title_of(slug))
    return {"id": f"{owner}/{slug}", "title": title_of(slug), "licenses": [{"name": LICENSE}]}


def check_name(kind: str, owner: str, slug: str, title: str) -> None:
    """Raise WhaleidError for a name that the platform would refuse, or change. kind: `kernel` or `data set`."""
    shortest = SHORTEST[kind]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", owner):
        raise WhaleidError(f"owner '{owner}': a Kaggle user name is expected (--owner, or KAGGLE_USERNAME)")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise WhaleidError(f"{kind} '{slug}': a slug is of lower-case letters and digits joined by single hyphens")
    for what, text in (("slug", slug), ("title", title)):
        if not shortest <= len(text) <= LONGEST:
            raise WhaleidError(f"{kind} '{text}': a {what} has {shortest} to {LONGEST} characters, not {len(text)}")
    if slugify(title) != slug:
        raise WhaleidError(f"{kind} '{slug}': its title '{title}' would become '{slugify(title)}'")
