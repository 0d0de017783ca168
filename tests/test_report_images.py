"""The report's matched keypoints, paths, curves and bars, on drawn pictures whose truth is known."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from ladder_world import make_world
from PIL import Image
from test_local import texture, turned
from test_report import Page, make_project
from typer.testing import CliRunner

from whaleid.cli.main import app
from whaleid.config import CombineConfig, LocalConfig, Recipe
from whaleid.ensemble.protocol import read_protocol
from whaleid.local_matching.geometric_verification import matched_keypoints
from whaleid.local_matching.keypoints import describe, described_size, read_described
from whaleid.local_matching.rootsift import root_sift
from whaleid.pipeline.metrics import read_metrics
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run
from whaleid.pipeline.workspace import Workspace
from whaleid.report import matches
from whaleid.report.examples import choose_examples
from whaleid.report.inputs import Results, read_results
from whaleid.report.matches import best_match, draw_image_pair, match_example, write_matches
from whaleid.report.page import write_report
from whaleid.report.paths import COUNT, find_paths
from whaleid.retrieval.graph import find_neighbours, neighbour_graph
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import write_json

LOCAL = {"size": 128, "keypoints": 120}


def make_drawn(root: Path) -> Project:
    """The report's small project with a texture for each identity and local matching in its recipe."""
    project = make_project(root)
    for split in ("train", "solution"):
        table = pd.read_csv(root / "data" / f"{split}.csv", dtype=str)
        for number, (name, label) in enumerate(zip(table["Image"], table["Id"], strict=True)):
            seed = int(label[2:]) if label.startswith("w&") else 100 + number
            shown = turned(texture(seed), 2 * number % 7, number)
            cv2.imwrite(str(root / "data" / ("train" if split == "train" else "test") / name), shown)
    for path in (root / "features").glob("fold*/embeddings.npy"):  # it errs often, so that there are paths to show
        np.save(path, np.load(path) + np.random.default_rng(0).normal(0, 2, (36, 12)))
    combine = project.recipe.combine.model_copy(update={"local_matching": LocalConfig.model_validate(LOCAL)})
    return replace(project, recipe=project.recipe.model_copy(update={"combine": combine}))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_drawn(tmp_path_factory.mktemp("drawn"))
    run(made, "ladder")
    return made


@pytest.fixture(scope="module")
def page(project: Project) -> str:
    return write_report(project).read_text()


@pytest.fixture(scope="module")
def results(project: Project) -> Results:
    return read_results(project)


def local_of(results: Results) -> LocalConfig:
    local = results.project.recipe.combine.local_matching
    assert local is not None
    return local


# --------------------------------------------------------------------------------------------- matched keypoints


def test_page_shows_pairs_with_their_matches(project: Project, results: Results, page: str) -> None:
    folder, local = project.workspace.report("own"), local_of(results)
    described = read_described(project.workspace.local("128-120"), results.images)
    chosen = choose_examples(results.final, project.competition.unknown, 3)
    pairs = [
        pair
        for kind in ("right", "wrong")
        for one in chosen[kind]
        for pair in match_example(one, results, described, local)
    ]
    assert len(pairs) >= 3
    parsed = Page(page)
    shown = {path.name for path in folder.glob("matches-*")}
    assert shown == {image for image in parsed.images if image.startswith("matches-")}
    for pair in pairs:
        used = matched_keypoints(described, pair.query, pair.row, local)[2]
        assert f"{used.sum()} of {len(used)} mutual matches agree in geometry" in page
        with Image.open(folder / f"matches-{pair.query}-{pair.row}.jpg") as drawn:
            assert drawn.width > drawn.height
    assert page.count('class="pair right"') == sum(pair.right for pair in pairs)
    assert page.count('class="pair wrong"') == sum(not pair.right for pair in pairs)


