"""The report of a small work folder whose results come from the real stages on features made by the test."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from whaleid.config import Competition, Recipe
from whaleid.pipeline.metrics import read_metrics
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run
from whaleid.pipeline.workspace import Workspace, read_images
from whaleid.report.examples import Example, Guess, add_gallery_images, choose_examples
from whaleid.report.inputs import TopGuesses, read_results
from whaleid.report.page import templates, write_report
from whaleid.report.queries import MOST_VALUES, command_options, filter_columns
from whaleid.report.thumbnails import MOST_BYTES, fit_size
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import write_json

UNKNOWN = "new</script>"
SOURCE = "net <b>&amp;"
SOUTH = 'south "</select>'
SUMMARY = {
    "experiment": "lite<0>",
    "fold": 0,
    "epochs": 2,
    "images": 400,
    "classes": 7,
    "loss": 1.25,
    "seconds": 20.0,
    "device": "cpu",
    "precision": "no",
}


def make_project(root: Path, unknown: str | None = UNKNOWN) -> Project:
    """A competition of 36 drawn images of 8 identities, two folds, and features of one foreign model."""
    rng = np.random.default_rng(0)
    labels = [f"w&{number}" for number in range(8) for _ in range(3)] + [unknown or "w&8"] * 4
    truth = [f"w&{number}" for number in range(8)]
    names = [f"{number:02d}&.png" for number in range(len(labels) + len(truth))]
    for name in names:
        folder = root / "data" / ("train" if name in names[: len(labels)] else "test")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(folder / name)
    train, test = names[: len(labels)], names[len(labels) :]
    cameras = [("north", SOUTH, "")[number % 3] for number in range(len(train))]
    pd.DataFrame({"Image": train, "Id": labels, "Cam": cameras}).to_csv(root / "data" / "train.csv", index=False)
    pd.DataFrame({"Image": test, "Id": ""}).to_csv(root / "data" / "test.csv", index=False)
    pd.DataFrame({"Image": test, "Id": truth}).to_csv(root / "data" / "solution.csv", index=False)
    write_features(root / "features", names, [*labels, *truth], rng)
    competition = Competition.model_validate(
        {
            "name": "tiny",
            "root": root / "data",
            "train": {
                "csv": "train.csv",
                "images": "train",
                "image": "Image",
                "identity": "Id",
                "extra": {"camera": "Cam"},
            },
            "test": {"csv": "test.csv", "images": "test", "image": "Image"},
            "unknown": unknown,
            "unknown_share": 0.25 if unknown else None,
            "solution": "solution.csv",
        }
    )
    recipe = Recipe.model_validate(
        {
            "name": "own",
            "folds": 2,
            "sources": {SOURCE: str(root / "features")},
            "combine": {"classifier": None, "concat": {"whiten": None}},
        }
    )
    return Project(competition, recipe, (), Workspace(root / "work" / "tiny"))


def write_features(folder: Path, names: list[str], labels: list[str], rng: np.random.Generator) -> None:
    prototypes = {label: rng.normal(size=12) for label in sorted(set(labels))}
    for fold in range(2):
        out = folder / f"fold{fold}"
        out.mkdir(parents=True)
        rows = [prototypes[label] + 0.8 * rng.normal(size=12) for label in labels]
        np.save(out / "embeddings.npy", np.array(rows, dtype=np.float32))
        pd.DataFrame({"image": names}).to_csv(out / "rows.csv", index=False)


def shared_project(factory: pytest.TempPathFactory, unknown: str | None = UNKNOWN) -> Project:
    """A project whose ladder is made, one for all tests of this process: they may change nothing but its report."""
    return _finished(factory.getbasetemp() / f"report {unknown is None}", unknown)


@cache
def _finished(root: Path, unknown: str | None) -> Project:
    made = make_project(root, unknown)
    run(made, "ladder")
    return made


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return shared_project(tmp_path_factory)


@pytest.fixture(scope="module")
def page(project: Project) -> str:
    return write_report(project).read_text()


class Page(HTMLParser):
    """Collects the images, links, charts and data of a page, and checks that every opened element is closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.charts: list[str] = []
        self.data: dict[str, Any] = {}
        self.in_data = False
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors += [given["id"] or ""] if "id" in given else []
        if tag == "img":
            self.images.append(given["src"] or "")
        if tag == "a":
            self.links.append(given["href"] or "")
        if "data-chart" in given:
            self.charts.append(given["data-chart"] or "")
        self.in_data = given.get("id") == "data"
        if tag not in ("img", "meta", "br", "input"):
            self.open.append(tag)

    def handle_data(self, data: str) -> None:
        if self.in_data:
            self.data = json.loads(data)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.in_data = False


