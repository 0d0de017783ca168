"""Matchers: which keypoints of two images are the same mark (methods: `registry.MATCHERS`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import LocalConfig, VerifyConfig
from whaleid.config.settings import read_settings
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.registry import matcher_entry

Matcher = Callable[[int, np.ndarray], Iterable[tuple[np.ndarray, np.ndarray]]]
"""(query, rows), rows of images.parquet -> for each of `rows` the matched keypoints: places among the query's and among
the other image's keypoints, int64 (matches,) each."""


def matcher_of(described: Described, images: pd.DataFrame, config: LocalConfig, weights: Path | None = None) -> Matcher:
    """The matcher of a recipe, mutual matches where it verifies nothing.

    Parameters
    ----------
    described : Described
        Keypoints of the images.
    images : DataFrame
        images.parquet, or the rows that are described.
    config : LocalConfig
    weights : Path or None
        Folder of a network's weights; None: WEIGHTS_DIR.

    Raises
    ------
    WhaleidError
        Where a network's weights are missing.
    """
    config = config if config.verify else config.model_copy(update={"verify": VerifyConfig()})
    entry = matcher_entry(config)
    assert entry is not None
    return import_module(entry.module).make_matcher(described, images, config, weights or read_settings().weights)
