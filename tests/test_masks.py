"""Masks keep the background's keypoints out: names, pixels, bad input, and what has to be made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from ladder_world import recipe
from pipeline_world import keypoints_of
from test_local import texture, turned, write_images

from whaleid.config import Competition, LocalConfig
from whaleid.config.settings import Settings
from whaleid.data.check import check_data
from whaleid.data.masks import Mask, mask_name, masks_key, masks_of, read_mask, resize_mask
from whaleid.features.context import context_of, measure_context
from whaleid.local_matching.geometric_verification import matched_keypoints
from whaleid.local_matching.keypoints import describe, describe_images, described_together, read_described
from whaleid.local_matching.rootsift import root_sift
from whaleid.pipeline.keys import cache_key, candidates_key, folds_key, keypoints_key
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run
from whaleid.pipeline.transfer import copy_masks, project_from_json, project_to_json
from whaleid.pipeline.workspace import Workspace, read_images
from whaleid.utils.errors import WhaleidError

CONFIG = LocalConfig(size=128, keypoints=60)


def disc(width: int, height: int) -> np.ndarray:
    """A white disc in the middle, uint8 (height, width)."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) / width) ** 2 + ((y - height / 2) / height) ** 2 < 0.1
    return np.where(inside, 255, 0).astype(np.uint8)


def rows_of(vectors: np.ndarray, points: np.ndarray) -> set[tuple]:
    return {(*point, *vector) for vector, point in zip(vectors.tolist(), points.tolist(), strict=True)}


