"""Every path of the work folder, and which outputs are current.

An output is current while the key that was noted when it was made is the one of now (`keys.py`). The notes lie in
`.stamps/`, beside the outputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import write_json

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Workspace:
    """Paths of one competition's work folder (docs/design.md lists the files)."""

    root: Path
    round: int = 0
    """Round of pseudo-labels; runs and features of later rounds are in `<experiment>.round<r>`."""

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
        """Folder of one run; fold None: the run on all labelled images."""
        return self.root / "runs" / self._in_round(experiment) / fold_name(fold)

    def run_item(self, experiment: str, fold: int | None) -> str:
        """`<experiment>/fold<k>`, in later rounds of pseudo-labels `<experiment>.round<r>/fold<k>`."""
        return f"{self._in_round(experiment)}/{fold_name(fold)}"

    def features(self, source: str, fold: int | None) -> Path:
        return self.root / "features" / self._in_round(source) / fold_name(fold)

    def shards(self, source: str, fold: int | None) -> Path:
        """Folder of the shards of features, until they are joined."""
        return self.root / "shards" / self._in_round(source) / fold_name(fold)

    def _in_round(self, experiment: str) -> str:
        return f"{experiment}{_ROUND}{self.round}" if self.round else experiment

    def pseudo_labels(self, recipe: str) -> Path:
        """Table of the test images that join training in this round of pseudo-labels."""
        return self.root / "pseudo" / recipe / f"round{self.round}.csv"

    def local(self, name: str) -> Path:
        """Folder of the keypoints of one kind, image size and number."""
        return self.root / "local" / name

    def candidates(self, recipe: str) -> Path:
        return self.root / "candidates" / recipe

    def round_candidates(self, recipe: str) -> Path:
        """Candidates of one round of pseudo-labels; `candidates` are then copied from the round that is used."""
        return self.candidates(recipe) / f"round{self.round}"

    def ablation(self, recipe: str) -> Path:
        """Folder of the table of what each part of a recipe adds."""
        return self.root / "ablation" / recipe

    @property
    def metrics(self) -> Path:
        """`metrics.json`: recipe -> every figure that was printed, with the configuration that gave it."""
        return self.root / "metrics.json"

    def report(self, recipe: str) -> Path:
        return self.root / "report" / recipe

    def is_current(self, output: Path, key: str) -> bool:
        """Whether `output` is there and was made from what `key` stands for."""
        return output.exists() and self.stamp(output).get("key") == key

    def stamp(self, output: Path) -> dict[str, Any]:
        """What `mark_current` noted for `output`; empty where it noted nothing."""
        try:
            content = json.loads(self._stamp_path(output).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def mark_current(self, output: Path, key: str, **notes: Any) -> None:
        """Note the key of `output`; `notes` (JSON) are kept with it."""
        write_json(self._stamp_path(output), {"key": key, **notes})

    def lock(self, output: Path) -> Path:
        """Lock file of whoever makes `output`."""
        return self._stamp_path(output).with_suffix(".lock")

    def _stamp_path(self, output: Path) -> Path:
        return self.root / ".stamps" / f"{output.relative_to(self.root).as_posix()}.json"


def read_images(workspace: Workspace) -> pd.DataFrame:
    """The images table, `images.parquet`, a row an image."""
    import pandas as pd

    with _named(workspace.images) as path:
        return pd.read_parquet(path)


def read_folds(workspace: Workspace) -> pd.DataFrame:
    """The fold of every labelled image, `folds.csv`: columns `image, identity, fold`."""
    import pandas as pd

    dtypes = {"image": str, "identity": str, "fold": int}
    with _named(workspace.folds) as path:
        return pd.read_csv(path, dtype=dtypes, keep_default_na=False)[list(dtypes)]


@contextmanager
def _named(path: Path) -> Iterator[Path]:
    """The file to read; an error of its reader, whichever pandas and pyarrow raise, becomes one line that names it."""
    if not path.is_file():
        raise WhaleidError(f"{path}: not there yet; run `whaleid leaderboard` or `whaleid folds` first")
    try:
        yield path
    except (ValueError, KeyError, TypeError, NotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())
        raise WhaleidError(f"{path}: damaged ({reason}); remove it, and the same command makes it again") from error


_ROUND = ".round"
"""Between the name of an experiment and the number of the round in a folder's name."""


def source_of(folder: str) -> str:
    """The experiment of a folder of runs or features, of any round."""
    name, _, number = folder.rpartition(_ROUND)
    return name if name and number.isdigit() else folder


def fold_name(fold: int | None) -> str:
    """`fold<k>`, or `full` for the run on all labelled images."""
    return "full" if fold is None else f"fold{fold}"
