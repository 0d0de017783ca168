"""The registry of heads: one file and one line add a head, and nobody asks for the type of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_world import checkpoint, log_lines, train, write_case

from whaleid.config.files import load_experiment
from whaleid.config.heads import HEADS, HeadSettings, find_class, head_settings
from whaleid.models.heads.base import HeadModule
from whaleid.models.heads.registry import build_head
from whaleid.training.checkpoint import load_run
from whaleid.training.epochs import EpochPlanner
from whaleid.utils.errors import WhaleidError

TOY = """
extends: default
model: {backbone: test_resnet, weights: random, embedding: 16}
image: {width: 64, height: 32}
head: {name: toy, factor: 0.5}
train: {epochs: 1, batch: 16}
"""


def test_a_toy_head_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "toy", "toy_head:ToySettings")  # the line
    (tmp_path / "toy.yaml").write_text(TOY)
    experiment = load_experiment(str(tmp_path / "toy.yaml"))
    assert experiment.head.has_logits and not experiment.head.scores_pairs
    write_case(tmp_path)
    assert train(tmp_path, tmp_path / "run", experiment).steps == 2
    assert log_lines(tmp_path / "run", "epoch")[0]["loss"] > 0
    assert checkpoint(tmp_path / "run")["head.linear.weight"].shape == (8, 16)
    read = load_run(tmp_path / "run")
    assert read.experiment == experiment
    assert type(read.head).__name__ == "ToyClassifier"


@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_built_from_its_entry(name: str) -> None:
    more = {
        "metric": {"loss": "ContrastiveLoss"},
        "sum": {"parts": [{"head": {"name": "arcface"}}]},
        "divide": {"learner": {"name": "softmax"}},
    }
    settings = head_settings({"name": name, **more.get(name, {})})
    assert issubclass(find_class(settings.planner), EpochPlanner)
    head = build_head(settings, 16, [3, 4])
    assert isinstance(head, HeadModule)
    if settings.needs_labels:
        import torch

        assert (head.logits(torch.zeros(2, 16)) is not None) == settings.has_logits
    assert settings.scores_pairs == hasattr(head, "score_pairs")


def test_settings_of_a_head_survive_the_yaml() -> None:
    content = {"name": "sum", "parts": [{"weight": 2.0, "head": {"name": "arcface", "by_size": {"floor": 0.1}}}]}
    settings = head_settings(content)
    assert isinstance(settings, HeadSettings)
    assert head_settings(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"name": "arcfase"}, "head: there is no head named 'arcfase'; did you mean 'arcface'"),
        ({}, "there is no head named None; known: softmax, arcface"),
        ({"name": "softmax", "margin": 1}, "unknown key 'head.margin'"),
        ({"name": "sum", "parts": [{"head": {"name": "rotation"}}]}, "rotation cannot be a part of a sum"),
    ],
)
def test_a_wrong_head_is_one_clear_line(head: dict, message: str) -> None:
    with pytest.raises(WhaleidError, match=message) as caught:
        load_experiment("default", {"head": head})
    assert "\n" not in str(caught.value)
