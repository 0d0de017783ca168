"""The Python interface: `import whaleid` offers these functions.

All of them bring what they need up to date first, one task after the other in this process. Several processes, or
several GPUs, are the command line's (`whaleid train --jobs 4`); both use the same files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from whaleid.evaluation.metrics import MapScore
    from whaleid.pipeline.project import Project


def open_project(
    competition: str | Path = "sample",
    recipe: str | Path | None = None,
    work: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    skip_unreadable: bool = False,
    minutes: int | None = None,
) -> Project:
    """Open a competition with a recipe; only configuration files are read, unless `auto` has to choose the recipe.

    Parameters
    ----------
    competition, recipe : str or Path
        Name of one of whaleid's own, or path of a YAML file. Default recipe: `sample` for the sample, else
        `auto`, which looks at the data and measures the machine, once, and writes what it chose as a YAML.
    work : str or Path, optional
        Folder for all results; default: WORK_DIR of SETTINGS.json, which is `work` in the current folder.
    overrides : mapping, optional
        Dotted key -> value, of experiments and of the recipe: `{"train.epochs": 20, "combine.stack": None}`.
    skip_unreadable : bool
        Continue without the images that cannot be decoded.
    minutes : int, optional
        What the recipe `auto` may take in all; default: 60.

    Returns
    -------
    Project
        What all other functions take.

    Raises
    ------
    WhaleidError
        For a file that is missing or wrong; the message is one line with file and key.
    """
    from whaleid.auto.opening import open_project as open_files
    from whaleid.config.settings import read_settings

    settings = read_settings()
    pairs = [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()]
    name = None if recipe is None else str(recipe)
    return open_files(str(competition), name, Path(work or settings.work), pairs, skip_unreadable, settings, minutes)


def run(project: Project, until: str = "score") -> None:
    """Run the stages of the pipeline in order, until and with the stage `until`; skip what is up to date.

    Parameters
    ----------
    project : Project
    until : str
        `images`, `folds`, `train`, `features`, `ladder`, `submission` or `score`; all are in pipeline/stages.py.
    """
    from whaleid.pipeline.runner import run as run_stages

    run_stages(project, until)


def train(project: Project, experiment: str | None = None, fold: int | None = None) -> list[Path]:
    """Train the recipe's experiments on its folds, or only one of them.

    Returns
    -------
    list of Path
        Folders of the runs, with `checkpoint.safetensors`, `config.yaml` and `log.jsonl`.
    """
    from whaleid.pipeline.runner import Only, target_tasks
    from whaleid.pipeline.runner import run as run_stages

    only = Only(experiment=experiment, fold=fold)
    run_stages(project, "train", only=only)
    return [task.output for task in target_tasks(project, "train", only)]


def embed(project: Project, experiment: str, fold: int | None) -> tuple[pd.DataFrame, np.ndarray]:
    """Embeddings of all images by one run, which is trained first if it is missing.

    Parameters
    ----------
    project : Project
    experiment : str
        Name of one of the recipe's experiments.
    fold : int or None
        The fold that the run did not train on; None: the run on all labelled images, or of a frozen network.

    Returns
    -------
    images : DataFrame, n rows
        The images table: `path, image, split, identity, ...`.
    vectors : float32 array, shape (n, d)
        L2-normalised rows, in the order of `images`.
    """
    from whaleid.features.files import read_features
    from whaleid.pipeline.runner import Only
    from whaleid.pipeline.runner import run as run_stages
    from whaleid.pipeline.workspace import read_images

    run_stages(project, "features", only=Only(experiment=experiment, fold=fold, full=fold is None))
    images, folder = read_images(project.workspace), project.features_folder(project.experiment(experiment), fold)
    return images, read_features(folder, images, logits=False).embeddings


def evaluate(project: Project) -> pd.DataFrame:
    """The ladder: every ranker with its score out of fold, the last row the one that the submission uses.

    Returns
    -------
    DataFrame
        Columns `ranker, kind, map, low, high, queries`; `map` is MAP@k, `low` and `high` its 95 % interval.
    """
    import pandas as pd

    rungs = _ladder(project)["rungs"]
    table = pd.DataFrame.from_records(rungs).rename(columns={"name": "ranker"})
    return table[["ranker", "kind", "map", "low", "high", "queries"]]


def rank(project: Project, split: Literal["test", "train"] = "test", ranker: str | None = None) -> pd.DataFrame:
    """Candidates of every query, best first.

    Parameters
    ----------
    project : Project
    split : {"test", "train"}
        Queries of the test set, or the labelled images, each ranked out of fold.
    ranker : str, optional
        A name of `evaluate`; default: the last one, which the submission uses.

    Returns
    -------
    DataFrame
        Columns `query, identity, rank, score, source, fold`; rank 1 is the best.
    """
    import pandas as pd

    from whaleid.ensemble.simulation import is_simulated

    name = ranker or _ladder(project)["rungs"][-1]["name"]
    file = "test.parquet" if split == "test" else "oof.parquet"
    table = pd.read_parquet(project.workspace.candidates(project.recipe.name) / file, filters=[("source", "==", name)])
    return table[~is_simulated(table["query"])].reset_index(drop=True)


def write_submission(project: Project) -> Path:
    """Write the submission CSV, checked against the sample submission; return its path."""
    from whaleid.pipeline.submission import latest_submission

    run(project, "submission")
    return latest_submission(project)


def score(submission: str | Path, solution: str | Path, k: int = 5) -> MapScore:
    """MAP@k of a submission against a solution; rows are matched by image.

    Parameters
    ----------
    submission, solution : str or Path
        CSV: image and guesses (columns or separated by spaces); image and identity. Columns by position.
    k : int
        Number of guesses that count.

    Returns
    -------
    MapScore
        `map`, `low`, `high` (95 % interval), `queries`.
    """
    from whaleid.evaluation.topk import score_submission

    return score_submission(Path(submission), Path(solution), k)


def _ladder(project: Project) -> dict[str, Any]:
    from whaleid.pipeline.metrics import require_figures

    run(project, "ladder")
    return require_figures(project)["ladder"]
