"""The pages that winners are asked for: every figure is the run's own, and what was not measured is said to be so."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import COMPETITION, EXPERIMENT, RECIPE, refused

from whaleid import cli, pipeline
from whaleid.answers import ablation_stage, log_path, submission_stage
from whaleid.data.sample import make_sample
from whaleid.errors import WhaleidError
from whaleid.figures import read_figures
from whaleid.machine import machine_line
from whaleid.project import Project, open_project
from whaleid.scoring.log import SubmissionRecord, append_log, read_log
from whaleid.settings import Settings, read_settings
from whaleid.times import STAGES, stage_times
from whaleid.winning.documents import FILES, Words, code_files, requirements_text, tree_lines, write_documents
from whaleid.winning.summary import NOT_MEASURED, Facts, network_lines, simple_lines, summary_text, table, time_lines

WORDS = Words("drawn.yaml", "recipe.yaml", ("train.epochs=2", "image.width=64"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished project of two networks, local matching too."""
    folder = tmp_path_factory.mktemp("finished")
    make_sample(folder / "data", identities=8, train_images=40, test_images=10, workers=1)
    (folder / "drawn.yaml").write_text(COMPETITION.format(root="data"))
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    (folder / "other.yaml").write_text(EXPERIMENT + "head: {name: softmax}\n")
    recipe = RECIPE.replace("[tiny]", "[tiny, other]").replace("combine: {", "combine: {local: {}, ")
    (folder / "recipe.yaml").write_text(recipe)
    submission_stage(opened(folder), 1, [])
    return folder


def opened(folder: Path, pairs: list[str] | None = None) -> Project:
    settings = Settings(submissions=folder / "submissions")
    yamls = str(folder / "drawn.yaml"), str(folder / "recipe.yaml")
    return open_project(*yamls, folder / "work", pairs, settings=settings)


def figures_of(folder: Path) -> dict[str, Any]:
    figures = read_figures(opened(folder))
    assert figures is not None
    return figures


def facts_of(figures: dict[str, Any], **others: Any) -> Facts:
    given: dict[str, Any] = {"ablation": None, "images": None, "unknown": "new_whale", "submission": None, **others}
    return Facts(figures, **given)


def numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


# ------------------------------------------------------------------------------------------------- the times


def test_every_stage_has_its_time_in_metrics(finished: Path) -> None:
    figures = figures_of(finished)
    times = figures["times"]
    assert {line["stage"] for line in times} == set(STAGES) - {"pretrain"}
    assert [line["stage"] for line in times] == sorted((line["stage"] for line in times), key=STAGES.index)
    assert [line["what"] for line in times if line["stage"] == "train"] == list(figures["runs"])
    assert [line["what"] for line in times if line["stage"] == "features"] == list(figures["runs"])
    assert all(line["seconds"] >= 0 and line["machine"] == machine_line() for line in times)
    trained = {line["what"]: line["seconds"] for line in times if line["stage"] == "train"}
    assert trained == {name: run["seconds"] for name, run in figures["runs"].items()}


def test_times_stay_what_they_were_when_all_is_up_to_date(finished: Path) -> None:
    before = figures_of(finished)
    submission_stage(opened(finished), 1, [])
    assert figures_of(finished) == before


def test_a_stage_of_an_older_version_was_not_measured(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "work", tmp_path / "work")
    project = replace(opened(finished), workspace=pipeline.Workspace(tmp_path / "work" / "drawn"))
    features = project.workspace.features("tiny", 1)
    project.workspace.mark_current(features, project.workspace.stamp(features)["key"])
    lines = {(line.stage, line.what): line for line in stage_times(project)}
    assert lines["features", "tiny/fold1"].seconds is None
    assert lines["features", "tiny/fold1"].machine is None
    assert lines["features", "tiny/fold0"].seconds is not None
    text = "\n".join(time_lines([vars(line) for line in lines.values()]))
    assert re.search(rf"\| features \| 4 \| {NOT_MEASURED} \|", text)  # a sum that lacks a part is none
    assert not re.search(rf"\| train \| 4 \| {NOT_MEASURED} \|", text)


def test_a_machine_has_no_name_of_its_own() -> None:
    import platform

    assert platform.node() not in machine_line() or not platform.node()
    assert re.search(r"\d+ cores, \d+ GB", machine_line())


# ------------------------------------------------------------------------------------------------- the pages


