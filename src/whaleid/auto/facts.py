"""What decides a recipe: counts of the competition's images, and the machine that they meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import LocalConfig
from whaleid.local_matching.cost import Core, this_core
from whaleid.pipeline.plan import Census, census_of
from whaleid.utils.device import gpu_count
from whaleid.utils.machine import cores

LOOKED_AT = 20
"""Images whose keypoints are counted; takes about a second."""


@dataclass(frozen=True)
class Machine:
    """What trains and matches.

    Attributes
    ----------
    cores, gpus : int
    slots : int
        Runs at the same time, as the executor starts them: one a GPU, else one a core while the memory lasts.
    backbones : tuple of str
        Networks that `auto` knows whose weights are at hand, the largest first.
    core : Core
        How fast local matching is.
    """

    cores: int
    gpus: int
    slots: int
    backbones: tuple[str, ...]
    core: Core = field(default_factory=Core)

    @property
    def words(self) -> str:
        """`2 cores, no GPU`."""
        gpus = f"{self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else "no GPU"
        return f"{self.cores} core{'s' * (self.cores > 1)}, {gpus}"


@dataclass(frozen=True)
class Facts:
    """Data and machine.

    Attributes
    ----------
    census : Census
        Counts of images and identities.
    median_images : float
        Labelled images of the median identity.
    singletons : int
        Identities with one labelled image.
    groups : int
        Groups of labelled images, none of which is split between folds: copies of a photograph, encounters.
    grouped : int
        Labelled images that share their group with another one.
    area : float
        Pixels of the median labelled image, cropped to its box.
    keypoints : int
        Of an image in local matching, as the root of the mean square: the time of pairs grows with the square.
    machine : Machine
    """

    census: Census
    median_images: float
    singletons: int
    groups: int
    grouped: int
    area: float
    keypoints: int
    machine: Machine

    @property
    def mean_images(self) -> float:
        """Labelled images of the mean identity."""
        return self.census.labelled / max(1, self.census.identities)


def facts_of(images: pd.DataFrame, unknown: str | None, keypoints: int, machine: Machine) -> Facts:
    """Facts of an images table on a machine.

    Parameters
    ----------
    images : DataFrame
        images.parquet.
    unknown : str or None
        Label of unknown identities.
    keypoints : int
        From `count_keypoints`.
    machine : Machine
    """
    train = images[images["split"] == "train"]
    sizes = train.loc[train["identity"] != unknown, "identity"].value_counts()
    together = train["group"].map(train["group"].value_counts())
    area = (train["x1"] - train["x0"]) * (train["y1"] - train["y0"])
    return Facts(
        census=census_of(images, unknown, float(((train["x1"] - train["x0"]) / (train["y1"] - train["y0"])).median())),
        median_images=float(np.median(sizes)) if len(sizes) else 0.0,
        singletons=int((sizes == 1).sum()),
        groups=train["group"].nunique(),
        grouped=int((together > 1).sum()),
        area=float(area.median()),
        keypoints=keypoints,
        machine=machine,
    )


def count_keypoints(images: pd.DataFrame, root: Path, weights: Path) -> int:
    """Keypoints of an image, by a few drawn ones: the root of the mean square, at least 1.

    images: images.parquet; root: what its paths are relative to; weights: folder of a detector's weights.
    """
    from whaleid.local_matching.detectors import detector_of
    from whaleid.local_matching.keypoints import describe

    config = LocalConfig()
    detector = detector_of(config, weights)
    drawn = images.sample(min(LOOKED_AT, len(images)), random_state=0)
    boxes = drawn[["x0", "y0", "x1", "y1"]].to_numpy(float)
    pairs = zip(drawn["path"], boxes, strict=True)
    counts = [len(describe(root / path, box, config, None, detector)[0]) for path, box in pairs]
    return max(1, round(float(np.sqrt(np.mean(np.square(counts))))))


def find_machine(weights: Path) -> Machine:
    """This machine. weights: folder of pretrained backbones."""
    from whaleid.auto.options import BACKBONES
    from whaleid.models.weights import at_hand
    from whaleid.pipeline.executors.local import sensible

    gpus = gpu_count()
    names = BACKBONES["cuda" if gpus else "cpu"]
    return Machine(cores(), gpus, sensible(), tuple(name for name in names if at_hand(name, weights)), this_core())
