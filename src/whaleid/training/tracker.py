"""Experiment trackers beside a run's own log: Weights & Biases or MLflow, through accelerate (`--tracker`).

A tracker is chosen by environment variables, which the processes of runs inherit. They are the tracker's own, so that
what the user has set wins: without that, everything stays in the work folder and no server is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whaleid.utils.errors import WhaleidError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRACKER = "WHALEID_TRACKER"
"""Environment variable with the name of the tracker, which the processes of tasks inherit."""
TRACKERS = ("wandb", "mlflow")
VARIABLES = (TRACKER, "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")
"""Where the process of a run finds the tracker; no key of it, because a cluster's engine writes these to files."""


@contextmanager
def tracking(name: str, project: str, folder: Path) -> Iterator[None]:
    """Let the runs of this process, and of those that it starts, write to a tracker.

    Parameters
    ----------
    name : str
        One of TRACKERS.
    project : str
        The tracker's project (MLflow: experiment) that gathers the runs.
    folder : Path
        Where the tracker writes, unless its own environment variables say otherwise.

    Raises
    ------
    WhaleidError
        For another name, and where the tracker's package is not installed.
    """
    _require_package(name)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    before = {variable: os.environ[variable] for variable in VARIABLES if variable in os.environ}
    os.environ[TRACKER] = name
    for variable, value in _defaults(name, project, folder).items():
        os.environ.setdefault(variable, value)
    try:
        if name == "mlflow":  # runs that begin at the same time would each make the store and the experiment
            import_module("mlflow").set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
        yield
    finally:
        for variable in VARIABLES:
            os.environ.pop(variable, None)
        os.environ.update(before)


def _require_package(name: str) -> None:
    if name not in TRACKERS:
        raise WhaleidError(f"--tracker {name}: not known; trackers: {', '.join(TRACKERS)}")
    if find_spec(name) is None:
        raise WhaleidError(
            f"--tracker {name} needs the package {name}: pip install 'whaleid[{name}]' (from a checkout: "
            f"pip install -e '.[{name}]'), or leave the option out"
        )


def _defaults(name: str, project: str, folder: Path) -> dict[str, str]:
    """Environment variables that keep a tracker in a folder."""
    if name == "wandb":
        return {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_PROJECT": project}
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "MLFLOW_EXPERIMENT_NAME": project}


def start_tracker(title: str, settings: Mapping[str, Any]) -> GeneralTracker | None:
    """A new run of the tracker that `tracking` has set; None where there is none.

    Parameters
    ----------
    title : str
        Name of the run.
    settings : mapping
        Of the experiment; mappings in it become dotted keys.
    """
    name = os.environ.get(TRACKER)
    if not name:
        return None
    from accelerate import tracking as trackers

    if name == "wandb":
        tracker = trackers.WandBTracker(os.environ["WANDB_PROJECT"], name=title)
    else:
        tracker = trackers.MLflowTracker(os.environ["MLFLOW_EXPERIMENT_NAME"], run_name=title)
    tracker.start()
    tracker.store_init_configuration(dotted(settings))
    return tracker


def dotted(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings as one level of dotted keys; what is neither a number nor a text nor null is written as text."""
    rows: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows |= dotted(value, f"{before}{key}.")
        else:
            rows[f"{before}{key}"] = value if value is None or isinstance(value, int | float | str) else str(value)
    return rows