# ---------------------------------------------------------------------------------------------------- the page


def test_page_stands_by_itself(project: Project, page: str) -> None:
    folder = project.workspace.report("own")
    parsed = Page(page)
    assert not parsed.open
    queries = parsed.data["queries"]
    pictures = {row for row in [*queries["row"], *queries["pictures"]] if row >= 0}
    paths = {image for image in parsed.images if image.startswith("images/")}
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == {"index.html", *parsed.images, *(f"images/{row}.webp" for row in pictures)}
    assert paths and set(queries["names"]) == {str(row) for row in pictures}
    assert all(link.removeprefix("#") in parsed.anchors for link in parsed.links)
    assert set(parsed.data["charts"]) | {"map", "rejection"} == set(parsed.charts)
    assert all((folder / name).stat().st_size <= MOST_BYTES for name in written if name.endswith(".webp"))
    assert "http" not in page and page.count("<script") == 2
    assert [path.name for path in folder.parent.iterdir()] == ["own"]  # no temporary is left


def test_cards_are_filtered_by_further_columns(project: Project, page: str) -> None:
    column = Page(page).data["queries"]["columns"]["camera"]
    assert column["values"] == ["north", SOUTH] and SOUTH not in page.split("<script")[0]
    assert column["codes"] == [(0, 1, -1)[row % 3] for row in read_results(project).final.rows]
    images = pd.DataFrame(
        {
            "image": list("abc"),
            "one": ["x"] * 3,
            "many": [f"{number}" for number in range(3)],
            "none": [None] * 3,
        }
    )
    assert filter_columns(images, [2, 0]) == {"many": {"values": ["0", "2"], "codes": [1, 0]}}
    many = pd.DataFrame({"many": [str(number) for number in range(MOST_VALUES + 1)]})
    assert filter_columns(many, list(range(MOST_VALUES + 1))) == {}


def test_the_ablation_is_shown_where_it_was_measured(project: Project, page: str, tmp_path: Path) -> None:
    assert "What each part adds" not in page
    moved = with_runs(project, tmp_path)
    final = read_results(project).rankers[-1]
    whole = {"off": "nothing", "map": final["map"], "k": 5, "low": 0.1, "high": 0.9, "solution": None, "change": None}
    gain = {"gain": -0.125, "low": -0.25, "high": -0.0625}
    rows = [whole, whole | {"off": "whitening <i>", "map": final["map"] - 0.125, "change": gain}]
    path = moved.workspace.ablation("own") / "ablation.json"
    write_json(path, rows)
    shown = write_report(moved).read_text()
    assert "whitening &lt;i&gt;" in shown and "-0.12500 [-0.2500, -0.0625]" in shown
    assert "run <code>whaleid ablation</code> again" not in shown
    write_json(path, [whole | {"map": 0.0}])
    assert "run <code>whaleid ablation</code> again" in write_report(moved).read_text()


def test_labels_are_escaped(page: str) -> None:
    """`</script>` in a label ends no script: what stands in the page's data is the label itself."""
    assert UNKNOWN not in page and SOURCE not in page and "w&0" not in page
    assert "new&lt;/script&gt;" in page and "net &lt;b&gt;&amp;amp;" in page and "w&amp;0" in page
    queries = Page(page).data["queries"]
    assert queries["unknown"] == UNKNOWN and queries["identities"] == [f"w&{number}" for number in range(8)]


