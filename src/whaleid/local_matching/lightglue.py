"""ALIKED's keypoints of two pictures matched by a network: LightGlue (Lindenberger, Sarlin and Pollefeys, "LightGlue:
local feature matching at light speed", 2023), kornia's, with the weights that its authors publish.

It looks at all keypoints of both pictures at once, where they lie too, and says for each pair how likely it is one
mark. Two pictures take some 300 times what mutual neighbours do (0.3 s of a core with 500 keypoints, 0.9 s with 1,000):
this is a GPU's work, for few images a query.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from kornia.feature import LightGlue

from whaleid.local_matching.detectors import KINDS, signed_floats
from whaleid.local_matching.geometric_verification import Matcher
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.weights import load_published

_BATCH = 16  # pairs at once: with 1,000 keypoints each about 1 GB of a GPU's memory


def lightglue_network() -> LightGlue:
    """The network without weights. It runs whole for every pair: leaving layers and keypoints out on the way would make
    a pair's matches depend on the others of its batch, and pays above 1,500 keypoints.
    """
    sizes = {"input_dim": KINDS["aliked"].length, "depth_confidence": -1.0, "width_confidence": -1.0}
    return LightGlue(None, **sizes)  # type: ignore[arg-type]  # None: kornia takes these sizes and downloads nothing


def lightglue_matcher(described: Described, frames: np.ndarray, weights: Path, device: str | None = None) -> Matcher:
    """The matcher of these pictures. frames: float (n, 2), width and height of every picture as described. weights: the
    file. device: of torch; None: a GPU where there is one. Threads take turns.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network, turn = load_published(lightglue_network(), weights).to(place), Lock()

    def side(rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Pictures with equally many keypoints, as the network takes them."""
        pictures = [described.image(int(row)) for row in rows]
        table = {
            "keypoints": np.stack([points[:, :2] for _, points in pictures]),
            "descriptors": np.stack([signed_floats(vectors) for vectors, _ in pictures]),
            "image_size": frames[rows].astype(np.float32),
        }
        return {name: torch.from_numpy(values).to(place) for name, values in table.items()}

    def match(query: int, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        counts, nobody = described.counts(rows), np.empty(0, np.int64)
        found = [(nobody, nobody)] * len(rows)
        able = counts > 0 if described.counts(np.array([query]))[0] else np.zeros(len(rows), dtype=bool)
        for count in np.unique(counts[able]):
            alike = np.flatnonzero(able & (counts == count))
            for start in range(0, len(alike), _BATCH):
                group = alike[start : start + _BATCH]
                one, two = side(np.full(len(group), query)), side(rows[group])
                with turn, torch.inference_mode():
                    given = network({"image0": one, "image1": two})["matches"]
                for number, pairs in zip(group, given, strict=True):
                    asked, known = pairs.cpu().numpy().astype(np.int64).T
                    found[number] = asked, known
        yield from found

    return match
