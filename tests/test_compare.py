"""`whaleid compare`: scores and paired differences are the ladder's, settings that differ, the page, and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from browser import WHERE, Browser, browser
from test_report import SOURCE, SUMMARY, Page, make_project

from whaleid.config import Answer
from whaleid.evaluation import one_or_unknown as one_or_unknown_form
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run
from whaleid.pipeline.workspace import Workspace
from whaleid.report.compare import (
    ABSENT,
    answer_difference,
    compare_entries,
    comparison_lines,
    difference,
    differing,
    setting_text,
    write_comparison,
)
from whaleid.report.entries import Ranks, mean_curve, read_entries
from whaleid.report.page import write_report
from whaleid.report.places import report_file
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import read_json, write_json

NET = {"name": "net", "head": {"name": "arcface", "margin": 0.3}, "train": {"lr": 0.1}}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The results of two recipes, `own` and `plain`, of which the first has a run `net/fold0`."""
    made = make_project(tmp_path_factory.mktemp("compared"))
    run(made, "ladder")
    combine = made.recipe.combine.model_copy(update={"candidates": 20, "rescore": None})
    run(replace(made, recipe=made.recipe.model_copy(update={"name": "plain", "combine": combine})), "ladder")
    add_run(made.workspace)
    return made


def add_run(workspace: Workspace) -> None:
    """A run of the foreign features' network, as if it had been trained here."""
    folder = workspace.run("net", 0)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(NET))
    losses = [json.dumps({"kind": "epoch", "step": 9, "epoch": 1 + at, "loss": 3.0 - at}) for at in range(2)]
    (folder / "log.jsonl").write_text("\n".join(losses))
    summary = SUMMARY | {"experiment": "net"}
    workspace.mark_current(folder, "key", summary=summary)
    metrics = read_json(workspace.metrics)
    figures = metrics["own"]
    figures["runs"], figures["settings"]["experiments"] = {"net/fold0": summary, "net/fold1": None}, [NET]
    figures["ladder"]["rungs"][0]["source"] = "net"
    write_json(workspace.metrics, metrics)


def entries_of(project: Project, *names: str) -> Any:
    return read_entries(list(names), project.competition, project.workspace)


def rungs_of(project: Project, recipe: str = "own") -> list[dict[str, Any]]:
    return read_json(project.workspace.metrics)[recipe]["ladder"]["rungs"]


# -------------------------------------------------------------------------------------------------------- scores


def test_ranks_of_every_ranker_give_the_ladders_score(project: Project) -> None:
    rungs = rungs_of(project)
    assert len(rungs) > 1
    names = [f"own:{rung['name']}" for rung in rungs]
    for entry, rung in zip(entries_of(project, *names), rungs, strict=True):
        scores = np.where(entry.ranks.ranks > 0, 1 / np.maximum(entry.ranks.ranks, 1), 0)
        assert np.average(scores, weights=entry.ranks.weights) == pytest.approx(rung["map"], abs=1e-12)
        assert (entry.score.map, entry.score.low, entry.score.high) == (rung["map"], rung["low"], rung["high"])
        assert entry.ranks.images == 28 and len(entry.ranks.queries) == rung["queries"] > 28


def test_the_difference_from_the_best_single_is_the_ladders_gain(project: Project) -> None:
    rungs = rungs_of(project)
    best = next(rung["name"] for rung in rungs if rung["gain"] is None)
    others = [rung for rung in rungs if rung["gain"] is not None]
    names = [f"own:{best}", *(f"own:{rung['name']}" for rung in others)]
    found = compare_entries(names, project.competition, project.workspace)
    for place, rung in enumerate(others, start=1):
        gain = found.differences[0, place].gain
        assert gain.gain == pytest.approx(rung["gain"]["gain"], abs=1e-12)
        assert gain.low <= gain.gain <= gain.high


def ranks(queries: str, truth: str, found: list[int], unknown: str | None = None, share: float | None = None) -> Ranks:
    folds = np.zeros(len(queries), int)
    return Ranks(np.array(list(queries)), folds, np.array(truth.split()), np.array(found), 5, unknown, share)


