"""`whaleid masks`: masks that a network makes, boxes around them, and the sheet to look at."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from test_cli import done

from whaleid.config import Competition
from whaleid.config.settings import read_settings
from whaleid.data import segmentation
from whaleid.data.boxes import placed_boxes
from whaleid.data.competition import read_rows
from whaleid.data.images_table import build_images
from whaleid.data.masks import masks_of, read_mask
from whaleid.data.segmentation import (
    WEIGHTS_FILE,
    box_of_mask,
    boxes_of_masks,
    load_segmenter,
    make_masks,
    segment_box,
)
from whaleid.report.mask_sheet import MOST_BYTES, write_mask_sheet
from whaleid.utils.errors import WhaleidError

SIZE = 60, 40
ANIMALS = [(5, 10, 25, 30), (20, 5, 55, 35), (10, 10, 30, 20), (0, 0, 20, 20), (30, 20, 60, 40)]
"""x0, y0, x1, y1 of a light rectangle on dark ground."""


def by_brightness(image: np.ndarray) -> np.ndarray:
    """Stands in for the network: what is light is the animal."""
    return np.where(image.mean(axis=2) > 128, 255, 0).astype(np.uint8)


@pytest.fixture
def competition(tmp_path: Path) -> Competition:
    (tmp_path / "data" / "train").mkdir(parents=True)
    for number, (x0, y0, x1, y1) in enumerate(ANIMALS):
        picture = np.full((SIZE[1], SIZE[0], 3), 30, np.uint8)
        picture[y0:y1, x0:x1] = 220
        Image.fromarray(picture).save(tmp_path / "data" / "train" / f"{number}.png")
    names = [f"{number}.png" for number in range(len(ANIMALS))]
    pd.DataFrame({"image": names, "who": list("aabbb")}).to_csv(tmp_path / "data" / "train.csv", index=False)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / WEIGHTS_FILE).write_bytes(b"stands in")
    table = {"csv": "train.csv", "images": "train", "image": "image", "identity": "who"}
    return Competition.model_validate({"name": "drawn", "root": tmp_path / "data", "train": table})


def images_of(competition: Competition) -> pd.DataFrame:
    return build_images(competition, read_rows(competition), workers=1)


def test_a_stopped_command_continues_and_other_masks_are_kept(
    competition: Competition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "cores", lambda: 1)
    seen: list[int] = []

    def stops_at_the_third(image: np.ndarray) -> np.ndarray:
        seen.append(len(seen))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return by_brightness(image)

    out, weights = tmp_path / "masks", tmp_path / "weights"
    monkeypatch.setattr(segmentation, "load_segmenter", lambda _: stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_masks(images_of(competition), competition, out, weights)
    whole = {path.name for path in out.iterdir()}
    assert {"0.png", "1.png"} <= whole <= {"0.png", "1.png", "3.png", "4.png"}  # none is half there

    by_hand = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    by_hand[:5] = 255
    Image.fromarray(by_hand).save(out / "2.png")
    monkeypatch.setattr(segmentation, "load_segmenter", lambda _: by_brightness)
    done = make_masks(images_of(competition), competition, out, weights)
    assert (done.made, done.kept, done.whole) == (len(ANIMALS) - len(whole) - 1, len(whole) + 1, 0)
    masked = competition.model_copy(update={"masks": str(out)})
    for number, mask in enumerate(masks_of(masked, images_of(masked)) or []):
        expected = np.zeros((SIZE[1], SIZE[0]), np.uint8)
        x0, y0, x1, y1 = ANIMALS[number]
        expected[y0:y1, x0:x1] = 255
        assert np.array_equal(read_mask(mask), by_hand if number == 2 else expected)

    Image.fromarray(np.full((SIZE[1], SIZE[0], 3), 40, np.uint8)).save(competition.root / "train" / "4.png")
    done = make_masks(images_of(competition), competition, out, weights)  # another picture of the same name
    assert (done.made, done.kept, done.whole) == (1, 4, 1)
    assert (read_mask((masks_of(masked, images_of(masked)) or [])[4]) == 255).all()


def test_boxes_lie_around_the_masks_and_can_be_read_as_boxes(
    competition: Competition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "load_segmenter", lambda _: by_brightness)
    images, out = images_of(competition), tmp_path / "masks"
    make_masks(images, competition, out, tmp_path / "weights")
    boxes_of_masks(images, competition, out).to_csv(tmp_path / "boxes.csv", index=False)
    boxes, given_boxes = placed_boxes(tmp_path / "boxes.csv", images["image"], images[["width", "height"]].to_numpy())
    assert given_boxes.all() and boxes.tolist() == [list(map(float, box)) for box in ANIMALS]
    write_mask_sheet(
        images,
        competition.root,
        masks_of(competition.model_copy(update={"masks": str(out)}), images) or [],
        tmp_path / "sheet.jpg",
    )
    assert (tmp_path / "sheet.jpg").stat().st_size <= MOST_BYTES
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.width > 1000


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, (12, 15), elements=st.sampled_from([0, 0, 0, 255])))
def test_a_box_holds_all_that_is_no_speck(mask: np.ndarray) -> None:
    x0, y0, x1, y1 = box_of_mask(mask).astype(int)
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    areas = [int((labels == part).sum()) for part in range(1, count)]
    large = np.isin(labels, [part for part in range(1, count) if areas[part - 1] >= 0.1 * max(areas)])
    if not areas:
        assert (x0, y0, x1, y1) == (0, 0, 15, 12)
        return
    rows, columns = np.flatnonzero(large.any(axis=1)), np.flatnonzero(large.any(axis=0))
    assert (x0, y0, x1, y1) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_nothing_is_white_outside_of_a_box() -> None:
    image = np.full((40, 60, 3), 200, np.uint8)
    mask, found = segment_box(image, np.array([10.0, 5.0, 30.0, 25.0]), by_brightness)
    expected = np.zeros((40, 60), np.uint8)
    expected[5:25, 10:30] = 255
    assert found and np.array_equal(mask, expected)


@pytest.mark.skipif(not (read_settings().weights / WEIGHTS_FILE).is_file(), reason=f"no {WEIGHTS_FILE} here")
def test_the_network_finds_a_drawn_blob() -> None:
    y, x = np.mgrid[:200, :300]
    inside = ((x - 170) / 70) ** 2 + ((y - 90) / 50) ** 2 < 1
    rng = np.random.default_rng(0)
    picture = np.where(inside[..., None], [200, 120, 60], [60, 110, 70]) + rng.normal(0, 6, (200, 300, 3))
    mask = load_segmenter(read_settings().weights)(np.clip(picture, 0, 255).astype(np.uint8)) > 0
    assert (mask & inside).sum() / (mask | inside).sum() > 0.95


def test_missing_or_broken_weights_are_one_line(
    competition: Competition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(WhaleidError, match="not a readable ONNX network"):
        make_masks(images_of(competition), competition, tmp_path / "masks", tmp_path / "weights")
    with pytest.raises(WhaleidError, match=f"{WEIGHTS_FILE}: not found"):
        make_masks(images_of(competition), competition, tmp_path / "masks", tmp_path)
    assert not (tmp_path / "masks").exists()


def test_the_command_says_what_to_add_to_the_yaml(
    competition: Competition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(segmentation, "load_segmenter", lambda _: by_brightness)
    monkeypatch.setattr(segmentation, "_weights_path", lambda _: tmp_path / "weights" / WEIGHTS_FILE)
    text = "name: drawn\nroot: data\ntrain: {csv: train.csv, images: train, image: image, identity: who}\n"
    (tmp_path / "drawn.yaml").write_text(text)
    words = ["masks", "-c", "drawn.yaml", "-w", "work"]
    lines = done(monkeypatch, capsys, tmp_path, words).splitlines()
    (tmp_path / "drawn.yaml").write_text(text + "\n".join(lines[-2:]))
    assert "masks" in done(monkeypatch, capsys, tmp_path, ["data", "check", "-c", "drawn.yaml"])
    again = done(monkeypatch, capsys, tmp_path, ["data", "build", "-c", "drawn.yaml", "-w", "work"])
    assert "5 images" in again