def test_a_pair_is_of_the_best_image_in_the_folds_gallery(project: Project, results: Results) -> None:
    """By loops over all images of the identity outside of the query's fold."""
    described = read_described(project.workspace.local("128-120"), results.images)
    local, images = local_of(results), results.images
    fold_of = results.folds.set_index("image")["fold"]
    example = choose_examples(results.final, project.competition.unknown, 1)["right"][0]
    wrong = replace(
        example, guesses=(replace(example.guesses[0], identity="w&1" if example.truth != "w&1" else "w&2"),)
    )
    for asked, count in ((example, 1), (wrong, 2)):
        pairs = match_example(asked, results, described, local)
        assert len(pairs) == count and pairs[-1].identity == example.truth
        for pair in pairs:
            own = np.flatnonzero((images["identity"] == pair.identity) & (images["split"] == "train"))
            gallery = [int(row) for row in own if fold_of[images["image"].iloc[row]] != example.fold]
            counts = [matched_keypoints(described, example.row, row, local)[2].sum() for row in gallery]
            assert pair.row == gallery[int(np.argmax(counts))] and pair.matches[2].sum() == max(counts)
            assert pair.right == (pair.identity == example.truth)
    stranger = replace(example, truth="new<whale>")
    assert len(match_example(stranger, results, described, local)) == 1  # the truth has no image to show


def test_best_match_is_another_photograph_of_it(project: Project, results: Results) -> None:
    described = read_described(project.workspace.local("128-120"), results.images)
    labelled = np.flatnonzero(results.images["split"] == "train")
    own = results.images["identity"].iloc[labelled[0]]
    row, found = best_match(described, int(labelled[0]), labelled[1:], local_of(results))
    assert results.images["identity"].iloc[row] == own and found[2].sum() >= 5


def test_points_fall_where_they_are_in_the_view(tmp_path: Path) -> None:
    """The middle and a corner of what is described are the middle and that corner of the view."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((120, 240, 3), 90, np.uint8))
    images = pd.DataFrame(
        {"image": ["a", "b"], "path": "a.png", "x0": 20.0, "y0": 10.0, "x1": 220.0, "y1": [110.0, 60.0]}
    )
    points = np.array([[39.5, 19.5], [0, 0]]), np.array([[39.5, 9.5], [0, 0]])
    assert described_size(np.array([20, 10, 220, 110]), 80) == (80, 40)
    drawn = draw_image_pair(images, tmp_path, (0, 1), (*points, np.array([True, True])), 80)
    assert drawn.shape == (235, 470 + 6 + 470, 3)
    for x, y in ((234, 117), (476 + 234, 58), (2, 2), (478, 2)):
        assert drawn[y, x].tolist() == [60, 200, 60]
    assert drawn[200, 476 + 200].tolist() == [0, 0, 0] and drawn[200, 100].tolist() == [90, 90, 90]


def test_without_keypoints_the_page_says_so(project: Project, tmp_path: Path) -> None:
    kept = project.workspace.local("128-120")
    kept.rename(tmp_path / "away")
    try:
        page = write_report(project).read_text()
    finally:
        (tmp_path / "away").rename(kept)
    assert "The keypoints are not in the work folder" in page and "matches-" not in page
    bare = CombineConfig.model_validate({**project.recipe.combine.model_dump(), "local_matching": None})
    without = replace(project, recipe=project.recipe.model_copy(update={"combine": bare}))
    assert "Matched keypoints" not in write_report(without).read_text()


def test_one_pair_can_be_asked_for(project: Project, results: Results, tmp_path: Path) -> None:
    """Described anew, two images have the very matches that the stage's keypoints give."""
    names = results.images["image"].tolist()
    found = write_matches(project, (names[0], names[2]), tmp_path / "pair.png")
    described = read_described(project.workspace.local("128-120"), results.images)
    for one, other in zip(found, matched_keypoints(described, 0, 2, local_of(results)), strict=True):
        assert np.array_equal(one, other)
    with Image.open(tmp_path / "pair.png") as drawn:
        assert drawn.format == "PNG" and drawn.width > matches.SIZE[1]
    same = write_matches(project, (names[0], names[0]), tmp_path / "same.PNG")
    assert same[2].all() and np.array_equal(same[0], same[1])