def test_figures_are_those_of_the_ladder(project: Project, page: str) -> None:
    results = read_results(project)
    for ranker in results.rankers:
        interval = f"{ranker['low']:.4f} to {ranker['high']:.4f}"
        assert f'<td data-label="MAP@5">{ranker["map"]:.5f}<small>{interval}</small></td>' in page
        assert f'<td data-label="solution">{results.solution[ranker["name"]].map:.5f}</td>' in page
    final = results.rankers[-1]
    assert f"<b>{final['map']:.5f} ± {(final['high'] - final['low']) / 2:.5f}</b>MAP@5, out of fold" in page
    assert "<b>28</b>labelled images" in page and "<b>8</b>identities" in page and "<b>8</b>test images" in page
    assert f"<td>{final['unknown']['used']:.4f}</td>" in page
    assert "out of date" not in page


def test_a_line_of_the_terminal_becomes_a_sentence_with_code() -> None:
    shown = templates().from_string("{{ line | sentence }}").render(line="name it as `group <b>`; then < again")
    assert shown == "Name it as <code>group &lt;b&gt;</code>; then &lt; again."


def test_commands_of_cards_name_what_the_user_named(project: Project, tmp_path: Path) -> None:
    """YAMLs of the user by their likely names, shipped ones by their own, the recipe that `auto` wrote by its path."""
    assert command_options(project) == "-c tiny.yaml -r own.yaml"
    shipped = project.competition.model_copy(update={"name": "sample"})
    written = Workspace(tmp_path / "a place")
    assert command_options(replace(project, competition=shipped, workspace=written)) == "-c sample -r own.yaml"
    (written.root / "recipes").mkdir(parents=True)
    (written.root / "recipes" / "own.yaml").touch()
    path = f"{written.root.as_posix()}/recipes/own.yaml"
    assert command_options(replace(project, workspace=written)) == f"-c tiny.yaml -r '{path}'"


def test_foreign_features_have_no_runs(page: str) -> None:
    assert "trained elsewhere: net" in page and "trains nothing" in page


