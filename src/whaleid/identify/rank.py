"""`whaleid identify`: the guesses of a trained project for photographs that it has never seen.

A work folder like the project's is put together in scratch space by what a Kaggle kernel does offline
(`kaggle/kernel/inference.py`): features of the labelled images come from the project, those of the photographs are
computed, and the recipe ranks. The project's own work folder is only read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from whaleid.config import Answer, Table
from whaleid.data.segmentation import make_masks
from whaleid.ensemble.results import labels
from whaleid.ensemble.summary import Figures
from whaleid.kaggle.kernel.assets import write_inference_assets
from whaleid.kaggle.kernel.inference import open_bundle, rank_images
from whaleid.kaggle.kernel.inputs import KernelFolders
from whaleid.pipeline.ladder import ladder_tasks
from whaleid.pipeline.project import Project
from whaleid.retrieval.candidates import Candidates, read_candidates
from whaleid.utils.errors import WhaleidError

COLUMNS = ("photograph", "rank", "identity", "probability")


@dataclass(frozen=True)
class Identified:
    """The guesses for some photographs.

    Attributes
    ----------
    project : Project
        The project in scratch space: its images table holds the photographs (split "test") behind the labelled images.
    candidates : Candidates
        Of the photographs, best first, with the scores of the recipe's last ranker; unknown is among the classes.
    probabilities : float32 array, shape (n, m)
        Of the candidates, 0 where there is none.
    """

    project: Project
    candidates: Candidates
    probabilities: np.ndarray

    def table(self) -> pd.DataFrame:
        """The first k guesses of each photograph: `photograph, rank, identity, probability`."""
        k = self.project.competition.k
        names, probabilities = labels(self.candidates, k), self.probabilities[:, :k]
        photograph, place = np.nonzero(names != "")
        columns = (
            self.candidates.queries[photograph],
            place + 1,
            names[photograph, place],
            probabilities[photograph, place],
        )
        return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def require_trained(project: Project) -> None:
    """Raise WhaleidError where the project's ladder is not made, or was made with other settings or images."""
    if not ladder_tasks(project)[0].current:
        raise WhaleidError(
            f"recipe {project.recipe.name} is not trained on {project.competition.name} as it is now: "
            "run whaleid leaderboard with the same options first"
        )
    for name in project.recipe.sources:
        raise WhaleidError(
            f"recipe {project.recipe.name}: sources.{name} holds features by another program, which a new photograph "
            "does not have; name a recipe without it"
        )


@contextmanager
def identify(project: Project, photographs: pd.DataFrame) -> Iterator[Identified]:
    """Rank photographs as the recipe ranks its test images. The scratch space goes when the block ends.

    Parameters
    ----------
    project : Project
        Trained (`require_trained`).
    photographs : DataFrame
        As from `photograph_rows`.
    """
    root = project.competition.root
    with TemporaryDirectory(prefix="whaleid-") as scratch:
        folders = KernelFolders(Path(scratch, "assets"), root, Path(scratch, "working"), Path(scratch))
        folders.assets.mkdir()
        with redirect_stdout(sys.stderr):  # the kernel's log
            write_inference_assets(project, folders.assets)
            copy, content = open_bundle(folders)
            # photographs get guesses, whatever the competition's form of answer
            copy = replace(copy, competition=copy.competition.model_copy(update={"answer": Answer()}))
            copy = with_masks(copy, project, photographs, Path(scratch, "masks"))
            copy, _, figures = rank_images(copy, folders, content, photographs, None)
        path = copy.workspace.candidates(copy.recipe.name) / "test.parquet"
        candidates = read_candidates(path)[-1][2]
        yield Identified(copy, candidates, probabilities_of(candidates, figures, copy.competition.unknown))


def with_masks(copy: Project, project: Project, photographs: pd.DataFrame, folder: Path) -> Project:
    """The project in scratch space with masks of the photographs, made in `folder` where the project uses any."""
    if project.competition.masks is None or not (project.local_matching or project.removes_background):
        return replace(copy, competition=copy.competition.model_copy(update={"masks": None}))
    table = Table(csv="", images="/", image="")  # the photographs' paths are absolute
    own = copy.competition.model_copy(update={"masks": str(folder), "test": table})
    make_masks(photographs, own, folder, project.settings.weights)
    return replace(copy, competition=own)


def probabilities_of(candidates: Candidates, figures: Figures, unknown: str | None) -> np.ndarray:
    """Scores as probabilities. The blend's are probabilities; a stack without unknown label gives logarithms of them.

    The unknown identity, whose score is a threshold, gets what the listed identities leave.
    """
    listed = np.isfinite(candidates.scores)
    logarithms = holds_logarithms(figures, unknown)
    values = np.where(listed, np.exp(candidates.scores) if logarithms else candidates.scores, 0.0)
    is_unknown = candidates.classes[candidates.codes] == unknown
    is_unknown &= listed
    rest = 1.0 - np.where(is_unknown, 0.0, values).sum(axis=1, keepdims=True)
    return np.where(is_unknown, np.clip(rest, 0.0, 1.0), values).astype(np.float32)


def holds_logarithms(figures: Figures, unknown: str | None) -> bool:
    """Whether the scores of the ladder's last rung are logarithms of probabilities."""
    return unknown is None and figures["ladder"]["rungs"][-1]["kind"] == "stack"
