"""`--tracker`: what a run logs goes to the tracker too, in the work folder unless the user says otherwise."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from training_world import log_lines, small, train, write_case

from whaleid.cli.context import Context
from whaleid.pipeline.executors import remote
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.workspace import Workspace
from whaleid.training import tracker
from whaleid.training.tracker import TRACKER, VARIABLES, dotted, start_tracker, tracking
from whaleid.utils.errors import WhaleidError


@pytest.fixture(autouse=True)
def no_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def install(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """A package that holds what accelerate calls of the tracker."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that was done with Weights & Biases."""
    done: list[Any] = []
    run = SimpleNamespace(log=lambda values, step: done.append((step, values)), finish=lambda: done.append("finished"))
    config = SimpleNamespace(update=lambda values, **_: done.append(values))
    install(monkeypatch, "wandb", init=lambda **given: done.append(given) or run, config=config)
    return done


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that was done with MLflow, and where its store was."""
    done: list[Any] = []

    def note(what: str) -> Any:
        return lambda *given, **more: done.append((what, *given, *more.values()))

    def set_experiment(name: str) -> None:
        done.append(("experiment", name, os.environ["MLFLOW_TRACKING_URI"]))

    install(
        monkeypatch,
        "mlflow",
        set_experiment=set_experiment,
        search_experiments=lambda **_: [SimpleNamespace(experiment_id="7")],
        start_run=lambda **given: done.append(("run", given["experiment_id"], given["run_name"])),
        log_params=note("settings"),
        log_metrics=note("log"),
        end_run=note("end"),
        utils=SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)),
    )
    return done


def test_a_run_logs_to_wandb_what_its_own_log_holds(wandb: list[Any], tmp_path: Path) -> None:
    write_case(tmp_path)
    with tracking("wandb", "whales", tmp_path / "trackers"):
        assert os.environ["WANDB_MODE"] == "offline" and Path(os.environ["WANDB_DIR"]).is_dir()
        train(tmp_path, tmp_path / "out", small(train_epochs=2))
    start, settings, *logged, end = wandb
    assert start == {"project": "whales", "name": "experiment default, fold 0"} and end == "finished"
    assert settings["train.epochs"] == 2 and settings["head.name"] == "arcface"
    own = [(line["step"], line["loss"]) for line in log_lines(tmp_path / "out", "epoch")]
    epochs = [(step, values) for step, values in logged if "epoch/loss" in values]
    assert [(step, pytest.approx(values["epoch/loss"], abs=1e-6)) for step, values in epochs] == own
    assert [values["epoch"] for _, values in epochs] == [1, 2]
    assert not any(variable in os.environ for variable in VARIABLES)


def test_mlflow_keeps_its_runs_in_the_folder(mlflow: list[Any], tmp_path: Path) -> None:
    with tracking("mlflow", "whales", tmp_path / "trackers"):
        made = start_tracker("experiment one, fold 1", {"train": {"lr": 0.1}, "sizes": [1, 2]})
        assert made is not None
        made.log({"step/loss": 2.5}, step=20)
        made.finish()
    assert mlflow == [
        ("experiment", "whales", f"sqlite:///{tmp_path}/trackers/mlflow.db"),
        ("run", "7", "experiment one, fold 1"),
        ("settings", {"train.lr": 0.1, "sizes": "[1, 2]"}),
        ("log", {"step/loss": 2.5}, 20),
        ("end",),
    ]


def test_what_the_user_has_set_wins_and_stays(
    wandb: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with tracking("wandb", "whales", tmp_path):
        assert (os.environ["WANDB_MODE"], os.environ["WANDB_PROJECT"]) == ("online", "whales")
    assert os.environ["WANDB_MODE"] == "online" and "WANDB_PROJECT" not in os.environ


def test_a_node_of_a_cluster_gets_the_tracker_but_no_key(
    wandb: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    workspace = Workspace(tmp_path / "work")
    task = Task("train", "one/fold0", workspace, tmp_path, "key", lambda: None, run=("one", 0), command="train")
    with tracking("wandb", "whales", tmp_path):
        sent = remote.command_of(task, []).variables
    assert (sent[TRACKER], sent["WANDB_MODE"], sent["WANDB_DIR"]) == ("wandb", "offline", str(tmp_path))
    assert "secret" not in sent.values()
    assert TRACKER not in remote.command_of(task, []).variables


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensorboard", r"^--tracker tensorboard: not known; trackers: wandb, mlflow$"),
        (
            "wandb",
            r"^--tracker wandb needs the package wandb: pip install 'whaleid\[wandb\]' .*, or leave",
        ),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda _: None)
    with pytest.raises(WhaleidError, match=said), Context(tracker=name, work=tmp_path).tracking():
        pass
    assert not list(tmp_path.iterdir())


def test_without_the_option_nothing_is_tracked() -> None:
    with Context().tracking():
        assert start_tracker("experiment one, fold 0", {}) is None


def test_settings_become_dotted_keys() -> None:
    settings = {"a": {"b": {"c": 1}, "d": None}, "e": {}, "f": ["x"], "g": True}
    assert dotted(settings) == {"a.b.c": 1, "a.d": None, "e": "{}", "f": "['x']", "g": True}


def test_accelerate_has_the_trackers_by_these_names() -> None:
    known = importlib.import_module("accelerate.tracking").LOGGER_TYPE_TO_CLASS
    assert all(name in known for name in tracker.TRACKERS)