def make_project(root: Path, masks: str | None = "masks", local: bool = True) -> Project:
    """Four labelled and two test pictures in folders of their own, each with its mask."""
    for folder in ("train/x", "test", "masks/x"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = ["x/0.png", "x/1.png", "x/2.png", "x/3.png"]
    for number, name in enumerate(names):
        cv2.imwrite(str(root / "train" / name), texture(number // 2))
        cv2.imwrite(str(root / "masks" / name), disc(128, 128))
    for number in (8, 9):
        cv2.imwrite(str(root / "test" / f"{number}.png"), texture(number - 8))
        cv2.imwrite(str(root / "masks" / f"{number}.png"), disc(128, 128))
    pd.DataFrame({"image": names, "identity": ["a", "a", "b", "b"]}).to_csv(root / "train.csv", index=False)
    pd.DataFrame({"image": ["8.png", "9.png"]}).to_csv(root / "test.csv", index=False)
    return project_at(root, masks, local)


def project_at(root: Path, masks: str | None = "masks", local: bool = True) -> Project:
    """The same, of files that are there already."""
    competition = Competition.model_validate(
        {
            "name": "masked",
            "root": root,
            "train": {"csv": "train.csv", "images": "train", "image": "image", "identity": "identity"},
            "test": {"csv": "test.csv", "images": "./test/", "image": "image"},
            "masks": masks,
        }
    )
    made = recipe(local_matching={"size": 128, "keypoints": 60} if local else None)
    return Project(competition, made, (), Workspace(root / "work" / "masked"))


# ----------------------------------------------------------------------------------------------------- names


def test_a_mask_has_the_name_of_its_picture(tmp_path: Path) -> None:
    competition = make_project(tmp_path).competition
    assert mask_name(competition, "train", "train/x/a.b.jpg") == "x/a.b.png"
    assert mask_name(competition, "test", "test/c.JPEG") == "c.png"
    images = pd.DataFrame(
        {"split": ["test", "train"], "path": ["test/8.png", "train/x/0.png"], "width": 3, "height": 2}
    )
    masks = masks_of(competition, images)
    assert masks == [Mask(tmp_path / "masks/8.png", (3, 2)), Mask(tmp_path / "masks/x/0.png", (3, 2))]
    assert masks_of(competition.model_copy(update={"masks": None}), images) is None


# ---------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("most", [5, 30, 10_000])
def test_the_strongest_keypoints_of_the_animal_are_kept(most: int) -> None:
    """All keypoints, those on white, the strongest of them: one by one."""
    grey, white = texture(1), disc(128, 128)
    vectors, points = root_sift(grey, 10_000)
    on = [row for row, (x, y, *_) in enumerate(points) if white[int(y + 0.5), int(x + 0.5)]]
    assert 5 < len(on) < len(points)
    found = root_sift(grey, most, white)
    assert len(found[0]) == min(most, len(on))
    assert rows_of(*found) <= rows_of(vectors[on], points[on])
    if most == 5:  # the strongest on white, of which some stand behind stronger ones of the background
        assert rows_of(*found) != rows_of(vectors[:5], points[:5])
        assert rows_of(*found) & rows_of(vectors[on[:4]], points[on[:4]]) == rows_of(vectors[on[:4]], points[on[:4]])


def test_white_changes_nothing_and_black_leaves_nothing() -> None:
    grey = texture(2)
    assert rows_of(*root_sift(grey, 10_000, np.full_like(grey, 255))) == rows_of(*root_sift(grey, 10_000))
    vectors, points = root_sift(grey, 50, np.zeros_like(grey))
    assert vectors.shape == (0, 128) and points.shape == (0, 4)


def test_the_mask_follows_box_and_size(tmp_path: Path) -> None:
    """A JPEG decoded at a quarter, cut to a box and shrunk: every keypoint lies on white of the original mask."""
    wide = cv2.resize(texture(3, 256), (1600, 1200))
    mask = np.zeros((1200, 1600), np.uint8)
    mask[300:900, 500:800] = 255
    cv2.imwrite(str(tmp_path / "a.jpg"), wide)
    cv2.imwrite(str(tmp_path / "a.png"), mask)
    box = np.array([404.0, 202.0, 1204.0, 1002.0])
    config = LocalConfig(size=100, keypoints=500)
    every = describe(tmp_path / "a.jpg", box, config)
    found = describe(tmp_path / "a.jpg", box, config, Mask(tmp_path / "a.png", (1600, 1200)))
    x, y = (every[1][:, :2] + 0.5).T * 8 + np.array([[404], [202]]) - 0.5
    clear = (np.abs(x - 500) > 9) & (np.abs(x - 800) > 9) & (np.abs(y - 300) > 9) & (np.abs(y - 900) > 9)
    on = (x > 500) & (x < 800) & (y > 300) & (y < 900)
    assert 5 < (on & clear).sum() < len(on) / 2
    kept = rows_of(*found)
    assert rows_of(every[0][on & clear], every[1][on & clear]) <= kept
    assert not rows_of(every[0][~on & clear], every[1][~on & clear]) & kept


def test_a_shared_background_does_not_match(tmp_path: Path) -> None:
    """Two animals before one bush: without masks the bush matches, with them nothing does; one animal still does."""
    bush = texture(50, 160)
    white = np.zeros((160, 160), np.uint8)
    white[30:130, 30:130] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), white)
    animals = [texture(1, 100), texture(2, 100), cv2.resize(turned(texture(1, 100), 3, 0), (100, 100))]
    for number, animal in enumerate(animals):
        shown = (bush if number < 2 else texture(51, 160)).copy()
        shown[30:130, 30:130] = animal
        cv2.imwrite(str(tmp_path / f"{number}.png"), shown)
    config, box = LocalConfig(size=160, keypoints=300), np.array([0, 0, 160, 160])
    counts = {}
    for mask in (None, Mask(tmp_path / "mask.png", (160, 160))):
        described = described_together([describe(tmp_path / f"{n}.png", box, config, mask) for n in range(3)])
        counts[mask is None] = [int(matched_keypoints(described, 0, other, config)[2].sum()) for other in (1, 2)]
    assert counts[True][0] > 20 and counts[False][0] <= 2
    assert counts[False][1] >= 8


def test_resized_mask() -> None:
    mask = disc(64, 48)
    assert resize_mask(mask, (64, 48)) is mask
    small, large = resize_mask(mask, (32, 24)), resize_mask(mask, (128, 96))
    assert small.shape == (24, 32) and large.shape == (96, 128)
    for other, factor in ((small, 4), (large, 1 / 4)):
        assert set(np.unique(other)) == {0, 255}
        assert (other > 0).sum() * factor == pytest.approx((mask > 0).sum(), rel=0.05)


# ------------------------------------------------------------------------------------------------- bad input


def test_each_bad_mask_is_one_line(tmp_path: Path) -> None:
    good = disc(20, 10)
    cv2.imwrite(str(tmp_path / "good.png"), good)
    cv2.imwrite(str(tmp_path / "grey.png"), good // 255)
    cv2.imwrite(str(tmp_path / "black.png"), good * 0)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert np.array_equal(read_mask(Mask(tmp_path / "good.png", (20, 10))), good)
    assert not read_mask(Mask(tmp_path / "black.png", (20, 10))).any()
    for name, size, message in (
        ("none.png", (20, 10), r"none\.png: mask not found; every image needs one"),
        ("good.png", (10, 20), r"good\.png: the mask is 20 x 10 pixels, its image 10 x 20"),
        ("grey.png", (20, 10), r"grey\.png: its brightest pixel is 1 of 255"),
        ("broken.png", (20, 10), r"broken\.png: not an image"),
    ):
        with pytest.raises(WhaleidError, match=message) as caught:
            read_mask(Mask(tmp_path / name, size))
        assert "\n" not in str(caught.value)


def test_bad_masks_are_counted_and_nothing_is_left(tmp_path: Path) -> None:
    images = write_images(tmp_path, [texture(number) for number in range(4)])
    masks = [Mask(tmp_path / f"m{number}.png", (128, 128)) for number in range(4)]
    for number in (0, 3):
        cv2.imwrite(str(tmp_path / f"m{number}.png"), disc(128, 128 - number))
    message = r"3 of 4 images cannot be used: .*m1\.png: mask not found.*m2\.png.*m3\.png: the mask is 128 x 125"
    with pytest.raises(WhaleidError, match=message) as caught:
        describe_images(images, tmp_path, tmp_path / "out" / "local", CONFIG, 2, masks)
    assert "\n" not in str(caught.value) and not list((tmp_path / "out").iterdir())


def test_the_check_of_the_data_names_bad_masks(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    good = check_data(project.competition, 1)
    assert (
        good.counts["masks"] == 6
        and good.ok
        and any(line.split() == ["masks", "6", "of", "6", "images"] for line in good.lines())
    )
    (tmp_path / "masks" / "x" / "1.png").unlink()
    cv2.imwrite(str(tmp_path / "masks" / "9.png"), disc(128, 64))
    bad = check_data(project.competition, 1)
    assert bad.counts["masks"] == 4 and len(bad.problems) == 1
    assert "1.png: mask not found" in bad.problems[0] and bad.problems[0].endswith("(and 1 more such masks)")
    missing = check_data(project_at(tmp_path, "elsewhere").competition, 1)
    assert missing.counts["masks"] == 0 and "elsewhere: folder of masks not found" in missing.problems[0]
    assert check_data(project_at(tmp_path, None).competition, 1).counts["masks"] is None


def test_no_folder_of_masks(tmp_path: Path) -> None:
    project = make_project(tmp_path, masks="elsewhere")
    with pytest.raises(WhaleidError, match="elsewhere: folder of masks not found; put it there or set masks to null"):
        keypoints_of(project)


# --------------------------------------------------------------------------------------------------- the stage


def test_stage_describes_the_animals_alone(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    folder = keypoints_of(project)
    assert folder is not None
    images = read_images(project.workspace)
    described = read_described(folder, images)
    for row, path in enumerate(images["path"]):
        grey = cv2.imread(str(tmp_path / path), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        assert rows_of(*described.image(row)) == rows_of(*root_sift(grey, 60, disc(128, 128)))


def test_keys_know_the_masks_and_nothing_else_does(tmp_path: Path) -> None:
    """Another mask: keypoints and answer are made again; images, folds and what is trained stay."""

    def keys(masks: str | None = "masks", local: bool = True) -> tuple[str, str, list[str]]:
        project = project_at(tmp_path, masks, local)
        sources = project.recipe.model_copy(update={"sources": {"x": str(tmp_path / "features")}})
        project = replace(project, recipe=sources)
        others = [project.keys.images, project.keys.labelled, folds_key(project), cache_key(project, "n")]
        return keypoints_key(project, "n") if local else "", candidates_key(project), others

    make_project(tmp_path)
    (tmp_path / "features").mkdir()
    before, bare, apart = keys(), keys(None), keys(local=False)
    assert before[0] != bare[0] and before[1] != bare[1] and before[2] == bare[2] == apart[2]
    cv2.imwrite(str(tmp_path / "masks" / "x" / "2.png"), 255 - disc(128, 128))
    after = keys()
    assert after[0] != before[0] and after[1] != before[1] and after[2] == before[2]
    assert keys(None) == bare and keys(local=False) == apart
    assert masks_key(project_at(tmp_path, None).competition) == ""


def test_a_kernel_carries_the_test_images_masks_and_the_key(tmp_path: Path) -> None:
    project = make_project(tmp_path / "home")
    run(project, "images")
    images = read_images(project.workspace)
    copy_masks(project.competition, images[images["split"] == "test"], tmp_path / "carried")
    assert sorted(path.name for path in (tmp_path / "carried").rglob("*.png")) == ["8.png", "9.png"]
    settings = Settings(work=tmp_path / "there")
    there = project_from_json(project_to_json(project), tmp_path / "home", settings, masks=tmp_path / "carried")
    assert there.keys == project.keys and keypoints_key(there, "n") == keypoints_key(project, "n")
    test = images[images["split"] == "test"]
    masks = masks_of(there.competition, test)
    assert masks is not None and [read_mask(mask).shape for mask in masks] == [(128, 128)] * 2
    bare = project_at(tmp_path / "home", masks=None)
    copy_masks(bare.competition, test, tmp_path / "none")
    assert not (tmp_path / "none").exists()


# -------------------------------------------------------------------------------------------------- context ratio


def write_pictures(root: Path, marked: str) -> tuple[pd.DataFrame, list[Mask]]:
    """Twelve pictures of four individuals whose colour is that of the animal, or of the background; their masks."""
    rng, rows, masks = np.random.default_rng(0), [], []
    colours = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [220, 220, 40]])
    white = disc(32, 32) > 0
    cv2.imwrite(str(root / "mask.png"), 255 * white.astype(np.uint8))
    for number in range(12):
        noise = rng.integers(0, 255, (32, 32, 3))
        coloured = white if marked == "animal" else ~white
        picture = np.where(coloured[..., None], colours[number % 4], noise).astype(np.uint8)
        cv2.imwrite(str(root / f"{number}.png"), picture)
        rows.append({"image": f"{number}.png", "path": f"{number}.png", "identity": f"id{number % 4}"})
        masks.append(Mask(root / "mask.png", (32, 32)))
    return pd.DataFrame(rows).assign(x0=0.0, y0=0.0, x1=32.0, y1=32.0), masks


class MeanColour:
    """A network that sees the mean colour only, without grey."""

    batch, size = 5, (32, 32)
    run = type("Run", (), {"experiment": type("E", (), {"image": type("I", (), {"box_margin": 0.0})})})

    def without_mirror(self) -> MeanColour:
        return self

    def embed(self, shown: np.ndarray) -> list[np.ndarray]:
        mean = shown.reshape(len(shown), -1, 3).mean(axis=1) - 128
        return [mean / np.linalg.norm(mean, axis=1, keepdims=True)]


@pytest.mark.parametrize("marked", ["animal", "background"])
def test_the_context_ratio_says_where_the_mark_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marked: str) -> None:
    monkeypatch.setattr("whaleid.features.extractor.load_extractor", lambda *_: MeanColour())
    images, masks = write_pictures(tmp_path, marked)
    found = measure_context(tmp_path, images, np.arange(4), np.arange(4, 12), tmp_path, masks)
    assert found.queries == 4
    assert (found.animal if marked == "animal" else found.background) == 1.0
    other = found.background if marked == "animal" else found.animal
    assert other < 1.0
    assert found.ratio == (None if found.animal == 0 else pytest.approx(found.background / found.animal))
    table = found.table[""]
    assert table["queries"] == 4 and table["animal"]["accuracy"] == found.animal
    assert table["mirrored"] == table["one side"] == table["whole"]  # a mean colour is the same in the mirror
    assert len(found.offenders) == round(4 * found.background)


def test_the_interval_of_the_context_ratio_holds_it_and_shrinks() -> None:
    rng = np.random.default_rng(1)
    for count in (100, 1600):
        animal = rng.random(count) < 0.6
        background = rng.random(count) < 0.3
        found = context_of(animal, animal, background)
        assert found.low is not None and found.high is not None and found.ratio is not None
        assert found.low < found.ratio < found.high
        # the delta method for a ratio of two independent means
        p, r = background.mean(), animal.mean()
        error = found.ratio * np.sqrt((1 - p) / p / count + (1 - r) / r / count)
        assert found.high - found.low == pytest.approx(3.92 * error, rel=0.25)
    assert context_of(animal, np.zeros(5, bool), np.ones(5, bool)).ratio is None
