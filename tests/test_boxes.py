"""Boxes: every form of table and JSON gives the same box, and what is no box is named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from whaleid.data.boxes import placed_boxes
from whaleid.utils.errors import WhaleidError

SIZE = np.array([[100, 50], [100, 50]])
NAMES = pd.Series(["a", "b"])


def test_boxes_are_clipped_and_the_rest_is_whole(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("image,x0,y0,x1,y1\nz,0,0,1,1\nb,-5,10.5,70,60\n")
    boxes, given = placed_boxes(path, NAMES, SIZE)
    assert boxes.tolist() == [[0, 0, 100, 50], [0, 10.5, 70, 50]]
    assert given.tolist() == [False, True]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a,0,0,10,10\nb,30,5,30,20\n", r"box \(30, 5, 30, 20\) of b in row 3 is empty or outside"),
        ("a,100,0,140,10\n", "of a in row 2 is empty or outside of its image of 100 x 50"),
        ("a,0,0,ten,10\n", "not a number in row 2"),
        ("a,0,0,inf,10\n", "not a number in row 2"),
        ("a,0,0,10,10\na,0,0,9,9\n", "second box in row 3"),
        ("A.jpg,0,0,10,10\n", r"none of its images \(A.jpg, ...\)"),
    ],
)
def test_bad_boxes(tmp_path, rows, words):
    path = tmp_path / "boxes.csv"
    path.write_text("image,x0,y0,x1,y1\n" + rows)
    with pytest.raises(WhaleidError, match=words):
        placed_boxes(path, NAMES, SIZE)


COCO = """{"images": [{"id": 3, "file_name": "b"}, {"id": 4, "file_name": "z"}],
 "annotations": [{"id": 1, "image_id": 3, "bbox": [10, 20, 40, 25]}]}"""
MEGADETECTOR = """{"detection_categories": {"1": "animal", "2": "person"}, "images": [
 {"file": "train/b", "detections": [{"category": "1", "conf": 0.3, "bbox": [0, 0, 1, 1]},
  {"category": "1", "conf": 0.8, "bbox": [0.1, 0.4, 0.4, 0.5]},
  {"category": "2", "conf": 0.9, "bbox": [0, 0, 0.1, 0.1]}]},
 {"file": "train/a", "detections": null}]}"""


@pytest.mark.parametrize(
    "text",
    [
        "image,x0,y0,x1,y1\na,,,,\nb,10,20,50,45\n",
        "image,x0,y0,x1,y1\nb,0.1,0.4,0.5,0.9\n",
        "image,x,y,w,h\nb,10,20,40,25\n",
        'image,bbox\na,\nb,"[10.0, 20, 40, 25]"\n',
        COCO,
        MEGADETECTOR,
    ],
    ids=["corners", "shares", "sides", "bbox", "coco", "megadetector"],
)
def test_every_form_gives_the_same_box(tmp_path, text):
    path = tmp_path / "boxes"
    path.write_text(text)
    boxes, given = placed_boxes(path, NAMES, SIZE, "train/" + NAMES)
    np.testing.assert_allclose(boxes, [[0, 0, 100, 50], [10, 20, 50, 45]])
    assert given.tolist() == [False, True]


@pytest.mark.parametrize("text", ["{", "{}", '{"images": 3}', COCO.replace("25]", "x]"), COCO.replace('"bbox"', '"b"')])
def test_a_json_that_is_neither_is_one_line(tmp_path, text):
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(WhaleidError, match=r"boxes\.json: neither COCO's JSON nor MegaDetector's") as error:
        placed_boxes(path, NAMES, SIZE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("box", ["[1, 2, 3]", "[1, 2, 3, 4, 5]", "[1, 2, x, 4]"])
def test_a_bbox_that_is_no_box_is_named(tmp_path, box):
    path = tmp_path / "boxes.csv"
    path.write_text(f'image,bbox\na,"{box}"\n')
    with pytest.raises(WhaleidError, match="not a number in row 2"):
        placed_boxes(path, NAMES, SIZE)
