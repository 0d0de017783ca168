"""Size of the data set that a kernel reads, calculated before it is made, so that too large a one is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from whaleid.kaggle.metadata import LARGEST_DATA_SET
from whaleid.pipeline.plan import FLOAT, count_images, recipe_costs
from whaleid.pipeline.project import Project
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import bytes_text

LOGITS = "logits.npy"


@dataclass(frozen=True)
class KernelSize:
    """Bytes that an inference kernel carries.

    Attributes
    ----------
    weights : float
        Checkpoints of all runs, and networks of local matching.
    embeddings : float
        Of the labelled images, by every run.
    logits : float
        Of each labelled image by the run of its own fold.
    other : float
        Keypoints and features of other programs.
    """

    weights: float = 0.0
    embeddings: float = 0.0
    logits: float = 0.0
    other: float = 0.0

    def __add__(self, more: KernelSize) -> KernelSize:
        return KernelSize(
            self.weights + more.weights,
            self.embeddings + more.embeddings,
            self.logits + more.logits,
            self.other + more.other,
        )

    @property
    def total(self) -> float:
        return self.weights + self.embeddings + self.logits + self.other

    @property
    def fits(self) -> bool:
        """Whether Kaggle accepts a data set of this size."""
        return self.total <= LARGEST_DATA_SET

    def line(self) -> str:
        """`34.1 GB: weights 6.2 GB, embeddings ..., out-of-fold logits ...`."""
        parts = {"weights": self.weights, "embeddings": self.embeddings, "out-of-fold logits": self.logits}
        if self.other:
            parts["keypoints and foreign features"] = self.other
        listed = ", ".join(f"{name} {bytes_text(size)}" for name, size in parts.items())
        return f"{bytes_text(self.total)}: {listed}"

    def require_fit(self, recipe: str) -> None:
        """Raise WhaleidError if Kaggle would refuse the data set."""
        if not self.fits:
            raise WhaleidError(
                f"recipe {recipe}: its kernel would carry {bytes_text(self.total)}, and a data set of Kaggle holds at "
                f"most {bytes_text(LARGEST_DATA_SET)}: use fewer experiments or train_folds, or features.logits=false"
            )


def experiment_size(
    weights: float, dim: int, classes: int, itemsize: int, runs: int, labelled: int, covered: float = 1.0
) -> KernelSize:
    """One experiment's part, by its settings alone.

    Parameters
    ----------
    weights : float
        Bytes of one run's checkpoint.
    dim, classes : int
        Columns of its embeddings and of its logits (0 for none).
    itemsize : int
        Bytes of a number in its features.
    runs, labelled : int
        Numbers of runs and of labelled images.
    covered : float
        Share of the labelled images that are in the fold of one of the runs.
    """
    return KernelSize(weights * runs, float(labelled * dim * itemsize * runs), labelled * covered * classes * itemsize)


def planned_size(project: Project, images: int | None, identities: int | None) -> KernelSize:
    """What the recipe's kernel would carry, without keypoints and features of other programs.

    Parameters
    ----------
    project : Project
    images, identities : int, optional
        Counts to calculate with if the competition's data is not here.
    """
    census = count_images(project, images, identities)
    size = KernelSize()
    for item, cost in zip(project.experiments, recipe_costs(project, census), strict=True):
        size += experiment_size(
            weights=FLOAT * cost.parameters,
            dim=cost.dim,
            classes=census.identities if item.features.logits and item.head.has_logits else 0,
            itemsize=2 if item.features.half else FLOAT,
            runs=len(project.folds_of(item)),
            labelled=census.labelled + census.unknown,
            covered=len(project.folds) / project.recipe.folds,
        )
    return size


def planned_line(size: KernelSize) -> str:
    """The line of `whaleid plan` about the kernel."""
    too_large = "" if size.fits else f"; MORE THAN KAGGLE ALLOWS FOR A DATA SET ({bytes_text(LARGEST_DATA_SET)})"
    return f"a Kaggle kernel carries about {size.line()}{too_large}"


def carried_bytes(folder: Path, rows: float, logits: float) -> tuple[float, float]:
    """Bytes of a folder of features, cut down to a share of its rows.

    Parameters
    ----------
    folder : Path
    rows, logits : float
        Share of the rows that is carried: of everything but the logits, and of the logits.

    Returns
    -------
    tuple of two floats
        Bytes without the logits, and of the logits.
    """
    files = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    all_logits = sum(size for path, size in files.items() if path.name == LOGITS)
    return (sum(files.values()) - all_logits) * rows, all_logits * logits
