"""LightGlue: ALIKED's or DISK's keypoints of two images matched by a network.

Lindenberger, Sarlin and Pollefeys, "LightGlue: local feature matching at light speed", 2023; kornia's network with the
authors' weights. It looks at all keypoints of both images and their places at once, and says for each pair how likely
it is the same mark. Two images take some 300 times as long as mutual neighbours (0.3 s of a core with 500 keypoints,
0.9 s with 1,000): use a GPU, and few images a query.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd
import torch
from kornia.feature import LightGlue

from whaleid.config import LocalConfig
from whaleid.local_matching.detectors import signed_floats
from whaleid.local_matching.keypoints import Described, frames_of
from whaleid.local_matching.matchers import Matcher
from whaleid.local_matching.registry import MATCHERS
from whaleid.local_matching.weights import find_published, load_published
from whaleid.utils.device import device_kind

_LENGTH = 128  # of ALIKED's and of DISK's descriptors
_BATCH = 16  # pairs at once: with 1,000 keypoints each about 1 GB of a GPU's memory


def lightglue_network() -> LightGlue:
    """The network without weights. Early stopping and pruning are off: they would make a pair's matches depend on the
    others of its batch, and pay only above 1,500 keypoints.
    """
    sizes = {"input_dim": _LENGTH, "depth_confidence": -1.0, "width_confidence": -1.0}
    return LightGlue(None, **sizes)  # type: ignore[arg-type]  # None: kornia takes these sizes and downloads nothing


def make_matcher(described: Described, images: pd.DataFrame, config: LocalConfig, weights: Path) -> Matcher:
    """The matcher of a recipe. Raises WhaleidError where its weights are not in the folder `weights`."""
    network = MATCHERS["lightglue"].weights[config.features]
    return lightglue_matcher(described, frames_of(images, config.size), find_published(network, weights))


def lightglue_matcher(described: Described, frames: np.ndarray, weights: Path, device: str | None = None) -> Matcher:
    """The matcher with the weights of a file.

    frames: float (n, 2), width and height of every image as described. device: torch's name; None: the GPU if there is
    one. Threads take turns.
    """
    place = torch.device(device or device_kind())
    network, turn = load_published(lightglue_network(), weights).to(place), Lock()

    def side(rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Images with equally many keypoints, as the network takes them."""
        images_of_rows = [described.image(int(row)) for row in rows]
        table = {
            "keypoints": np.stack([points[:, :2] for _, points in images_of_rows]),
            "descriptors": np.stack([signed_floats(vectors) for vectors, _ in images_of_rows]),
            "image_size": frames[rows].astype(np.float32),
        }
        return {name: torch.from_numpy(values).to(place) for name, values in table.items()}

    def match(query: int, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        counts, nothing = described.counts(rows), np.empty(0, np.int64)
        found = [(nothing, nothing)] * len(rows)
        able = counts > 0 if described.counts(np.array([query]))[0] else np.zeros(len(rows), dtype=bool)
        for count in np.unique(counts[able]):
            alike = np.flatnonzero(able & (counts == count))
            for start in range(0, len(alike), _BATCH):
                group = alike[start : start + _BATCH]
                one, two = side(np.full(len(group), query)), side(rows[group])
                with turn, torch.inference_mode():
                    given = network({"image0": one, "image1": two})["matches"]
                for number, pairs in zip(group, given, strict=True):
                    own, other = pairs.cpu().numpy().astype(np.int64).T
                    found[number] = own, other
        yield from found

    return match