def test_the_pages_are_written_and_written_again(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "winning"
    for _ in range(2):
        assert [path.name for path in write_documents(opened(finished), WORDS, folder)] == list(FILES)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["winning"]
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    readme = texts["README.md"]
    assert all(f"`{name}`" in readme for name in FILES)
    assert machine_line() in readme
    assert "make archive writes it" in readme
    entry = texts["entry_points.md"]
    for command in ("make data", "make train", "make submission", "make rebuild FROM=weights", "make leaderboard"):
        assert f'{command} COMPETITION=drawn.yaml RECIPE=recipe.yaml SET="train.epochs=2 image.width=64"' in entry
    assert "make submission COMPETITION=new.yaml" in entry
    assert "Kaggle" not in entry
    settings = read_settings(folder / "SETTINGS.json")
    assert settings == Settings(work=finished / "work", submissions=finished / "submissions")
    structure = texts["directory_structure.txt"]
    assert "\n    src/\n        whaleid/\n" in structure
    assert re.search(r"\n {4}runs/ \(\d+ files, \d+\.\d MB\)\n {8}other/ \(", structure)
    assert f"torch=={version('torch')}" in texts["requirements.txt"]
    assert "\n\n\n" not in "".join(texts.values())


def test_every_figure_of_the_summary_is_the_run_s_own(finished: Path, tmp_path: Path) -> None:
    project = opened(finished)
    ablation_stage(project, 1, [])
    row = read_log(log_path(project))[-1]
    append_log(log_path(project), replace(row, public=0.12345, private=0.23456))
    write_documents(project, WORDS, tmp_path / "winning")
    append_log(log_path(project), row)
    text = (tmp_path / "winning" / "model_summary.md").read_text()
    own = list(numbers(figures_of(finished)))
    own += numbers(json.loads((project.workspace.ablation("recipe") / "ablation.json").read_text()))
    shutil.rmtree(project.workspace.ablation("recipe"))
    halves = [(one["high"] - one["low"]) / 2 for one in figures_of(finished)["ladder"]["rungs"]]
    known = {f"{abs(number):.5f}" for number in [*own, *halves, 0.12345, 0.23456]}
    found = re.findall(r"\d\.\d{5}\b", text)
    assert len(found) > 30
    assert set(found) <= known
    assert "| public leaderboard | 0.12345 |" in text
    images = pd.read_parquet(project.workspace.images)
    train = images[images["split"] == "train"]
    assert f"| labelled images | {len(train)} |" in text
    assert f"| of them without an identity | {int((train['identity'] == 'new_whale').sum())} |" in text
    assert "| off |" in text


def test_what_was_not_measured_is_said_to_be_so(finished: Path) -> None:
    figures = {**figures_of(finished)}
    figures["runs"] = dict.fromkeys(figures["runs"])
    del figures["times"]
    text = summary_text(facts_of(figures))
    for line in ("solution", "public leaderboard", "private leaderboard"):
        assert f"| {line} | {NOT_MEASURED} |" in text
    assert f"images: {NOT_MEASURED}" in text
    for stage in STAGES:
        assert f"| {stage} | 0 | {NOT_MEASURED} | {NOT_MEASURED} |" in text
    assert "`make ablation` does it" in text
    assert re.search(rf"\| tiny \| .* \| {NOT_MEASURED} \| 2 \| {NOT_MEASURED} \|", text)
    assert f"Time: {NOT_MEASURED}." in text


def made_up(scores: dict[str, float], seconds: dict[str, float]) -> Facts:
    """Figures of a recipe with two experiments."""
    rungs = [{"name": name, "map": score} for name, score in scores.items()]
    times = [
        {"stage": stage, "what": f"{name}/fold0", "seconds": half / 2, "machine": None}
        for name, half in seconds.items()
        for stage in ("train", "features")
    ]
    settings = {"experiments": [{"name": "slow"}, {"name": "slow_but_quick"}]}
    return facts_of({"ladder": {"rungs": rungs}, "settings": settings, "times": times})


def test_the_simple_model_is_the_quickest_that_is_good_enough() -> None:
    scores = {"slow": 0.85, "slow_but_quick": 0.5, "slow_but_quick logits": 0.81, "concat kNN": 0.95, "blend": 0.9}
    said = simple_lines(made_up(scores, {"slow": 100.0, "slow_but_quick": 10.0}))
    assert said == [
        "`slow_but_quick logits` alone: 0.81000 out of fold, 90.0 % of the whole ensemble's 0.90000. "
        "Time: 10.0 s of training and features, all folds together."
    ]
    assert simple_lines(made_up(scores, {"slow": 5.0, "slow_but_quick": 10.0}))[0].startswith("`slow` alone")
    assert simple_lines(made_up(scores, {}))[0].startswith("`slow` alone")  # the better, where times are not known
    weak = {"slow": 0.5, "slow_but_quick": 0.4, "blend": 0.9}
    said = simple_lines(made_up(weak, {"slow": 100.0, "slow_but_quick": 10.0}))
    assert said[0].startswith("`slow` alone: 0.50000 out of fold, 55.6 %")
    assert said[-1] == "No single network reaches 90 %: this is the best."
    assert NOT_MEASURED in simple_lines(made_up({"foreign": 0.5, "blend": 0.9}, {}))[0]


def test_a_recipe_of_foreign_features_has_no_network_of_its_own() -> None:
    figures = {"ladder": {"rungs": []}, "settings": {"experiments": []}, "runs": {}}
    assert network_lines(facts_of(figures)) == ["none of its own: the recipe combines features of others"]


def test_times_are_summed_and_machines_are_named() -> None:
    def line(stage: str, seconds: float, machine: str) -> dict[str, Any]:
        return {"stage": stage, "what": "x", "seconds": seconds, "machine": machine}

    text = "\n".join(time_lines([line("train", 7200.0, "A"), line("train", 485.0, "B"), line("images", 0.01, "A|B")]))
    assert "| train | 2 | 2 h 08 min | A; B |" in text
    assert "| images | 1 | under 0.1 s | A\\|B |" in text
    assert "| ensemble | 0 | not measured | not measured |" in text
    for seconds, said in ((59.9, "59.9 s"), (59.97, "1 min 00 s"), (245.0, "4 min 05 s"), (3599.6, "1 h 00 min")):
        assert f"| train | 1 | {said} | A |" in "\n".join(time_lines([line("train", seconds, "A")]))


def test_a_table_keeps_its_columns() -> None:
    assert table(["a", "b"], [["x|y", "z"]]) == ["| a | b |", "| --- | --- |", "| x\\|y | z |"]


names = st.text("abc.", min_size=1, max_size=3).filter(lambda name: name.strip("."))


@given(st.sets(st.lists(names, min_size=1, max_size=4).map("/".join), max_size=12))
def test_a_tree_holds_every_file_once(paths: set[str]) -> None:
    """Read back, line by line, a tree gives the paths that it was made of."""
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    files = sorted(path for path in paths if path not in folders)
    read, above = [], []
    for line in tree_lines(files):
        depth = (len(line) - len(line.lstrip(" "))) // 4 - 1
        above = above[:depth]
        if line.endswith("/"):
            above.append(line.strip().rstrip("/"))
        else:
            read.append("/".join([*above, line.strip()]))
    assert sorted(read) == files
    folder_lines = [line for line in tree_lines(files) if line.endswith("/")]
    assert len(folder_lines) == len({str(one) for path in files for one in PurePosixPath(path).parents} - {"."})


def test_without_git_the_code_is_what_lies_there(finished: Path, tmp_path: Path) -> None:
    for name in ("src/a.py", "src/__pycache__/a.pyc", ".venv/x", "work/big", "data/image.jpg", "README.md", ".hidden"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    folders = Settings(tmp_path / "data", tmp_path / "work", tmp_path / "weights", tmp_path / "submissions")
    project = replace(opened(finished), settings=folders)
    assert code_files(tmp_path, project) == ["README.md", "src/a.py"]
    if shutil.which("git"):
        for words in (["init", "-q"], ["add", "src/a.py"]):
            subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
        assert code_files(tmp_path, project) == ["src/a.py"]


def test_requirements_are_what_is_installed(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    text = (
        f"# comment\nnumpy=={version('numpy')}\npandas==0.1  # old\nno-such-package==1\nsix==1; python_version < '3'\n"
    )
    path.write_text(text)
    assert requirements_text(path).splitlines() == [
        f"numpy=={version('numpy')}",
        f"pandas=={version('pandas')}  # the repository's has pandas==0.1",
        "# no-such-package==1  (not installed where this was written)",
    ]
    path.write_text("numpy\n???\n")
    with pytest.raises(WhaleidError, match="line 2 is no requirement"):
        requirements_text(path)
    with pytest.raises(WhaleidError, match="not found"):
        requirements_text(tmp_path / "none.txt")


# ------------------------------------------------------------------------------------------------- refusals


def test_a_folder_with_anything_else_is_left_alone(finished: Path, tmp_path: Path) -> None:
    project = opened(finished)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    for name, said in (("full", "holds thesis.tex"), ("file", "is not a folder"), ("link", "is not a folder")):
        with pytest.raises(WhaleidError, match=said):
            write_documents(project, WORDS, tmp_path / name)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"


def test_without_results_or_with_others_it_says_what_to_do(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(WhaleidError, match="run make leaderboard to bring it up to date"):
        write_documents(opened(finished, ["train.epochs=3"]), WORDS, tmp_path / "winning")
    empty = replace(opened(finished), workspace=pipeline.Workspace(tmp_path / "work" / "drawn"))
    with pytest.raises(WhaleidError, match="has no results for drawn"):
        write_documents(empty, WORDS, tmp_path / "winning")
    assert not (tmp_path / "winning").exists()


def test_from_the_command_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    options = ["-c", "drawn.yaml", "-r", "recipe.yaml", "-w", "work"]
    monkeypatch.setattr(sys, "argv", ["whaleid", "winning-docs", *options, "--to", str(tmp_path / "pages")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "pages" / name) for name in FILES]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("")
    assert "holds x" in refused(monkeypatch, capsys, ["winning-docs", *options, "--to", str(tmp_path / "other")])


def test_a_record_of_another_answer_is_not_taken(finished: Path, tmp_path: Path) -> None:
    project = replace(opened(finished), settings=Settings(submissions=tmp_path))
    append_log(
        tmp_path / "log.csv",
        SubmissionRecord(file="drawn_recipe_x.csv", competition="drawn", recipe="recipe", public=0.77777),
    )
    write_documents(project, WORDS, tmp_path / "winning")
    assert "0.77777" not in (tmp_path / "winning" / "model_summary.md").read_text()