def test_the_command_draws_a_pair(project: Project, tmp_path: Path) -> None:
    """By the name of a YAML, as on the command line; a recipe without local matching takes its defaults."""
    given = project.competition.model_dump(mode="json", exclude={"rename_values"})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(given))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"folds": 2, "sources": project.recipe.sources}))
    out = tmp_path / "deeper" / "pair.png"
    options = ["-c", str(tmp_path / "tiny.yaml"), "-r", str(tmp_path / "own.yaml"), "-w", str(tmp_path / "work")]
    found = CliRunner().invoke(app, ["matches", "00&.png", "01&.png", "--output", str(out), *options])
    assert found.exit_code == 0 and re.fullmatch(rf"{out}: \d+ of \d+ mutual matches agree in geometry\n", found.output)
    with Image.open(out) as drawn:
        assert drawn.format == "PNG"


def test_a_pair_that_cannot_be_drawn_is_one_line(project: Project, tmp_path: Path) -> None:
    for names, path, said in (
        (("00&.png", "01.png"), "x.png", r"no image '01\.png' in the competition; did you mean '\d1&\.png'\?"),
        (("00&.png", "01&.png"), "x.jpg", r"x\.jpg: the image is written as PNG"),
    ):
        with pytest.raises(WhaleidError, match=said) as caught:
            write_matches(project, names, tmp_path / path)
        assert "\n" not in str(caught.value) and not (tmp_path / path).exists()


def test_described_size_is_that_of_what_is_described(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), cv2.resize(texture(3), (300, 128)))
    box = np.array([0, 0, 300, 128])
    _, points = describe(tmp_path / "a.png", box, LocalConfig(size=100))
    assert described_size(box, 100) == (100, 43) and described_size(box, 600) == (600, 256)  # smaller ones are enlarged
    assert points[:, 0].max() < 100 and points[:, 1].max() < 43 and len(root_sift(texture(3), 5)[0]) == 5


# -------------------------------------------------------------------------------------------------------- paths


def test_paths_are_the_strongest_of_misled_queries() -> None:
    """Against all cosines and the products of all paths, found by loops."""
    world = make_world(identities=40, seed=2, noise=1.3, dims=10)
    part = read_protocol(world.images, world.folds, world.competition, [0, 1, 2]).parts[1]
    classes = np.unique(world.images["identity"].dropna().astype(str))
    classes = classes[classes != world.competition.unknown]
    nodes = np.sort(np.concatenate([part.training, part.rows]))
    embeddings = world.latent[nodes].astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    graph = neighbour_graph(find_neighbours(embeddings, 4), 3.0)
    paths = find_paths(embeddings, nodes, graph, part, classes)

    cosine = embeddings @ embeddings.T
    best = np.where(graph.toarray() > 0, cosine, 0) + np.eye(len(nodes))
    for middle in range(len(nodes)):  # Floyd and Warshall, with products
        best = np.maximum(best, best[:, middle, None] * best[None, middle])
    names = world.images["identity"].to_numpy()
    place = {int(row): number for number, row in enumerate(nodes)}
    gallery = [place[int(row)] for row in part.gallery]
    expected = {}
    for row, truth in zip(part.rows, part.truth, strict=True):
        query = place[int(row)]
        nearest = max(gallery, key=lambda other: cosine[query, other])
        own = [other for other in gallery if names[nodes[other]] == names[row]]
        if truth >= 0 and names[nodes[nearest]] != names[row] and best[query, own].max() > 0:
            expected[int(row)] = best[query, own].max(), cosine[query, own].max(), names[nodes[nearest]]
    found = {path.rows[0]: path for path in paths}
    assert len(found) == len(paths) >= 5
    for row, path in found.items():
        strength, direct, nearest = expected[row]
        assert path.strength == pytest.approx(strength, rel=1e-4) and path.direct == pytest.approx(direct, rel=1e-4)
        assert path.nearest == nearest and names[path.rows[-1]] == names[row] and len(path.rows) > 2
        assert [cosine[place[a], place[b]] for a, b in pairwise(path.rows)] == pytest.approx(path.similarity)
        assert path.rows[-1] in part.gallery
    edges = graph.toarray() > 0
    stronger = {row for row, (strength, direct, _) in expected.items() if strength > direct + 1e-6}
    assert found.keys() <= stronger
    for row in stronger - set(found):  # those left out are tied to their identity by one edge
        own = [other for other in gallery if names[nodes[other]] == names[row]]
        assert max(cosine[place[row], other] * edges[place[row], other] for other in own) == pytest.approx(
            expected[row][0], rel=1e-4
        )
    strengths = [path.strength for path in paths]
    assert strengths == sorted(strengths, reverse=True)


