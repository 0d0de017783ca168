"""Keypoint detectors and matchers: one file with the method, and one line here.

Nothing heavy is imported here, so that configuration keys and missing files are checked before any work starts. A
detector's file has `make_detector(weights)`, a matcher's file `make_matcher(described, images, config, weights)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from whaleid.config import LocalConfig
from whaleid.local_matching.weights import (
    ALIKED,
    ALIKED_LIGHTGLUE,
    DISK,
    DISK_LIGHTGLUE,
    XFEAT,
    Published,
    ensure_published,
    find_published,
)
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest, file_digest

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class DetectorEntry:
    """A keypoint detector with its descriptor.

    Attributes
    ----------
    module : str
        Where `make_detector` is.
    length : int
        Numbers in a descriptor.
    unit : float
        Length of a unit descriptor as stored in bytes. A power of two, so that votes can divide by its square exactly.
    weights : Published or None
        Its weights in WEIGHTS_DIR.
    optional : bool
        Not every OpenCV has it; `make_detector` raises WhaleidError then.
    """

    module: str
    length: int
    unit: float
    weights: Published | None = None
    optional: bool = False

    def make(self, weights: Path) -> Any:
        """The detector (`detectors.Detector`). weights: the folder WEIGHTS_DIR."""
        return import_module(self.module).make_detector(weights)


@dataclass(frozen=True)
class MatcherEntry:
    """A matcher of the keypoints of two images.

    Attributes
    ----------
    module : str
        Where `make_matcher` is.
    weights : mapping of str to Published
        Its weights in WEIGHTS_DIR for each detector whose keypoints it matches; empty: any detector, and none needed.
    """

    module: str
    weights: Mapping[str, Published] = field(default_factory=dict)


DETECTORS: dict[str, DetectorEntry] = {
    "rootsift": DetectorEntry("whaleid.local_matching.rootsift", length=128, unit=512.0),
    "kaze": DetectorEntry("whaleid.local_matching.kaze", length=64, unit=128.0, optional=True),
    "aliked": DetectorEntry("whaleid.local_matching.aliked", length=128, unit=128.0, weights=ALIKED),
    "disk": DetectorEntry("whaleid.local_matching.disk", length=128, unit=128.0, weights=DISK),
    "xfeat": DetectorEntry("whaleid.local_matching.xfeat", length=64, unit=128.0, weights=XFEAT),
}
MATCHERS: dict[str, MatcherEntry] = {
    "mutual": MatcherEntry("whaleid.local_matching.mutual"),
    "lightglue": MatcherEntry(
        "whaleid.local_matching.lightglue", weights={"aliked": ALIKED_LIGHTGLUE, "disk": DISK_LIGHTGLUE}
    ),
}


def detector_entry(features: str) -> DetectorEntry:
    """Entry of `combine.local_matching.features`; WhaleidError for an unknown name."""
    return _entry(DETECTORS, features, "features")


def matcher_entry(config: LocalConfig) -> MatcherEntry | None:
    """Entry of `combine.local_matching.verify.matcher`, None where the recipe verifies nothing.

    Raises
    ------
    WhaleidError
        For an unknown name, and for a matcher that does not match the recipe's keypoints.
    """
    if config.verify is None:
        return None
    name = config.verify.matcher
    entry = _entry(MATCHERS, name, "verify.matcher")
    if entry.weights and config.features not in entry.weights:
        able = " or ".join(entry.weights)
        raise WhaleidError(
            f"combine.local_matching.verify.matcher: {name} matches keypoints of {able} only, not of "
            f"{config.features}: set features: {able}, or matcher: mutual"
        )
    return entry


def _entry(table: dict[str, Entry], name: str, key: str) -> Entry:
    if name not in table:
        raise WhaleidError(f"combine.local_matching.{key}: '{name}' is not known; known: {', '.join(sorted(table))}")
    return table[name]


def require_parts(config: LocalConfig, weights: Path) -> None:
    """Raise WhaleidError where local matching lacks a part of OpenCV, or weights that cannot be fetched.

    weights: the folder WEIGHTS_DIR.
    """
    for network in networks_of(config):
        ensure_published(network, weights)
    entry = detector_entry(config.features)
    if entry.optional:
        entry.make(weights)


def weights_files(config: LocalConfig, folder: Path) -> list[Path]:
    """Files of the weights that the recipe's detector and matcher need. Raises WhaleidError where one is missing."""
    return [find_published(network, folder) for network in networks_of(config)]


def networks_of(config: LocalConfig) -> list[Published]:
    """The networks of a recipe's detector and matcher."""
    detector, matcher = detector_entry(config.features).weights, matcher_entry(config)
    matching = None if matcher is None else matcher.weights.get(config.features)
    return [network for network in (detector, matching) if network is not None]


def weights_key(config: LocalConfig, folder: Path) -> str:
    """Digest of these weights; empty where none are needed."""
    files = weights_files(config, folder)
    return digest("keypoint weights", *(file_digest(path) for path in files)) if files else ""
