"""How large a kernel's data set of weights and features is, told before it is made, and refused where Kaggle would."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whaleid.kaggle.metadata import LARGEST_DATA_SET
from whaleid.pipeline.plan import FLOAT, count_images, recipe_costs
from whaleid.pipeline.project import Project
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import bytes_text

EMBEDDINGS, LOGITS = "embeddings.npy", "logits.npy"

@dataclass(frozen=True)
class KernelSize:
    """Bytes of what an inference kernel carries, and uses.

    logits: of the rows whose own fold's model they are of (out of fold), the only ones that fitting reads.
    whole_logits: of all labelled rows, which stay at home. other: keypoints, tables, features of other programs.
    scratch: of the features on the kernel's own disk, when those of the test images are joined to them.
    """

    weights: float
    embeddings: float
    logits: float
    whole_logits: float
    other: float
    scratch: float

    @property
    def total(self) -> float:
        return self.weights + self.embeddings + self.logits + self.other

    def line(self) -> str:
        parts = [
            f"weights {bytes_text(self.weights)}",
            f"embeddings {bytes_text(self.embeddings)}",
            f"logits {bytes_text(self.logits)} (out-of-fold rows alone; all rows: {bytes_text(self.whole_logits)})",
            *([f"other {bytes_text(self.other)}"] if self.other else []),
        ]
        return f"{bytes_text(self.total)}: {', '.join(parts)}; {bytes_text(self.scratch)} of the kernel's scratch disk"

    @property
    def fits(self) -> bool:
        """Whether Kaggle takes a data set of this size."""
        return self.total <= LARGEST_DATA_SET

    def require_fit(self, recipe: str) -> None:
        """Raise WhaleidError where Kaggle would refuse the data set."""
        if not self.fits:
            raise WhaleidError(
                f"recipe {recipe}: its kernel would carry {bytes_text(self.total)}; a data set of Kaggle holds at most "
                f"{bytes_text(LARGEST_DATA_SET)}: take fewer experiments or train_folds, or features.logits=false"
            )


def sum_sizes(sizes: Iterable[KernelSize]) -> KernelSize:
    """All of them together."""
    table = np.array([[getattr(size, name) for name in KernelSize.__dataclass_fields__] for size in sizes])
    return KernelSize(*(table.reshape(-1, len(KernelSize.__dataclass_fields__)).sum(axis=0)))


def source_size(
    weights: float, dim: int, classes: int, bytes_each: int, folds: int, labelled: int, test: int, covered: float = 1.0
) -> KernelSize:
    """One source's part.

    weights: bytes of one run. classes: columns of its logits, 0 for none. bytes_each: of a number in its features.
    folds: runs. covered: share of the labelled rows that are in the fold of one of these runs.
    """
    row = classes * bytes_each
    return KernelSize(
        weights=weights * folds,
        embeddings=float(labelled * dim * bytes_each * folds),
        logits=labelled * covered * row,
        whole_logits=float(labelled * row * folds),
        other=0.0,
        scratch=(labelled + test) * dim * bytes_each * folds + (labelled * covered + test * folds) * row,
    )


def planned_size(project: Project, images: int | None, identities: int | None) -> KernelSize:
    """What the recipe's Kaggle kernel would carry (keypoints and features of other programs not counted).

    images, identities: as in `plan_lines`.
    """
    census = count_images(project, images, identities)
    costs = recipe_costs(project, census)
    covered = len(project.folds) / project.recipe.folds
    return sum_sizes(
        source_size(
            weights=FLOAT * cost.parameters,
            dim=item.model.embedding * (2 if item.features.mirror and item.image.mirror_identities else 1),
            classes=census.identities if item.features.logits and item.head.has_logits else 0,
            bytes_each=2 if item.features.half else FLOAT,
            folds=len(project.folds_of(item)),
            labelled=census.labelled + census.unknown,
            test=census.test,
            covered=covered,
        )
        for item, cost in zip(project.experiments, costs, strict=True)
    )


def planned_line(size: KernelSize) -> str:
    """The line of `whaleid plan` about the kernel."""
    too_large = "" if size.fits else f"; MORE THAN A DATA SET OF KAGGLE TAKES ({LARGEST_DATA_SET / 1e9:,.0f} GB)"
    return f"a Kaggle kernel carries about {size.line()}{too_large}"


def finished_size(
    weights: list[Path],
    features: list[Path],
    foreign: list[Path],
    local: list[Path],
    labelled: int,
    test: int,
    out_of_fold: int,
) -> KernelSize:
    """Of a finished recipe, from its files' sizes and headers alone.

    weights: files of its runs. features: folders that these gave. foreign: folders of features that they did not.
    local: folders of keypoints. labelled, test: rows. out_of_fold: labelled rows in the folds of the runs.
    """
    everything = max(1, labelled + test)
    kept = (
        out_of_fold / max(1, len({path.name for path in foreign})) + test
    ) / everything  # of foreign logits: a fold's own rows, and test
    other = sum(_bytes(folder) - (1 - min(1.0, kept)) * _logit_bytes(folder) for folder in foreign)
    other += sum(_bytes(folder) * labelled / everything for folder in local)
    own = sum(path.stat().st_size for path in weights if path.is_file())
    parts = [KernelSize(float(own), 0.0, 0.0, 0.0, float(other), 0.0)]
    by_source: dict[Path, list[Path]] = {}
    for folder in features:
        by_source.setdefault(folder.parent, []).append(folder)
    for folders in by_source.values():
        dim, each = _header(folders[0] / EMBEDDINGS)
        classes = _header(folders[0] / LOGITS)[0] if (folders[0] / LOGITS).is_file() else 0
        share = out_of_fold / max(1, labelled)
        parts.append(source_size(0.0, dim, classes, each, len(folders), labelled, test, share))
    return sum_sizes(parts)


def _header(path: Path) -> tuple[int, int]:
    """Columns of an .npy (n, d), and bytes of each of its numbers."""
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise WhaleidError(f"{path}: not a whole .npy file ({error}); run make features again") from error
    return table.shape[-1], table.dtype.itemsize


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _logit_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob(LOGITS))