def test_a_difference_is_that_of_queries_with_one_answer_in_both() -> None:
    first = ranks("abcd", "x y z x", [1, 2, 0, 3])
    second = ranks("edcba", "x y z w x", [1, 1, 4, 1, 2])  # d and b have other answers
    found = difference(first, second)
    assert found is not None and found.queries == 2
    assert found.gain.gain == pytest.approx(((1 / 2 - 1) + (1 / 4 - 0)) / 2)
    assert difference(first, ranks("ef", "x y", [1, 1])) is None
    assert difference(first, None) is None


def test_unknown_queries_are_weighted_to_their_share() -> None:
    first = ranks("abcd", "x y new new", [1, 1, 0, 0], "new", 0.2)
    second = ranks("abcd", "x y new new", [1, 2, 1, 1], "new", 0.2)
    found = difference(first, second)
    assert found is not None
    assert found.gain.gain == pytest.approx(0.8 * (-1 / 2) / 2 + 0.2 * 1)


def test_a_run_is_scored_on_the_fold_that_it_did_not_see(project: Project) -> None:
    whole, one = entries_of(project, "own:" + SOURCE, "net/fold0")
    assert set(one.ranks.folds) == {0} and one.ranks.images == (whole.ranks.only(whole.ranks.folds == 0)).images
    kept = whole.ranks.folds == 0
    assert one.ranks.ranks.tolist() == whole.ranks.ranks[kept].tolist()
    assert one.score.low <= one.score.map <= one.score.high
    assert one.curves == {"arcface": {"net": [(1, 3.0), (2, 2.0)]}}
    assert (one.seconds, one.rate) == (20.0, 20.0)


def test_curves_are_averaged_over_runs_by_epoch() -> None:
    assert mean_curve([[(1, 4.0), (2, 2.0)], [(1, 2.0)]]) == [(1, 3.0), (2, 2.0)]
    assert mean_curve([[], []]) == []