def test_runs_are_shown_with_their_curves(project: Project, tmp_path: Path) -> None:
    moved = with_runs(project, tmp_path)
    folder = moved.workspace.run("lite<0>", 0)
    folder.mkdir(parents=True)
    lines = [{"kind": "epoch", "epoch": epoch, "loss": 3.0 / epoch} for epoch in (1, 2)]
    lines.insert(1, {"kind": "step", "epoch": 1, "loss": 9.0})
    (folder / "log.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    page = write_report(moved).read_text()
    assert "<td>lite&lt;0&gt;/fold0</td><td>2</td><td>400</td><td>7</td><td>1.2500</td><td>20</td><td>20.0</td>" in page
    (curve,) = Page(page).data["charts"]["loss lite<0>"]["series"]
    assert curve["name"] == "fold 0" and curve["points"] == [[1, 3], [2, 1.5]]


def test_runs_without_logs(project: Project, tmp_path: Path) -> None:
    page = write_report(with_runs(project, tmp_path)).read_text()
    assert "logs are not in the work folder" in page and "loss lite" not in page


def test_broken_log_is_named(project: Project, tmp_path: Path) -> None:
    moved = with_runs(project, tmp_path)
    moved.workspace.run("lite<0>", 0).mkdir(parents=True)
    (moved.workspace.run("lite<0>", 0) / "log.jsonl").write_text('{"kind": "epo')
    with pytest.raises(WhaleidError, match=r"log\.jsonl: not readable"):
        write_report(moved)
    assert not moved.workspace.report("own").exists()


def with_runs(project: Project, root: Path) -> Project:
    """A copy of the work folder whose figures name one run."""
    workspace = Workspace(root / "tiny")
    shutil.copytree(project.workspace.root, workspace.root, ignore=shutil.ignore_patterns("report"))
    moved = replace(project, workspace=workspace)
    figures = read_metrics(project)
    figures["own"]["runs"] = {"lite<0>/fold0": SUMMARY, "lite<0>/fold1": None}
    write_json(workspace.metrics, figures)
    return moved


def test_without_results_it_says_what_to_do(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    with pytest.raises(WhaleidError, match="run `make ensemble` first"):
        write_report(project)
    run(project, "images")
    with pytest.raises(WhaleidError, match="run `make ensemble` first"):
        write_report(project)


def test_other_settings_are_noticed(project: Project) -> None:
    other = replace(project, recipe=project.recipe.model_copy(update={"seed": 5}))
    assert "out of date" in write_report(other).read_text()


def test_other_folds_are_refused(project: Project, tmp_path: Path) -> None:
    moved = with_runs(project, tmp_path)
    folds = pd.read_csv(moved.workspace.folds)
    folds.loc[folds["fold"] == 0, "fold"] = 2
    folds.to_csv(moved.workspace.folds, index=False)
    only = replace(moved, recipe=moved.recipe.model_copy(update={"train_folds": [1]}))
    with pytest.raises(WhaleidError, match=r"oof\.parquet: its queries are not the images of folds\.csv"):
        write_report(only)


def test_no_unknown_label(tmp_path_factory: pytest.TempPathFactory) -> None:
    project = shared_project(tmp_path_factory, unknown=None)
    page = write_report(project).read_text()
    assert "no unknown label" in page and "called unknown" not in page
    assert "scores" not in Page(page).data["charts"]


def test_without_test_images_and_expected_share_nothing_is_told_of_them(tmp_path: Path, page: str) -> None:
    told = (
        "first guesses that are unknown, test",
        "used on the test",
    )
    assert all(part in page for part in told)
    made = make_project(tmp_path)
    alone = made.competition.model_copy(update={"test": None, "solution": None, "unknown_share": None})
    project = replace(made, competition=alone)
    run(project, "images")
    for folder in (tmp_path / "features").iterdir():
        rows = pd.read_csv(folder / "rows.csv", dtype=str)
        kept = rows["image"].isin(read_images(project.workspace)["image"])
        np.save(folder / "embeddings.npy", np.load(folder / "embeddings.npy")[kept])
        rows[kept].to_csv(folder / "rows.csv", index=False)
    run(project, "ladder")
    page = write_report(project).read_text()
    assert not any(part in page for part in told) and "The competition has no test images." in page
    assert "unknown queries called unknown, out of fold" in page and "threshold fitted on all folds" in page


# ---------------------------------------------------------------------------------------------------- examples


def top_guesses(first: list[str], truth: list[str], best: list[float], known: list[bool]) -> TopGuesses:
    count = len(first)
    guesses = np.array([[name, "z", ""] for name in first])
    pairs = zip(first, best, strict=True)
    scores = np.array([[0.5 if name == UNKNOWN else score, 0.0, np.nan] for name, score in pairs])
    return TopGuesses(
        rows=np.arange(count) + 10,
        folds=np.zeros(count, int),
        truth=np.array(truth),
        sizes=np.array(known, int),
        simulated=np.zeros(count, bool),
        guesses=guesses,
        scores=scores.astype(np.float32),
        best=np.array(best, np.float32),
    )


def test_choose_takes_the_surest_of_each_kind() -> None:
    given = top_guesses(
        first=["a", "a", "b", "b", UNKNOWN, UNKNOWN, UNKNOWN, "a"],
        truth=["a", "a", "a", UNKNOWN, "a", "b", UNKNOWN, "a"],
        best=[0.6, 0.9, 0.7, 0.8, 0.4, 0.1, 0.0, 0.7],
        known=[True, True, True, False, True, True, False, True],
    )
    chosen = choose_examples(given, UNKNOWN, count=2)
    rows = {kind: [example.row for example in examples] for kind, examples in chosen.items()}
    assert rows == {"right": [11, 17], "wrong": [13, 12], "missed": [15, 14]}
    assert [guess.identity for guess in chosen["right"][0].guesses] == ["a", "z"]  # no empty guess
    assert [guess.right for guess in chosen["right"][0].guesses] == [True, False]


def test_unanswerable_queries_are_not_called_wrong() -> None:
    given = top_guesses(["a", "b"], ["", "a"], [0.9, 0.5], [False, True])
    assert [example.row for example in choose_examples(given, None)["wrong"]] == [11]


def test_nearest_gallery_image_is_shown(project: Project) -> None:
    """Against all cosines of the query with the identity's images, from the features' own files."""
    results = read_results(project)
    folders = {fold: Path(project.recipe.sources[SOURCE]) / f"fold{fold}" for fold in (0, 1)}
    images, part = results.images, results.protocol.parts[1]
    query, identity = int(part.rows[0]), str(results.protocol.classes[part.gallery_codes[0]])
    example = Example(query, 1, identity, (Guess(identity, 1.0, True), Guess(UNKNOWN, 0.0, False)))
    found = add_gallery_images([example], results.protocol, images, folders)[0]

    names = pd.read_csv(folders[1] / "rows.csv")["image"].tolist()
    vectors = np.load(folders[1] / "embeddings.npy")[[names.index(name) for name in images["image"]]]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    fold_of = results.folds.set_index("image")["fold"]
    own = [row for row in range(len(images)) if images["identity"].iloc[row] == identity]
    gallery = [row for row in own if fold_of[images["image"].iloc[row]] != 1]
    assert found.guesses[0].row == max(gallery, key=lambda row: vectors[row] @ vectors[query])
    assert found.guesses[1].row is None
    assert found.rows == {query, found.guesses[0].row}
    without = add_gallery_images([example], results.protocol, images, {})[0]
    assert without.guesses[0].row in gallery


def test_best_score_is_of_an_identity(project: Project) -> None:
    """From oof.parquet read plainly: the highest score of a query that is not that of unknown."""
    results = read_results(project)
    long = pd.read_parquet(project.workspace.candidates("own") / "oof.parquet")
    long = long[(long["source"] == "blend") & (long["identity"] != UNKNOWN)]
    best = long.groupby(long["query"].astype(str))["score"].max()
    names = results.images["image"].iloc[results.final.rows]
    assert np.allclose(results.final.best, best[names].to_numpy())


# ------------------------------------------------------------------------------------------------ small pieces


def test_text_is_readable_on_light_and_on_dark() -> None:
    """Contrast of text and background by WCAG 2: at least 4.5, its level AA."""

    def light(colour: str) -> float:
        short = colour.lstrip("#")
        digits = short if len(short) == 6 else "".join(sign * 2 for sign in short)
        channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    style = templates().get_template("style.css").render()
    themes = [dict(re.findall(r"--(\w+): (#[0-9a-f]+)", part)) for part in style.split("prefers-color-scheme: dark")]
    assert len(themes) == 2 and themes[0].keys() == themes[1].keys()
    for theme in themes:
        for ink, grounds in (
            ("ink", ("paper", "soft", "note")),
            ("quiet", ("paper", "soft")),
            ("link", ("paper",)),
            ("right", ("soft",)),
            ("wrong", ("soft",)),
            *((line, ("paper",)) for line in ("bar", "warm", "sage", "plum", "gold", "steel")),
        ):
            for ground in grounds:
                low, high = sorted((light(theme[ink]), light(theme[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
    assert light(themes[0]["paper"]) > 0.9 and light(themes[1]["paper"]) < 0.05
    assert set(re.findall(r"var\(--(\w+)\)", style)) == themes[0].keys() | {"aspect"}


def test_thumbnails_keep_the_aspect_and_fit() -> None:
    assert fit_size(np.array([0, 0, 440, 100])) == (220, 50)
    assert fit_size(np.array([10, 0, 20, 100])) == (18, 180)
