"""Local matching as rankings: votes and, where the recipe asks for it, votes and verified matches together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import CombineConfig
from whaleid.ensemble.protocol import Protocol
from whaleid.ensemble.rankings import Ranking
from whaleid.errors import WhaleidError
from whaleid.retrieval.candidates import Candidates
from whaleid.retrieval.keypoints import read_described
from whaleid.retrieval.local import local_candidates
from whaleid.retrieval.verify import verified_candidates

LOCAL, VERIFIED = "local matching", "local verified"


def rank_locally(
    folder: Path, images: pd.DataFrame, protocol: Protocol, config: CombineConfig
) -> Iterator[Ranking | None]:
    """Local matching: nothing of it is trained, so that a fold differs from the test set by its gallery alone.

    folder: descriptors of all images. The test images are ranked once; every part holds that same ranking.
    Yields None after each fold and after the test set (for a progress bar), then the rankings: by votes and, with
    `verify`, by votes and matches.
    """
    assert config.local is not None
    local, keep = config.local, max(config.candidates, protocol.k)
    described = read_described(folder, images)
    if not described.counts(protocol.gallery).any():
        raise WhaleidError(f"{folder}: no labelled image has a keypoint; leave combine.local out of the recipe")
    names = [LOCAL] if local.verify is None else [LOCAL, VERIFIED]

    def ranked(asked: np.ndarray, queries: np.ndarray, gallery: np.ndarray, codes: np.ndarray) -> list[Candidates]:
        found = [local_candidates(described, queries, gallery, codes, local, keep)]
        if local.verify is not None:
            found.append(verified_candidates(described, queries, gallery, codes, found[0], local))
        return [Candidates(asked, protocol.classes, *lists) for lists in found]

    oof = []
    for part in protocol.parts:
        oof.append(ranked(part.names, part.rows, part.gallery, part.gallery_codes))
        yield None
    test: list[Candidates] = []
    if len(protocol.test_rows):
        test = ranked(protocol.test_names, protocol.test_rows, protocol.gallery, protocol.gallery_codes)
    yield None
    for place, name in enumerate(names):
        lists = tuple(found[place] for found in oof)
        yield Ranking(name, "local", lists, (test[place],) * len(protocol.answering) if test else (), False)
