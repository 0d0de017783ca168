"""Rounds of training with pseudo-labels: how many there are, what is made anew, and what a kill leaves."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from drawn import draw_sample
from pipeline_world import current, figures_of, submission_of, without_processes
from test_cli import COMPETITION, EXPERIMENT
from training_world import stop_after

from whaleid.cli import main as cli
from whaleid.config.settings import Settings
from whaleid.data.pseudo import FULL, labels_of, read_pseudo_labels, write_pseudo_labels
from whaleid.ensemble.results import Gain
from whaleid.ensemble.summary import ladder_lines
from whaleid.pipeline import pseudo_labels as pseudo_stages
from whaleid.pipeline.keys import candidates_key
from whaleid.pipeline.plan import Census, plan_lines, recipe_needs
from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.rounds import in_used_round
from whaleid.pipeline.submission import read_guesses_of_rungs, submission_path
from whaleid.pipeline.transfer import ensemble_inputs, project_from_json, project_to_json
from whaleid.utils.errors import WhaleidError


@pytest.fixture
def untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A competition and an experiment, and nothing made of them."""
    return placed(tmp_path / "place", monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the recipe without rounds brought to its end."""
    with pytest.MonkeyPatch.context() as patch:
        folder = placed(tmp_path_factory.mktemp("trained") / "place", patch)
        figures_of(opened(folder, ""))
    return folder


@pytest.fixture
def drawn(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `trained`: round 0, which all rounds begin with, is not trained again."""
    shutil.copytree(trained, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def placed(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    draw_sample(folder / "data", identities=8, train_images=60, test_images=16)
    text = COMPETITION.format(root="data").replace("unknown: new_whale\nunknown_share: 0.276\n", "")
    (folder / "drawn.yaml").write_text(text)
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    patch.chdir(folder)
    return folder


def opened(folder: Path, more: str = "pseudo: {rounds: 2, confidence: 0.05}\n") -> Project:
    concat, classifier = "{whiten: 8, weights: {tiny: 2.0}}", "{epochs: 2, seeds: 1}"
    combined = f"combine: {{full_gallery: false, concat: {concat}, classifier: {classifier}}}\n"
    (folder / "recipe.yaml").write_text(f"folds: 2\nexperiments: [tiny]\n{combined}{more}")
    return open_project(str(folder / "drawn.yaml"), str(folder / "recipe.yaml"), folder / "work")


def written(project: Project) -> dict[str, int]:
    runs = project.workspace.root / "runs"
    found = sorted(runs.rglob("checkpoint.safetensors"))
    return {path.parent.relative_to(runs).as_posix(): path.stat().st_mtime_ns for path in found}


def worth(monkeypatch: pytest.MonkeyPatch, lows: list[float]) -> None:
    """Let each round in turn be worth this much over the one before."""
    monkeypatch.setattr(pseudo_stages, "round_gain", lambda _, found: Gain(0.1, lows[found.workspace.round - 1], 0.2))


def test_rounds_as_long_as_they_help(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = figures_of(opened(drawn, ""))
    project = opened(drawn)
    worth(monkeypatch, [0.01, -0.01])
    figures = figures_of(project)
    first = written(project)
    names = [f"tiny{name}/fold{fold}" for name in ("", ".round1", ".round2") for fold in range(2)]
    assert sorted(first) == sorted(names)
    assert [(row["round"], row["used"]) for row in figures["rounds"]] == [(0, True), (1, True), (2, False)]
    assert figures["rounds"][0]["map"] == plain["ladder"]["rungs"][-1]["map"]
    assert figures["key"] == candidates_key(project.at_round(1)) != plain["key"]
    said = "\n".join(ladder_lines(figures))
    assert "round 1 of pseudo-labels (fold0" in said and "over the round before: used" in said
    assert "[-0.01000, +0.20000] over the round before: not used, its interval reaches 0" in said

    table = read_pseudo_labels(project.at_round(1).workspace.pseudo_labels("recipe"))
    test = {path.name for path in (drawn / "data" / "test").iterdir()}
    assert set(table["image"]) <= test and set(table["round"]) == {1}
    for fold in range(2):
        assert figures["runs"][f"tiny/fold{fold}"]["pseudo"] == len(labels_of(table, fold)) > 0
    folder = project.workspace.candidates("recipe")
    for name in ("oof.parquet", "test.parquet", "ladder.json"):
        assert (folder / name).read_bytes() == (folder / "round1" / name).read_bytes()
    assert (folder / "oof.parquet").read_bytes() != (folder / "round0" / "oof.parquet").read_bytes()
    queries = pd.read_parquet(folder / "oof.parquet")["query"]
    assert not set(queries) & test  # nobody is scored who was labelled by a network
    assert len(read_guesses_of_rungs(project)[-1].images) == 16
    assert submission_of(project) == submission_path(project, figures["key"])

    assert figures_of(opened(drawn))["rounds"] == figures["rounds"]
    timed = {line["item"] for line in figures["times"] if line["stage"] == "train"}
    assert timed == set(names)
    assert written(project) == first
    assert figures_of(opened(drawn, ""))["ladder"] == plain["ladder"]  # without rounds, as before
    assert figures_of(opened(drawn))["rounds"] == figures["rounds"]
    assert written(project) == first
    assert json.loads((drawn / "work" / "drawn" / "metrics.json").read_text())["recipe"]["key"] == figures["key"]


def test_a_round_that_does_not_help_is_the_last_and_changes_no_answer(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = json.loads(json.dumps(figures_of(opened(drawn, ""))))
    answer = (drawn / "work" / "drawn" / "candidates" / "recipe" / "test.parquet").read_bytes()
    worth(monkeypatch, [0.0, 1.0])
    project = opened(drawn)
    figures = figures_of(project)
    assert [(row["round"], row["used"]) for row in figures["rounds"]] == [(0, True), (1, False)]
    assert figures["key"] == plain["key"] and figures["ladder"] == plain["ladder"]
    assert (drawn / "work" / "drawn" / "candidates" / "recipe" / "test.parquet").read_bytes() == answer
    assert not any(name.startswith("tiny.round2") for name in written(project))
    assert in_used_round(project).workspace.round == 0


def test_a_run_is_trained_again_when_its_own_labels_change(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worth(monkeypatch, [-1.0])
    project = opened(drawn, "pseudo: {confidence: 0.05}\nfull: true\n")
    figures = figures_of(project)
    assert list(figures["rounds"][1]["labels"]) == ["fold0", "fold1", "full"]
    path = project.at_round(1).workspace.pseudo_labels("recipe")
    table = read_pseudo_labels(path)

    def left(changed: pd.DataFrame) -> list[str]:
        write_pseudo_labels(changed, path)
        of_round = in_used_round(project).at_round(1)
        return [item for item, is_current in current(of_round, "train").items() if not is_current]

    assert left(table.assign(confidence=1.0)) == []
    assert left(table.drop(index=table.index[table["fold"] == 1][0])) == ["tiny.round1/fold1", "tiny.round1/full"]
    assert left(table.drop(index=table.index[table["fold"] == FULL][0])) == ["tiny.round1/full"]
    assert list(current(in_used_round(project), "train").values()) == [True] * 3


def test_killed_in_a_round_it_goes_on_to_the_same_end(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worth(monkeypatch, [0.01])
    more = "pseudo: {confidence: 0.05}\n"
    shutil.copytree(drawn / "work", drawn / "before")
    whole = figures_of(opened(drawn, more))
    (drawn / "work").rename(drawn / "whole")
    (drawn / "before").rename(drawn / "work")
    monkeypatch.setattr("whaleid.training.log.EPOCH_SAVE_SECONDS", 0.0)
    broken = opened(drawn, more)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            figures_of(broken)
    assert (broken.at_round(1).workspace.run("tiny", 0) / "state").is_dir()
    table = broken.at_round(1).workspace.pseudo_labels("recipe").stat().st_mtime_ns
    figures = figures_of(opened(drawn, more))
    assert broken.at_round(1).workspace.pseudo_labels("recipe").stat().st_mtime_ns == table
    assert figures["ladder"] == whole["ladder"] and figures["key"] == whole["key"]


def test_nobody_sure_trains_nothing(drawn: Path) -> None:
    project = opened(drawn, "pseudo: {confidence: 1.0}\n")
    figures = figures_of(project)
    assert [row["used"] for row in figures["rounds"]] == [True, False]
    assert "no test image is confident enough" in ladder_lines(figures)[-1]
    assert sorted(written(project)) == ["tiny/fold0", "tiny/fold1"]


def test_several_at_once_and_a_round_by_itself(
    untrained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A round named alone trains what comes before it; the processes of a round's runs find their round."""
    project = opened(untrained, "pseudo: {confidence: 0.05}\n")
    where = ["--competition", str(untrained / "drawn.yaml"), "--recipe", str(untrained / "recipe.yaml")]

    def train_round(number: int, jobs: int) -> int | str | None:
        options = ["--work", str(untrained / "work"), "--jobs", str(jobs), "--round", str(number)]
        monkeypatch.setattr(sys, "argv", ["whaleid", "train", *where, *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    assert not train_round(1, jobs=1), capsys.readouterr().err
    whole = written(project)
    assert sorted(whole) == ["tiny.round1/fold0", "tiny.round1/fold1", "tiny/fold0", "tiny/fold1"]
    assert all(current(project, "train").values())
    for fold in range(2):
        shutil.rmtree(project.at_round(1).workspace.run("tiny", fold))
    started = without_processes(monkeypatch)
    assert not train_round(1, jobs=2), capsys.readouterr().err
    assert len(started) == 2
    again = written(project)
    assert {name for name in whole if again[name] != whole[name]} == {"tiny.round1/fold0", "tiny.round1/fold1"}
    assert all(current(project, "train").values())
    assert train_round(2, jobs=2) == 2 and "has 1 rounds of pseudo-labels" in capsys.readouterr().err


def test_the_round_that_is_used_is_carried_alone(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's project has its runs, its labels and its keys, and no round to make."""
    worth(monkeypatch, [0.01, -0.01])
    figures = figures_of(opened(drawn))
    project = in_used_round(opened(drawn))
    assert (project.workspace.round, project.recipe.pseudo) == (1, None)
    reads = ensemble_inputs(project)
    assert [path.as_posix() for path in reads.runs] == ["runs/tiny.round1/fold0", "runs/tiny.round1/fold1"]
    elsewhere = Settings(work=drawn / "elsewhere")
    there = project_from_json(project_to_json(project), drawn / "data", elsewhere)
    with pytest.raises(WhaleidError, match=r"round1\.csv: file not found"):
        candidates_key(there)
    assert project.pseudo_labels is not None
    write_pseudo_labels(project.pseudo_labels, there.workspace.pseudo_labels("recipe"))
    again = project_from_json(project_to_json(project), drawn / "data", elsewhere)
    assert candidates_key(again) == figures["key"]


def test_the_plan_counts_the_rounds(drawn: Path) -> None:
    census = Census(1000, 100, 20, 300, 2.0, estimated=True)
    plain, given = opened(drawn, ""), opened(drawn)
    assert "2 runs, at most 2 times more with pseudo-labels" in "\n".join(plan_lines(given, census, 1.0, 8, None))
    assert recipe_needs(given, census, "cpu").hours == pytest.approx(3 * recipe_needs(plain, census, "cpu").hours)