def test_page_draws_paths(project: Project, results: Results) -> None:
    """Every image knows two others, so that few are tied directly."""
    rerank = {"diffusion": {"neighbours": [2]}}
    settings = project.recipe.model_dump()
    settings["combine"]["rerank"] = rerank
    page = write_report(replace(project, recipe=Recipe.model_validate(settings))).read_text()
    assert "linked to its\n2 nearest" in page
    shown = page[page.index('id="paths"') : page.index('id="folds"')]
    assert 1 <= shown.count('class="sheet path"') <= COUNT
    for strip in re.findall(r'<div class="sheet path">.*?</div>', shown, re.DOTALL):
        rows = [int(row) for row in re.findall(r"images/(\d+)\.webp", strip)]
        assert len(rows) >= 3 and strip.count('class="step"') == len(rows) - 1
        identity = results.images["identity"].iloc[rows].tolist()
        assert identity[0] == identity[-1]
        assert strip.count('class="right"') == sum(one == identity[0] for one in identity[1:])


# ------------------------------------------------------------------------------------------------ curves and bars


def with_ladder(project: Project, root: Path, **changes: object) -> Project:
    """A copy of the work folder with other figures in the ladder of its metrics.json."""
    workspace = Workspace(root / "tiny")
    shutil.copytree(project.workspace.root, workspace.root, ignore=shutil.ignore_patterns("report"))
    figures = read_metrics(project)
    figures["own"]["ladder"] |= changes
    write_json(workspace.metrics, figures)
    return replace(project, workspace=workspace)


def test_page_tells_what_another_share_of_unknown_costs(project: Project, page: str, tmp_path: Path) -> None:
    shares = read_metrics(project)["own"]["ladder"]["shares"]
    lost = [f"{loss:.4f}" if (loss := point["best"] - point["kept"]) > 0 else "nothing" for point in shares]
    assert f"{lost[0]} at 0.0 % and {lost[-1]} at 80.0 %" in page and "shares" in Page(page).charts
    ends = [{"share": share, "kept": 0.5, "best": best} for share, best in ((0.0, 0.7), (0.8, 0.4))]
    shown = write_report(with_ladder(project, tmp_path / "ends", shares=ends)).read_text()
    assert "0.2000 at 0.0 % and nothing at 80.0 %" in shown
    for changes in ({"shares": []}, {"shares": None}):
        without = write_report(with_ladder(project, tmp_path / str(changes), **changes)).read_text()
        assert "the thresholds in use lose" not in without and "shares" not in Page(without).charts


def test_page_shows_what_the_stack_looks_at(project: Project, page: str, tmp_path: Path) -> None:
    assert "The stack" not in page
    importance = {"<odds> of $x$": 0.75, "images": 0.25}
    moved = with_ladder(project, tmp_path, stack={"rounds": [1], "rows": 9, "importance": importance})
    shown = write_report(moved).read_text()
    assert "#stack" in Page(shown).links
    assert shown.index("&lt;odds&gt; of $x$</td><td>75.0 %") < shown.index("images</td><td>25.0 %")
    unused = with_ladder(project, tmp_path / "unused", stack={"rounds": [1, 0], "rows": 9, "importance": importance})
    assert "ranked without trees" not in write_report(moved).read_text()
    assert "ranked without trees" in " ".join(write_report(unused).read_text().split())
