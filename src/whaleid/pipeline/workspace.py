"""Every path of the work folder, atomic writes, and the knowledge of what is up to date.

A stage asks `is_current(path, key)` with a key made of its configuration and of its inputs' own keys; when it
has written its output it says `mark_current(path, key)`. Stamps live in `.stamps/`, outputs stay in the
documented form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import write_json

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Workspace:
    """Paths of one competition's work (design: *What passes between rooms*)."""

    root: Path
    round: int = 0
    """Of pseudo-labels: runs and features of later ones are `<experiment>.round<r>`."""

    @property
    def images(self) -> Path:
        return self.root / "images.parquet"

    @property
    def digests(self) -> Path:
        """Table of the digests of the images' files (`data/digests.py`)."""
        return self.root / "digests.parquet"

    @property
    def folds(self) -> Path:
        return self.root / "folds.csv"

    def cache(self, name: str) -> Path:
        """Folder of resized images of one size."""
        return self.root / "cache" / name

    def run(self, experiment: str, fold: int | None) -> Path:
        """Folder of one run; fold None: the one that is trained on all labelled images."""
        return self.root / "runs" / self._in_round(experiment) / fold_name(fold)

    def run_item(self, experiment: str, fold: int | None) -> str:
        """`<experiment>/fold<k>`, in later rounds of pseudo-labels `<experiment>.round<r>/fold<k>`."""
        return f"{self._in_round(experiment)}/{fold_name(fold)}"

    def features(self, source: str, fold: int | None) -> Path:
        return self.root / "features" / self._in_round(source) / fold_name(fold)

    def _in_round(self, experiment: str) -> str:
        return f"{experiment}{_ROUND}{self.round}" if self.round else experiment

    def pseudo_labels(self, recipe: str) -> Path:
        """Table of the test images that join training in this round of pseudo-labels."""
        return self.root / "pseudo" / recipe / f"round{self.round}.csv"

    def local(self, name: str) -> Path:
        """Folder of the keypoints' descriptors of one size and number."""
        return self.root / "local" / name

    def candidates(self, recipe: str) -> Path:
        return self.root / "candidates" / recipe

    def round_candidates(self, recipe: str) -> Path:
        """Those of one round, where a recipe has rounds; `candidates` are then those of the round that is used."""
        return self.candidates(recipe) / f"round{self.round}"

    def ablation(self, recipe: str) -> Path:
        """Folder of the table that says what every part of a recipe is worth."""
        return self.root / "ablation" / recipe

    @property
    def metrics(self) -> Path:
        """`metrics.json`: recipe -> every figure that was printed, with the configuration that gave it."""
        return self.root / "metrics.json"

    def report(self, recipe: str) -> Path:
        return self.root / "report" / recipe

    def is_current(self, output: Path, key: str) -> bool:
        """Whether `output` is there and was made from exactly what `key` stands for."""
        return output.exists() and self.stamp(output).get("key") == key

    def stamp(self, output: Path) -> dict[str, Any]:
        """What `mark_current` noted for `output`; empty when nothing was."""
        path = self._stamp_path(output)
        try:
            return json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def mark_current(self, output: Path, key: str, **notes: Any) -> None:
        """Note that `output` stands for `key`; `notes` (JSON) are kept beside it."""
        write_json(self._stamp_path(output), {"key": key, **notes})

    def _stamp_path(self, output: Path) -> Path:
        return self.root / ".stamps" / f"{output.relative_to(self.root).as_posix()}.json"


def read_images(workspace: Workspace) -> pd.DataFrame:
    """The images table, `images.parquet`, a row an image."""
    import pandas as pd

    return pd.read_parquet(_made(workspace.images))


def read_folds(workspace: Workspace) -> pd.DataFrame:
    """The fold of every labelled image, `folds.csv`: columns `image, identity, fold`."""
    import pandas as pd

    dtypes = {"image": str, "identity": str, "fold": int}
    return pd.read_csv(_made(workspace.folds), dtype=dtypes, keep_default_na=False)


def _made(path: Path) -> Path:
    if not path.is_file():
        raise WhaleidError(f"{path}: not there yet; run `whaleid leaderboard` or `whaleid folds` first")
    return path


_ROUND = ".round"
"""Between the name of an experiment and the number of the round that its folder is of."""


def source_of(folder: str) -> str:
    """The experiment that a folder of runs or features is of, whatever round it is of."""
    name, _, number = folder.rpartition(_ROUND)
    return name if name and number.isdigit() else folder


def fold_name(fold: int | None) -> str:
    """`fold<k>`, or `full` for what all labelled images taught."""
    return "full" if fold is None else f"fold{fold}"
