"""The report's matched keypoints, paths, curves and bars, on drawn pictures whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_local import texture, turned
from test_report import Page, make_project

from whaleid.answers import ensemble_stage
from whaleid.config import CombineConfig, LocalConfig
from whaleid.errors import WhaleidError
from whaleid.pipeline import Project
from whaleid.report import matches
from whaleid.report.examples import choose
from whaleid.report.matches import best_match, matches_picture, write_matches
from whaleid.report.material import Material, read_material
from whaleid.report.page import write_report
from whaleid.report.pairs import pairs_of
from whaleid.retrieval.keypoints import describe, described_size, read_described, root_sift
from whaleid.retrieval.verify import matched_keypoints

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
    combine = project.recipe.combine.model_copy(update={"local": LocalConfig.model_validate(LOCAL)})
    return replace(project, recipe=project.recipe.model_copy(update={"combine": combine}))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_drawn(tmp_path_factory.mktemp("drawn"))
    ensemble_stage(made, 1, [])
    return made


@pytest.fixture(scope="module")
def page(project: Project) -> str:
    return write_report(project).read_text()


@pytest.fixture(scope="module")
def material(project: Project) -> Material:
    return read_material(project)


def local_of(material: Material) -> LocalConfig:
    local = material.project.recipe.combine.local
    assert local is not None
    return local


# --------------------------------------------------------------------------------------------- matched keypoints


def test_page_shows_pairs_with_their_matches(project: Project, material: Material, page: str) -> None:
    folder, local = project.workspace.report("own"), local_of(material)
    described = read_described(project.workspace.local("128-120"), material.images)
    chosen = choose(material.final, project.competition.unknown, 3)
    pairs = [
        pair
        for kind in ("right", "wrong")
        for one in chosen[kind]
        for pair in pairs_of(one, material, described, local)
    ]
    assert len(pairs) >= 3
    parsed = Page(page)
    assert set(parsed.pictures) == {path.name for path in folder.iterdir()} - {"index.html"}
    for pair in pairs:
        used = matched_keypoints(described, pair.query, pair.row, local)[2]
        assert f"{used.sum()} of {len(used)} mutual matches agree" in page
        with Image.open(folder / f"matches-{pair.query}-{pair.row}.jpg") as drawn:
            assert drawn.width > drawn.height
    assert page.count('class="pair right"') == sum(pair.right for pair in pairs)
    assert page.count('class="pair wrong"') == sum(not pair.right for pair in pairs)


def test_a_pair_is_of_the_best_image_in_the_folds_gallery(project: Project, material: Material) -> None:
    """By loops over all images of the identity outside of the query's fold."""
    described = read_described(project.workspace.local("128-120"), material.images)
    local, images = local_of(material), material.images
    fold_of = material.folds.set_index("image")["fold"]
    example = choose(material.final, project.competition.unknown, 1)["right"][0]
    wrong = replace(
        example, guesses=(replace(example.guesses[0], identity="w&1" if example.truth != "w&1" else "w&2"),)
    )
    for asked, count in ((example, 1), (wrong, 2)):
        pairs = pairs_of(asked, material, described, local)
        assert len(pairs) == count and pairs[-1].identity == example.truth
        for pair in pairs:
            own = np.flatnonzero((images["identity"] == pair.identity) & (images["split"] == "train"))
            gallery = [row for row in own if fold_of[images["image"].iloc[row]] != example.fold]
            counts = [matched_keypoints(described, example.row, row, local)[2].sum() for row in gallery]
            assert pair.row == gallery[int(np.argmax(counts))] and pair.matches[2].sum() == max(counts)
            assert pair.right == (pair.identity == example.truth)
    stranger = replace(example, truth="new<whale>")
    assert len(pairs_of(stranger, material, described, local)) == 1  # the truth has no image to show


def test_best_match_is_another_photograph_of_it(project: Project, material: Material) -> None:
    described = read_described(project.workspace.local("128-120"), material.images)
    labelled = np.flatnonzero(material.images["split"] == "train")
    own = material.images["identity"].iloc[labelled[0]]
    row, found = best_match(described, int(labelled[0]), labelled[1:], local_of(material))
    assert material.images["identity"].iloc[row] == own and found[2].sum() >= 5


def test_points_fall_where_they_are_in_the_view(tmp_path: Path) -> None:
    """The middle and a corner of what is described are the middle and that corner of the view."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((120, 240, 3), 90, np.uint8))
    images = pd.DataFrame(
        {"image": ["a", "b"], "path": "a.png", "x0": 20.0, "y0": 10.0, "x1": 220.0, "y1": [110.0, 60.0]}
    )
    points = np.array([[39.5, 19.5], [0, 0]]), np.array([[39.5, 9.5], [0, 0]])
    assert described_size(np.array([20, 10, 220, 110]), 80) == (80, 40)
    drawn = matches_picture(images, tmp_path, (0, 1), (*points, np.array([True, True])), 80)
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
    bare = CombineConfig.model_validate({**project.recipe.combine.model_dump(), "local": None})
    without = replace(project, recipe=project.recipe.model_copy(update={"combine": bare}))
    assert "Matched keypoints" not in write_report(without).read_text()


def test_one_pair_can_be_asked_for(project: Project, material: Material, tmp_path: Path) -> None:
    """Described anew, two images have the very matches that the stage's keypoints give."""
    names = material.images["image"].tolist()
    found = write_matches(project, (names[0], names[2]), tmp_path / "pair.png")
    described = read_described(project.workspace.local("128-120"), material.images)
    for one, other in zip(found, matched_keypoints(described, 0, 2, local_of(material)), strict=True):
        assert np.array_equal(one, other)
    with Image.open(tmp_path / "pair.png") as drawn:
        assert drawn.format == "PNG" and drawn.width > matches.VIEW[1]
    same = write_matches(project, (names[0], names[0]), tmp_path / "same.PNG")
    assert same[2].all() and np.array_equal(same[0], same[1])


def test_a_pair_that_cannot_be_drawn_is_one_line(project: Project, tmp_path: Path) -> None:
    for names, path, said in (
        (("00&.png", "01.png"), "x.png", r"no image '01\.png' in the competition; did you mean '\d1&\.png'\?"),
        (("00&.png", "01&.png"), "x.jpg", r"x\.jpg: the picture is a PNG"),
    ):
        with pytest.raises(WhaleidError, match=said) as caught:
            write_matches(project, names, tmp_path / path)
        assert "\n" not in str(caught.value) and not (tmp_path / path).exists()


def test_described_size_is_that_of_what_is_described(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), cv2.resize(texture(3), (300, 128)))
    box = np.array([0, 0, 300, 128])
    _, points = describe(tmp_path / "a.png", box, LocalConfig(size=100))
    assert described_size(box, 100) == (100, 43) and described_size(box, 999) == (300, 128)
    assert points[:, 0].max() < 100 and points[:, 1].max() < 43 and len(root_sift(texture(3), 5)[0]) == 5