# ------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ([1, 1], {}),
        ([{"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}], {"b.c": [2, 3]}),
        ([{"a": None}, {"a": {"x": 1}}], {"a": [None, {"x": 1}]}),
        ([{"a": 1}, {}, {"a": 1}], {"a": [1, ABSENT, 1]}),
        ([{"a": [1]}, {"a": [1]}, {"a": [2]}], {"a": [[1], [1], [2]]}),
    ],
)
def test_keys_that_differ(values: list[Any], rows: dict[str, list[Any]]) -> None:
    assert differing(values) == rows


def test_settings_as_text() -> None:
    shown = [setting_text(value) for value in (ABSENT, None, 0.5, "a", ["a", 1], [], {"x": 1})]
    assert shown == ["", "null", "0.5", "a", "a, 1", "[]", '{"x": 1}']


def test_settings_that_differ_are_those_of_the_recipes(project: Project) -> None:
    found = compare_entries(["own", "plain"], project.competition, project.workspace)
    assert found.settings == {"combine.rescore": [50, None], "combine.candidates": [50, 20]}
    run_alone = compare_entries(["own", "net/fold0"], project.competition, project.workspace)
    assert run_alone.settings == {}  # the run's experiment is the recipe's


# ------------------------------------------------------------------------------------------------ text and page


def test_the_text_names_the_best_first_and_the_page(project: Project) -> None:
    found = compare_entries(["own", "plain", "net/fold0"], project.competition, project.workspace)
    lines = comparison_lines(found)
    maps = [float(line.split("[")[0].split()[-1]) for line in lines[1:4]]
    assert maps == sorted(maps, reverse=True)
    assert "differences from own" in lines[4]
    assert any(line.split() == ["combine.candidates", "50", "20"] for line in lines)
    path = report_file(project.workspace, "compare", ["own", "own:" + SOURCE, "../x/own"], ".html")
    assert path.parent == project.workspace.root / "report" and path.name == "compare-own-own-net-b-amp-x-own.html"
    assert len(report_file(project.workspace, "compare", ["long" * 99], ".html").name) < 100


@pytest.fixture(scope="module")
def page(project: Project) -> Path:
    names = ["own", "plain", f"own:{SOURCE}", "net/fold0"]
    found = compare_entries(names, project.competition, project.workspace)
    path = project.workspace.root / "report" / "compare.html"
    write_comparison(found, project.competition, path)
    return path


def test_the_page_is_one_file(page: Path) -> None:
    content = page.read_text()
    parsed = Page(content)
    assert not parsed.images and not parsed.links and not parsed.open
    assert parsed.charts == ["loss arcface"]
    (chart,) = parsed.data["charts"].values()
    assert [line["name"] for line in chart["series"]] == ["own", f"own:{SOURCE}", "net/fold0"]
    assert "net <b>" not in content.split("<script")[0]
    assert "://" not in content.replace("http://www.w3.org", "")


@pytest.mark.skipif(WHERE is None, reason="Debian's chromium-driver is not installed")
def test_a_click_on_a_column_sorts_by_it(page: Path) -> None:
    for window in opened(page):
        names = "return [...document.querySelectorAll('.sortable tbody tr')].map((row) => row.cells[0].textContent)"
        values = "return [...document.querySelectorAll('.sortable tbody tr')].map((row) => row.cells[1].dataset.value)"
        first = window.run(names)
        click = "document.querySelectorAll('.sortable .sort')[1].click()"
        window.run(click)
        down = [float(value) for value in window.run(values)]
        window.run(click)
        up = [float(value) for value in window.run(values)]
        assert down == sorted(down, reverse=True) and up == sorted(up)
        assert sorted(window.run(names)) == sorted(first)
        assert window.run("return document.querySelectorAll('svg polyline').length") == 3
        assert not window.console()


def opened(page: Path) -> Iterator[Browser]:
    with browser() as window:
        window.open(page)
        yield window


# ------------------------------------------------------------------------------------------ other forms of answer


@pytest.fixture(scope="module")
def one_or_unknown(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The results of two recipes, `own` and `plain`, of a competition with a metric of its own."""
    made = make_project(tmp_path_factory.mktemp("formed"))
    changes = {"answer": Answer(form="one_or_unknown"), "k": 1, "solution": None}
    made = replace(made, competition=made.competition.model_copy(update=changes))
    run(made, "ladder")
    shutil.copytree(made.workspace.candidates("own"), made.workspace.candidates("plain"))
    metrics = read_json(made.workspace.metrics)
    plain = json.loads(json.dumps(metrics["own"])) | {"recipe": "plain"}
    plain["ladder"]["answer"] |= {"value": 0.875, "low": 0.75, "high": 1.0}
    path = made.workspace.candidates("plain") / "outcomes.parquet"
    pd.read_parquet(path).assign(answer=lambda table: table["unknown"]).iloc[::-1].to_parquet(path)
    write_json(made.workspace.metrics, metrics | {"plain": plain})
    return made


def test_recipes_are_compared_by_the_competitions_metric(one_or_unknown: Project) -> None:
    place = one_or_unknown.competition, one_or_unknown.workspace
    found = compare_entries(["plain", "own", f"own:{SOURCE}"], *place)
    figures = read_json(one_or_unknown.workspace.metrics)
    answers = {name: figures[name]["ladder"]["answer"] for name in ("plain", "own")}
    assert found.metrics == ["sqrt(BAKS x BAUS)"] and found.entries[2].answer is None
    # `plain` calls all unknown: no known identity is found, and its score is 0
    (difference,) = found.answers.values()
    assert list(found.answers) == [(0, 1)] and difference.gain.gain == pytest.approx(answers["own"]["value"], abs=1e-9)
    assert 0 <= difference.gain.low < difference.gain.gain < difference.gain.high
    assert difference.queries == answers["own"]["queries"]
    lines = comparison_lines(found)
    assert "sqrt(BAKS x BAUS) (out of fold)" in lines[0] and "difference in sqrt(BAKS x BAUS)" in lines[0]
    assert sum(str(difference.gain) in line for line in lines) == 1
    best_first = sorted(answers, key=lambda name: -answers[name]["value"])
    for name, line in zip(best_first, lines[1:3], strict=True):
        own = answers[name]
        assert line.split()[0] == name
        assert f"{own['value']:.5f} [{own['low']:.4f}, {own['high']:.4f}]" in line
    assert (0, 1) in found.differences  # the ladder's paired difference stays beside it
    path = one_or_unknown.workspace.root / "report" / "compare.html"
    write_comparison(found, one_or_unknown.competition, path)
    content = path.read_text()
    assert not Page(content).open
    assert all(f'<td data-value="{own["value"]}">{own["value"]:.5f}</td>' in content for own in answers.values())
    assert content.count(f'<td data-value="{difference.gain.gain}">{difference.gain.gain:+.5f}</td>') == 1
    backwards = f"{-difference.gain.gain:+.4f} [{-difference.gain.high:+.4f}, {-difference.gain.low:+.4f}]"
    assert backwards in content and content.count("Difference of the row from the column in") == 2
    assert f">{found.differences[0, 1].gain.gain:+.5f}</td>" in content


def test_answers_are_compared_on_rows_of_one_name_and_one_truth(one_or_unknown: Project) -> None:
    own, _ = compare_entries(["own", "plain"], one_or_unknown.competition, one_or_unknown.workspace).entries
    outcomes = own.outcomes
    assert outcomes is not None
    other = replace(own, outcomes=outcomes.iloc[5:].assign(answer="wrong"))
    found = answer_difference("one_or_unknown", own, other)
    assert found is not None and found.queries == len(outcomes) - 5
    expected = one_or_unknown_form.evaluate(outcomes.iloc[5:]).value
    assert found.gain.gain == pytest.approx(-expected)
    elsewhere = replace(own, outcomes=outcomes.assign(truth=outcomes["truth"] + "?"))
    assert answer_difference("one_or_unknown", own, elsewhere) is None
    assert answer_difference("one_or_unknown", own, replace(own, outcomes=None)) is None


def test_the_report_begins_with_the_competitions_metric(one_or_unknown: Project) -> None:
    answer = read_json(one_or_unknown.workspace.metrics)["own"]["ladder"]["answer"]
    content = write_report(one_or_unknown).read_text()
    spread = (answer["high"] - answer["low"]) / 2
    assert f"<b>{answer['value']:.5f} ± {spread:.5f}</b>sqrt(BAKS x BAUS), out of fold" in content
    assert content.index("sqrt(BAKS x BAUS), out") < content.index("MAP@1, out of fold")


# ----------------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_compared_is_one_line(project: Project) -> None:
    for names, said in (
        (["own"], r"compare: 1 given \(own\); name two or more, each once"),
        (["own", "own"], "name two or more, each once"),
        (["own", "gold"], "'gold' was not run in .*; recipes with results: own, plain; runs: net/fold0$"),
        (["own", "own:bed"], r"recipe own has no ranker 'bed'; it has: net <b>&amp;, "),
        (["own", "net/fold7"], "'net/fold7' was not run"),
    ):
        with pytest.raises(WhaleidError, match=said) as found:
            entries_of(project, *names)
        assert "\n" not in str(found.value)


def test_results_of_another_competition_or_of_other_folds_are_refused(project: Project, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "lions")
    shutil.copytree(project.workspace.root, other.root)
    name = f"{other.root}/own"
    assert [entry.name for entry in entries_of(project, "own", name)] == ["own", name]
    folds = other.folds.read_text()
    swapped = folds.replace(",0\n", ",2\n").replace(",1\n", ",0\n").replace(",2\n", ",1\n")
    other.folds.write_text(swapped)
    with pytest.raises(WhaleidError, match=r"ranked on other folds than those of .*folds\.csv; run whaleid ensemble"):
        entries_of(project, "own", name)
    other.folds.write_text(folds)
    metrics = read_json(other.metrics)
    metrics["own"]["competition"] = "lions"
    write_json(other.metrics, metrics)
    with pytest.raises(WhaleidError, match="holds results of the competition lions, not of tiny; only results of one"):
        entries_of(project, "own", name)
