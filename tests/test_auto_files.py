"""The files of `recipe: auto`: an ordinary recipe, written once for each number of minutes, and its plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_auto import FLUKES, NYALA, STATION, chosen, rates, slower_core
from test_cli import COMPETITION

from whaleid.auto import throughput
from whaleid.auto.facts import Facts
from whaleid.auto.opening import open_project, recipe_file
from whaleid.auto.write import reasons_of, write_recipe
from whaleid.cli.context import Context
from whaleid.cli.training import plan
from whaleid.config.files import load_recipe
from whaleid.config.settings import Settings
from whaleid.local_matching import cost as cost_module
from whaleid.pipeline import plan as plan_module
from whaleid.pipeline.plan import Census
from whaleid.utils.errors import WhaleidError


@pytest.mark.parametrize(
    ("facts", "minutes"), [(NYALA, 5), (NYALA, 15), (NYALA, 400), (FLUKES, 12), (replace(NYALA, machine=STATION), 60)]
)
def test_what_is_written_is_an_ordinary_recipe(tmp_path: Path, facts: Facts, minutes: int) -> None:
    choice = chosen(facts, minutes)
    path = tmp_path / "recipes" / f"auto-{minutes}.yaml"
    write_recipe(choice, path)
    recipe, experiments = load_recipe(str(path))
    assert (recipe.name, recipe.folds) == (path.stem, choice.folds)
    assert tuple(recipe.train_folds or range(recipe.folds)) == choice.trained
    assert recipe.combine.local_matching == choice.local
    assert recipe.combine.full_gallery == choice.full_gallery
    made = [(item.model.backbone, item.image.pixels, item.train.epochs) for item in experiments]
    assert made == [(network.backbone, network.pixels, network.epochs) for network in choice.networks]
    assert all(item.name.startswith(f"auto-{minutes}-") for item in experiments)
    assert reasons_of(path)[1:] == list(choice.reasons)


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small drawn competition, and a machine that was measured to be fast."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 256, (32, 48, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "data" / split / f"{split}{number}.png"), pixels)
    rows = "".join(f"train{number}.png,whale{number % 4}\n" for number in range(12))
    (tmp_path / "data" / "train.csv").write_text(f"Image,Id\n{rows}")
    rows = "".join(f"test{number}.png,new_whale\n" for number in range(12))
    (tmp_path / "data" / "sample_submission.csv").write_text(f"Image,Id\n{rows}")
    (tmp_path / "drawn.yaml").write_text(COMPETITION.format(root="data"))
    monkeypatch.setattr(throughput, "measure", lambda machine, *_: rates(machine))
    return tmp_path


def test_auto_is_chosen_once_for_each_number_of_minutes(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = str(drawn / "drawn.yaml"), None, drawn / "work"
    first = open_project(*where, minutes=5)
    assert first.recipe.name == "auto-5"
    path = Path(recipe_file(*where, 5, Settings()))
    assert str(path) in capsys.readouterr().err
    text = path.read_text()
    monkeypatch.setattr(throughput, "measure", lambda *_: pytest.fail("measured again"))
    assert open_project(*where, minutes=5).experiments == first.experiments
    assert open_project(where[0], "auto", where[2], ["train.epochs=7"], minutes=5).experiments[0].train.epochs == 7
    assert path.read_text() == text
    monkeypatch.setattr(throughput, "measure", lambda machine, *_: rates(machine))
    assert open_project(*where).recipe.name == "auto-60"


def test_minutes_are_for_auto_and_auto_needs_data(drawn: Path) -> None:
    with pytest.raises(WhaleidError, match="minutes are for the recipe auto"):
        open_project(str(drawn / "drawn.yaml"), "sample", drawn / "work", minutes=5)
    with pytest.raises(WhaleidError, match="minutes is 0; at least 1 is needed"):
        open_project(str(drawn / "drawn.yaml"), None, drawn / "work", minutes=0)
    (drawn / "data" / "train.csv").unlink()
    with pytest.raises(WhaleidError, match=r"looks at the data.*name another recipe"):
        open_project(str(drawn / "drawn.yaml"), None, drawn / "work")


def test_a_plan_says_once_why(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # first by choosing, then by the plan of what was chosen before
        plan(Context(competition=str(drawn / "drawn.yaml"), work=drawn / "work", minutes=5))
        printed = capsys.readouterr()
        assert (printed.out + printed.err).count("expected minutes: ") == 1


def test_a_plan_reckons_local_matching_by_the_core(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = open_project(str(drawn / "drawn.yaml"), None, drawn / "work", minutes=60)
    census, minutes = Census(20_000, 0, 5_000, 10_000, 1.0, estimated=True), []
    for factor in (1.0, 3.0):
        monkeypatch.setattr(cost_module, "this_core", lambda factor=factor: slower_core(factor))
        (line,) = (line for line in plan_module.plan_lines(project, census) if line.startswith("local matching"))
        minutes.append(int(line.split()[2]))
    assert minutes[1] == pytest.approx(3 * minutes[0], abs=2) and minutes[0] > 10
