"""Local matching as rankings: votes; where the recipe asks for it, verified matches, and matches weighed as learnt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import CombineConfig, LocalConfig
from whaleid.config.recipe import FEWEST_FOLDS
from whaleid.ensemble.learned_matches import Asked, learned_rankings, learned_steps
from whaleid.ensemble.protocol import NONE, Protocol
from whaleid.ensemble.rankings import Ranking
from whaleid.local_matching.geometric_verification import verified_candidates
from whaleid.local_matching.keypoints import Described, frames_of, read_described
from whaleid.local_matching.matchers import Matcher, matcher_of
from whaleid.local_matching.votes import local_candidates, nearest_descriptors
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError

LOCAL, VERIFIED = "local matching", "local verified"


def local_steps(protocol: Protocol, config: LocalConfig) -> int:
    """How many times `rank_locally` yields None."""
    parts = len(protocol.parts)
    return parts + 1 + (0 if config.learned is None else learned_steps(parts, config.learned))


def rank_locally(
    folder: Path, images: pd.DataFrame, protocol: Protocol, config: CombineConfig, weights_folder: Path | None = None
) -> Iterator[Ranking | None]:
    """Local matching: no network is trained, so that a fold differs from the test set by its gallery alone.

    folder: descriptors of all images. weights_folder: of a network that matches, default WEIGHTS_DIR. The test images
    are ranked once; every part holds that same ranking.
    Yields None after every step (for a progress bar), then the rankings: by votes, by votes and matches (`verify`), and
    by what matches were learnt to be worth (`learned`).
    """
    assert config.local_matching is not None
    local, keep = config.local_matching, max(config.candidates, protocol.k)
    described = read_described(folder, images, local.features)
    if not described.counts(protocol.gallery).any():
        raise WhaleidError(
            f"{folder}: no labelled image has a keypoint; leave combine.local_matching out of the recipe"
        )
    if local.learned is not None and len(protocol.parts) < FEWEST_FOLDS:
        raise WhaleidError(
            f"combine.local_matching.learned: {len(protocol.parts)} folds with features; it needs {FEWEST_FOLDS}, for "
            "what is learnt for a fold is shown by folds that had no part in it: take more, or leave it out"
        )
    matcher = None if local.verify is None else matcher_of(described, images, local, weights_folder)
    folds, voted = [], []
    for part in protocol.parts:
        folds.append(_asked(described, part.rows, part.names, part.gallery, part.gallery_codes, part.truth, local))
        voted.append(_by_votes(described, folds[-1], protocol, local, keep, matcher))
        yield None
    test, answer = None, []
    if len(protocol.test_rows):
        truth = np.full(len(protocol.test_rows), NONE)
        gallery = protocol.gallery, protocol.gallery_codes
        test = _asked(described, protocol.test_rows, protocol.test_names, *gallery, truth, local)
        answer = _by_votes(described, test, protocol, local, keep, matcher)
    yield None
    for place, name in enumerate([LOCAL] if local.verify is None else [LOCAL, VERIFIED]):
        tests = (answer[place],) * len(protocol.answering) if answer else ()
        yield Ranking(name, "local", tuple(found[place] for found in voted), tests, False)
    if local.learned is not None:
        frames = frames_of(images, local.size)
        yield from learned_rankings(described, frames, folds, test, protocol, local.learned, keep)


def _asked(
    described: Described,
    rows: np.ndarray,
    names: np.ndarray,
    gallery: np.ndarray,
    codes: np.ndarray,
    truth: np.ndarray,
    config: LocalConfig,
) -> Asked:
    """Queries with the neighbours of their descriptors, as many as the recipe looks at."""
    neighbours = max(config.neighbours, 0 if config.learned is None else config.learned.neighbours)
    nearest = nearest_descriptors(described, rows, gallery, neighbours)
    return Asked(rows, names, gallery, codes, truth, nearest)


def _by_votes(
    described: Described, asked: Asked, protocol: Protocol, config: LocalConfig, keep: int, matcher: Matcher | None
) -> list[Candidates]:
    """By votes and, where the recipe asks for it, by votes and verified matches."""
    against = asked.rows, asked.gallery, asked.gallery_codes
    found = [local_candidates(described, *against, config, keep, asked.nearest)]
    if config.verify is not None:
        found.append(verified_candidates(described, *against, found[0], config, matcher=matcher))
    return [Candidates(asked.names, protocol.classes, *lists) for lists in found]
