"""kernel-metadata.json and dataset-metadata.json. Names are checked before Kaggle would refuse or change them."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from whaleid.utils.errors import WhaleidError

PLACEHOLDER = "OWNER"
"""Owner of a kernel that is made without a Kaggle user name; it cannot be pushed."""
LONGEST = 50
SHORTEST = {"kernel": 5, "data set": 6}
LICENSE = "other"
"""Weights and features follow the competition's rules, the code its LICENSE: none of Kaggle's licence names fits."""
LARGEST_DATA_SET = 200e9
"""Bytes that Kaggle's documentation allows for a data set, and for all private ones of a user together."""
T4 = "NvidiaTeslaT4"
"""Kaggle's name of two T4 GPUs."""


def slugify(title: str) -> str:
    """Kaggle's slug of a title: lower case, one hyphen for every run of other characters than letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def slug_of(*words: str) -> str:
    """Slug of some words; a digest replaces the end of one that is too long."""
    whole = slugify(" ".join(words))
    if len(whole) <= LONGEST:
        return whole
    return f"{whole[: LONGEST - 9].rstrip('-')}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def title_of(slug: str) -> str:
    """A title whose slug is `slug`."""
    return slug.replace("-", " ").capitalize()


def kernel_metadata(
    owner: str, slug: str, code_file: str, datasets: list[str], competitions: list[str], gpu: bool
) -> dict[str, Any]:
    """Content of kernel-metadata.json.

    Parameters
    ----------
    owner, slug, code_file : str
    datasets, competitions : list of str
        Slugs of the inputs; the data sets are of the same owner.
    gpu : bool
        Ask for two T4.

    Raises
    ------
    WhaleidError
        For a name that Kaggle would refuse.
    """
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
    """Content of dataset-metadata.json; raises WhaleidError for a name that Kaggle would refuse."""
    check_name("data set", owner, slug, title_of(slug))
    return {"id": f"{owner}/{slug}", "title": title_of(slug), "licenses": [{"name": LICENSE}]}


def check_name(kind: str, owner: str, slug: str, title: str) -> None:
    """Raise WhaleidError for a name of a kernel or data set that Kaggle would refuse or change."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", owner):
        raise WhaleidError(f"owner '{owner}': not a Kaggle user name (--owner, or KAGGLE_USERNAME)")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise WhaleidError(f"{kind} '{slug}': a slug consists of lower-case letters and digits with single hyphens")
    for what, text in (("slug", slug), ("title", title)):
        if not SHORTEST[kind] <= len(text) <= LONGEST:
            raise WhaleidError(
                f"{kind} '{text}': a {what} has {SHORTEST[kind]} to {LONGEST} characters, not {len(text)}"
            )
    if slugify(title) != slug:
        raise WhaleidError(f"{kind} '{slug}': its title '{title}' would become '{slugify(title)}'")
